use super::*;
use lighthouse_fs::vfs::{Errno, SetAttr, TimeSet, Timestamp, XattrSize};
use std::fs;
use std::os::unix::fs::symlink;
use std::time::{Duration, SystemTime};

#[test]
fn attributes_are_those_of_the_source() {
    let served = Served::with(Access::ReadWrite, |dir| fs::write(dir.join("a"), "12345").unwrap());
    let attr = served.lookup(ROOT, "a").unwrap().attr;
    let source = served.path("a").metadata().unwrap();
    assert_eq!((attr.node.0, attr.size, attr.blocks), (source.ino(), 5, source.blocks()));
    assert_eq!((attr.mode, u64::from(attr.nlink)), (source.mode(), source.nlink()));
    assert_eq!((attr.uid, attr.gid, u64::from(attr.blksize)), (source.uid(), source.gid(), source.blksize()));
    assert_eq!(attr.mtime, Timestamp { sec: source.mtime(), nsec: source.mtime_nsec() as u32 });
    assert_eq!(served.attr(ROOT).node, ROOT);
}

#[test]
fn mode_size_and_times_are_set_by_node_and_by_handle() {
    let served = Served::new();
    let created = served.create("a");
    let node = created.entry.attr.node;
    for handle in [None, Some(created.handle)] {
        let set = |set| served.vfs.setattr(&served.caller, node, handle, &set);
        let attr = set(SetAttr { mode: Some(0o4711), ..SetAttr::default() }).unwrap();
        assert_eq!(attr.mode & 0o7777, 0o4711);
        let attr = set(SetAttr { size: Some(7), mode: Some(0o600), ..SetAttr::default() }).unwrap();
        assert_eq!((attr.size, attr.mode & 0o7777), (7, 0o600));
        assert!(set(SetAttr { size: Some(u64::MAX), ..SetAttr::default() }).is_err());
        let before = Timestamp { sec: -3, nsec: 250_000_000 };
        let attr = set(SetAttr { mtime: Some(TimeSet::At(before)), ..SetAttr::default() }).unwrap();
        assert_eq!(attr.mtime, before);
        assert_ne!(attr.atime, before);
        let attr = set(SetAttr { atime: Some(TimeSet::Now), ..SetAttr::default() }).unwrap();
        assert_eq!(attr.mtime, before);
        let now = Timestamp::from(SystemTime::now() - Duration::from_secs(60));
        assert!(attr.atime.sec > now.sec);
    }
}

#[test]
fn times_of_a_symbolic_link_are_its_own() {
    let served = Served::with(Access::ReadWrite, |dir| {
        fs::write(dir.join("target"), "").unwrap();
        symlink("target", dir.join("link")).unwrap();
    });
    let (link, time) = (served.node("link"), Timestamp { sec: 1000, nsec: 5 });
    let set = SetAttr { mtime: Some(TimeSet::At(time)), ..SetAttr::default() };
    assert_eq!(served.vfs.setattr(&served.caller, link, None, &set).unwrap().mtime, time);
    assert_ne!(served.path("target").metadata().unwrap().mtime(), 1000);
    assert_eq!(served.path("link").symlink_metadata().unwrap().mtime(), 1000);
}

#[test]
fn the_owner_is_set_for_links_too() {
    if !is_root() {
        return;
    }
    let served = Served::with(Access::ReadWrite, |dir| {
        fs::write(dir.join("target"), "").unwrap();
        symlink("target", dir.join("link")).unwrap();
    });
    for name in ["link", "target"] {
        let node = served.node(name);
        let set = |set| served.vfs.setattr(&served.caller, node, None, &set).unwrap();
        let attr = set(SetAttr { uid: Some(77), ..SetAttr::default() });
        assert_eq!((attr.uid, attr.gid), (77, served.caller.gid));
        let attr = set(SetAttr { gid: Some(88), ..SetAttr::default() });
        assert_eq!((attr.uid, attr.gid), (77, 88));
    }
}

#[test]
fn free_space_is_that_of_the_source() {
    let served = Served::new();
    let found = served.vfs.statfs(&served.caller, ROOT).unwrap();
    let expected = rustix::fs::statvfs(served.source.path()).unwrap();
    assert_eq!((found.blocks, found.files), (expected.f_blocks, expected.f_files));
    assert_eq!((u64::from(found.frsize), u64::from(found.namelen)), (expected.f_frsize, expected.f_namemax));
}

#[test]
fn extended_attributes_can_be_set_read_listed_and_removed() {
    let served = Served::with(Access::ReadWrite, |dir| fs::write(dir.join("a"), "").unwrap());
    let (vfs, caller, node) = (&served.vfs, &served.caller, served.node("a"));
    let (name, value) = (OsStr::new("user.colour"), b"blue");
    match vfs.setxattr(caller, node, name, value, libc::XATTR_CREATE) {
        Err(Errno::EOPNOTSUPP) => {
            println!("skipped: this file system has no extended attributes");
            return;
        }
        result => result.unwrap(),
    }
    assert_eq!(vfs.setxattr(caller, node, name, value, libc::XATTR_CREATE), Err(Errno::EEXIST));
    assert_eq!(vfs.setxattr(caller, node, OsStr::new("user.b"), b"", libc::XATTR_REPLACE), Err(Errno::ENODATA));
    assert_eq!(vfs.getxattr(caller, node, name, XattrSize::Query), Ok(4));
    let mut buffer = [0; 8];
    assert_eq!(vfs.getxattr(caller, node, name, XattrSize::Into(&mut buffer)), Ok(4));
    assert_eq!(&buffer[..4], value);
    for small in [0, 3] {
        assert_eq!(vfs.getxattr(caller, node, name, XattrSize::Into(&mut buffer[..small])), Err(Errno::ERANGE));
        assert_eq!(vfs.listxattr(caller, node, XattrSize::Into(&mut buffer[..small])), Err(Errno::ERANGE));
    }
    let size = vfs.listxattr(caller, node, XattrSize::Query).unwrap();
    let mut list = vec![0; size];
    assert_eq!(vfs.listxattr(caller, node, XattrSize::Into(&mut list)), Ok(size));
    assert!(list.split(|byte| *byte == 0).any(|listed| listed == b"user.colour"));
    vfs.removexattr(caller, node, name).unwrap();
    assert_eq!(vfs.removexattr(caller, node, name), Err(Errno::ENODATA));
    assert_eq!(vfs.getxattr(caller, node, name, XattrSize::Query), Err(Errno::ENODATA));
}
