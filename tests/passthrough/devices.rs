use super::*;
use lighthouse_fs::vfs::ListFlow;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use std::fs;

/// Runs `test` on a thread with mounts of its own and a tmpfs at `other` in the source directory.
fn with_another_device(test: impl FnOnce(&Served) + Send) {
    if !is_root() {
        return;
    }
    let nothing = None::<&str>;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
            let alone = unshare(CloneFlags::CLONE_NEWNS).and_then(|()| mount(nothing, "/", nothing, private, nothing));
            if let Err(error) = alone {
                println!("skipped: this machine forbids mounting: {error}");
                return;
            }
            let served = Served::with(Access::ReadWrite, |dir| {
                let other = dir.join("other");
                fs::create_dir(&other).unwrap();
                mount(Some("tmpfs"), &other, Some("tmpfs"), MsFlags::empty(), nothing).unwrap();
            });
            test(&served);
            umount2(&served.path("other"), MntFlags::MNT_DETACH).unwrap();
        });
    });
}

#[test]
fn files_on_another_device_have_numbers_of_their_own_that_last() {
    with_another_device(|served| {
        let other = served.node("other");
        assert!(other.0 >= 1 << 62, "{:#x}", other.0);
        let made = served.mkdir(other, "dir");
        assert!(made.0 >= 1 << 62 && made != other, "{:#x}", made.0);
        assert_eq!(served.lookup(other, "dir").unwrap().attr.node, made);
        assert_eq!(served.lookup(made, "..").unwrap().attr.node, other);
        assert_eq!(served.lookup(other, "..").unwrap().attr.node, ROOT, "up from the root of a mounted device");

        let handle = served.vfs.opendir(&served.caller, other, 0).unwrap();
        let mut listed = Vec::new();
        let list = served.vfs.readdir(&served.caller, other, handle, 0, &mut |entry| {
            listed.push((entry.name.to_owned(), entry.node));
            ListFlow::Taken
        });
        list.unwrap();
        assert!(listed.contains(&("dir".into(), made)), "{listed:?}");
        served.vfs.releasedir(other, handle);

        served.vfs.forget(made, 2);
        served.vfs.forget(other, 2);
        assert_eq!(served.vfs.counts(), NOTHING);
        assert_eq!(served.node("other"), other);
        assert_eq!(served.lookup(other, "dir").unwrap().attr.node, made);
    });
}
