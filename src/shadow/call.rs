//! A decoded call of the vfs, as plain data that owns what it names.

use std::ffi::OsStr;
use std::fmt;

use crate::vfs::{Caller, HandleId, NodeId, Operation, SetAttr};

/// One call, and who made it.
#[derive(Clone, PartialEq, Debug)]
pub struct Sample {
    /// Who asks.
    pub caller: Caller,
    /// For what.
    pub call: Call,
}

/// Bytes, shown as text.
#[derive(Clone, PartialEq, Eq)]
pub struct Data(Box<[u8]>);

impl Data {
    /// The bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl From<&[u8]> for Data {
    fn from(bytes: &[u8]) -> Self {
        Self(bytes.into())
    }
}

impl fmt::Debug for Data {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes \"{}\"", self.0.len(), self.0.escape_ascii())
    }
}

/// What a comparison does with a call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Manner {
    /// Runs it in each session.
    Read,
    /// Opens the directory anew in each session, and lists it.
    List,
    /// Never runs it: what the sessions decode is compared.
    Record,
}

/// The calls of [`Vfs`](crate::vfs::Vfs) that are sampled, with its arguments.
#[derive(Clone, PartialEq, Debug)]
#[allow(missing_docs, reason = "they are the arguments of the methods of Vfs")]
pub enum Call {
    Lookup { parent: NodeId, name: Box<OsStr> },
    GetAttr { node: NodeId, handle: Option<HandleId> },
    ReadLink { node: NodeId },
    Read { node: NodeId, handle: HandleId, offset: u64, size: u32 },
    ReadDir { node: NodeId, offset: u64 },
    ReadDirPlus { node: NodeId, offset: u64 },
    StatFs { node: NodeId },
    GetXattr { node: NodeId, name: Box<OsStr>, size: u32 },
    ListXattr { node: NodeId, size: u32 },
    Access { node: NodeId, mask: u32 },
    LSeek { node: NodeId, handle: HandleId, offset: i64, whence: i32 },

    SetAttr { node: NodeId, handle: Option<HandleId>, set: SetAttr },
    Symlink { parent: NodeId, name: Box<OsStr>, target: Box<OsStr> },
    MkNod { parent: NodeId, name: Box<OsStr>, mode: u32, rdev: u64 },
    MkDir { parent: NodeId, name: Box<OsStr>, mode: u32 },
    Unlink { parent: NodeId, name: Box<OsStr> },
    RmDir { parent: NodeId, name: Box<OsStr> },
    Rename { parent: NodeId, name: Box<OsStr>, new_parent: NodeId, new_name: Box<OsStr>, flags: u32 },
    Link { node: NodeId, new_parent: NodeId, new_name: Box<OsStr> },
    Open { node: NodeId, flags: i32 },
    Create { parent: NodeId, name: Box<OsStr>, mode: u32, flags: i32 },
    Write { node: NodeId, handle: HandleId, offset: u64, data: Data },
    Flush { node: NodeId, handle: HandleId },
    Release { node: NodeId, handle: HandleId },
    FSync { node: NodeId, handle: HandleId, data_only: bool },
    OpenDir { node: NodeId, flags: i32 },
    ReleaseDir { node: NodeId, handle: HandleId },
    FSyncDir { node: NodeId, handle: HandleId, data_only: bool },
    SetXattr { node: NodeId, name: Box<OsStr>, value: Data, flags: i32 },
    RemoveXattr { node: NodeId, name: Box<OsStr> },
    FAllocate { node: NodeId, handle: HandleId, offset: u64, length: u64, mode: i32 },
    CopyFileRange { from: (NodeId, HandleId, u64), to: (NodeId, HandleId, u64), length: u64 },
}

impl Call {
    /// The kind of request that it was.
    #[must_use]
    pub fn operation(&self) -> Operation {
        macro_rules! same_names {
            ($($name:ident)*) => { match self { $(Self::$name { .. } => Operation::$name),* } };
        }
        same_names! {
            Lookup GetAttr ReadLink Read ReadDir ReadDirPlus StatFs GetXattr ListXattr Access LSeek
            SetAttr Symlink MkNod MkDir Unlink RmDir Rename Link Open Create Write Flush Release FSync OpenDir
            ReleaseDir FSyncDir SetXattr RemoveXattr FAllocate CopyFileRange
        }
    }

    /// What a comparison does with it.
    #[must_use]
    pub fn manner(&self) -> Manner {
        match self {
            Self::Lookup { .. }
            | Self::GetAttr { .. }
            | Self::ReadLink { .. }
            | Self::Read { .. }
            | Self::StatFs { .. }
            | Self::GetXattr { .. }
            | Self::ListXattr { .. }
            | Self::Access { .. }
            | Self::LSeek { .. } => Manner::Read,
            Self::ReadDir { .. } | Self::ReadDirPlus { .. } => Manner::List,
            _ => Manner::Record,
        }
    }
}
