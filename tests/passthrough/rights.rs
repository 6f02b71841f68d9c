use super::*;
use lighthouse_fs::vfs::passthrough::strip_set_id_on_write;
use lighthouse_fs::vfs::{Errno, SetAttr};
use std::fs;

#[test]
fn a_read_only_mount_refuses_every_change() {
    let served = Served::with(Access::ReadOnly, |dir| {
        fs::write(dir.join("a"), "content").unwrap();
        fs::create_dir(dir.join("d")).unwrap();
    });
    let (vfs, caller, name, new) = (&served.vfs, &served.caller, OsStr::new("a"), OsStr::new("new"));
    let node = served.node("a");
    let handle = served.open(node, libc::O_RDONLY).unwrap();
    assert_eq!(served.read(handle, 0, 100).unwrap(), b"content");

    let refused = [
        ("create", vfs.create(caller, ROOT, new, 0o644, libc::O_RDWR).err()),
        ("mkdir", vfs.mkdir(caller, ROOT, new, 0o755).err()),
        ("mknod", vfs.mknod(caller, ROOT, new, libc::S_IFREG | 0o644, 0).err()),
        ("symlink", vfs.symlink(caller, ROOT, new, name).err()),
        ("link", vfs.link(caller, node, ROOT, new).err()),
        ("unlink", vfs.unlink(caller, ROOT, name).err()),
        ("rmdir", vfs.rmdir(caller, ROOT, OsStr::new("d")).err()),
        ("rename", vfs.rename(caller, ROOT, name, ROOT, new, 0).err()),
        ("setattr", vfs.setattr(caller, node, None, &SetAttr { mode: Some(0), ..SetAttr::default() }).err()),
        ("setxattr", vfs.setxattr(caller, node, OsStr::new("user.x"), b"", 0).err()),
        ("removexattr", vfs.removexattr(caller, node, OsStr::new("user.x")).err()),
        ("open to write", served.open(node, libc::O_WRONLY).err()),
        ("open to read and write", served.open(node, libc::O_RDWR).err()),
        ("open to truncate", served.open(node, libc::O_RDONLY | libc::O_TRUNC).err()),
        ("fallocate", vfs.fallocate(caller, node, handle, 0, 1, 0).err()),
        ("copy_file_range", vfs.copy_file_range(caller, (node, handle, 0), (node, handle, 1), 1).err()),
    ];
    for (what, error) in refused {
        assert_eq!(error, Some(Errno::EROFS), "{what}");
    }
    assert_eq!(fs::read_to_string(served.path("a")).unwrap(), "content");
}

#[test]
fn new_files_belong_to_the_caller() {
    if !is_root() {
        return;
    }
    let served = Served::new();
    let caller = Caller { uid: 1234, gid: 2345, ..Caller::default() };
    let (vfs, private) = (&served.vfs, served.mkdir(ROOT, "private"));
    // The caller could not write here by itself; the kernel has let it, perhaps for a group that is not known here.
    fs::set_permissions(served.path("private"), std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    let made = [
        vfs.create(&caller, private, OsStr::new("file"), 0o640, libc::O_RDWR).unwrap().entry,
        vfs.mkdir(&caller, private, OsStr::new("dir"), 0o750).unwrap(),
        vfs.mknod(&caller, private, OsStr::new("fifo"), libc::S_IFIFO | 0o600, 0).unwrap(),
        vfs.symlink(&caller, private, OsStr::new("link"), OsStr::new("file")).unwrap(),
    ];
    for entry in made {
        assert_eq!((entry.attr.uid, entry.attr.gid), (1234, 2345), "{:?}", entry.attr.kind());
    }
    let own = served.create("own").entry.attr;
    assert_eq!((own.uid, own.gid), (served.caller.uid, served.caller.gid), "and the thread is root again");
}

#[test]
fn the_group_of_a_set_gid_directory_wins() {
    if !is_root() {
        return;
    }
    let served = Served::new();
    let shared = served.mkdir(ROOT, "shared");
    let set = SetAttr { mode: Some(0o2777), gid: Some(99), ..SetAttr::default() };
    served.vfs.setattr(&served.caller, shared, None, &set).unwrap();
    served.vfs.setattr(&served.caller, shared, None, &SetAttr { mode: Some(0o2777), ..SetAttr::default() }).unwrap();
    let caller = Caller { uid: 1234, gid: 2345, ..Caller::default() };
    let made = served.vfs.mkdir(&caller, shared, OsStr::new("dir"), 0o755).unwrap().attr;
    assert_eq!((made.uid, made.gid, made.mode & 0o7777), (1234, 99, 0o2755));
}

#[test]
fn set_id_bits_go_with_any_change_of_content_and_stay_when_they_are_set() {
    if !is_root() {
        return;
    }
    // Rights belong to a thread; others of this program keep theirs.
    std::thread::spawn(|| {
        strip_set_id_on_write().unwrap();
        let served = Served::new();
        let created = served.create("a");
        let (node, handle) = (created.entry.attr.node, created.handle);
        let set = |set| served.vfs.setattr(&served.caller, node, None, &set).unwrap();
        // Neither this process's group nor the one of the caller.
        set(SetAttr { gid: Some(4321), ..SetAttr::default() });
        let changes: [(&str, &dyn Fn()); 5] = [
            ("write", &|| assert_eq!(served.write(handle, 0, b"content"), Ok(7))),
            ("truncate by node", &|| assert_eq!(set(SetAttr { size: Some(3), ..SetAttr::default() }).size, 3)),
            ("truncate when opened", &|| {
                let opened = served.open(node, libc::O_WRONLY | libc::O_TRUNC).unwrap();
                served.vfs.release(node, opened);
            }),
            ("allocate", &|| served.vfs.fallocate(&served.caller, node, handle, 0, 4096, 0).unwrap()),
            ("copy", &|| {
                let (from, to) = ((node, handle, 0), (node, handle, 2048));
                assert_eq!(served.vfs.copy_file_range(&served.caller, from, to, 100), Ok(100));
            }),
        ];
        for (what, change) in changes {
            let attr = set(SetAttr { mode: Some(0o6755), ..SetAttr::default() });
            assert_eq!(attr.mode & 0o7777, 0o6755, "set before {what}");
            change();
            assert_eq!(served.attr(node).mode & 0o7777, 0o755, "after {what}");
        }
        // A thread that had made a file for somebody else has not got the right back by that.
        let caller = Caller { uid: 1234, gid: 2345, ..Caller::default() };
        served.vfs.mkdir(&caller, ROOT, OsStr::new("dir"), 0o755).unwrap();
        set(SetAttr { mode: Some(0o6755), ..SetAttr::default() });
        served.write(handle, 0, b"content").unwrap();
        assert_eq!(served.attr(node).mode & 0o7777, 0o755);
    })
    .join()
    .unwrap();
}
