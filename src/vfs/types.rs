use std::ffi::OsStr;
use std::time::SystemTime;

/// Number of a node; also what programs see as `st_ino`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub struct NodeId(pub u64);

/// The root of the mount (`FUSE_ROOT_ID` of the kernel's `fuse.h`).
pub const ROOT: NodeId = NodeId(1);

/// Number of an open file or directory.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct HandleId(pub u64);

/// Who asks. The pid is 0 for a program of another pid namespace.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Caller {
    /// File-system user id of the program.
    pub uid: u32,
    /// File-system group id of the program.
    pub gid: u32,
    /// Process id as the mounting namespace sees it.
    pub pid: u32,
    /// Umask of the program where the request carries it, else 0. The kernel has applied it already.
    pub umask: u32,
}

/// Kind of a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FileKind {
    /// Regular file.
    File,
    /// Directory.
    Directory,
    /// Symbolic link.
    Symlink,
    /// Block device.
    BlockDevice,
    /// Character device.
    CharDevice,
    /// Named pipe.
    Fifo,
    /// Unix-domain socket.
    Socket,
}

impl FileKind {
    /// From the type bits of `st_mode`; unknown bits count as a regular file.
    #[must_use]
    pub fn from_mode(mode: u32) -> Self {
        match mode & libc::S_IFMT {
            libc::S_IFDIR => Self::Directory,
            libc::S_IFLNK => Self::Symlink,
            libc::S_IFBLK => Self::BlockDevice,
            libc::S_IFCHR => Self::CharDevice,
            libc::S_IFIFO => Self::Fifo,
            libc::S_IFSOCK => Self::Socket,
            _ => Self::File,
        }
    }

    /// The type bits of `st_mode`.
    #[must_use]
    pub fn to_mode(self) -> u32 {
        match self {
            Self::File => libc::S_IFREG,
            Self::Directory => libc::S_IFDIR,
            Self::Symlink => libc::S_IFLNK,
            Self::BlockDevice => libc::S_IFBLK,
            Self::CharDevice => libc::S_IFCHR,
            Self::Fifo => libc::S_IFIFO,
            Self::Socket => libc::S_IFSOCK,
        }
    }
}

/// A point in time as the kernel keeps it: seconds since 1970 (negative before) and nanoseconds.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Timestamp {
    /// Seconds since 1970-01-01 00:00 UTC.
    pub sec: i64,
    /// Nanoseconds, 0 to 999,999,999, counted forward from `sec`.
    pub nsec: u32,
}

impl From<SystemTime> for Timestamp {
    fn from(time: SystemTime) -> Self {
        match time.duration_since(SystemTime::UNIX_EPOCH) {
            Ok(after) => Self { sec: after.as_secs() as i64, nsec: after.subsec_nanos() },
            Err(before) => {
                let before = before.duration();
                let (sec, nsec) = (before.as_secs() as i64, before.subsec_nanos());
                if nsec == 0 { Self { sec: -sec, nsec: 0 } } else { Self { sec: -sec - 1, nsec: 1_000_000_000 - nsec } }
            }
        }
    }
}

/// Attributes of a node, as `stat(2)` shows them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Attr {
    /// The node; shown as `st_ino`.
    pub node: NodeId,
    /// Size in bytes.
    pub size: u64,
    /// Blocks of 512 bytes.
    pub blocks: u64,
    /// Last access.
    pub atime: Timestamp,
    /// Last change of content.
    pub mtime: Timestamp,
    /// Last change of attributes.
    pub ctime: Timestamp,
    /// Type and permission bits.
    pub mode: u32,
    /// Number of names.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number of a device node, as the kernel encodes it in 32 bits (`new_encode_dev`).
    pub rdev: u32,
    /// Preferred size of reads and writes in bytes.
    pub blksize: u32,
}

impl Attr {
    /// Kind of the file.
    #[must_use]
    pub fn kind(&self) -> FileKind {
        FileKind::from_mode(self.mode)
    }
}

/// A node that was found or made. Whoever receives it owes the vfs one [`forget`](super::Vfs::forget).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Entry {
    /// Attributes; `attr.node` names the node.
    pub attr: Attr,
    /// Tells two nodes apart that had the same number at different times.
    pub generation: u64,
}

/// What [`create`](super::Vfs::create) made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Created {
    /// The new (or, without `O_EXCL`, found) file.
    pub entry: Entry,
    /// Its open handle.
    pub handle: HandleId,
}

/// A time to set.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TimeSet {
    /// The present, by the source's clock (`UTIME_NOW`).
    Now,
    /// This time.
    At(Timestamp),
}

/// What [`setattr`](super::Vfs::setattr) is to change.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SetAttr {
    /// Permission bits.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Size in bytes.
    pub size: Option<u64>,
    /// Last access.
    pub atime: Option<TimeSet>,
    /// Last change of content.
    pub mtime: Option<TimeSet>,
}

/// One name of a listing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DirEntry<'a> {
    /// Number shown by `readdir(3)` as `d_ino`: the node id that a lookup would give.
    pub node: NodeId,
    /// Where the listing goes on after this entry.
    pub offset: u64,
    /// Kind of the file.
    pub kind: FileKind,
    /// The name.
    pub name: &'a OsStr,
}

impl DirEntry<'_> {
    /// Whether this is `.` or `..`.
    #[must_use]
    pub fn is_dot(&self) -> bool {
        self.name == "." || self.name == ".."
    }
}

/// What the receiver of a listing says to an entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ListFlow {
    /// Taken; more, please.
    Taken,
    /// No room: this one was not taken, stop.
    Full,
}

/// What a caller wants of an extended attribute.
#[derive(Debug)]
pub enum XattrSize<'a> {
    /// Only its size.
    Query,
    /// The value; `ERANGE` if it does not fit.
    Into(&'a mut [u8]),
}

/// What `statfs(2)` shows.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct StatFs {
    /// Blocks of `frsize` bytes.
    pub blocks: u64,
    /// Free blocks.
    pub bfree: u64,
    /// Free blocks for ordinary users.
    pub bavail: u64,
    /// Inodes.
    pub files: u64,
    /// Free inodes.
    pub ffree: u64,
    /// Preferred block size.
    pub bsize: u32,
    /// Longest name in bytes.
    pub namelen: u32,
    /// Fundamental block size.
    pub frsize: u32,
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn times_before_1970_keep_their_nanoseconds() {
        let before = SystemTime::UNIX_EPOCH - Duration::new(1, 250_000_000);
        assert_eq!(Timestamp::from(before), Timestamp { sec: -2, nsec: 750_000_000 });
        assert_eq!(Timestamp::from(SystemTime::UNIX_EPOCH - Duration::from_secs(3)), Timestamp { sec: -3, nsec: 0 });
        assert_eq!(Timestamp::from(SystemTime::UNIX_EPOCH + Duration::new(5, 7)), Timestamp { sec: 5, nsec: 7 });
    }
}
