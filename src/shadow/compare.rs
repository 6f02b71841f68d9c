//! Whether two answers to one call, or a call and what a backend has decoded of it, are the same: byte by byte, but for a
//! list of permitted differences.

use std::time::SystemTime;

use super::answers::{Answer, Extent, describe, entry_fields, errno_name, fields, listed};
use super::call::{Call, Sample};
use crate::config::Backend;
use crate::ledger::Operation;
use crate::vfs::{SetAttr, TimeSet, Timestamp};

/// A difference between the backends that their crates make, and that is no divergence.
pub struct Permitted {
    /// In which requests.
    pub operations: &'static [Operation],
    /// In what of them.
    pub what: &'static str,
    /// In exactly this form.
    pub form: &'static str,
    /// Why.
    pub why: &'static str,
}

/// All of them. Whatever else differs is a divergence.
pub static PERMITTED: &[Permitted] = &[
    Permitted {
        operations: &[Operation::Create, Operation::MkNod],
        what: "the caller's umask, as fuse3 decodes it",
        form: "0 instead of the umask",
        why: "crate fuse3 does not pass it on; the kernel has applied it to the mode, which is compared",
    },
    Permitted {
        operations: &[Operation::SetAttr],
        what: "a time to be set to the present (UTIME_NOW), as fuse3 decodes it",
        form: "a time stamp of at most 5 s ago instead",
        why: "crate fuse3 replaces it by the time at which it decodes the request",
    },
    Permitted {
        operations: &[Operation::ReadDir, Operation::ReadDirPlus],
        what: "how many entries fit into one reply",
        form: "one listing goes further than the other, and that one has not come to its end",
        why: "the adapters fill replies to bounds of their own; whoever lists asks again from where it ends",
    },
];

/// How old the present may be that a backend has put in the place of UTIME_NOW.
const PRESENT: i64 = 5;

/// How the candidate's answer differs from the reference's, in words; `None` if it does not.
pub(super) fn difference(call: &Call, reference: &Answer, candidate: &Answer) -> Option<String> {
    let operation = call.operation();
    let is_size = matches!(call, Call::GetXattr { size: 0, .. } | Call::ListXattr { size: 0, .. });
    match (reference, candidate) {
        (Answer::Reply(one), Answer::Reply(other)) => {
            if one == other {
                return None;
            }
            let (one_fields, other_fields) = (fields(operation, is_size, one), fields(operation, is_size, other));
            Some(differing(&one_fields, &other_fields).unwrap_or_else(|| differing_bytes(one, other)))
        }
        (Answer::Listing { entries: one, extent }, Answer::Listing { entries: other, extent: other_extent }) => {
            differing_listings(operation, (one, *extent), (other, *other_extent))
        }
        (Answer::Failed(one), Answer::Failed(other)) if one == other => None,
        (one, other) => Some(format!(
            "{} instead of {}",
            describe(operation, is_size, other, 60),
            describe(operation, is_size, one, 60)
        )),
    }
}

fn differing(one: &[(&'static str, String)], other: &[(&'static str, String)]) -> Option<String> {
    let differing: Vec<_> = one
        .iter()
        .zip(other)
        .filter(|(one, other)| one != other)
        .map(|((name, one), (_, other))| match *name {
            // It may be long, and is shown in full beside.
            "data" => "data".into(),
            name => format!("{name} {other} instead of {one}"),
        })
        .collect();
    (!differing.is_empty()).then(|| differing.join(", "))
}

fn differing_bytes(one: &[u8], other: &[u8]) -> String {
    let at = one.iter().zip(other).position(|(one, other)| one != other).unwrap_or(one.len().min(other.len()));
    format!("byte {at} of {} (of {} in the reference)", other.len(), one.len())
}

/// The entries that both have must be equal, and whoever has come to the end must have all.
fn differing_listings(operation: Operation, one: (&[u8], Extent), other: (&[u8], Extent)) -> Option<String> {
    let (ones, others) = (listed(one.0, operation), listed(other.0, operation));
    for (one, other) in ones.iter().zip(&others) {
        if one == other {
            continue;
        }
        let name = one.name.escape_ascii();
        if one.name != other.name {
            return Some(format!("an entry \"{}\" where \"{name}\" is to be", other.name.escape_ascii()));
        }
        let what = differing(&entry_fields(operation, one.bytes), &entry_fields(operation, other.bytes));
        return Some(format!("of \"{name}\": {}", what.unwrap_or_else(|| differing_bytes(one.bytes, other.bytes))));
    }
    match (ones.len(), others.len()) {
        (more, less) if more > less && other.1 == Extent::Whole => {
            Some(format!("\"{}\" and what follows is missing", ones[less].name.escape_ascii()))
        }
        (less, more) if more > less && one.1 == Extent::Whole => {
            Some(format!("\"{}\" and what follows is too many", others[less].name.escape_ascii()))
        }
        _ => None,
    }
}

/// How what a backend has decoded differs from what it was sent, in words.
pub(super) fn misdecoded(backend: Backend, sent: &Sample, decoded: &[Sample]) -> Option<String> {
    let [decoded] = decoded else {
        return Some(match decoded.len() {
            0 => "it decodes no call".into(),
            count => format!("it decodes {count} calls"),
        });
    };
    if decoded == sent || backend == Backend::Fuse3 && is_permitted(sent, decoded) {
        return None;
    }
    let (sent, decoded) = (format!("{sent:?}"), format!("{decoded:?}"));
    let same = sent.bytes().zip(decoded.bytes()).take_while(|(one, other)| one == other).count();
    // From the beginning of the field on.
    let from = sent.get(..same).and_then(|same| same.rfind(", ")).map_or(0, |at| at + 2);
    let part = |text: &str| text.get(from..).unwrap_or(text).chars().take(80).collect::<String>();
    Some(format!("it decodes {} instead of {}", part(&decoded), part(&sent)))
}

/// What crate fuse3 makes of a call; see [`PERMITTED`].
fn is_permitted(sent: &Sample, decoded: &Sample) -> bool {
    let mut allowed = sent.clone();
    match (&mut allowed.call, &decoded.call) {
        (Call::Create { .. } | Call::MkNod { .. }, _) => allowed.caller.umask = 0,
        (Call::SetAttr { set, .. }, Call::SetAttr { set: SetAttr { atime, mtime, .. }, .. }) => {
            permit_present(&mut set.atime, *atime);
            permit_present(&mut set.mtime, *mtime);
        }
        _ => return false,
    }
    allowed == *decoded
}

fn permit_present(sent: &mut Option<TimeSet>, decoded: Option<TimeSet>) {
    let now = Timestamp::from(SystemTime::now());
    if let (Some(TimeSet::Now), Some(TimeSet::At(time))) = (*sent, decoded)
        && (0..=PRESENT).contains(&(now.sec - time.sec))
    {
        *sent = decoded;
    }
}

/// An error in words, for whoever shows one.
pub(super) fn shown(call: &Call, answer: &Answer, most: usize) -> String {
    let is_size = matches!(call, Call::GetXattr { size: 0, .. } | Call::ListXattr { size: 0, .. });
    match answer {
        Answer::Failed(error) => errno_name(*error),
        other => describe(call.operation(), is_size, other, most),
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;

    use super::*;
    use crate::vfs::{Caller, Errno, HandleId, NodeId, ROOT};

    fn sample(call: Call, umask: u32) -> Sample {
        Sample { caller: Caller { uid: 1, gid: 2, pid: 3, umask }, call }
    }

    fn create(umask: u32) -> Sample {
        sample(Call::Create { parent: ROOT, name: OsStr::new("a").into(), mode: 0o100_644, flags: libc::O_RDWR }, umask)
    }

    fn touch(time: TimeSet) -> Sample {
        let set = SetAttr { mtime: Some(time), ..SetAttr::default() };
        sample(Call::SetAttr { node: NodeId(4), handle: None, set }, 0)
    }

    #[test]
    fn what_fuse3_makes_of_a_call_is_permitted_to_it_alone_and_in_that_form() {
        let now = || touch(TimeSet::At(Timestamp::from(SystemTime::now())));
        let old = touch(TimeSet::At(Timestamp { sec: 1, nsec: 0 }));
        let of = |backend, sent: &Sample, decoded: Sample| misdecoded(backend, sent, &[decoded]);
        assert_eq!(of(Backend::Fuse3, &create(0o22), create(0)), None);
        assert!(of(Backend::Fuse2, &create(0o22), create(0)).unwrap().contains("umask: 0 }"), "a dropped umask");
        assert!(of(Backend::Fuse3, &create(0o22), create(0o77)).is_some());
        assert_eq!(of(Backend::Fuse3, &touch(TimeSet::Now), now()), None);
        assert!(of(Backend::Fuse2, &touch(TimeSet::Now), now()).unwrap().contains("instead of mtime: Some(Now)"));
        assert!(of(Backend::Fuse3, &touch(TimeSet::Now), old.clone()).is_some(), "that is not the present");
        assert!(of(Backend::Fuse3, &old, now()).is_some());
        assert_eq!(misdecoded(Backend::Fuse2, &old, &[]).unwrap(), "it decodes no call");
    }

    #[test]
    fn errors_and_bytes_are_told_apart() {
        let call = Call::Read { node: NodeId(2), handle: HandleId(1), offset: 0, size: 9 };
        let reply = |bytes: &[u8]| Answer::Reply(bytes.into());
        let of = |one: &Answer, other: &Answer| difference(&call, one, other);
        assert_eq!(of(&reply(b"abc"), &reply(b"abc")), None);
        assert_eq!(of(&reply(b"abc"), &reply(b"ab")).unwrap(), "data");
        assert_eq!(of(&Answer::Failed(Errno::ENOENT), &Answer::Failed(Errno::ENOENT)), None);
        let told = of(&Answer::Failed(Errno::ENOENT), &Answer::Failed(Errno::EIO)).unwrap();
        assert!(told.starts_with("EIO") && told.contains("instead of ENOENT"), "{told}");
        assert!(of(&reply(b""), &Answer::Failed(Errno::EIO)).is_some());
    }

    const PAGE: &str = "docs/reference/divergence.md";

    fn page() -> String {
        let mut text = String::from(
            "# What may differ\n\n\
             <!-- Made by `UPDATE_DOCS=1 cargo test --lib shadow` from the table in src/shadow/compare.rs; a test compares the two. -->\n\n\
             Comparisons of the backends ([operations.md](../operations.md#the-shadow-phase)) find everything that differs, byte by\n\
             byte in replies and field by field in decoded calls, but for this:\n\n\
             | requests | what | permitted form | why |\n|---|---|---|---|\n",
        );
        for Permitted { operations, what, form, why } in PERMITTED {
            let names: Vec<_> = operations.iter().map(|operation| format!("`{}`", operation.name())).collect();
            text += &format!("| {} | {what} | {form} | {why} |\n", names.join(", "));
        }
        text
    }

    #[test]
    fn the_page_in_docs_says_what_is_permitted() {
        if std::env::var_os("UPDATE_DOCS").is_some() {
            std::fs::write(PAGE, page()).unwrap();
        }
        let there = std::fs::read_to_string(PAGE).unwrap_or_default();
        assert!(there == page(), "{PAGE} is old: run `UPDATE_DOCS=1 cargo test --lib shadow`");
    }

    /// A listing of entries without attributes.
    fn listing(names: &[&str], extent: Extent) -> Answer {
        let mut entries = Vec::new();
        for (at, name) in names.iter().enumerate() {
            entries.extend((at as u64 + 10).to_ne_bytes());
            entries.extend((at as u64 + 1).to_ne_bytes());
            entries.extend((name.len() as u32).to_ne_bytes());
            entries.extend(8_u32.to_ne_bytes());
            entries.extend(name.as_bytes());
            entries.resize(entries.len().next_multiple_of(8), 0);
        }
        Answer::Listing { entries, extent }
    }

    #[test]
    fn a_listing_may_be_cut_and_must_not_lack_anything() {
        use Extent::{Part, Whole};
        let call = Call::ReadDir { node: ROOT, offset: 0 };
        let of = |one: Answer, other: Answer| difference(&call, &one, &other);
        assert_eq!(of(listing(&["a", "b"], Whole), listing(&["a", "b"], Whole)), None);
        assert_eq!(of(listing(&["a", "b"], Whole), listing(&["a"], Part)), None);
        assert_eq!(of(listing(&["a"], Part), listing(&["a", "b"], Whole)), None);
        assert_eq!(
            of(listing(&["a", "b"], Part), listing(&["a"], Whole)).unwrap(),
            "\"b\" and what follows is missing"
        );
        assert!(of(listing(&["a"], Whole), listing(&["a", "b"], Part)).unwrap().contains("too many"));
        assert!(of(listing(&["a", "b"], Whole), listing(&["a", "c"], Whole)).unwrap().contains("where \"b\""));
    }
}
