use super::*;
use lighthouse_fs::vfs::{Errno, FileKind, ListFlow};
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;

/// One entry of a listing, kept.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Name {
    node: NodeId,
    offset: u64,
    kind: FileKind,
    name: String,
}

impl Served {
    fn opendir(&self, node: NodeId) -> HandleId {
        self.vfs.opendir(&self.caller, node, 0).unwrap()
    }

    /// Up to `room` entries from `offset`.
    fn list(&self, handle: HandleId, offset: u64, room: usize) -> Vec<Name> {
        let mut names = Vec::new();
        let list = self.vfs.readdir(&self.caller, ROOT, handle, offset, &mut |entry| {
            if names.len() == room {
                return ListFlow::Full;
            }
            let name = entry.name.to_str().unwrap().to_owned();
            names.push(Name { node: entry.node, offset: entry.offset, kind: entry.kind, name });
            ListFlow::Taken
        });
        list.unwrap();
        names
    }
}

fn full(count: usize) -> Served {
    Served::with(Access::ReadWrite, |dir| {
        for number in 0..count {
            fs::write(dir.join(format!("name-{number:05}")), "").unwrap();
        }
    })
}

#[test]
fn ten_thousand_names_come_once_each_wherever_the_listing_goes_on() {
    let served = full(10_000);
    let handle = served.opendir(ROOT);
    let all = served.list(handle, 0, usize::MAX);
    let distinct: BTreeSet<&str> = all.iter().map(|name| name.name.as_str()).collect();
    assert_eq!((all.len(), distinct.len()), (10_002, 10_002));

    // One at a time, onwards.
    let mut offset = 0;
    for name in &all {
        assert_eq!(served.list(handle, offset, 1), std::slice::from_ref(name));
        offset = name.offset;
    }
    assert_eq!(served.list(handle, offset, 1), []);
    // At every place, backwards, so that each one is a jump.
    for (at, name) in all.iter().enumerate().rev() {
        assert_eq!(served.list(handle, name.offset, 2), all[(at + 1).min(all.len())..(at + 3).min(all.len())]);
    }
    // In another handle, as after a takeover by another process.
    let other = served.opendir(ROOT);
    assert_eq!(served.list(other, all[5_000].offset, usize::MAX), all[5_001..]);
    assert_eq!(served.list(other, all[9].offset, 0), []);
    served.vfs.releasedir(ROOT, handle);
    served.vfs.releasedir(ROOT, other);
    assert_eq!(served.vfs.counts(), NOTHING);
}

#[test]
fn entries_show_number_and_kind_as_a_lookup_would() {
    let served = Served::with(Access::ReadWrite, |dir| {
        fs::create_dir(dir.join("dir")).unwrap();
        for inside in [dir.to_owned(), dir.join("dir")] {
            fs::write(inside.join("file"), "").unwrap();
            symlink("file", inside.join("link")).unwrap();
        }
    });
    for node in [ROOT, served.node("dir")] {
        let handle = served.opendir(node);
        let mut names = 0;
        let list = served.vfs.readdir(&served.caller, node, handle, 0, &mut |listed| {
            let found = served.vfs.lookup(&served.caller, node, listed.name).unwrap().attr;
            assert_eq!((listed.node, listed.kind), (found.node, found.kind()), "{:?}", listed.name);
            names += 1;
            ListFlow::Taken
        });
        list.unwrap();
        assert!(names >= 4);
    }
}

#[test]
fn rewinding_shows_what_has_changed() {
    let served = full(3);
    let handle = served.opendir(ROOT);
    assert_eq!(served.list(handle, 0, 0), []);
    served.create("new");
    assert_eq!(served.list(handle, 0, usize::MAX).len(), 6);
    fs::remove_file(served.path("new")).unwrap();
    assert_eq!(served.list(handle, 0, usize::MAX).len(), 5);
}

#[test]
fn a_listing_goes_on_when_its_handle_is_released_under_it() {
    let served = full(3_000);
    let handle = served.opendir(ROOT);
    let node = served.node("name-00000");
    let mut names = BTreeSet::new();
    let mut others = Vec::new();
    let list = served.vfs.readdir(&served.caller, ROOT, handle, 0, &mut |entry| {
        if names.is_empty() {
            served.vfs.releasedir(ROOT, handle);
            // Would take over the directory's descriptor number, had it been closed.
            others = (0..50).map(|_| served.open(node, libc::O_RDONLY).unwrap()).collect();
        }
        assert!(names.insert(entry.name.to_owned()));
        ListFlow::Taken
    });
    list.unwrap();
    assert_eq!(names.len(), 3_002);
    assert_eq!(served.vfs.readdir(&served.caller, ROOT, handle, 0, &mut |_| ListFlow::Taken), Err(Errno::EBADF));
    assert_eq!(served.vfs.counts().handles, others.len());
}

#[test]
fn what_is_listed_can_be_looked_up_or_is_gone() {
    let served = full(2);
    let handle = served.opendir(ROOT);
    let mut found = Vec::new();
    let list = served.vfs.readdir(&served.caller, ROOT, handle, 0, &mut |entry| {
        if !entry.is_dot() {
            for _ in 0..2 {
                let entry = served.vfs.lookup_listed(&served.caller, ROOT, entry).unwrap().unwrap();
                found.push(entry.attr.node);
            }
            fs::remove_file(served.path(entry.name.to_str().unwrap())).unwrap();
            assert_eq!(served.vfs.lookup_listed(&served.caller, ROOT, entry), Ok(None));
        }
        ListFlow::Taken
    });
    list.unwrap();
    assert_eq!((found.len(), served.vfs.counts().nodes), (4, 2));
    found.into_iter().for_each(|node| served.vfs.forget(node, 1));
    assert_eq!(served.vfs.counts().nodes, 0);
}

#[test]
fn files_and_directories_are_not_mixed_up() {
    let served = full(1);
    let (directory, file) = (served.opendir(ROOT), served.open(served.node("name-00000"), libc::O_RDONLY).unwrap());
    assert_eq!(served.read(directory, 0, 1), Err(Errno::EBADF));
    assert_eq!(served.vfs.readdir(&served.caller, ROOT, file, 0, &mut |_| ListFlow::Taken), Err(Errno::EBADF));
    assert_eq!(served.vfs.opendir(&served.caller, served.node("name-00000"), 0), Err(Errno::ENOTDIR));
    for data_only in [false, true] {
        served.vfs.fsyncdir(&served.caller, ROOT, directory, data_only).unwrap();
    }
    assert!(served.vfs.getattr(&served.caller, ROOT, Some(directory)).is_ok());
}
