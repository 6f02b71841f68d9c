#!/usr/bin/env python3
"""Runs the test suites, counts what they did, and holds their times against their budgets.

    scripts/test.py [--tier lint|quick|full|soak] [--list] [SUITE...]

The last line is `N passed, N failed, N skipped`; the exit code is 1 if anything failed.
"""

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import traces

ROOT = Path(__file__).resolve().parent.parent
LIBFUSE2 = "/usr/local/lib/libfuse2/bin"
NEXTEST = shutil.which("cargo-nextest") is not None
# A suite that takes this many times its budget hangs, and is ended.
HANGING = 3

QUICK_BUDGET_SECONDS = 30 * 60
TRACES_BUDGET_SECONDS = 15

# Which suites each tier runs, by the tier they are of.
TIERS = {"lint": ["lint"], "quick": ["lint", "quick"], "full": ["lint", "quick", "full"], "soak": ["soak"]}


@dataclass(frozen=True)
class Suite:
    """A command, and how long it may take. What only builds or checks counts as one test."""

    name: str
    command: list[str]
    budget: int  # seconds
    tier: str = "quick"
    needs: str = ""  # a command without which the suite is skipped
    environment: dict[str, str] = field(default_factory=dict)


def cargo_test(targets: list[str], features: list[str], serial: bool = False, profile: str = "default") -> list[str]:
    """The same tests under cargo-nextest or, where that is not installed, under cargo itself."""
    if NEXTEST:
        # `--success-output immediate`: a test that skips itself passes, and says so in its output.
        return ["cargo", "nextest", "run", "--locked", "--profile", profile, "--no-fail-fast", "--no-tests", "pass",
                "--status-level", "all", "--success-output", "immediate", *features, *targets]  # fmt: skip
    # nextest runs mount tests one at a time by its configuration; cargo has to be told.
    threads = ["--test-threads", "1"] if serial else []
    return ["cargo", "test", "--locked", "--no-fail-fast", *features, *targets, "--", "--show-output", *threads]


UNIT = ["--lib", "--bins", "--examples"]
INTEGRATION = ["--test", "*"]
FEATURE_SETS = {
    "both": [],
    "fuse2 only": ["--no-default-features", "--features", "fuse2"],
    "fuse3 only": ["--no-default-features", "--features", "fuse3"],
}


def suites() -> list[Suite]:
    """Every suite, in the order of running. The cheapest way to fail comes first."""
    found = [
        Suite("format", ["cargo", "fmt", "--check"], 15, tier="lint"),
        Suite("shell scripts", ["shellcheck", "scripts/setup.sh", ".ci/run"], 15, tier="lint"),
        Suite("links in documents", ["scripts/links.py"], 15, tier="lint"),
        Suite("dependencies", ["cargo", "deny", "--locked", "check"], 45, tier="lint", needs="cargo-deny"),
    ]
    lint_budget = {"both": 150, "fuse2 only": 45, "fuse3 only": 45}
    for name, features in FEATURE_SETS.items():
        lint = ["cargo", "clippy", "--locked", "--all-targets", *features, "--", "-D", "warnings"]
        found.append(Suite(f"clippy, {name}", lint, lint_budget[name], tier="lint"))
    found.append(
        Suite(
            "documentation",
            ["cargo", "doc", "--locked", "--no-deps", "--document-private-items"],
            30,
            tier="lint",
            environment={"RUSTDOCFLAGS": "-D warnings"},
        )
    )
    # build, unit, integration
    test_budget = {"both": (180, 40, 600), "fuse2 only": (70, 20, 190), "fuse3 only": (70, 20, 190)}
    for name, features in FEATURE_SETS.items():
        build, unit, integration = test_budget[name]
        compile_only = ["cargo", "test", "--locked", "--no-run", *features]
        found += [
            Suite(f"build, {name}", compile_only, build),
            Suite(f"unit, {name}", cargo_test(UNIT, features), unit),
            Suite(f"integration, {name}", cargo_test(INTEGRATION, features, serial=True), integration),
        ]
    found += [
        Suite("documentation examples", ["cargo", "test", "--locked", "--doc"], 30),
        # The examples too, which one test runs.
        Suite("build, release", ["cargo", "test", "--locked", "--no-run", "--release"], 600, tier="full"),
        Suite(
            "integration, full length",
            cargo_test(INTEGRATION, ["--release"], serial=True, profile="full"),
            3600,
            tier="full",
            environment={"LIGHTHOUSE_TEST_TIER": "full"},
        ),
        Suite(
            "soak",
            cargo_test(["--test", "lossless"], ["--release"], serial=True, profile="full"),
            3600,
            tier="soak",
            environment={"LIGHTHOUSE_TEST_TIER": "soak"},
        ),
    ]
    return found


@dataclass
class Result:
    """What came out of one suite."""

    name: str
    budget: int
    seconds: float = 0.0
    passed: int = 0
    failed: int = 0
    skipped: list[str] = field(default_factory=list)
    hung: bool = False

    def line(self) -> str:
        over = "  over budget" if self.seconds > self.budget else ""
        hung = "  ended: it hung" if self.hung else ""
        return (
            f"{self.name:<28} {self.passed:>5} passed {self.failed:>4} failed {len(self.skipped):>4} skipped"
            f" {self.seconds:>7.1f} s of {self.budget:>4} s{over}{hung}"
        )


# What libtest says around each single test that nextest runs; nextest has said it already.
BOILERPLATE = re.compile(r"\s*(running 1 test|test \S+.* \.\.\. ok|test result: ok\..*|stdout ───)?\s*")
ANSI = re.compile(r"\x1b\[[0-9;]*m")
SKIPPED = re.compile(r"SKIPPED: (\S+): (.+)")
CARGO_SUMMARY = re.compile(r"test result: \w+\. (\d+) passed; (\d+) failed; (\d+) ignored; .* (\d+) filtered out")
NEXTEST_SUMMARY = re.compile(r"Summary \[.*?\] +(?:\d+/)?(\d+) tests? run: (\d+) passed.*?(\d+) skipped")


class Counter:
    """Reads a runner's output line by line."""

    def __init__(self, command: list[str]) -> None:
        # nextest shows each test's own output, which has a summary of cargo's kind in it.
        self.nextest = "nextest" in command
        self.passed = 0
        self.failed = 0
        self.skipped: dict[str, str] = {}
        self.unseen = 0  # left out by the runner itself, which gives no reason
        self.counted = False

    def read(self, line: str) -> None:
        line = ANSI.sub("", line)
        if match := SKIPPED.search(line):
            self.skipped[match[1]] = match[2].strip()
        elif self.nextest and (match := NEXTEST_SUMMARY.search(line)):
            # Whatever was to run and did not pass has failed: a timeout, a crash, a test never reached.
            total, passed, unseen = map(int, match.groups())
            self.add(passed, total - passed, unseen)
        elif not self.nextest and (match := CARGO_SUMMARY.search(line)):
            passed, failed, ignored, filtered = map(int, match.groups())
            self.add(passed, failed, ignored + filtered)

    def add(self, passed: int, failed: int, unseen: int) -> None:
        self.passed += passed
        self.failed += failed
        self.unseen += unseen
        self.counted = True

    def fill(self, result: Result, exit_code: int) -> None:
        if not self.counted:
            self.passed = 1 if exit_code == 0 else 0
        # A suite that fails without a failed test did not build, or its runner died.
        result.failed = self.failed if self.failed or exit_code == 0 else 1
        result.passed = self.passed - len(self.skipped)
        result.skipped = [f"{test}: {reason}" for test, reason in self.skipped.items()]
        if self.unseen:
            result.skipped += ["ignored or filtered by the runner, no reason given"] * self.unseen


def run(suite: Suite, environment: dict[str, str]) -> Result:
    result = Result(suite.name, suite.budget)
    if suite.needs and not shutil.which(suite.needs):
        result.skipped.append(f"{suite.name}: {suite.needs} is not installed")
        return result

    began = time.monotonic()
    process = subprocess.Popen(
        suite.command,
        cwd=ROOT,
        env=environment | suite.environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )

    def end_it() -> None:
        result.hung = True
        os.killpg(process.pid, signal.SIGKILL)

    watchdog = threading.Timer(HANGING * suite.budget, end_it)
    watchdog.start()
    counter = Counter(suite.command)
    assert process.stdout is not None
    for line in process.stdout:
        counter.read(line)
        if not (counter.nextest and BOILERPLATE.fullmatch(line)):
            print(line, end="", flush=True)
    exit_code = process.wait()
    watchdog.cancel()
    counter.fill(result, exit_code)
    result.seconds = time.monotonic() - began
    return result


def make_run_folder(folder: str) -> None:
    os.makedirs(folder, exist_ok=True)
    # Like /tmp itself: daemons of ordinary users work in it too.
    os.chmod(folder, 0o1777)


def run_all(chosen: list[Suite]) -> list[Result]:
    folder = f"{traces.RUN_FOLDER_PREFIX}{os.getpid()}"
    make_run_folder(folder)
    environment = os.environ | {
        traces.RUN_VARIABLE: folder,
        "TMPDIR": folder,
        # libfuse 2's own fusermount goes before the link of that name that libfuse 3 brings.
        "PATH": f"{LIBFUSE2}:{os.environ['PATH']}",
        "CARGO_TERM_COLOR": "never",
        "RUST_BACKTRACE": "1",
    }
    results = []
    clean = Result("nothing left behind", TRACES_BUDGET_SECONDS)
    try:
        for suite in chosen:
            print(f"\n=== {suite.name}: {' '.join(suite.command)}", flush=True)
            before = traces.look(folder)
            result = run(suite, environment)
            results.append(result)
            print(f"--- {result.line()}", flush=True)

            began = time.monotonic()
            left = traces.left_behind(before, folder)
            for trace in left:
                print(f"left behind by {suite.name}: {trace}", flush=True)
            clean.failed += len(left)
            clean.passed += not left
            clean.seconds += time.monotonic() - began
            if left:
                traces.clean(folder)
                make_run_folder(folder)
    finally:
        traces.clean(folder)
    return [*results, clean]


def report(results: list[Result]) -> bool:
    print("\n=== summary")
    for result in results:
        print(result.line())
        for reason in result.skipped:
            print(f"    skipped: {reason}")
    passed = sum(result.passed for result in results)
    failed = sum(result.failed for result in results)
    skipped = sum(len(result.skipped) for result in results)
    seconds = sum(result.seconds for result in results)
    print(f"{seconds:.0f} s of {sum(result.budget for result in results)} s")
    print(f"{passed} passed, {failed} failed, {skipped} skipped", flush=True)
    return failed == 0


def main() -> int:
    every = suites()
    # The promise to whoever runs `make test`; a suite that needs more must get it from another.
    quick = sum(suite.budget for suite in every if suite.tier in TIERS["quick"])
    assert quick + TRACES_BUDGET_SECONDS <= QUICK_BUDGET_SECONDS

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tier", choices=TIERS, default="quick", help="default: quick, what `make test` runs")
    parser.add_argument("--list", action="store_true", help="name the suites and their budgets")
    parser.add_argument("suite", nargs="*", help="run only these")
    arguments = parser.parse_args()

    chosen = [suite for suite in every if suite.tier in TIERS[arguments.tier]]
    if unknown := set(arguments.suite) - {suite.name for suite in every}:
        parser.error(f"no such suite: {', '.join(unknown)}; --list names them")
    if arguments.suite:
        chosen = [suite for suite in every if suite.name in arguments.suite]
    if arguments.list:
        for suite in chosen:
            print(f"{suite.name:<28} {suite.tier:<6} {suite.budget:>5} s  {' '.join(suite.command)}")
        return 0

    setup = subprocess.run([ROOT / "scripts/setup.sh"], stdin=subprocess.DEVNULL, check=False)
    if setup.returncode != 0:
        print("0 passed, 1 failed, 0 skipped")
        return 1
    return 0 if report(run_all(chosen)) else 1


if __name__ == "__main__":
    sys.exit(main())
