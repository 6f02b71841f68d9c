use super::*;

const NOBODY: Caller = Caller { uid: 5, gid: 6, pid: 0, umask: 0 };

fn name(name: &str) -> &OsStr {
    OsStr::new(name)
}

fn create(fs: &Memory, parent: NodeId, file: &str) -> NodeId {
    fs.create(&NOBODY, parent, name(file), 0o644, libc::O_RDWR | libc::O_EXCL).unwrap().entry.attr.node
}

fn list(fs: &Memory, node: NodeId, offset: u64, room: usize) -> Vec<(String, u64)> {
    let mut names = Vec::new();
    let listed = fs.readdir(&NOBODY, node, HANDLE, offset, &mut |entry| {
        if names.len() == room {
            return ListFlow::Full;
        }
        names.push((entry.name.to_str().unwrap().to_owned(), entry.offset));
        ListFlow::Taken
    });
    listed.unwrap();
    names
}

fn content(fs: &Memory, node: NodeId) -> Vec<u8> {
    let mut buffer = [0; 64];
    let count = fs.read(&NOBODY, node, HANDLE, 0, &mut buffer).unwrap();
    buffer[..count].to_vec()
}

#[test]
fn what_is_written_is_read() {
    let fs = Memory::new();
    let file = create(&fs, ROOT, "a");
    assert_eq!(fs.write(&NOBODY, file, HANDLE, 2, b"hello"), Ok(5));
    assert_eq!(content(&fs, file), b"\0\0hello");
    assert_eq!(fs.read(&NOBODY, file, HANDLE, 100, &mut [0]), Ok(0));
    let cut = SetAttr { size: Some(4), mode: Some(0o600), ..SetAttr::default() };
    let attr = fs.setattr(&NOBODY, file, None, &cut).unwrap();
    assert_eq!((attr.size, attr.mode, attr.uid), (4, libc::S_IFREG | 0o600, NOBODY.uid));
    assert_eq!(content(&fs, file), b"\0\0he");
    fs.open(&NOBODY, file, libc::O_WRONLY | libc::O_TRUNC).unwrap();
    assert_eq!(content(&fs, file), b"");
    assert_eq!(fs.write(&NOBODY, file, HANDLE, u64::MAX, b"x"), Err(Errno::EFBIG));
}

#[test]
fn a_deleted_file_lives_until_it_is_forgotten() {
    let fs = Memory::new();
    let file = create(&fs, ROOT, "a");
    fs.write(&NOBODY, file, HANDLE, 0, b"still here").unwrap();
    fs.unlink(&NOBODY, ROOT, name("a")).unwrap();
    assert_eq!(content(&fs, file), b"still here");
    assert_eq!(fs.lookup(&NOBODY, ROOT, name("a")).err(), Some(Errno::ENOENT));
    fs.forget(file, 1);
    assert_eq!(fs.getattr(&NOBODY, file, None).err(), Some(Errno::ESTALE));
    fs.forget(ROOT, 1);
    assert_eq!(fs.state().nodes.len(), 1, "the root stays");
}

#[test]
fn a_listing_goes_on_from_any_place_whatever_changed_meanwhile() {
    let fs = Memory::new();
    for number in 0..20 {
        create(&fs, ROOT, &format!("file-{number:02}"));
    }
    let all = list(&fs, ROOT, 0, usize::MAX);
    assert_eq!(all.len(), 22);
    for (at, (_, offset)) in all.iter().enumerate() {
        assert_eq!(list(&fs, ROOT, *offset, 2), all[(at + 1).min(22)..(at + 3).min(22)]);
    }
    // The entry to go on from is removed, and a new one comes: neither moves the others.
    fs.unlink(&NOBODY, ROOT, name(&all[10].0)).unwrap();
    create(&fs, ROOT, "new");
    let rest = list(&fs, ROOT, all[10].1, usize::MAX);
    assert_eq!(rest[..11], all[11..]);
    assert_eq!(rest[11].0, "new");
}

#[test]
fn links_and_directories_count_their_names() {
    let fs = Memory::new();
    let dir = fs.mkdir(&NOBODY, ROOT, name("dir"), 0o755).unwrap().attr.node;
    let links = |node| fs.getattr(&NOBODY, node, None).unwrap().nlink;
    assert_eq!((links(ROOT), links(dir)), (3, 2));
    let file = create(&fs, dir, "a");
    fs.link(&NOBODY, file, ROOT, name("b")).unwrap();
    assert_eq!(links(file), 2);
    assert_eq!(fs.rmdir(&NOBODY, ROOT, name("dir")), Err(Errno::ENOTEMPTY));
    fs.unlink(&NOBODY, dir, name("a")).unwrap();
    assert_eq!(links(file), 1);
    fs.rmdir(&NOBODY, ROOT, name("dir")).unwrap();
    assert_eq!(links(ROOT), 2);
    let link = fs.symlink(&NOBODY, ROOT, name("link"), name("b")).unwrap().attr;
    assert_eq!((link.kind(), link.size), (FileKind::Symlink, 1));
    assert_eq!(fs.readlink(&NOBODY, link.node).unwrap(), b"b");
    assert_eq!(fs.symlink(&NOBODY, ROOT, name("link"), name("c")).err(), Some(Errno::EEXIST));
}

#[test]
fn rename_moves_replaces_and_obeys_noreplace() {
    let fs = Memory::new();
    let [one, two] = ["one", "two"].map(|dir| fs.mkdir(&NOBODY, ROOT, name(dir), 0o755).unwrap().attr.node);
    let inner = fs.mkdir(&NOBODY, one, name("inner"), 0o755).unwrap().attr.node;
    fs.rename(&NOBODY, one, name("inner"), two, name("moved"), 0).unwrap();
    assert_eq!(fs.lookup(&NOBODY, inner, name("..")).unwrap().attr.node, two);
    let links = |node| fs.getattr(&NOBODY, node, None).unwrap().nlink;
    assert_eq!((links(one), links(two)), (2, 3));

    let (a, b) = (create(&fs, ROOT, "a"), create(&fs, ROOT, "b"));
    let rename = |flags| fs.rename(&NOBODY, ROOT, name("a"), ROOT, name("b"), flags);
    assert_eq!(rename(libc::RENAME_NOREPLACE), Err(Errno::EEXIST));
    assert_eq!(rename(libc::RENAME_EXCHANGE), Err(Errno::EINVAL));
    rename(0).unwrap();
    assert_eq!(fs.lookup(&NOBODY, ROOT, name("b")).unwrap().attr.node, a);
    assert_eq!(links(b), 0);
    fs.forget(b, 1);
    assert!(fs.getattr(&NOBODY, b, None).is_err());
}
