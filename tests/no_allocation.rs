//! The paths that every request takes do not allocate: an allocator that counts stands in for the system's.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::ffi::OsStr;
use std::sync::Arc;

use lighthouse_fs::ledger::Ledger;
use lighthouse_fs::shadow::Shadow;
use lighthouse_fs::vfs::{Access, Caller, NodeId, PassThrough, ROOT, Vfs};

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: everything is passed on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller keeps the rules of this method, which are the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, start: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(start, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn assert_none<T>(what: &str, call: impl FnOnce() -> T) -> T {
    let before = ALLOCATIONS.get();
    let result = call();
    assert_eq!(ALLOCATIONS.get() - before, 0, "{what} allocates");
    result
}

#[test]
fn requests_on_known_files_do_not_allocate() {
    let source = tempfile::tempdir().unwrap();
    std::fs::write(source.path().join("file"), "content").unwrap();
    // As in a server that compares nothing.
    let plain = Arc::new(PassThrough::new(source.path(), Access::ReadWrite).unwrap());
    let (_shadow, vfs) = Shadow::over(plain.clone(), &Ledger::create().unwrap());
    let (caller, name) = (Caller::default(), OsStr::new("file"));
    let node: NodeId = vfs.lookup(&caller, ROOT, name).unwrap().attr.node;
    let mut buffer = [0; 4096];

    assert_none("lookup", || vfs.lookup(&caller, ROOT, name)).unwrap();
    assert_none("lookup of nothing", || vfs.lookup(&caller, ROOT, OsStr::new("nothing"))).unwrap_err();
    assert_none("getattr", || vfs.getattr(&caller, node, None)).unwrap();
    let handle = assert_none("open", || vfs.open(&caller, node, libc::O_RDWR)).unwrap();
    assert_none("getattr by handle", || vfs.getattr(&caller, node, Some(handle))).unwrap();
    assert_eq!(assert_none("read", || vfs.read(&caller, node, handle, 0, &mut buffer)), Ok(7));
    assert_eq!(assert_none("write", || vfs.write(&caller, node, handle, 0, &buffer)), Ok(4096));
    assert_none("flush", || vfs.flush(&caller, node, handle)).unwrap();
    assert_none("release", || vfs.release(node, handle));
    assert_none("forget", || vfs.forget(node, 2));
    assert_eq!(plain.counts().nodes, 0);
}
