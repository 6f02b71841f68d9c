use super::*;
use lighthouse_fs::vfs::{Errno, Operation};
use std::fs;

const NODE: NodeId = NodeId(0);

#[test]
fn what_is_written_is_read() {
    let served = Served::new();
    let created = served.create("a");
    assert_eq!(served.write(created.handle, 3, b"hello"), Ok(5));
    assert_eq!(served.read(created.handle, 0, 100).unwrap(), b"\0\0\0hello");
    assert_eq!(served.read(created.handle, 4, 2).unwrap(), b"el");
    assert_eq!(served.read(created.handle, 8, 10).unwrap(), b"");
    let large = vec![7; 3 << 20];
    assert_eq!(served.write(created.handle, 0, &large), Ok(3 << 20));
    assert_eq!(served.read(created.handle, 0, 4 << 20).unwrap(), large);
    served.vfs.flush(&served.caller, NODE, created.handle).unwrap();
    for data_only in [false, true] {
        served.vfs.fsync(&served.caller, NODE, created.handle, data_only).unwrap();
    }
    served.drop_created(&created);
    assert_eq!(served.vfs.counts(), NOTHING);
}

#[test]
fn a_released_handle_is_bad() {
    let served = Served::new();
    let created = served.create("a");
    let (stale, caller) = (created.handle, &served.caller);
    served.vfs.release(NODE, stale);
    served.vfs.release(NODE, stale);
    let other = served.open(created.entry.attr.node, libc::O_RDWR).unwrap();
    assert_ne!(other, stale);
    for handle in [stale, HandleId(0), HandleId(u64::MAX)] {
        assert_eq!(served.read(handle, 0, 1).err(), Some(Errno::EBADF));
        assert_eq!(served.write(handle, 0, b"x").err(), Some(Errno::EBADF));
        assert_eq!(served.vfs.flush(caller, NODE, handle).err(), Some(Errno::EBADF));
        assert_eq!(served.vfs.fsync(caller, NODE, handle, false).err(), Some(Errno::EBADF));
        assert_eq!(served.vfs.lseek(caller, NODE, handle, 0, libc::SEEK_DATA).err(), Some(Errno::EBADF));
        assert_eq!(served.vfs.getattr(caller, ROOT, Some(handle)).err(), Some(Errno::EBADF));
        assert_eq!(served.vfs.readdir(caller, ROOT, handle, 0, &mut |_| panic!("listed")).err(), Some(Errno::EBADF));
    }
    assert_eq!(served.vfs.counts().handles, 1);
}

#[test]
fn opening_obeys_truncation_and_ignores_what_the_kernel_does_itself() {
    let served = Served::with(Access::ReadWrite, |dir| fs::write(dir.join("a"), "12345").unwrap());
    let node = served.node("a");
    let flags = libc::O_RDWR | libc::O_APPEND | libc::O_DIRECT | libc::O_NOFOLLOW | libc::O_CREAT | libc::O_EXCL;
    let handle = served.open(node, flags).unwrap();
    served.write(handle, 1, b"x").unwrap();
    assert_eq!(served.read(handle, 0, 10).unwrap(), b"1x345", "the offset counts, not the end of the file");
    served.open(node, libc::O_WRONLY | libc::O_TRUNC).unwrap();
    assert_eq!(served.attr(node).size, 0);
    let read_only = served.open(node, libc::O_RDONLY).unwrap();
    assert_eq!(served.write(read_only, 0, b"x"), Err(Errno::EBADF));
}

#[test]
fn create_is_exclusive_only_when_asked() {
    let served = Served::new();
    let created = served.create("a");
    let create = |flags| served.vfs.create(&served.caller, ROOT, OsStr::new("a"), 0o600, flags);
    assert_eq!(create(libc::O_RDWR | libc::O_EXCL).err(), Some(Errno::EEXIST));
    let found = create(libc::O_RDWR).unwrap();
    assert_eq!(found.entry.attr.node, created.entry.attr.node);
    assert_ne!(found.handle, created.handle);
    served.drop_created(&created);
    served.drop_created(&found);
    assert_eq!(served.vfs.counts(), NOTHING);
}

#[test]
fn holes_are_found_and_made() {
    let served = Served::new();
    let created = served.create("a");
    let handle = created.handle;
    let seek = |offset, whence| served.vfs.lseek(&served.caller, NODE, handle, offset, whence);
    let allocate = |offset, length, mode| served.vfs.fallocate(&served.caller, NODE, handle, offset, length, mode);
    served.write(handle, 1 << 20, &[1; 1 << 16]).unwrap();
    assert_eq!(seek(0, libc::SEEK_DATA), Ok(1 << 20));
    assert_eq!(seek(1 << 20, libc::SEEK_HOLE), Ok((1 << 20) + (1 << 16)));
    assert_eq!(seek(4 << 20, libc::SEEK_DATA), Err(Errno::ENXIO));
    assert_eq!(seek(0, libc::SEEK_END), Ok((1 << 20) + (1 << 16)));
    assert_eq!(seek(0, 99), Err(Errno::EINVAL));
    allocate(0, 2 << 20, 0).unwrap();
    assert_eq!(served.attr(created.entry.attr.node).size, 2 << 20);
    let punch = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    allocate(1 << 20, 1 << 16, punch).unwrap();
    assert_eq!(served.read(handle, 1 << 20, 4).unwrap(), [0; 4]);
}

#[test]
fn a_range_is_copied_between_files() {
    let served = Served::new();
    let (from, to) = (served.create("from"), served.create("to"));
    served.write(from.handle, 0, b"0123456789").unwrap();
    let copied = served.vfs.copy_file_range(&served.caller, (NODE, from.handle, 2), (NODE, to.handle, 1), 4).unwrap();
    assert_eq!(copied, 4);
    assert_eq!(served.read(to.handle, 0, 10).unwrap(), b"\x002345");
    let past_the_end = served.vfs.copy_file_range(&served.caller, (NODE, from.handle, 10), (NODE, to.handle, 0), 4);
    assert_eq!(past_the_end, Ok(0));
}

#[test]
fn what_may_wait_for_a_disk_says_so() {
    let served = Served::new();
    let slow = [Operation::FSync, Operation::FSyncDir, Operation::FAllocate, Operation::CopyFileRange];
    for operation in Operation::ALL {
        assert_eq!(served.vfs.may_block(*operation), slow.contains(operation), "{}", operation.name());
    }
}
