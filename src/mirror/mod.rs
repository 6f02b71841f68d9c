//! Whether two mounts of one source show the same: what is looked at ([`Side`]), how the tree is walked and when a difference
//! counts ([`Pass`]).
//!
//! All of it blocks, and may hang with a mount: it runs in processes of its own, which `serve` starts and never waits for.

mod look;
mod pass;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::ledger::{Compared, Operation};

pub use look::Side;
pub use pass::{Pass, Stopped};

/// What one side is asked.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Question {
    /// Where: names from the root of the mount on; none is the root itself.
    pub path: Vec<OsString>,
    /// What.
    pub what: What,
}

/// What there is to look at.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum What {
    /// Whether it is there, its attributes, target and extended attributes.
    Thing,
    /// What a directory lists.
    Listing,
    /// Blocks of a file, by their offsets.
    Content(Vec<u64>),
    /// Free space and its like.
    FileSystem,
}

impl Question {
    /// The path, for people.
    #[must_use]
    pub fn place(&self) -> String {
        let names = self.path.iter().map(|name| name.as_bytes().escape_ascii().to_string());
        format!("/{}", names.collect::<Vec<_>>().join("/"))
    }

    /// Whether that is in question. Attributes of a file whose content is in question only show that it has not changed.
    fn is_about(&self, operation: Operation) -> bool {
        !(matches!(self.what, What::Content(_)) && operation == Operation::GetAttr)
    }
}

/// What was seen by one operation: each field and its value, in words.
pub type Fields = BTreeMap<String, String>;

/// What was seen, by operation.
pub type Seen = BTreeMap<Operation, Fields>;

/// A difference that was there each time.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Example {
    /// What was asked for.
    #[schema(value_type = String)]
    pub operation: Operation,
    /// Of what: the path below the mount point, with escapes for what is not ASCII.
    pub path: String,
    /// What differs.
    pub field: String,
    /// What the mount says.
    pub mount: String,
    /// What the shadow mount says.
    pub shadow: String,
}

/// How a pass is made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Terms {
    /// Before a difference is looked at again: longer than the kernel may keep an answer.
    pub patience: Duration,
    /// Between two questions, at least.
    pub pace: Duration,
    /// Questions at most; what they do not reach is another pass's.
    pub questions: usize,
    /// What its way through the tree hangs on.
    pub seed: u64,
}

/// A line of a comparer to the daemon.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "said", rename_all = "snake_case")]
pub enum Said {
    /// What was counted since the last such line. At least once a second, also if nothing was: the comparer lives.
    Counted {
        /// By operation.
        counts: BTreeMap<Operation, Compared>,
        /// Differences that meant nothing: what was looked at had changed meanwhile.
        unsteady: u64,
    },
    /// A difference.
    Differs(Example),
    /// The pass is over.
    Over {
        /// Whether the whole tree was seen.
        is_whole: bool,
    },
    /// It cannot go on.
    Stopped {
        /// Why.
        why: String,
    },
}
