use super::*;
use lighthouse_fs::vfs::{Errno, FileKind};
use std::fs;
use std::os::unix::fs::symlink;

#[test]
fn a_node_number_is_the_inode_number_and_stays_so_after_forget() {
    let served = Served::with(Access::ReadWrite, |dir| fs::write(dir.join("a"), "").unwrap());
    let first = served.node("a");
    assert_eq!(first.0, served.inode("a"));
    assert_eq!(served.node("a"), first);
    assert_eq!(served.vfs.counts().nodes, 1);
    served.vfs.forget(first, 1);
    assert_eq!(served.vfs.counts().nodes, 1, "one of two lookups was taken back");
    served.vfs.forget(first, 1);
    assert_eq!(served.vfs.counts(), NOTHING);
    assert_eq!(served.vfs.getattr(&served.caller, first, None), Err(Errno::ESTALE));
    assert_eq!(served.node("a"), first);
    let again = PassThrough::new(served.source.path(), Access::ReadWrite).unwrap();
    assert_eq!(again.lookup(&served.caller, ROOT, OsStr::new("a")).unwrap().attr.node, first);
}

#[test]
fn forget_of_the_unknown_is_ignored() {
    let served = Served::new();
    for node in [0, 1, 2, u64::MAX] {
        served.vfs.forget(NodeId(node), u64::MAX);
    }
    assert_eq!(served.attr(ROOT).kind(), FileKind::Directory);
}

#[test]
fn a_node_stays_the_same_file_through_rename_and_unlink() {
    let served = Served::new();
    let created = served.create("a");
    let node = created.entry.attr.node;
    let rename = |flags| served.vfs.rename(&served.caller, ROOT, OsStr::new("a"), ROOT, OsStr::new("b"), flags);
    rename(0).unwrap();
    assert_eq!(served.node("b"), node);
    served.vfs.unlink(&served.caller, ROOT, OsStr::new("b")).unwrap();
    assert_eq!(served.attr(node).nlink, 0);
    served.write(created.handle, 0, b"still here").unwrap();
    assert_eq!(served.read(created.handle, 6, 10).unwrap(), b"here");
    served.drop_created(&created);
    served.vfs.forget(node, 1);
    assert_eq!(served.vfs.counts(), NOTHING);
}

#[test]
fn rename_obeys_its_flags() {
    let served = Served::with(Access::ReadWrite, |dir| {
        fs::write(dir.join("a"), "a").unwrap();
        fs::write(dir.join("b"), "b").unwrap();
    });
    let rename = |flags| served.vfs.rename(&served.caller, ROOT, OsStr::new("a"), ROOT, OsStr::new("b"), flags);
    assert_eq!(rename(libc::RENAME_NOREPLACE), Err(Errno::EEXIST));
    rename(libc::RENAME_EXCHANGE).unwrap();
    assert_eq!(fs::read_to_string(served.path("a")).unwrap(), "b");
    assert_eq!(rename(1 << 20), Err(Errno::EINVAL));
}

#[test]
fn everything_that_can_be_made_can_be_made() {
    let served = Served::new();
    let (vfs, caller) = (&served.vfs, &served.caller);
    let dir = vfs.mkdir(caller, ROOT, OsStr::new("dir"), 0o750).unwrap();
    assert_eq!(dir.attr.kind(), FileKind::Directory);
    let link = vfs.symlink(caller, dir.attr.node, OsStr::new("link"), OsStr::new("../nowhere")).unwrap();
    assert_eq!(link.attr.kind(), FileKind::Symlink);
    assert_eq!(vfs.readlink(caller, link.attr.node).unwrap(), b"../nowhere");
    let fifo = vfs.mknod(caller, ROOT, OsStr::new("fifo"), libc::S_IFIFO | 0o600, 0).unwrap();
    assert_eq!(fifo.attr.kind(), FileKind::Fifo);
    let file = vfs.mknod(caller, ROOT, OsStr::new("file"), libc::S_IFREG | 0o640, 0).unwrap();
    assert_eq!((file.attr.kind(), file.attr.mode & 0o777), (FileKind::File, 0o640));
    let hard = vfs.link(caller, file.attr.node, dir.attr.node, OsStr::new("hard")).unwrap();
    assert_eq!((hard.attr.node, hard.attr.nlink), (file.attr.node, 2));
    let hard_link = vfs.link(caller, link.attr.node, ROOT, OsStr::new("same link")).unwrap();
    assert_eq!(hard_link.attr.node, link.attr.node, "the link itself, not where it points");

    assert_eq!(vfs.rmdir(caller, ROOT, OsStr::new("dir")), Err(Errno::ENOTEMPTY));
    assert_eq!(vfs.rmdir(caller, ROOT, OsStr::new("file")), Err(Errno::ENOTDIR));
    assert_eq!(vfs.unlink(caller, ROOT, OsStr::new("dir")), Err(Errno::EISDIR));
    for name in ["link", "hard"] {
        vfs.unlink(caller, dir.attr.node, OsStr::new(name)).unwrap();
    }
    vfs.rmdir(caller, ROOT, OsStr::new("dir")).unwrap();
    assert_eq!(served.lookup(ROOT, "dir").err(), Some(Errno::ENOENT));
    for (node, count) in [(dir, 1), (link, 2), (fifo, 1), (file, 2)] {
        vfs.forget(node.attr.node, count);
    }
    assert_eq!(vfs.counts(), NOTHING);
}

#[test]
fn a_device_node_keeps_its_number() {
    if !is_root() {
        return;
    }
    let served = Served::new();
    // Minor 300 needs more than 8 bits: the kernel's encoding splits it.
    let number = rustix::fs::makedev(7, 300);
    match served.vfs.mknod(&served.caller, ROOT, OsStr::new("dev"), libc::S_IFBLK | 0o600, number) {
        Ok(made) => assert_eq!(u64::from(made.attr.rdev), number),
        Err(error) => println!("skipped: this machine forbids device nodes: {error}"),
    }
}

#[test]
fn dots_never_lead_out() {
    let served = Served::new();
    let outer = served.mkdir(ROOT, "outer");
    let inner = served.mkdir(outer, "inner");
    assert_eq!(served.lookup(ROOT, "..").unwrap().attr.node, ROOT);
    assert_eq!(served.lookup(ROOT, ".").unwrap().attr.node, ROOT);
    assert_eq!(served.lookup(inner, ".").unwrap().attr.node, inner);
    assert_eq!(served.lookup(inner, "..").unwrap().attr.node, outer);
    assert_eq!(served.lookup(outer, "..").unwrap().attr.node, ROOT);

    let elsewhere = tempfile::tempdir_in(served.source.path().parent().unwrap()).unwrap();
    fs::rename(served.path("outer"), elsewhere.path().join("outer")).unwrap();
    assert_eq!(served.lookup(outer, "..").err(), Some(Errno::ESTALE), "moved out of the source");
    served.vfs.forget(outer, 2);
    served.vfs.forget(inner, 2);
    assert_eq!(served.vfs.counts(), NOTHING);
}

#[test]
fn a_name_is_one_component() {
    let served = Served::with(Access::ReadWrite, |dir| fs::create_dir(dir.join("d")).unwrap());
    for (name, error) in [
        ("d/..", Errno::EINVAL),
        ("/etc", Errno::EINVAL),
        ("d\0", Errno::EINVAL),
        ("", Errno::ENOENT),
        (&"x".repeat(256), Errno::ENAMETOOLONG),
    ] {
        assert_eq!(served.lookup(ROOT, name).err(), Some(error), "{name}");
        assert_eq!(served.vfs.mkdir(&served.caller, ROOT, OsStr::new(name), 0o755).err(), Some(error), "{name}");
        assert_eq!(served.vfs.rmdir(&served.caller, ROOT, OsStr::new(name)).err(), Some(error), "{name}");
    }
    for dots in [".", ".."] {
        assert_eq!(served.vfs.rmdir(&served.caller, ROOT, OsStr::new(dots)), Err(Errno::EINVAL));
    }
    let longest = "x".repeat(255);
    served.mkdir(ROOT, &longest);
    assert!(served.path(&longest).is_dir());
}

#[test]
fn a_symbolic_link_is_never_followed() {
    let outside = tempfile::NamedTempFile::new().unwrap();
    fs::write(outside.path(), "secret").unwrap();
    let served = Served::with(Access::ReadWrite, |dir| {
        symlink(outside.path(), dir.join("file")).unwrap();
        symlink("/", dir.join("dir")).unwrap();
    });
    let link = served.node("file");
    assert_eq!(served.attr(link).kind(), FileKind::Symlink);
    assert_eq!(served.open(link, libc::O_RDONLY), Err(Errno::ELOOP));
    let create = served.vfs.create(&served.caller, ROOT, OsStr::new("file"), 0o644, libc::O_RDWR);
    assert_eq!(create.err(), Some(Errno::ELOOP));
    let dir = served.node("dir");
    assert_eq!(served.lookup(dir, "etc").err(), Some(Errno::ENOTDIR));
    assert_eq!(served.vfs.opendir(&served.caller, dir, 0).err(), Some(Errno::ENOTDIR));
    assert_eq!(fs::read_to_string(outside.path()).unwrap(), "secret");
}
