//! Pass-through of a source directory, used as a backend uses it: through the trait `Vfs`, on temporary directories.

mod attributes;
mod devices;
mod files;
mod listing;
mod names;
mod rights;
mod stress;

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use lighthouse_fs::vfs::{
    Access, Attr, Caller, Counts, Created, Entry, HandleId, NodeId, PassThrough, ROOT, Result, Vfs,
};
use std::os::unix::fs::MetadataExt;
use tempfile::TempDir;

/// A served temporary directory.
struct Served {
    source: TempDir,
    vfs: PassThrough,
    caller: Caller,
}

const NOTHING: Counts = Counts { nodes: 0, handles: 0 };

impl Served {
    fn new() -> Self {
        Self::with(Access::ReadWrite, |_| {})
    }

    /// Serves what `fill` has put into the directory.
    fn with(access: Access, fill: impl FnOnce(&Path)) -> Self {
        let source = tempfile::tempdir().unwrap();
        fill(source.path());
        let vfs = PassThrough::new(source.path(), access).unwrap();
        let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
        Self { source, vfs, caller: Caller { uid, gid, ..Caller::default() } }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.source.path().join(name)
    }

    fn inode(&self, name: &str) -> u64 {
        self.path(name).symlink_metadata().unwrap().ino()
    }

    fn lookup(&self, parent: NodeId, name: &str) -> Result<Entry> {
        self.vfs.lookup(&self.caller, parent, OsStr::new(name))
    }

    /// Looks up a name in the root that must be there.
    fn node(&self, name: &str) -> NodeId {
        self.lookup(ROOT, name).unwrap().attr.node
    }

    fn create(&self, name: &str) -> Created {
        let flags = libc::O_RDWR | libc::O_CREAT | libc::O_EXCL;
        self.vfs.create(&self.caller, ROOT, OsStr::new(name), 0o644, flags).unwrap()
    }

    fn mkdir(&self, parent: NodeId, name: &str) -> NodeId {
        self.vfs.mkdir(&self.caller, parent, OsStr::new(name), 0o755).unwrap().attr.node
    }

    fn open(&self, node: NodeId, flags: i32) -> Result<HandleId> {
        self.vfs.open(&self.caller, node, flags)
    }

    fn read(&self, handle: HandleId, offset: u64, size: usize) -> Result<Vec<u8>> {
        let mut buffer = vec![0; size];
        let count = self.vfs.read(&self.caller, NodeId(0), handle, offset, &mut buffer)?;
        buffer.truncate(count);
        Ok(buffer)
    }

    fn write(&self, handle: HandleId, offset: u64, data: &[u8]) -> Result<u32> {
        self.vfs.write(&self.caller, NodeId(0), handle, offset, data)
    }

    fn attr(&self, node: NodeId) -> Attr {
        self.vfs.getattr(&self.caller, node, None).unwrap()
    }

    /// Gives everything back that `created` counts.
    fn drop_created(&self, created: &Created) {
        self.vfs.release(created.entry.attr.node, created.handle);
        self.vfs.forget(created.entry.attr.node, 1);
    }
}

/// Whether a test that only root can run may go on; says so if not.
fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        println!("skipped: only root can do this");
    }
    root
}
