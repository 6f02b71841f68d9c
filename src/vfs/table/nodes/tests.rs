use super::*;
use proptest::prelude::*;
use std::os::fd::AsRawFd;

const DEVICE: u64 = 40;

fn descriptor() -> OwnedFd {
    tempfile::tempfile().unwrap().into()
}

fn here(inode: u64) -> Identity {
    Identity { device: DEVICE, inode }
}

/// A table whose root is inode 100 of `DEVICE`.
fn table(capacity: u32) -> NodeTable {
    NodeTable::new(capacity, here(100), descriptor()).unwrap()
}

/// Two files of other devices with the same hash.
fn twins() -> (Identity, Identity) {
    let first = Identity { device: 7, inode: 1234 };
    (first, Identity { device: 8, inode: first.inode ^ fold(7) ^ fold(8) })
}

#[test]
fn ids_are_inode_numbers_on_the_roots_device_and_hashes_elsewhere() {
    let table = table(64);
    assert_eq!(table.id_of(here(100)), ROOT);
    assert_eq!(table.id_of(here(2)), NodeId(2));
    assert_eq!(table.id_of(here(HASHED - 1)), NodeId(HASHED - 1));
    for hashed in [here(0), here(1), here(HASHED), here(u64::MAX), Identity { device: 41, inode: 2 }] {
        let id = table.id_of(hashed).0;
        assert!((HASHED..2 * HASHED).contains(&id), "{hashed:?} is {id:#x}");
        assert_eq!(table.insert(hashed, descriptor()), Ok(NodeId(id)));
    }
}

#[test]
fn two_files_with_one_hash_keep_their_ids() {
    let table = table(64);
    let (first, second) = twins();
    assert_eq!(table.id_of(first), table.id_of(second));
    let one = table.insert(first, descriptor()).unwrap();
    let two = table.insert(second, descriptor()).unwrap();
    assert_ne!(one, two);
    table.forget(one, 1);
    assert_eq!(table.find(second), Some(two), "the gap before it does not hide it");
    assert_eq!(table.insert(second, descriptor()), Ok(two));
    assert_eq!(table.insert(first, descriptor()), Ok(one));
    assert_eq!(table.known(), 2);
}

#[test]
fn the_root_is_never_forgotten() {
    let table = table(4);
    assert_eq!(table.find(here(100)), Some(ROOT));
    table.forget(ROOT, u64::MAX);
    assert!(table.pin(ROOT).is_ok());
    assert_eq!(table.known(), 0);
}

#[test]
fn a_pin_outlives_forget_and_keeps_the_descriptor() {
    let table = table(4);
    let id = table.insert(here(5), descriptor()).unwrap();
    let pin = table.pin(id).unwrap();
    let second = table.pin(id).unwrap();
    let number = pin.as_fd().as_raw_fd();
    table.forget(id, 1);
    assert_eq!(table.pin(id).err(), Some(Errno::ESTALE));
    drop(second);
    // The same file may be found again while a late handler still holds its old record.
    assert_eq!(table.insert(here(5), descriptor()), Ok(id));
    assert_ne!(table.pin(id).unwrap().as_fd().as_raw_fd(), number);
    rustix::fs::fstat(&pin).unwrap();
    drop(pin);
    assert_eq!(table.known(), 1);
    assert_eq!(table.records.touched().iter().filter(|record| record.state.load(Relaxed) != 0).count(), 2);
}

#[test]
fn a_full_table_says_enfile_and_closes_what_it_did_not_take() {
    let table = table(3);
    for inode in [2, 3] {
        table.insert(here(inode), descriptor()).unwrap();
    }
    assert_eq!(table.insert(here(4), descriptor()), Err(Errno::ENFILE));
    table.forget(NodeId(2), 1);
    assert_eq!(table.insert(here(4), descriptor()), Ok(NodeId(4)));
}

#[derive(Clone, Debug)]
enum Step {
    Insert(usize),
    Find(usize),
    Forget(usize, u64),
    Pin(usize),
    Unpin(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let file = 0..FILES;
    let step = prop_oneof![
        3 => file.clone().prop_map(Step::Insert),
        2 => file.clone().prop_map(Step::Find),
        3 => (file.clone(), 1..4_u64).prop_map(|(file, count)| Step::Forget(file, count)),
        1 => file.prop_map(Step::Pin),
        1 => (0..8_usize).prop_map(Step::Unpin),
    ];
    prop::collection::vec(step, 1..120)
}

const FILES: usize = 6;

fn files() -> [Identity; FILES] {
    let (first, second) = twins();
    [here(2), here(3), here(2 + SHARDS), here(1), first, second]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// The model: a count of lookups for each file. What is known has one id, different from all others, and a pin's
    /// descriptor stays open whatever happens to its node.
    #[test]
    fn the_table_counts_like_its_model(steps in steps()) {
        let table = table(64);
        let mut counts = [0_u64; FILES];
        let mut ids = [None; FILES];
        let mut pins = Vec::new();
        for step in steps {
            match step {
                Step::Insert(file) => {
                    let id = table.insert(files()[file], descriptor()).unwrap();
                    prop_assert!(counts[file] == 0 || ids[file] == Some(id));
                    ids[file] = Some(id);
                    counts[file] += 1;
                }
                Step::Find(file) => {
                    let found = table.find(files()[file]);
                    prop_assert_eq!(found, ids[file].filter(|_| counts[file] > 0));
                    counts[file] += u64::from(found.is_some());
                }
                Step::Forget(file, count) => {
                    if let Some(id) = ids[file].filter(|_| counts[file] > 0) {
                        table.forget(id, count);
                        counts[file] = counts[file].saturating_sub(count);
                    }
                }
                Step::Pin(file) => {
                    if let Some(id) = ids[file] {
                        // An id may have gone to its twin.
                        let owner = (0..FILES).any(|other| counts[other] > 0 && ids[other] == Some(id));
                        let pin = table.pin(id);
                        prop_assert_eq!(pin.is_ok(), owner);
                        pins.extend(pin);
                    }
                }
                Step::Unpin(at) => {
                    if at < pins.len() {
                        pins.swap_remove(at);
                    }
                }
            }
            for pin in &pins {
                prop_assert!(rustix::fs::fstat(pin).is_ok());
            }
            prop_assert_eq!(table.known(), counts.iter().filter(|count| **count > 0).count());
        }
        drop(pins);
        for file in 0..FILES {
            if counts[file] > 0 {
                table.forget(ids[file].unwrap(), counts[file]);
            }
        }
        prop_assert_eq!(table.known(), 0);
        let in_use = table.records.touched().iter().filter(|record| record.state.load(Relaxed) != 0).count();
        prop_assert_eq!(in_use, 1, "only the root's record is left");
    }
}

#[test]
fn only_what_is_known_is_shown() {
    let table = table(8);
    let shown = || {
        let mut shown = Vec::new();
        table.each_known(&mut |node| shown.push(node));
        shown
    };
    for inode in [5, 6, 7] {
        table.insert(here(inode), descriptor()).unwrap();
    }
    assert_eq!(shown(), [ROOT, NodeId(5), NodeId(6), NodeId(7)]);
    let pin = table.pin(NodeId(6)).unwrap();
    table.forget(NodeId(6), 1);
    assert_eq!(shown(), [ROOT, NodeId(5), NodeId(7)], "a pin does not make it known");
    drop(pin);
    table.forget(NodeId(5), 1);
    table.insert(here(8), descriptor()).unwrap();
    assert_eq!(shown().len(), 3);
}
