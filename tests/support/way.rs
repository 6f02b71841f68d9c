//! Who mounts, and through which helper.

use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use rustix::process::{Gid, Uid};
use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};

use super::{Helper, require_root};

/// `nobody` and `nogroup`.
const NOBODY: u32 = 65534;

/// Who the daemon runs as.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum User {
    /// Root.
    Root,
    /// `nobody` if the tests run as root, else whoever runs them.
    Ordinary,
}

impl User {
    /// Its user and group.
    pub fn ids(self) -> (u32, u32) {
        match self {
            Self::Ordinary if self.is_another() => (NOBODY, NOBODY),
            _ => (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw()),
        }
    }

    /// Whether it is not the one who runs the tests.
    pub fn is_another(self) -> bool {
        self == Self::Ordinary && rustix::process::geteuid().is_root()
    }

    /// Does something as this user. Without `allow_other` the kernel admits nobody else to the user's mount, not
    /// even root.
    pub fn act<T: Send>(self, action: impl FnOnce() -> T + Send) -> T {
        let (uid, gid) = self.ids();
        if self.is_another() { run_as(uid, gid, action) } else { action() }
    }
}

/// Does something as another user, on a thread of its own: in the kernel, each thread has its own identity.
pub fn run_as<T: Send>(uid: u32, gid: u32, action: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
            set_thread_groups(&[]).expect("no supplementary groups");
            set_thread_res_gid(gid, gid, gid).expect("another group");
            set_thread_res_uid(uid, uid, uid).expect("another user");
            action()
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// One way to make a mount.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Way {
    /// Who.
    pub user: User,
    /// Through what.
    pub helper: Helper,
}

/// Root, with mount(2).
pub const ROOT_DIRECT: Way = Way { user: User::Root, helper: Helper::Direct };
/// Root, with libfuse 2's helper.
pub const ROOT_FUSERMOUNT: Way = Way { user: User::Root, helper: Helper::Fusermount };
/// Root, with libfuse 3's helper.
pub const ROOT_FUSERMOUNT3: Way = Way { user: User::Root, helper: Helper::Fusermount3 };
/// An ordinary user, with libfuse 2's helper.
pub const USER_FUSERMOUNT: Way = Way { user: User::Ordinary, helper: Helper::Fusermount };
/// An ordinary user, with libfuse 3's helper.
pub const USER_FUSERMOUNT3: Way = Way { user: User::Ordinary, helper: Helper::Fusermount3 };

impl Way {
    /// The way that works for whoever runs the tests; for tests to which it does not matter.
    pub fn any() -> Self {
        if require_root().is_ok() { ROOT_DIRECT } else { USER_FUSERMOUNT3 }
    }

    /// Whether it works here, and what is missing if not.
    pub fn possible(self) -> Result<(), String> {
        if self.user == User::Root {
            require_root()?;
        }
        if self.user == User::Ordinary {
            require_device_for_everyone()?;
        }
        match self.helper {
            Helper::Fusermount => require_helper("fusermount", " 2."),
            Helper::Fusermount3 => require_helper("fusermount3", " 3."),
            Helper::Direct | Helper::Auto => Ok(()),
        }
    }
}

/// That a helper is in PATH and is of this version: Debian's libfuse 3 brings a link called `fusermount`.
pub fn require_helper(name: &str, version: &str) -> Result<(), String> {
    let said = Command::new(name).arg("-V").output().map_err(|error| format!("{name} is not in PATH: {error}"))?;
    let said = String::from_utf8_lossy(&said.stdout).trim().to_owned();
    if said.contains(version) {
        Ok(())
    } else {
        Err(format!("{name} in PATH is \"{said}\", not version{version}x: scripts/test.py sets PATH so that it is"))
    }
}

fn require_device_for_everyone() -> Result<(), String> {
    let mode = std::fs::metadata("/dev/fuse").map_err(|error| format!("/dev/fuse: {error}"))?.permissions().mode();
    if mode & 0o006 == 0o006 { Ok(()) } else { Err("/dev/fuse is not open to ordinary users: scripts/setup.sh".into()) }
}
