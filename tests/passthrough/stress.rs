use super::*;
use lighthouse_fs::vfs::{Errno, ListFlow};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

const THREADS: usize = 4;
const ROUNDS: usize = 1_500;
const NAMES: usize = 12;

/// Threads create, look up, read, remove and forget the same few names; afterwards nothing is known or open.
#[test]
fn many_threads_leave_nothing_behind() {
    let served = Served::new();
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let served = &served;
            scope.spawn(move || {
                for round in 0..ROUNDS {
                    let name = format!("name-{}", (round * 7 + thread * 5) % NAMES);
                    one_round(served, OsStr::new(&name), round);
                }
            });
        }
    });
    assert_eq!(served.vfs.counts(), NOTHING);
}

fn one_round(served: &Served, name: &OsStr, round: usize) {
    let (vfs, caller) = (&served.vfs, &served.caller);
    let created = vfs.create(caller, ROOT, name, 0o600, libc::O_RDWR).unwrap();
    let node = created.entry.attr.node;
    assert_eq!(served.write(created.handle, 0, b"0123456789abcdef"), Ok(16));
    match vfs.lookup(caller, ROOT, name) {
        Ok(found) => {
            assert_eq!(vfs.getattr(caller, found.attr.node, None).unwrap().node, found.attr.node);
            vfs.forget(found.attr.node, 1);
        }
        Err(error) => assert_eq!(error, Errno::ENOENT),
    }
    assert_eq!(served.read(created.handle, 4, 4).unwrap(), b"4567");
    if round.is_multiple_of(2) {
        match vfs.unlink(caller, ROOT, name) {
            Ok(()) | Err(Errno::ENOENT) => {}
            Err(error) => panic!("{error}"),
        }
    }
    vfs.release(node, created.handle);
    vfs.forget(node, 1);
}

/// Names that stay are listed exactly once, however many others come and go meanwhile.
#[test]
fn a_listing_among_changes_loses_no_name_that_stays() {
    let served = Served::new();
    for number in 0..500 {
        served.drop_created(&served.create(&format!("stays-{number}")));
    }
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for number in (0..).take_while(|_| !done.load(Relaxed)) {
                let name = format!("comes-{}", number % 100);
                served.drop_created(&served.create(&name));
                served.vfs.unlink(&served.caller, ROOT, OsStr::new(&name)).unwrap();
            }
        });
        for _ in 0..20 {
            let handle = served.vfs.opendir(&served.caller, ROOT, 0).unwrap();
            let (mut stayed, mut offset, mut more) = (0, 0, true);
            while more {
                more = false;
                let mut room = 3;
                let list = served.vfs.readdir(&served.caller, ROOT, handle, offset, &mut |entry| {
                    more = true;
                    if room == 0 {
                        return ListFlow::Full;
                    }
                    room -= 1;
                    offset = entry.offset;
                    stayed += usize::from(entry.name.as_encoded_bytes().starts_with(b"stays"));
                    ListFlow::Taken
                });
                list.unwrap();
            }
            served.vfs.releasedir(ROOT, handle);
            assert_eq!(stayed, 500);
        }
        done.store(true, Relaxed);
    });
    assert_eq!(served.vfs.counts(), NOTHING);
}
