//! Passes over an ordinary folder, where whoever answers for the other side can be made to lie.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;
use std::time::Duration;

use rstest::rstest;
use tempfile::TempDir;

use super::{Example, Pass, Question, Said, Seen, Side, Stopped, Terms};
use crate::ledger::{Compared, Operation};

const TERMS: Terms = Terms { patience: Duration::from_millis(1), pace: Duration::ZERO, questions: 1000, seed: 7 };

/// What a pass has told.
#[derive(Default)]
struct Told {
    counts: BTreeMap<Operation, Compared>,
    unsteady: u64,
    examples: Vec<Example>,
    is_whole: Option<bool>,
}

impl Told {
    fn hear(&mut self, said: &Said) {
        match said.clone() {
            Said::Counted { counts, unsteady } => {
                self.unsteady += unsteady;
                for (operation, counted) in counts {
                    let sum = self.counts.entry(operation).or_default();
                    sum.compared += counted.compared;
                    sum.diverged += counted.diverged;
                    sum.dropped += counted.dropped;
                }
            }
            Said::Differs(example) => self.examples.push(example),
            Said::Over { is_whole } => self.is_whole = Some(is_whole),
            Said::Stopped { why } => panic!("{why}"),
        }
    }

    fn diverged(&self) -> u64 {
        self.counts.values().map(|counted| counted.diverged).sum()
    }
}

fn tree() -> (TempDir, Side) {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("folder")).unwrap();
    fs::write(folder.path().join("folder/file"), vec![b'x'; 200_000]).unwrap();
    fs::write(folder.path().join("empty"), "").unwrap();
    symlink("folder/file", folder.path().join("link")).unwrap();
    symlink("folder", folder.path().join("to-folder")).unwrap();
    let device = folder.path().metadata().unwrap().dev();
    let side = Side { place: folder.path().into(), device: (rustix::fs::major(device), rustix::fs::minor(device)) };
    (folder, side)
}

/// One pass over a tree, of which the other side says what `lie` makes of the truth.
fn pass(terms: Terms, lie: impl FnMut(&Path, &Question, &mut Seen)) -> (Result<(), Stopped>, Told) {
    let (folder, side) = tree();
    let mut lie = lie;
    let mut told = Told::default();
    let other = side.clone();
    let ask = |question: &Question| {
        let mut seen = other.see(question).map_err(Stopped::Gone)?;
        lie(folder.path(), question, &mut seen);
        Ok(seen)
    };
    let tell = |said: &Said| -> io::Result<()> {
        told.hear(said);
        Ok(())
    };
    let ended = Pass::new(side, ask, tell, terms).run();
    (ended, told)
}

#[test]
fn what_is_the_same_is_no_difference() {
    let (ended, told) = pass(TERMS, |_, _, _| {});
    ended.unwrap();
    assert_eq!((told.diverged(), told.unsteady, told.is_whole), (0, 0, Some(true)), "{:?}", told.examples);
    let compared = |operation| told.counts[&operation].compared;
    // The root, four things and the one in the folder; in each folder also what is not there.
    assert_eq!((compared(Operation::Lookup), compared(Operation::GetAttr)), (8, 6));
    assert_eq!((compared(Operation::ReadDir), compared(Operation::ReadLink)), (2, 2), "no link is followed");
    assert_eq!((compared(Operation::Read), compared(Operation::StatFs)), (2, 1));
}

#[rstest]
#[case::size(Operation::GetAttr, "/folder/file", "size", "200001")]
#[case::time_stamp(Operation::GetAttr, "/empty", "mtime", "1.000000001")]
#[case::mode(Operation::GetAttr, "/folder", "mode", "0777")]
#[case::errno(Operation::GetAttr, "/empty", "errno", "EIO")]
#[case::target(Operation::ReadLink, "/link", "target", "elsewhere")]
#[case::extended(Operation::ListXattr, "/empty", "user.more", "there")]
#[case::another_name(Operation::ReadDir, "/folder", "more", "file")]
#[case::another_type(Operation::ReadDir, "/folder", "file", "fifo")]
#[case::content(Operation::Read, "/folder/file", "65536 bytes from 0", "65535 bytes, sha256 …")]
#[case::space(Operation::StatFs, "/", "namemax", "14")]
fn a_field_that_differs_is_told(
    #[case] operation: Operation,
    #[case] path: &str,
    #[case] field: &str,
    #[case] value: &str,
) {
    let (ended, told) = pass(TERMS, |_, question, seen| {
        if question.place() == path && question.is_about(operation) && seen.contains_key(&operation) {
            seen.get_mut(&operation).unwrap().insert(field.into(), value.into());
        }
    });
    ended.unwrap();
    let of_it: Vec<_> = told.examples.iter().filter(|example| example.field == field).collect();
    assert_eq!(of_it.len(), 1, "{:?}", told.examples);
    let Example { operation: found, path: at, mount, shadow, .. } = of_it[0];
    assert_eq!((*found, at.as_str(), shadow.as_str()), (operation, path, value));
    assert_ne!(mount, shadow);
    assert_eq!((told.counts[&operation].diverged, told.diverged()), (1, 1));
}

#[test]
fn a_missing_entry_and_a_wrong_errno_are_told() {
    let (ended, told) = pass(TERMS, |_, question, seen| {
        let place = question.place();
        if place == "/folder/file" || place.contains("no-such-name") {
            let errno = if place == "/folder/file" { "ENOENT" } else { "EACCES" };
            *seen = Seen::from([(Operation::Lookup, [("errno".into(), errno.into())].into())]);
        }
    });
    ended.unwrap();
    let lookups: Vec<_> = told.examples.iter().filter(|example| example.operation == Operation::Lookup).collect();
    let found = lookups.iter().find(|example| example.field == "found").expect("the entry");
    assert_eq!((found.mount.as_str(), found.shadow.as_str()), ("yes", "nothing"));
    let errno = lookups.iter().find(|example| example.mount == "ENOENT").expect("the name that nobody has");
    assert_eq!(errno.shadow, "EACCES");
}

#[test]
fn what_is_only_old_or_changes_is_no_difference() {
    let mut looks = BTreeMap::<String, u32>::new();
    let (ended, told) = pass(TERMS, |_, question, seen| {
        // What the kernel remembers of it is over at the second look, or at the third.
        let number = looks.entry(format!("{question:?}")).or_default();
        *number += 1;
        let until = if question.place() == "/empty" { 3 } else { 2 };
        if *number < until {
            seen.values_mut().for_each(|fields| drop(fields.insert("old".into(), "yes".into())));
        }
    });
    ended.unwrap();
    assert_eq!((told.diverged(), told.is_whole), (0, Some(true)), "{:?}", told.examples);

    let mut length = 0;
    let (ended, told) = pass(TERMS, |root, question, seen| {
        seen.values_mut().for_each(|fields| drop(fields.insert("other".into(), "yes".into())));
        // The file grows meanwhile; what is said of it means nothing.
        if question.place() == "/empty" {
            length += 1;
            fs::write(root.join("empty"), vec![b'x'; length]).unwrap();
        }
    });
    ended.unwrap();
    assert!(told.unsteady > 0 && told.examples.iter().all(|example| example.path != "/empty"), "{:?}", told.examples);
    assert!(told.diverged() > 0, "what stays is told all the same");
}

#[test]
fn a_pass_ends_where_it_is_to_and_where_a_mount_is_gone() {
    let (ended, told) = pass(Terms { questions: 4, ..TERMS }, |_, _, _| {});
    ended.unwrap();
    assert_eq!(told.is_whole, Some(false));
    let (folder, side) = tree();
    let gone = Side { device: (side.device.0, side.device.1 + 1), ..side };
    let ended = Pass::new(gone, |_: &Question| Ok(Seen::new()), |_: &Said| Ok(()), TERMS).run();
    assert!(matches!(ended, Err(Stopped::Gone(why)) if why.contains(folder.path().to_str().unwrap())));
}
