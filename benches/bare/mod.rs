//! The reference that the ports are measured against: each crate as its authors meant it, mounted by its own means, over
//! the same pass-through. No port, no slot, no count, and only the operations that the measured work needs.
//!
//! It serves in a process of its own: the measuring program, started once more.

// Each program that compiles this module uses its own part of it.
#![allow(dead_code)]

pub mod cpu;
#[cfg(feature = "fuse2")]
mod fuse2;
#[cfg(feature = "fuse3")]
mod fuse3;
mod work;

use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use lighthouse_fs::config::{Backend, Cache, Io};
use lighthouse_fs::connection::SUBTYPE;
use lighthouse_fs::vfs::{Access, Caller, PassThrough};

use crate::support::{COMMAND_LIMIT, Mount, Sandbox, User, end_everything, processes_of, wait_for};

pub use work::{FILE, Hand, Work, fill};

/// Tells a process to serve: the backend and the sandbox.
const MARK: &str = "LIGHTHOUSE_FS_BARE";

/// Serves the sandbox of this process, if it was started as a reference; does not return then.
pub fn serve_if_told() {
    let Ok(told) = std::env::var(MARK) else { return };
    // As our server does, and as a daemon does: a session is a scheduling group of its own (`autogroup` in sched(7)), which
    // changes who preempts whom more than anything that is measured here.
    rustix::process::setsid().expect("a session");
    let (backend, folder) = told.split_once(' ').expect("a backend and a folder");
    let folder = Path::new(folder);
    let (source, mountpoint) = (folder.join("source"), folder.join("mountpoint"));
    let vfs = PassThrough::new(&source, Access::ReadWrite).expect("a source");
    match backend.parse().expect("a backend") {
        #[cfg(feature = "fuse2")]
        Backend::Fuse2 => fuse2::serve(vfs, &mountpoint),
        #[cfg(feature = "fuse3")]
        Backend::Fuse3 => fuse3::serve(vfs, &mountpoint),
        #[allow(unreachable_patterns, reason = "with both features there is no other")]
        other => panic!("{other} is not in this build ({vfs:?}, {})", mountpoint.display()),
    }
    std::process::exit(0);
}

/// What the reference has in common with a mount of ours.
fn settings() -> (Cache, Io) {
    (Cache::default(), Io::default())
}

fn caller(uid: u32, gid: u32, pid: u32) -> Caller {
    Caller { uid, gid, pid, umask: 0 }
}

/// A running reference.
pub struct Bare {
    process: Child,
    pub sandbox: Sandbox,
}

impl Bare {
    /// Starts one. `arguments` lead this program to [`serve_if_told`].
    pub fn start(backend: Backend, limit: Duration, arguments: &[&str]) -> Self {
        let sandbox = Sandbox::new(User::Root, limit);
        let process = sandbox
            .client(std::env::current_exe().expect("this program"))
            .args(arguments)
            .env(MARK, format!("{backend} {}", sandbox.path().display()))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .expect("a reference");
        let bare = Self { process, sandbox };
        wait_for("the reference to mount", COMMAND_LIMIT, || (!bare.sandbox.mounts().is_empty()).then_some(()));
        bare
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        // Whatever of it still lives then is ended as every mount here.
        if nix::mount::umount(&self.sandbox.mountpoint()).is_ok() {
            let end = Instant::now() + COMMAND_LIMIT;
            while Instant::now() < end && self.process.try_wait().is_ok_and(|ended| ended.is_none()) {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        end_everything(self.sandbox.path());
        drop(self.process.wait());
    }
}

/// Something that serves, ours or the reference.
pub trait Served: Sync {
    /// Its folder.
    fn sandbox(&self) -> &Sandbox;

    /// The file that the work is about.
    fn file(&self) -> PathBuf {
        self.sandbox().mountpoint().join(FILE)
    }

    /// The process that answers requests: the one that holds the device.
    fn server(&self) -> i32 {
        let holds_device = |process: &procfs::process::Process| {
            let Ok(descriptors) = process.fd() else { return false };
            let device =
                |target| matches!(target, procfs::process::FDTarget::Path(path) if path == Path::new("/dev/fuse"));
            descriptors.flatten().any(|descriptor| device(descriptor.target))
        };
        wait_for("a process that holds the device", COMMAND_LIMIT, || {
            processes_of(self.sandbox().path()).iter().find(|process| holds_device(process)).map(|process| process.pid)
        })
    }
}

impl Served for Bare {
    fn sandbox(&self) -> &Sandbox {
        &self.sandbox
    }
}

impl Served for Mount {
    fn sandbox(&self) -> &Sandbox {
        &self.sandbox
    }
}
