//! libfuse's set-uid mount helpers: which are here, and which version each is.
//!
//! A helper is told by what it prints for `-V` and not by its name: on Debian /usr/bin/fusermount is a link to
//! `fusermount3`, and must not pass for libfuse 2's.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::config::Helper;

/// Looked at after PATH, which services and containers often set too short. The last is NixOS's folder of set-uid programs.
const FALL_BACK: [&str; 4] = ["/usr/bin", "/bin", "/usr/local/bin", "/run/wrappers/bin"];
/// For a helper to print its version.
const DEADLINE: Duration = Duration::from_secs(2);

/// A helper that is here.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Found {
    /// Where it is.
    pub path: PathBuf,
    /// Its version, as `2.9.9` or `3.14.0`.
    pub version: String,
    /// Whether it runs as its owner; without, only a process with CAP_SYS_ADMIN can mount through it.
    pub set_uid: bool,
}

/// Why there is no helper.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum NotFound {
    /// Not installed, or out of reach.
    #[error("{name} is not in PATH: install {package}, or use `helper` direct as root{passed_over}")]
    Missing {
        /// The program that was looked for.
        name: &'static str,
        /// The package that has it.
        package: &'static str,
        /// What was there and did not count, or nothing.
        passed_over: String,
    },
    /// `auto` and `direct` are no programs.
    #[error("\"{0}\" is no mount helper program: ask for fusermount or fusermount3")]
    NotAProgram(Helper),
}

/// Whether this process can call `mount(2)` itself (CAP_SYS_ADMIN).
#[must_use]
pub fn may_mount_directly() -> bool {
    use rustix::thread::{CapabilitySet, capabilities};
    capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::SYS_ADMIN))
}

/// What to do when `/dev/fuse` cannot be opened.
#[must_use]
pub fn device_remedy(error: &io::Error) -> &'static str {
    match (error.raw_os_error(), error.kind()) {
        // The device cgroup says EPERM, the mode of the file EACCES.
        (Some(libc::EPERM), _) => "the container may not use the device: start it with `--device /dev/fuse`",
        (Some(libc::EMFILE), _) => "raise the limit of open files (`ulimit -n`, LimitNOFILE= of the unit)",
        (Some(libc::ENFILE), _) => "raise the limit of open files of the whole machine (`sysctl fs.file-max`)",
        (_, io::ErrorKind::PermissionDenied) => {
            "make it mode 0666, as distributions do, or run as root; in a container, allow the device"
        }
        _ => "load the kernel's module (`modprobe fuse`); in a container, pass the device in (`--device /dev/fuse`)",
    }
}

/// What a process may do about mounting.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Privilege {
    /// It can mount by itself (CAP_SYS_ADMIN).
    Mount,
    /// It can through a set-uid program.
    Ordinary,
    /// Set-uid has no effect on its children (no_new_privs).
    Sealed,
}

impl Privilege {
    /// This process's.
    #[must_use]
    pub fn own() -> Self {
        if may_mount_directly() {
            Self::Mount
        } else if rustix::thread::no_new_privs().unwrap_or(false) {
            Self::Sealed
        } else {
            Self::Ordinary
        }
    }
}

/// Why a helper that is here cannot mount.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Powerless {
    /// It runs as its caller.
    #[error("{} is not set-uid root", .0.display())]
    NotSetUid(PathBuf),
    /// Set-uid has no effect.
    #[error("this process may not gain privileges (no_new_privs), so a set-uid helper has no effect")]
    Sealed,
}

impl Powerless {
    /// What to do.
    #[must_use]
    pub fn remedy(&self) -> String {
        match self {
            Self::NotSetUid(path) => format!("`chmod u+s {}` as root, or run as root", path.display()),
            Self::Sealed => "allow it (NoNewPrivileges=no, allowPrivilegeEscalation), or give it CAP_SYS_ADMIN".into(),
        }
    }
}

impl Found {
    /// Whether it can mount for a process of this privilege.
    ///
    /// # Errors
    /// Why it cannot.
    pub fn check(&self, privilege: Privilege) -> Result<(), Powerless> {
        match privilege {
            Privilege::Mount => Ok(()),
            _ if !self.set_uid => Err(Powerless::NotSetUid(self.path.clone())),
            Privilege::Sealed => Err(Powerless::Sealed),
            Privilege::Ordinary => Ok(()),
        }
    }
}

/// What to do when a helper has refused, from its own words: libfuse has no other sign (`util/fusermount.c`).
#[must_use]
pub fn refusal_remedy(message: &str) -> &'static str {
    let remedies = [
        (
            "user_allow_other",
            "put the line `user_allow_other` into /etc/fuse.conf as root, or serve without `allow_other`",
        ),
        (
            "device not found",
            "load the kernel's module (`modprobe fuse`); in a container, pass the device in (`--device /dev/fuse`)",
        ),
        ("/dev/fuse", "make it mode 0666, as distributions do, or run as root; in a container, allow the device"),
        ("write access", "give the mount point to the user who serves (`chown`), or serve as its owner"),
        ("mount_max", "unmount one, or raise mount_max in /etc/fuse.conf as root"),
        (
            "not permitted",
            "in a container, give it CAP_SYS_ADMIN; else see whether the helper is set-uid root on a file system that allows it",
        ),
    ];
    let remedy = remedies.into_iter().find(|(sign, _)| message.contains(sign));
    remedy.map_or("see the helper's manual page, or run as root with `helper` direct", |(_, remedy)| remedy)
}

/// Finds a helper in PATH, then in the usual folders. One that is set-uid is preferred, because a folder of plain copies
/// may stand before the one that can be used, as on NixOS.
///
/// # Errors
/// When there is none; the message says what to install.
pub fn find(helper: Helper) -> Result<Found, NotFound> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(FALL_BACK.map(PathBuf::from));
    find_in(helper, &folders.collect::<Vec<_>>())
}

/// As [`find`], in these folders only.
///
/// # Errors
/// As [`find`].
pub fn find_in(helper: Helper, folders: &[PathBuf]) -> Result<Found, NotFound> {
    let (name, major, names, package) = match helper {
        Helper::Fusermount => (
            "fusermount",
            "2.",
            ["fusermount", "fusermount3"],
            "libfuse 2 (Debian's package `fuse` replaces fuse3: to keep both, copy its `fusermount` into a folder that is in PATH, owned by root and set-uid)",
        ),
        Helper::Fusermount3 => ("fusermount3", "3.", ["fusermount3", "fusermount"], "fuse3"),
        Helper::Auto | Helper::Direct => return Err(NotFound::NotAProgram(helper)),
    };
    let mut plain = None;
    let mut passed_over = String::new();
    for name in names {
        for path in folders.iter().filter(|folder| folder.is_absolute()).map(|folder| folder.join(name)) {
            let Some(set_uid) = executable(&path) else { continue };
            match version(&path) {
                Ok(version) if version.starts_with(major) && set_uid => return Ok(Found { path, version, set_uid }),
                Ok(version) if version.starts_with(major) => {
                    plain.get_or_insert(Found { path, version, set_uid });
                }
                Ok(version) if name == names[0] && passed_over.is_empty() => {
                    passed_over = format!(" ({} is of libfuse {version})", path.display());
                }
                Err(error) if passed_over.is_empty() => {
                    passed_over = format!(" ({} -V: {error})", path.display());
                }
                Ok(_) | Err(_) => {}
            }
        }
    }
    plain.ok_or(NotFound::Missing { name, package, passed_over })
}

/// Whether the set-uid bit is on, if there is an executable file at all.
fn executable(path: &Path) -> Option<bool> {
    let metadata = path.metadata().ok().filter(std::fs::Metadata::is_file)?;
    rustix::fs::access(path, rustix::fs::Access::EXEC_OK).ok()?;
    Some(metadata.permissions().mode() & 0o4000 != 0)
}

/// What stands after `version: ` in the output of `-V`.
fn version(path: &Path) -> io::Result<String> {
    let said = first_output(Command::new(path).arg("-V"))?;
    let version = said.split("version:").nth(1).and_then(|rest| rest.split_whitespace().next());
    version.map(Into::into).ok_or_else(|| io::Error::other("prints no version"))
}

/// What a program has printed when it ends, at most one pipe's worth of it.
fn first_output(command: &mut Command) -> io::Result<String> {
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
    let ended = wait(&mut child, Instant::now() + DEADLINE);
    if ended.is_err() {
        child.kill()?;
        child.wait()?;
    }
    ended?;
    let Some(output) = child.stdout.take() else { return Ok(String::new()) };
    // A grandchild may hold the pipe open for ever: take what is there.
    rustix::io::ioctl_fionbio(&output, true)?;
    let mut bytes = [0; 4096];
    let length = File::from(std::os::fd::OwnedFd::from(output)).read(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes[..length]).into_owned())
}

/// Waits for a child to end until `deadline`.
pub(crate) fn wait(child: &mut Child, deadline: Instant) -> io::Result<()> {
    let pidfd = pidfd_open(Pid::from_child(child), PidfdFlags::empty())?;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).map_err(io::Error::other)?;
        match poll(&mut [PollFd::from_borrowed_fd(pidfd.as_fd(), PollFlags::IN)], Some(&left)) {
            Ok(0) => return Err(io::Error::new(io::ErrorKind::TimedOut, "does not end in time")),
            Ok(_) => return child.wait().map(drop),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Finds an ordinary program in PATH, then in the usual folders.
#[must_use]
pub fn program(name: impl AsRef<OsStr>) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(FALL_BACK.map(PathBuf::from))
        .map(|folder| folder.join(name.as_ref()))
        .find(|path| executable(path).is_some())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    fn script(folder: &Path, name: &str, body: &str, mode: u32) -> PathBuf {
        std::fs::create_dir_all(folder).unwrap();
        let path = folder.join(name);
        // Written by another process: were it this one, a test's fork at the wrong moment would make it "text file busy".
        let write = "printf '#!/bin/sh\\n%s\\n' \"$2\" > \"$1\"";
        let status = Command::new("sh").args(["-c", write, "sh"]).arg(&path).arg(body).status().unwrap();
        assert!(status.success());
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        path
    }

    #[rstest]
    #[case("echo fusermount version: 2.9.9", Helper::Fusermount, "2.9.9")]
    #[case("echo fusermount3 version: 3.14.0", Helper::Fusermount3, "3.14.0")]
    fn a_helper_is_told_by_its_version(#[case] body: &str, #[case] helper: Helper, #[case] version: &str) {
        let folder = tempfile::tempdir().unwrap();
        let path = script(folder.path(), "fusermount", body, 0o4755);
        let found = find_in(helper, &[folder.path().into()]).unwrap();
        assert_eq!(found, Found { path, version: version.into(), set_uid: true });
    }

    #[test]
    fn a_link_to_the_other_helper_does_not_count() {
        let folder = tempfile::tempdir().unwrap();
        let other = script(folder.path(), "fusermount3", "echo fusermount3 version: 3.14.0", 0o4755);
        std::os::unix::fs::symlink(other, folder.path().join("fusermount")).unwrap();
        let error = find_in(Helper::Fusermount, &[folder.path().into()]).unwrap_err().to_string();
        assert!(
            error.starts_with("fusermount is not in PATH: install libfuse 2 (") && error.contains("replaces fuse3"),
            "{error}"
        );
        assert!(error.contains("fusermount is of libfuse 3.14.0"), "{error}");
    }

    #[test]
    fn set_uid_comes_before_the_order_of_path() {
        let folder = tempfile::tempdir().unwrap();
        let [plain, wrappers] = ["plain", "wrappers"].map(|name| folder.path().join(name));
        script(&plain, "fusermount3", "echo fusermount3 version: 3.17.1", 0o755);
        let folders = [plain.clone(), wrappers.clone()];
        assert!(!find_in(Helper::Fusermount3, &folders).unwrap().set_uid, "better than none");
        let path = script(&wrappers, "fusermount3", "echo fusermount3 version: 3.17.1", 0o4755);
        assert_eq!(find_in(Helper::Fusermount3, &folders).unwrap().path, path);
    }

    #[rstest]
    #[case("exec sleep 60", 0o755, "does not end in time")]
    #[case("echo something else", 0o755, "prints no version")]
    #[case("sleep 3 & echo fusermount3 version: 2.9.9", 0o755, "is of libfuse 2.9.9")]
    #[case("echo fusermount3 version: 3.14.0", 0o644, "install fuse3")]
    fn what_is_no_helper_is_passed_over(#[case] body: &str, #[case] mode: u32, #[case] why: &str) {
        let folder = tempfile::tempdir().unwrap();
        script(folder.path(), "fusermount3", body, mode);
        let error = find_in(Helper::Fusermount3, &[folder.path().into()]).unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
    }

    #[rstest]
    #[case(libc::ENOENT, "modprobe fuse")]
    #[case(libc::ENODEV, "modprobe fuse")]
    #[case(libc::EACCES, "mode 0666")]
    #[case(libc::EPERM, "--device /dev/fuse")]
    #[case(libc::EMFILE, "ulimit -n")]
    #[case(libc::ENFILE, "fs.file-max")]
    fn a_device_that_cannot_be_opened(#[case] errno: i32, #[case] remedy: &str) {
        let said = device_remedy(&io::Error::from_raw_os_error(errno));
        assert!(said.contains(remedy), "{said}");
    }

    #[rstest]
    #[case(
        "fusermount3: option allow_other only allowed if 'user_allow_other' is set in /etc/fuse.conf",
        "`allow_other`"
    )]
    #[case("fusermount: fuse device not found, try 'modprobe fuse' first", "modprobe")]
    #[case("fusermount: failed to open /dev/fuse: Permission denied", "0666")]
    #[case("fusermount3: user has no write access to mountpoint /mnt", "chown")]
    #[case("fusermount3: too many FUSE filesystems mounted; mount_max=N can be set in /etc/fuse.conf", "mount_max")]
    #[case("fusermount3: mount failed: Operation not permitted", "CAP_SYS_ADMIN")]
    #[case("something new", "manual page")]
    fn what_a_helper_says_has_a_remedy(#[case] message: &str, #[case] remedy: &str) {
        assert!(refusal_remedy(message).contains(remedy));
    }

    #[test]
    fn no_helper_at_all_says_what_to_install() {
        assert_eq!(
            find_in(Helper::Fusermount3, &["relative".into()]).unwrap_err().to_string(),
            "fusermount3 is not in PATH: install fuse3, or use `helper` direct as root"
        );
        assert!(matches!(find(Helper::Direct), Err(NotFound::NotAProgram(Helper::Direct))));
    }
}
