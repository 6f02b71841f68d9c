//! What comparisons have found: examples in full, and rates with what they are worth. Counts are in the ledger.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::SystemTime;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::answers::{Answer, cut};
use super::call::Sample;
use super::compare::shown;
use super::encode::encode;
use crate::config::Backend;
use crate::ledger::Operation;

/// So many examples are kept: the first ones, which come before what follows from them.
pub const EXAMPLES: usize = 8;
/// And so many of one kind of request, so that one that always differs leaves room for others.
const EXAMPLES_OF_A_KIND: usize = 3;
/// How much is kept of each in words, and of its bytes.
const MOST_TEXT: usize = 700;
const MOST_BYTES: usize = 256;

/// What is to be compared.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
pub struct Comparing {
    /// The backend whose answers count.
    pub reference: Backend,
    /// The backend that is tried.
    pub candidate: Backend,
    /// The share of the calls, above 0 and at most 1.
    pub rate: f64,
}

/// Something in words and in bytes, both cut where they are long.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Shown {
    /// Decoded.
    pub decoded: String,
    /// Its bytes without a header, in hexadecimal.
    pub hex: String,
}

/// A divergence.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Example {
    /// When it was found.
    #[serde(with = "humantime_serde")]
    #[schema(value_type = String, format = DateTime)]
    pub at: SystemTime,
    /// The kind of request.
    #[schema(value_type = String)]
    pub operation: Operation,
    /// What differs.
    pub difference: String,
    /// What was asked.
    pub request: Shown,
    /// What the reference says to it.
    pub reference: Shown,
    /// What the candidate says to it.
    pub candidate: Shown,
}

/// What a server tells of its comparisons.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Told {
    /// What is being compared.
    pub comparing: Option<Comparing>,
    /// Calls that could not be compared, because the reference did not agree with itself.
    pub noise: BTreeMap<Operation, u64>,
    /// Why nothing can be compared at the moment.
    pub trouble: Option<String>,
    /// The first divergences.
    pub examples: Vec<Example>,
}

/// What is found, gathered from the thread that compares.
#[derive(Default)]
pub(super) struct Findings(Mutex<Told>);

impl Findings {
    pub(super) fn told(&self) -> Told {
        self.0.lock().clone()
    }

    /// Another comparison begins, or it ends. What was found stays, as the counts do.
    pub(super) fn set_comparing(&self, comparing: Option<Comparing>) {
        let mut told = self.0.lock();
        told.trouble = None;
        told.comparing = comparing;
    }

    pub(super) fn set_trouble(&self, trouble: Option<String>) {
        self.0.lock().trouble = trouble;
    }

    pub(super) fn count_noise(&self, operation: Operation) {
        *self.0.lock().noise.entry(operation).or_default() += 1;
    }

    /// Whether it is kept.
    pub(super) fn add(&self, operation: Operation, example: impl FnOnce() -> Example) -> bool {
        let mut told = self.0.lock();
        let alike = told.examples.iter().filter(|example| example.operation == operation).count();
        let has_room = told.examples.len() < EXAMPLES && alike < EXAMPLES_OF_A_KIND;
        if has_room {
            told.examples.push(example());
        }
        has_room
    }
}

fn hex(bytes: &[u8]) -> String {
    let mut text = String::new();
    for byte in &bytes[..bytes.len().min(MOST_BYTES)] {
        // Writing to a string does not fail.
        let _ = write!(text, "{byte:02x}");
    }
    if bytes.len() > MOST_BYTES {
        text.push('…');
    }
    text
}

/// A divergence as it is told.
pub(super) fn example(sample: &Sample, difference: &str, reference: &Side, candidate: &Side) -> Example {
    let side = |side: &Side| {
        let mut decoded = shown(&sample.call, &side.answer, MOST_TEXT);
        if !side.decoded.is_empty() {
            decoded = format!("{decoded}, having decoded {:?}", side.decoded);
        }
        Shown { decoded: cut(decoded, MOST_TEXT), hex: hex(side.answer.bytes()) }
    };
    let request = Shown {
        decoded: cut(format!("{:?} of {:?}", sample.call, sample.caller), MOST_TEXT),
        hex: hex(&encode(&sample.call, sample.caller.umask).body),
    };
    Example {
        at: SystemTime::now(),
        operation: sample.call.operation(),
        difference: cut(difference.into(), MOST_TEXT / 2),
        request,
        reference: side(reference),
        candidate: side(candidate),
    }
}

/// What a side of a comparison has said.
#[derive(Clone, Debug)]
pub(super) struct Side {
    pub answer: Answer,
    /// What it has decoded, of a call that is not run.
    pub decoded: Vec<Sample>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shadow::call::Call;
    use crate::vfs::{Caller, HandleId, NodeId};

    #[test]
    fn one_kind_of_request_leaves_room_for_others() {
        let findings = Findings::default();
        let call = |node| Call::GetAttr { node: NodeId(node), handle: None };
        let sample = Sample { caller: Caller::default(), call: call(1) };
        let side = Side { answer: Answer::Reply(Vec::new()), decoded: Vec::new() };
        let kept = |operation| findings.add(operation, || Example { operation, ..example(&sample, "", &side, &side) });
        let getattrs = (0..20).filter(|_| kept(Operation::GetAttr)).count();
        assert_eq!((getattrs, kept(Operation::Lookup)), (EXAMPLES_OF_A_KIND, true));
    }

    #[test]
    fn the_longest_examples_fit_into_one_message() {
        let (findings, nasty) = (Findings::default(), vec![b'"'; 1 << 16]);
        let call = Call::Write {
            node: NodeId(u64::MAX),
            handle: HandleId(u64::MAX),
            offset: u64::MAX,
            data: (&nasty[..]).into(),
        };
        let sample = Sample { caller: Caller::default(), call };
        let side = Side { answer: Answer::Reply(nasty.clone()), decoded: vec![sample.clone()] };
        let long = String::from_utf8(nasty).unwrap();
        for operation in Operation::ALL.iter().cycle().take(100) {
            let example = || Example { operation: *operation, ..example(&sample, &long, &side, &side) };
            findings.add(*operation, example);
            findings.add(*operation, example);
        }
        let told = findings.told();
        assert_eq!(told.examples.len(), EXAMPLES);
        let length = serde_json::to_vec(&told).unwrap().len();
        assert!(length < 60 << 10, "{length}");
    }
}
