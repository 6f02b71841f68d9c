//! What the kernel knows of mounts and processes. Nothing here touches a mount point: that could hang.

use std::fs;
use std::path::{Path, PathBuf};

use procfs::process::Process;

/// The kernel's name for our mounts.
pub const FILESYSTEM: &str = "fuse.lighthouse-fs";

/// Names the test's folder in the environment of every process that the test starts, and of their children.
pub const MARK: &str = "LIGHTHOUSE_TEST_SANDBOX";

/// A mount of ours.
#[derive(Clone, Debug)]
pub struct MountPoint {
    /// Where it is.
    pub path: PathBuf,
    /// Number of its FUSE connection: the minor number of its device.
    pub connection: u32,
    /// Options of the mount and of the file system, as in mountinfo.
    pub options: String,
}

impl MountPoint {
    fn control(&self, file: &str) -> PathBuf {
        Path::new("/sys/fs/fuse/connections").join(self.connection.to_string()).join(file)
    }

    /// Number of requests that the kernel has no answer to.
    pub fn waiting(&self) -> u64 {
        let file = self.control("waiting");
        let number = fs::read_to_string(&file).unwrap_or_else(|error| {
            panic!("{}: {error}; is fusectl mounted? scripts/setup.sh does it", file.display())
        });
        number.trim().parse().expect("a number of requests")
    }

    /// Gives everyone who waits for this mount an error, and takes it away. Works on a dead mount too.
    pub fn end(&self) {
        if let Err(error) = fs::write(self.control("abort"), "1") {
            say(&format!("cannot abort connection {}: {error}", self.connection));
        }
        // The helper for ordinary users, who may not call umount(2).
        let gone = if rustix::process::geteuid().is_root() {
            nix::mount::umount2(&self.path, nix::mount::MntFlags::MNT_DETACH | nix::mount::MntFlags::MNT_FORCE).is_ok()
        } else {
            let mut helper = std::process::Command::new("fusermount3");
            helper.args(["-u", "-z", "--"]).arg(&self.path).status().is_ok_and(|status| status.success())
        };
        if !gone {
            say(&format!("cannot unmount {}", self.path.display()));
        }
    }
}

/// Our mounts at and below a folder.
pub fn mounts_below(folder: &Path) -> Vec<MountPoint> {
    let mounts = Process::myself().and_then(|process| process.mountinfo()).expect("/proc/self/mountinfo");
    mounts
        .into_iter()
        .filter(|mount| mount.fs_type == FILESYSTEM && mount.mount_point.starts_with(folder))
        .map(|mount| MountPoint {
            connection: mount.majmin.rsplit(':').next().and_then(|minor| minor.parse().ok()).expect("a device number"),
            options: format!("{:?} {:?}", mount.mount_options, mount.super_options),
            path: mount.mount_point,
        })
        .collect()
}

/// Processes that carry the mark of this folder.
pub fn processes_of(folder: &Path) -> Vec<Process> {
    let all = procfs::process::all_processes().expect("/proc");
    all.flatten()
        .filter(|process| {
            // A process that ended meanwhile, or is somebody else's, has no environment for us to read.
            process.environ().is_ok_and(|environment| {
                environment.get(std::ffi::OsStr::new(MARK)).is_some_and(|value| Path::new(value) == folder)
            })
        })
        .collect()
}

/// Whether a process has let go of all that it had open; it may be unburied.
pub fn is_gone(pid: i32) -> bool {
    let Ok(process) = Process::new(pid) else { return true };
    // Of several threads the first may be dead, and the others still hold everything.
    process.stat().map_or(true, |stat| stat.state == 'Z') && process.tasks().map_or(true, |tasks| tasks.count() <= 1)
}

/// What each thread of a process is doing in the kernel.
pub fn threads_of(process: &Process) -> String {
    let command = process.cmdline().unwrap_or_default().join(" ");
    let mut text = format!("process {}: {command}\n", process.pid);
    let folder = PathBuf::from(format!("/proc/{}/task", process.pid));
    for thread in fs::read_dir(&folder).into_iter().flatten().flatten() {
        let read = |file: &str| fs::read_to_string(thread.path().join(file)).unwrap_or_else(|error| error.to_string());
        let (name, waits_in) = (read("comm"), read("wchan"));
        text += &format!("  {} {} waits in {waits_in}\n", thread.file_name().display(), name.trim());
        for line in read("stack").lines() {
            text += &format!("      {line}\n");
        }
    }
    text
}

/// To standard error itself: what the test framework captures is lost when the process has to be ended.
pub fn say(text: &str) {
    use std::io::Write;
    writeln!(std::io::stderr(), "{text}").expect("standard error");
}
