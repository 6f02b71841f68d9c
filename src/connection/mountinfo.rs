//! What the kernel says is mounted, and how a dead mount is taken away.
//!
//! Reads /proc/self/mountinfo as bytes (proc(5)): the reader of the procfs crate gives up on the whole table when one
//! mount of anybody has a name that is not UTF-8, and leaves `\040` in names.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};

use super::{SUBTYPE, helper};

/// One line of mountinfo.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Mounted {
    /// Number of the mount, unique while it lasts.
    pub id: u32,
    /// Major and minor number of its device. The minor one of a FUSE mount is the number of its connection.
    pub device: (u32, u32),
    /// Where it is.
    pub place: PathBuf,
    /// Type of its file system.
    pub kind: String,
}

impl Mounted {
    /// Whether it is one of ours.
    #[must_use]
    pub fn is_ours(&self) -> bool {
        self.kind.strip_prefix("fuse.") == Some(SUBTYPE)
    }

    /// Whether a process answers it, which may be a dead one.
    #[must_use]
    pub fn is_fuse(&self) -> bool {
        self.kind == "fuse" || self.kind == "fuseblk" || self.kind.starts_with("fuse.")
    }
}

/// All mounts of this process's name space, in the order in which they lie on each other.
///
/// # Errors
/// When /proc is not there.
pub fn read() -> io::Result<Vec<Mounted>> {
    let table = std::fs::read("/proc/self/mountinfo")?;
    Ok(table.split(|byte| *byte == b'\n').filter_map(parse).collect())
}

/// The mount that `path` lies on, by its text alone.
#[must_use]
pub fn holding<'a>(mounts: &'a [Mounted], path: &Path) -> Option<&'a Mounted> {
    let depth = |mounted: &&Mounted| mounted.place.components().count();
    mounts.iter().filter(|mounted| path.starts_with(&mounted.place)).max_by_key(depth)
}

/// The mount of this number, wherever it is by now.
#[must_use]
pub fn by_id(mounts: &[Mounted], id: u32) -> Option<&Mounted> {
    mounts.iter().find(|mounted| mounted.id == id)
}

/// The uppermost mount at exactly `path`.
#[must_use]
pub fn at<'a>(mounts: &'a [Mounted], path: &Path) -> Option<&'a Mounted> {
    mounts.iter().rfind(|mounted| mounted.place == path)
}

fn parse(line: &[u8]) -> Option<Mounted> {
    let mut fields = line.split(|byte| *byte == b' ');
    let id = std::str::from_utf8(fields.next()?).ok()?.parse().ok()?;
    let (major, minor) = std::str::from_utf8(fields.nth(1)?).ok()?.split_once(':')?;
    let device = (major.parse().ok()?, minor.parse().ok()?);
    let place = OsString::from_vec(unescape(fields.nth(1)?)).into();
    let kind = fields.skip_while(|field| *field != b"-").nth(1)?;
    Some(Mounted { id, device, place, kind: String::from_utf8_lossy(kind).into_owned() })
}

/// Space, tab, newline and backslash are written as three octal digits.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, after)) = rest.split_first() {
        let octal = after.get(..3).filter(|_| byte == b'\\').and_then(|digits| std::str::from_utf8(digits).ok());
        if let Some(code) = octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            plain.push(code);
            rest = &after[3..];
        } else {
            plain.push(byte);
            rest = after;
        }
    }
    plain
}

/// Takes a mount of ours away whose server is dead; what programs still hold of it answers ENOTCONN. Blocks: `umount(2)`
/// is quick for a connection that is gone, but the helper is another program.
///
/// # Errors
/// When it is still there afterwards; the message says what to do.
pub fn detach(place: &Path) -> Result<(), String> {
    let by_hand = |why: String| format!("{} is still mounted ({why}): run `umount -l` on it as root", place.display());
    match umount2(place, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
        // EINVAL: no mount, so somebody else was faster.
        Ok(()) | Err(Errno::EINVAL) => return Ok(()),
        Err(Errno::EPERM) => {}
        Err(error) => return Err(by_hand(error.desc().into())),
    }
    let mut why = "neither fusermount3 nor fusermount is in PATH".to_owned();
    for helper in ["fusermount3", "fusermount"].into_iter().filter_map(helper::program) {
        let output = Command::new(&helper).args(["-u", "-z", "--"]).arg(place).stdin(Stdio::null()).output();
        match output {
            Ok(output) if output.status.success() => return Ok(()),
            Ok(output) => why = String::from_utf8_lossy(&output.stderr).trim().to_owned(),
            Err(error) => why = format!("{}: {error}", helper.display()),
        }
    }
    Err(by_hand(why))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &[u8] = b"22 1 0:20 / / rw,relatime shared:1 - ext4 /dev/vda1 rw
36 22 0:31 / /mnt/a\\040b rw,nosuid shared:2 master:1 - fuse.lighthouse-fs /srv rw
37 22 0:32 / /mnt/\xff rw - fuse.sshfs host: rw
38 37 0:33 / /mnt/a\\040b rw - tmpfs tmpfs rw
";

    #[test]
    fn lines_are_read_whatever_the_names() {
        let mounts: Vec<_> = TABLE.split(|byte| *byte == b'\n').filter_map(parse).collect();
        assert_eq!(mounts.len(), 4);
        assert_eq!(
            mounts[1],
            Mounted { id: 36, device: (0, 31), place: "/mnt/a b".into(), kind: "fuse.lighthouse-fs".into() }
        );
        assert!(mounts[1].is_ours() && mounts[1].is_fuse() && mounts[2].is_fuse() && !mounts[3].is_fuse());
        assert_eq!(at(&mounts, Path::new("/mnt/a b")).unwrap().id, 38, "the uppermost");
        assert_eq!(at(&mounts, Path::new("/mnt")), None);
        assert_eq!(holding(&mounts, Path::new("/mnt/a b/c")).unwrap().id, 38);
        assert_eq!(holding(&mounts, Path::new("/mnt/ab")).unwrap().id, 22);
    }

    #[test]
    fn this_machine_has_a_root() {
        assert!(at(&read().unwrap(), Path::new("/")).is_some());
    }
}
