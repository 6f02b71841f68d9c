//! What a session has answered, and what it means: the replies' structures as in the kernel's `fuse.h`, by the names of
//! their fields.

use std::fmt::Write;

use zerocopy::{FromBytes, Immutable, KnownLayout};

use crate::ledger::Operation;
use crate::vfs::Errno;

/// One answer to a call.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Answer {
    /// The body of a reply, without its header.
    Reply(Vec<u8>),
    /// Entries, of as many replies as it took.
    Listing {
        /// Their bytes, one after the other.
        entries: Vec<u8>,
        /// Whether these are all that there are.
        extent: Extent,
    },
    /// An error.
    Failed(Errno),
    /// None came.
    Silence(String),
}

/// How far a listing goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Extent {
    /// To the end of the directory.
    Whole,
    /// Not as far as that.
    Part,
}

/// A field of a structure with its value, in words.
pub(super) type Field = (&'static str, String);

trait Fields {
    fn fields(&self) -> Vec<Field>;
}

macro_rules! replies {
    ($($(#[$meta:meta])* struct $name:ident { $($field:ident: $kind:ty),* $(,)? } hidden { $($hidden:ident: $filler:ty),* })*) => { $(
        $(#[$meta])*
        #[derive(FromBytes, Immutable, KnownLayout)]
        #[repr(C)]
        pub(super) struct $name { $(pub $field: $kind,)* $($hidden: $filler),* }

        impl Fields for $name {
            fn fields(&self) -> Vec<Field> {
                vec![$((stringify!($field), self.$field.to_string())),*]
            }
        }
    )* };
}

replies! {
    /// `struct fuse_attr`.
    struct Attr {
        ino: u64, size: u64, blocks: u64, atime: u64, mtime: u64, ctime: u64, atimensec: u32, mtimensec: u32,
        ctimensec: u32, mode: u32, nlink: u32, uid: u32, gid: u32, rdev: u32, blksize: u32,
    } hidden { flags: u32 }
    /// `struct fuse_entry_out` before its attributes.
    struct EntryOut {
        nodeid: u64, generation: u64, entry_valid: u64, attr_valid: u64, entry_valid_nsec: u32, attr_valid_nsec: u32,
    } hidden {}
    /// `struct fuse_attr_out` before its attributes.
    struct AttrOut { attr_valid: u64, attr_valid_nsec: u32 } hidden { dummy: u32 }
    /// `struct fuse_open_out`.
    struct OpenOut { fh: u64, open_flags: u32 } hidden { padding: u32 }
    /// `struct fuse_write_out` and `struct fuse_getxattr_out`.
    struct SizeOut { size: u32 } hidden { padding: u32 }
    /// `struct fuse_statfs_out`.
    struct StatfsOut {
        blocks: u64, bfree: u64, bavail: u64, files: u64, ffree: u64, bsize: u32, namelen: u32, frsize: u32,
    } hidden { padding: u32, spare: [u32; 6] }
    /// `struct fuse_lseek_out`.
    struct LseekOut { offset: u64 } hidden {}
    /// `struct fuse_dirent` before its name.
    struct Dirent { ino: u64, off: u64, namelen: u32, kind: u32 } hidden {}
}

/// Reads structures from the front of a body.
struct Reader<'a>(&'a [u8], Vec<Field>);

impl Reader<'_> {
    /// The next structure; without enough bytes for it, nothing.
    fn take<T: Fields + FromBytes + KnownLayout + Immutable>(&mut self) -> &mut Self {
        if let Ok((it, rest)) = T::read_from_prefix(self.0) {
            self.0 = rest;
            self.1.extend(it.fields());
        }
        self
    }
}

/// The fields of a reply, as far as it has the structure that it should have.
pub(super) fn fields(operation: Operation, asked_for_size: bool, body: &[u8]) -> Vec<Field> {
    use Operation as O;
    let mut reader = Reader(body, Vec::new());
    match operation {
        O::Lookup | O::Symlink | O::MkNod | O::MkDir | O::Link => reader.take::<EntryOut>().take::<Attr>(),
        O::Create => reader.take::<EntryOut>().take::<Attr>().take::<OpenOut>(),
        O::GetAttr | O::SetAttr => reader.take::<AttrOut>().take::<Attr>(),
        O::Open | O::OpenDir => reader.take::<OpenOut>(),
        O::Write | O::CopyFileRange => reader.take::<SizeOut>(),
        O::GetXattr | O::ListXattr if asked_for_size => reader.take::<SizeOut>(),
        O::StatFs => reader.take::<StatfsOut>(),
        O::LSeek => reader.take::<LseekOut>(),
        _ => &mut reader,
    };
    let Reader(rest, mut fields) = reader;
    if !rest.is_empty() {
        fields.push(("data", format!("{} bytes \"{}\"", rest.len(), rest.escape_ascii())));
    }
    fields
}

/// One entry of a listing.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Listed<'a> {
    pub name: &'a [u8],
    /// Where the listing goes on after it.
    pub off: u64,
    /// The node whose lookup was counted; 0 without one.
    pub node: u64,
    /// All of it, with what fills up to the next.
    pub bytes: &'a [u8],
}

/// The entries of a listing, of READDIRPLUS if `with_attributes`; up to the first that is cut.
pub(super) fn listed(entries: &[u8], operation: Operation) -> Vec<Listed<'_>> {
    let with_attributes = operation == Operation::ReadDirPlus;
    let mut rest = entries;
    let mut found = Vec::new();
    while let Some((entry, left)) = next_listed(rest, with_attributes) {
        found.push(entry);
        rest = left;
    }
    found
}

fn next_listed(bytes: &[u8], with_attributes: bool) -> Option<(Listed<'_>, &[u8])> {
    let before = if with_attributes { size_of::<EntryOut>() + size_of::<Attr>() } else { 0 };
    let (dirent, rest) = Dirent::read_from_prefix(bytes.get(before..)?).ok()?;
    let name = rest.get(..dirent.namelen as usize)?;
    // FUSE_DIRENT_ALIGN.
    let length = (before + size_of::<Dirent>() + name.len()).next_multiple_of(8);
    let is_dot = matches!(name, b"." | b"..");
    let node = match EntryOut::read_from_prefix(bytes) {
        Ok((entry, _)) if with_attributes && !is_dot => entry.nodeid,
        _ => 0,
    };
    // The last one may lack what fills it up.
    let (bytes, left) = bytes.split_at(length.min(bytes.len()));
    Some((Listed { name, off: dirent.off, node, bytes }, left))
}

/// The fields of one entry.
pub(super) fn entry_fields(operation: Operation, bytes: &[u8]) -> Vec<Field> {
    let mut reader = Reader(bytes, Vec::new());
    if operation == Operation::ReadDirPlus {
        reader.take::<EntryOut>().take::<Attr>();
    }
    reader.take::<Dirent>();
    let Reader(rest, mut fields) = reader;
    fields.push(("name", format!("\"{}\"", rest.escape_ascii())));
    fields
}

/// What an error is called.
pub(super) fn errno_name(error: Errno) -> String {
    nix::errno::Errno::from_raw(error.raw()).to_string()
}

/// An answer in words, not longer than about `most` bytes.
pub(super) fn describe(operation: Operation, asked_for_size: bool, answer: &Answer, most: usize) -> String {
    let mut text = String::new();
    match answer {
        Answer::Failed(error) => text = errno_name(*error),
        Answer::Silence(why) => text.clone_from(why),
        Answer::Reply(body) => {
            text.push_str("ok");
            for (name, value) in fields(operation, asked_for_size, body) {
                // Writing to a string does not fail.
                let _ = write!(text, " {name}={value}");
            }
        }
        Answer::Listing { entries, extent } => {
            let entries = listed(entries, operation);
            let _ = write!(
                text,
                "ok, {} entries{}",
                entries.len(),
                if *extent == Extent::Whole { "" } else { ", and more" }
            );
            for entry in &entries {
                if text.len() > most {
                    break;
                }
                let _ = write!(text, "; \"{}\"", entry.name.escape_ascii());
            }
        }
    }
    cut(text, most)
}

/// Text of at most `most` bytes, and a sign that it was cut.
pub(super) fn cut(mut text: String, most: usize) -> String {
    if text.len() > most {
        let end = (0..=most).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
        text.truncate(end);
        text.push('…');
    }
    text
}

impl Answer {
    /// The bytes of it, as far as there are some.
    pub(super) fn bytes(&self) -> &[u8] {
        match self {
            Self::Reply(bytes) | Self::Listing { entries: bytes, .. } => bytes,
            Self::Failed(_) | Self::Silence(_) => &[],
        }
    }
}
