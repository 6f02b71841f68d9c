#!/usr/bin/env python3
"""What a test run may leave on the machine: mounts, processes, files. Finds it, and clears it away.

    scripts/traces.py --clean    aborts and unmounts what tests left under the temporary folder

Mounts elsewhere belong to whoever made them and are never touched. Nothing here stats a mount point: a dead mount would
hang whoever does.
"""

import os
import shutil
import signal
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

FILESYSTEM = "fuse.lighthouse-fs"
PROGRAM = "lighthouse-fs"
# Every run of the test runner has a folder of its own, and names it in its children's environment.
RUN_VARIABLE = "LIGHTHOUSE_TEST_RUN"
RUN_FOLDER_PREFIX = "/tmp/lighthouse-run-"
# Long enough for processes that are on their way out, short enough not to matter.
GRACE_SECONDS = 5.0


@dataclass(frozen=True, order=True)
class Trace:
    """One thing that is there."""

    kind: str  # mount, process or file
    name: str  # mount point, pid or path
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.kind} {self.name} {self.detail}".rstrip()


def mounts() -> dict[str, int]:
    """Our mounts: mount point and number of the connection."""
    found = {}
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields, _, rest = line.partition(" - ")
        if rest.split()[0] == FILESYSTEM:
            _, _, device, _, mountpoint, *_ = fields.split()
            found[mountpoint.replace("\\040", " ")] = int(device.partition(":")[2])
    return found


def run_of(pid: str) -> str:
    """The run that a process belongs to, empty if none or if we may not know."""
    try:
        environment = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return ""
    for entry in environment.split(b"\0"):
        name, _, value = entry.partition(b"=")
        if name.decode(errors="replace") == RUN_VARIABLE:
            return value.decode(errors="replace")
    return ""


def processes(run: str) -> Iterable[Trace]:
    """Processes of this run, and those of the program that belong to no run."""
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            name = Path(f"/proc/{pid}/comm").read_text().strip()
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue  # It ended while we looked.
        owner = run_of(pid)
        if state != "Z" and (owner == run or (name == PROGRAM and not owner)):
            yield Trace("process", pid, name)


def of_another_run(path: str, run: str) -> bool:
    return path.startswith(RUN_FOLDER_PREFIX) and path != run and not path.startswith(run + "/")


def files(run: str) -> Iterable[Trace]:
    folders = [Path("/tmp").glob("lighthouse*"), Path("/run/lighthouse-fs").glob("*"), Path(run).glob("*")]
    for folder in folders:
        for path in folder:
            if str(path) != run:
                yield Trace("file", str(path))


def look(run: str) -> frozenset[Trace]:
    """Everything that could be a trace of the run whose folder is `run`; not what other runs have."""
    found = {Trace("mount", name) for name in mounts()} | set(processes(run)) | set(files(run))
    return frozenset(trace for trace in found if not of_another_run(trace.name, run))


def left_behind(before: frozenset[Trace], run: str) -> list[Trace]:
    """What is there now and was not before, after a moment for things that are just ending."""
    deadline = time.monotonic() + GRACE_SECONDS
    while (left := look(run) - before) and time.monotonic() < deadline:
        time.sleep(0.1)
    return sorted(left)


def unmount(mountpoint: str, connection: int) -> None:
    """Ends a mount that nobody may be serving: first whoever waits for it gets an error, then it goes."""
    abort = Path(f"/sys/fs/fuse/connections/{connection}/abort")
    try:
        abort.write_text("1")
    except OSError as error:
        print(f"cannot abort connection {connection}: {error}", file=sys.stderr)
    if os.spawnlp(os.P_WAIT, "umount", "umount", "--lazy", mountpoint) != 0:
        print(f"cannot unmount {mountpoint}", file=sys.stderr)


def clean(run: str) -> None:
    """Clears away what belongs to the run `run`, and nothing else."""
    for mountpoint, connection in mounts().items():
        if mountpoint.startswith(run + "/"):
            unmount(mountpoint, connection)
    for trace in processes(run):
        if run_of(trace.name) == run:
            try:
                os.kill(int(trace.name), signal.SIGKILL)
            except ProcessLookupError:
                pass  # It ended by itself.
    if any(mountpoint.startswith(run + "/") for mountpoint in mounts()):
        print(f"{run} stays: something in it is still mounted", file=sys.stderr)
        return
    shutil.rmtree(run, ignore_errors=True)


def clean_temporary_folder() -> None:
    """Unmounts everything of ours under /tmp/lighthouse*, whoever left it."""
    for mountpoint, connection in mounts().items():
        if mountpoint.startswith("/tmp/lighthouse"):
            print(f"unmounting {mountpoint}")
            unmount(mountpoint, connection)


if __name__ == "__main__":
    if sys.argv[1:] != ["--clean"]:
        sys.exit(__doc__)
    clean_temporary_folder()
