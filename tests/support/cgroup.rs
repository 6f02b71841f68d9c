//! A control group of the test's own, in which memory runs out or a device is forbidden.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;

use procfs::process::Process;

use super::{machine, wait_for};

/// For the last process of a group that was killed to be gone.
const EMPTY_LIMIT: Duration = Duration::from_secs(10);

/// The hierarchy of one controller, or the one of all.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Version {
    /// Control groups version 1: a file system for each controller.
    One,
    /// Version 2: one for all.
    Two,
}

/// A group. Dropping it removes it; whoever is in it must have ended.
#[derive(Debug)]
pub struct Cgroup {
    folder: PathBuf,
    version: Version,
}

impl Cgroup {
    /// One whose memory can be limited. What is missing, if it cannot be made.
    pub fn of_memory() -> Result<Self, String> {
        if let Some(top) = hierarchy("cgroup", Some("memory")) {
            return Self::below(&top, Version::One);
        }
        let top = hierarchy("cgroup2", None).ok_or("no control groups are mounted")?;
        let offered = fs::read_to_string(top.join("cgroup.controllers")).unwrap_or_default();
        if !offered.split_whitespace().any(|controller| controller == "memory") {
            return Err("no control group can limit memory: the controller is not there".into());
        }
        // Also where it is on already.
        fs::write(top.join("cgroup.subtree_control"), "+memory").map_err(|error| {
            format!("control groups cannot limit memory: {}: {error}", top.join("cgroup.subtree_control").display())
        })?;
        Self::below(&top, Version::Two)
    }

    /// One that may be forbidden devices. Version 2 has a BPF program in the place of the file.
    pub fn of_devices() -> Result<Self, String> {
        let top = hierarchy("cgroup", Some("devices"));
        Self::below(&top.ok_or("there is no controller \"devices\" of control groups version 1")?, Version::One)
    }

    fn below(top: &Path, version: Version) -> Result<Self, String> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!("lighthouse-test-{}-{}", std::process::id(), NUMBER.fetch_add(1, Relaxed));
        let folder = top.join(name);
        fs::create_dir(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
        Ok(Self { folder, version })
    }

    fn write(&self, file: &str, text: &str) -> io::Result<()> {
        fs::write(self.folder.join(file), text)
    }

    /// Where a process that is to be in it writes its number.
    pub fn members(&self) -> PathBuf {
        self.folder.join("cgroup.procs")
    }

    /// Puts a process into it. In version 1 what that process has already stays with the group that it comes from.
    pub fn admit(&self, pid: i32) {
        self.write("cgroup.procs", &pid.to_string()).expect("a process that can be moved");
    }

    /// Gives its members this much memory, and no swap.
    pub fn limit_memory(&self, bytes: u64) {
        let (memory, swap, swap_bytes) = match self.version {
            Version::One => ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes", bytes),
            Version::Two => ("memory.max", "memory.swap.max", 0),
        };
        self.write(memory, &bytes.to_string()).expect("a limit");
        // Where swap is not accounted for, there is no file.
        if self.folder.join(swap).exists() {
            self.write(swap, &swap_bytes.to_string()).expect("a limit of swap");
        }
    }

    /// How many of its members the kernel has killed because memory had run out.
    pub fn killed(&self) -> u64 {
        let file = match self.version {
            Version::One => "memory.oom_control",
            Version::Two => "memory.events",
        };
        let text = fs::read_to_string(self.folder.join(file)).expect("counters");
        let count = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
        count.and_then(|count| count.trim().parse().ok()).unwrap_or_else(|| panic!("no oom_kill in {text}"))
    }

    /// Forbids a character device.
    pub fn deny_device(&self, major: u32, minor: u32) {
        self.write("devices.deny", &format!("c {major}:{minor} rwm")).expect("a rule");
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // Whoever is in it still is ended with the sandbox, perhaps later than this.
            if let Err(error) = fs::remove_dir(&self.folder) {
                machine::say(&format!("{} stays: {error}", self.folder.display()));
            }
            return;
        }
        wait_for("the control group to be empty", EMPTY_LIMIT, || fs::remove_dir(&self.folder).ok());
    }
}

/// Where control groups of this type are mounted; those of version 1, with this controller.
fn hierarchy(kind: &str, controller: Option<&str>) -> Option<PathBuf> {
    let mounts = Process::myself().and_then(|process| process.mountinfo()).expect("/proc/self/mountinfo");
    let mut mounts = mounts.into_iter();
    let is_it = |mount: &procfs::process::MountInfo| {
        mount.fs_type == kind && controller.is_none_or(|controller| mount.super_options.contains_key(controller))
    };
    mounts.find(is_it).map(|mount| mount.mount_point)
}
