//! The folder of one test: source, mount point, control socket and log. When it goes, everything of the test goes.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::machine::{self, MARK};
use super::watchdog::Watchdog;
use super::way::User;
use super::{COMMAND_LIMIT, PROGRAM, wait_for};

/// How long a killed process may take to go.
const KILL_LIMIT: Duration = Duration::from_secs(10);

/// A guarded folder.
#[derive(Debug)]
pub struct Sandbox {
    folder: PathBuf,
    program: PathBuf,
    user: User,
    watchdog: Watchdog,
}

impl Sandbox {
    /// A fresh one, that belongs to `user`, for a test that takes `limit` at most.
    pub fn new(user: User, limit: Duration) -> Self {
        let folder = tempfile::Builder::new().prefix("lighthouse-").tempdir().expect("a temporary folder").keep();
        // From here on, dropping it clears it away.
        let mut sandbox =
            Self { watchdog: Watchdog::start(folder.clone(), limit), program: PROGRAM.into(), folder, user };
        // Other users of the mount have to get as far as the mount point.
        fs::set_permissions(&sandbox.folder, fs::Permissions::from_mode(0o755)).expect("permissions");
        for folder in [sandbox.source(), sandbox.mountpoint(), sandbox.folder.join("run"), sandbox.folder.join("tmp")] {
            fs::create_dir(&folder).expect("a folder");
        }
        sandbox.program = sandbox.reachable_program();
        let (uid, gid) = user.ids();
        for folder in ["", "source", "mountpoint", "run", "tmp"] {
            chown(sandbox.folder.join(folder), Some(uid), Some(gid)).expect("an owner");
        }
        sandbox
    }

    /// Runs another build of the program.
    pub fn set_program(&mut self, program: &Path) {
        self.program = program.into();
    }

    /// The whole folder.
    pub fn path(&self) -> &Path {
        &self.folder
    }

    /// What is served.
    pub fn source(&self) -> PathBuf {
        self.folder.join("source")
    }

    /// Where it is served.
    pub fn mountpoint(&self) -> PathBuf {
        self.folder.join("mountpoint")
    }

    /// Where the daemon listens.
    pub fn socket(&self) -> PathBuf {
        self.folder.join("run/control.sock")
    }

    /// What the daemon says, on both of its outputs.
    pub fn log(&self) -> PathBuf {
        self.folder.join("daemon.log")
    }

    /// Who the daemon runs as.
    pub fn user(&self) -> User {
        self.user
    }

    /// `lighthouse-fs`, as the user of this sandbox.
    pub fn program(&self) -> Command {
        let mut command = self.client(&self.program);
        let (uid, gid) = self.user.ids();
        if self.user.is_another() {
            // This clears the supplementary groups too.
            command.uid(uid).gid(gid);
        }
        command
            .current_dir(&self.folder)
            .env("TMPDIR", self.folder.join("tmp"))
            .env("HOME", self.folder.join("tmp"))
            .env("XDG_RUNTIME_DIR", self.folder.join("run"))
            .env("XDG_STATE_HOME", self.folder.join("tmp"))
            .env("STATE_DIRECTORY", self.folder.join("state"));
        command
    }

    /// Where the user of this sandbox finds the program.
    pub fn program_path(&self) -> &Path {
        &self.program
    }

    /// Any program, as the test's own user. What hangs in it is ended by the watchdog.
    pub fn client(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        command.env(MARK, &self.folder);
        command
    }

    /// Runs `lighthouse-fs` with arguments to its end, which must come soon.
    pub fn run<A: AsRef<std::ffi::OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> std::process::Output {
        let mut command = self.program();
        command.args(arguments);
        assert_cmd::Command::from_std(command).timeout(COMMAND_LIMIT).output().expect("the program")
    }

    /// Our mounts in this sandbox.
    pub fn mounts(&self) -> Vec<machine::MountPoint> {
        machine::mounts_below(&self.folder)
    }

    /// Asserts that the test has left neither a mount nor a process.
    pub fn assert_nothing_left(&self) {
        assert!(self.mounts().is_empty(), "still mounted: {:?}", self.mounts());
        wait_for("the processes of the daemon to end", KILL_LIMIT, || {
            machine::processes_of(&self.folder).is_empty().then_some(())
        });
    }

    /// Cargo's target folder may be where an ordinary user cannot go, in root's home for example.
    fn reachable_program(&self) -> PathBuf {
        let open =
            |folder: &Path| fs::metadata(folder).is_ok_and(|metadata| metadata.permissions().mode() & 0o001 != 0);
        if !self.user.is_another() || Path::new(PROGRAM).ancestors().all(open) {
            return PROGRAM.into();
        }
        let copy = self.folder.join("lighthouse-fs");
        fs::copy(PROGRAM, &copy).expect("a copy of the program");
        copy
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        end_everything(&self.folder);
        remove(&self.folder);
        let hung = self.watchdog.disarm();
        if hung && !std::thread::panicking() {
            panic!("the watchdog has ended this test: it hung");
        }
    }
}

/// Ends mounts and processes of a folder, in the order that always works: whoever waits for a mount cannot even be
/// killed before its connection is aborted.
pub fn end_everything(folder: &Path) {
    for mount in machine::mounts_below(folder) {
        mount.end();
    }
    for process in machine::processes_of(folder) {
        let pid = nix::unistd::Pid::from_raw(process.pid);
        match nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL) {
            Ok(()) | Err(nix::errno::Errno::ESRCH) => {}
            Err(error) => machine::say(&format!("cannot kill process {pid}: {error}")),
        }
    }
}

/// Removes the folder, unless something is mounted in it: then removing would reach into the mount.
pub fn remove(folder: &Path) {
    if !machine::mounts_below(folder).is_empty() {
        machine::say(&format!("{} stays: something in it is still mounted", folder.display()));
    } else if let Err(error) = fs::remove_dir_all(folder) {
        machine::say(&format!("cannot remove {}: {error}", folder.display()));
    }
}
