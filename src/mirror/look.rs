//! A look at one thing in one mount. Nothing stays open afterwards, so that whoever unmounts meanwhile finds nobody in it.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, Statx, StatxFlags, openat, statx};
use rustix::io::Errno;
use sha2::{Digest, Sha256};

use super::{Fields, Question, Seen, What};
use crate::ledger::Operation;

/// Bytes of one read: one request of the kernel.
pub(super) const BLOCK: usize = 64 << 10;
/// Entries of a directory that are compared; one with more is walked through as far as that, and not compared as a listing.
const MOST_ENTRIES: usize = 50_000;
/// The kernel's limit for names and values of extended attributes (limits.h: XATTR_LIST_MAX, XATTR_SIZE_MAX).
const XATTR_MOST: usize = 64 << 10;
/// How a name is opened without looking into what it is.
const PATH: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// One of the two mounts.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Side {
    /// Where it is.
    pub place: PathBuf,
    /// Its device number, by which it is known.
    pub device: (u32, u32),
}

/// What a look has brought.
#[derive(Clone, Debug, Default)]
pub(super) struct Look {
    pub seen: Seen,
    /// What a directory lists, in its order.
    pub names: Vec<OsString>,
}

/// Why something cannot be looked at.
enum Refused {
    /// As the mount says.
    Errno(Errno),
    /// Something else is mounted there.
    Elsewhere,
}

impl From<Errno> for Refused {
    fn from(errno: Errno) -> Self {
        Self::Errno(errno)
    }
}

impl Refused {
    fn fields(&self) -> Fields {
        match self {
            Self::Errno(errno) => field("errno", name(*errno)),
            Self::Elsewhere => field("found", "another mount"),
        }
    }
}

impl Side {
    /// What the mount says.
    ///
    /// # Errors
    /// When it is not there any more.
    pub fn see(&self, question: &Question) -> Result<Seen, String> {
        self.look(question).map(|look| look.seen)
    }

    pub(super) fn look(&self, question: &Question) -> Result<Look, String> {
        let root = self.root()?;
        let mut look = Look::default();
        match &question.what {
            What::FileSystem => drop(look.seen.insert(Operation::StatFs, file_system(root.as_fd()))),
            What::Listing => look = self.listing(root, &question.path),
            What::Thing => match self.find(root, &question.path) {
                Ok(thing) => look.seen = of_thing(thing.as_fd()),
                Err(refused) => drop(look.seen.insert(Operation::Lookup, refused.fields())),
            },
            What::Content(offsets) => match self.find(root, &question.path) {
                Ok(thing) => look.seen = content(thing.as_fd(), offsets),
                Err(refused) => drop(look.seen.insert(Operation::Open, refused.fields())),
            },
        }
        Ok(look)
    }

    /// The root of the mount, if it is still there; finding it asks nobody.
    fn root(&self) -> Result<OwnedFd, String> {
        let failed = |error: Errno| format!("{}: {}", self.place.display(), std::io::Error::from(error));
        let root = openat(CWD, &self.place, PATH | OFlags::DIRECTORY, Mode::empty()).map_err(failed)?;
        if self.is_ours(root.as_fd()).map_err(failed)? {
            return Ok(root);
        }
        Err(format!("another mount, or none, is at {}", self.place.display()))
    }

    /// Whether it lies in this mount, by what the kernel knows anyway.
    fn is_ours(&self, fd: BorrowedFd<'_>) -> Result<bool, Errno> {
        let found = statx(fd, c"", AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC, StatxFlags::TYPE)?;
        Ok((found.stx_dev_major, found.stx_dev_minor) == self.device)
    }

    /// Goes down name by name, through no link and into no other mount.
    fn find(&self, root: OwnedFd, path: &[OsString]) -> Result<OwnedFd, Refused> {
        let mut found = root;
        for (number, name) in path.iter().enumerate() {
            let is_last = number + 1 == path.len();
            let flags = if is_last { PATH } else { PATH | OFlags::DIRECTORY };
            found = openat(&found, name.as_os_str(), flags, Mode::empty())?;
            if !self.is_ours(found.as_fd())? {
                return Err(Refused::Elsewhere);
            }
        }
        Ok(found)
    }

    fn listing(&self, root: OwnedFd, path: &[OsString]) -> Look {
        let listed = self.find(root, path).and_then(|folder| Ok(list(folder.as_fd())?));
        let (fields, names) = match listed {
            Ok(entries) if entries.len() > MOST_ENTRIES => {
                let names = entries.into_iter().take(MOST_ENTRIES).map(|(name, _)| name).collect();
                (field("entries", format!("more than {MOST_ENTRIES}")), names)
            }
            Ok(entries) => {
                let shown = |(name, kind): &(OsString, FileType)| (escaped(name), type_name(*kind).to_owned());
                (entries.iter().map(shown).collect(), entries.into_iter().map(|(name, _)| name).collect())
            }
            Err(refused) => (refused.fields(), Vec::new()),
        };
        Look { seen: Seen::from([(Operation::ReadDir, fields)]), names }
    }
}

fn list(folder: BorrowedFd<'_>) -> Result<Vec<(OsString, FileType)>, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut entries = Vec::new();
    for entry in Dir::new(openat(folder, c".", flags, Mode::empty())?)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            entries.push((OsString::from_vec(name.into()), entry.file_type()));
        }
        if entries.len() > MOST_ENTRIES {
            break;
        }
    }
    Ok(entries)
}

fn of_thing(thing: BorrowedFd<'_>) -> Seen {
    let mut seen = Seen::from([(Operation::Lookup, field("found", "yes"))]);
    let attributes = attributes(thing);
    let kind = attributes.as_ref().map(|found| FileType::from_raw_mode(found.stx_mode.into()));
    if kind == Ok(FileType::Symlink) {
        let target = rustix::fs::readlinkat(thing, c"", Vec::new());
        let target = target.map_or_else(
            |errno| field("errno", name(errno)),
            |target| field("target", target.to_bytes().escape_ascii().to_string()),
        );
        seen.insert(Operation::ReadLink, target);
    }
    seen.insert(Operation::GetAttr, shown(attributes));
    let (names, values) = extended(thing);
    seen.insert(Operation::ListXattr, names);
    if !values.is_empty() {
        seen.insert(Operation::GetXattr, values);
    }
    seen
}

/// As the server says now, whatever the kernel remembers.
fn attributes(thing: BorrowedFd<'_>) -> Result<Statx, Errno> {
    statx(thing, c"", AtFlags::EMPTY_PATH | AtFlags::STATX_FORCE_SYNC, StatxFlags::BASIC_STATS)
}

fn shown(attributes: Result<Statx, Errno>) -> Fields {
    let found = match attributes {
        Ok(found) => found,
        Err(errno) => return field("errno", name(errno)),
    };
    let mode: u32 = found.stx_mode.into();
    let kind = FileType::from_raw_mode(mode);
    let time = |time: rustix::fs::StatxTimestamp| format!("{}.{:09}", time.tv_sec, time.tv_nsec);
    let mut fields = Fields::from([
        ("type".into(), type_name(kind).into()),
        ("mode".into(), format!("{:04o}", mode & 0o7777)),
        ("nlink".into(), found.stx_nlink.to_string()),
        ("uid".into(), found.stx_uid.to_string()),
        ("gid".into(), found.stx_gid.to_string()),
        ("size".into(), found.stx_size.to_string()),
        ("blocks".into(), found.stx_blocks.to_string()),
        ("blksize".into(), found.stx_blksize.to_string()),
        ("mtime".into(), time(found.stx_mtime)),
        ("ctime".into(), time(found.stx_ctime)),
    ]);
    if matches!(kind, FileType::CharacterDevice | FileType::BlockDevice) {
        fields.insert("rdev".into(), format!("{}:{}", found.stx_rdev_major, found.stx_rdev_minor));
    }
    fields
}

/// Names of extended attributes, and their values.
fn extended(thing: BorrowedFd<'_>) -> (Fields, Fields) {
    // Through /proc, since an O_PATH descriptor itself is not taken; it leads to what is open there, links too.
    let path = format!("/proc/self/fd/{}", thing.as_raw_fd());
    let mut buffer = vec![0; XATTR_MOST];
    let length = match rustix::fs::listxattr(path.as_str(), &mut buffer) {
        Ok(length) => length,
        Err(errno) => return (field("errno", name(errno)), Fields::new()),
    };
    let (mut names, mut values) = (Fields::new(), Fields::new());
    let mut value = vec![0; XATTR_MOST];
    for attribute in buffer[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let got = rustix::fs::getxattr(path.as_str(), attribute, &mut value);
        let got = got.map_or_else(name, |length| digest(&value[..length]));
        let attribute = attribute.escape_ascii().to_string();
        names.insert(attribute.clone(), "there".into());
        values.insert(attribute, got);
    }
    (names, values)
}

fn content(thing: BorrowedFd<'_>, offsets: &[u64]) -> Seen {
    let attributes = attributes(thing);
    let is_file =
        attributes.as_ref().is_ok_and(|found| FileType::from_raw_mode(found.stx_mode.into()) == FileType::RegularFile);
    let mut seen = Seen::from([(Operation::GetAttr, shown(attributes))]);
    // Whatever else has taken its place may wait for ever when it is opened.
    if !is_file {
        seen.insert(Operation::Open, field("errno", "no file"));
        return seen;
    }
    let path = format!("/proc/self/fd/{}", thing.as_raw_fd());
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    // Past the kernel's pages, so that the server is asked.
    let opened = openat(CWD, path.as_str(), flags | OFlags::DIRECT, Mode::empty());
    let file = match opened {
        Err(Errno::INVAL) => openat(CWD, path.as_str(), flags, Mode::empty()),
        opened => opened,
    };
    let file = match file {
        Ok(file) => file,
        Err(errno) => {
            seen.insert(Operation::Open, field("errno", name(errno)));
            return seen;
        }
    };
    let mut buffer = vec![0; BLOCK];
    let blocks = offsets.iter().map(|offset| {
        let read = rustix::io::pread(&file, &mut buffer[..], *offset);
        let read = read.map_or_else(name, |length| digest(&buffer[..length]));
        (format!("{BLOCK} bytes from {offset}"), read)
    });
    let blocks = blocks.collect();
    seen.insert(Operation::Open, field("opened", "yes"));
    seen.insert(Operation::Read, blocks);
    seen
}

fn file_system(root: BorrowedFd<'_>) -> Fields {
    match rustix::fs::fstatvfs(root) {
        Ok(found) => [
            ("blocks", found.f_blocks),
            ("bfree", found.f_bfree),
            ("bavail", found.f_bavail),
            ("files", found.f_files),
            ("ffree", found.f_ffree),
            ("bsize", found.f_bsize),
            ("frsize", found.f_frsize),
            ("namemax", found.f_namemax),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_string()))
        .into(),
        Err(errno) => field("errno", name(errno)),
    }
}

fn field(name: &str, value: impl Into<String>) -> Fields {
    Fields::from([(name.into(), value.into())])
}

fn escaped(name: &OsStr) -> String {
    name.as_bytes().escape_ascii().to_string()
}

/// What tells two values apart without showing what is in them, which is nobody's business.
fn digest(bytes: &[u8]) -> String {
    let hash = Sha256::digest(bytes);
    let begin: String = hash.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    format!("{} bytes, sha256 {begin}…", bytes.len())
}

fn name(errno: Errno) -> String {
    format!("{:?}", nix::errno::Errno::from_raw(errno.raw_os_error()))
}

fn type_name(kind: FileType) -> &'static str {
    match kind {
        FileType::RegularFile => "file",
        FileType::Directory => "directory",
        FileType::Symlink => "symlink",
        FileType::Fifo => "fifo",
        FileType::Socket => "socket",
        FileType::CharacterDevice => "character device",
        FileType::BlockDevice => "block device",
        FileType::Unknown => "unknown",
    }
}
