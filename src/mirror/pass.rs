//! One walk through both mounts. It goes where chance leads it, so that passes that see a part each come round a tree of any
//! size; and it believes no difference that it has not seen three times.

use std::collections::{BTreeMap, VecDeque};
use std::ffi::OsString;
use std::io;
use std::time::{Duration, Instant};

use fastrand::Rng;

use super::look::{BLOCK, Look};
use super::{Example, Fields, Question, Said, Seen, Side, Terms, What};
use crate::ledger::{Compared, Operation};

/// How often the daemon is told what was counted.
const NEWS: Duration = Duration::from_secs(1);
/// Differences that are to be looked at again; further ones are dropped.
const MOST_DOUBTS: usize = 1000;
/// Folders that are still to be entered; further ones are another pass's.
const MOST_FOLDERS: usize = 50_000;
/// How much longer it rests than it looks: a source that is slow is asked less, and whoever unmounts by hand mostly finds
/// nobody.
const REST: u32 = 8;
/// On a loaded machine most of a look is waiting for its turn.
const LONGEST_REST: Duration = Duration::from_millis(50);
/// Fields of one difference that are told of.
const MOST_FIELDS: usize = 4;

/// Why a pass has not come to its end.
#[derive(Debug, thiserror::Error)]
pub enum Stopped {
    /// One of the mounts is not there any more.
    #[error("{0}")]
    Gone(String),
    /// Who asks the shadow mount, or whom this is told, is gone.
    #[error("the comparer cannot ask, or not tell: {0}")]
    Line(#[from] io::Error),
}

/// A difference that is to be looked at again.
struct Doubt {
    question: Question,
    operations: Vec<Operation>,
    /// What the mount said when the difference was seen the second time.
    again: Option<Seen>,
    due: Instant,
}

/// A walk. `Ask` asks the shadow mount, `Tell` the daemon.
pub struct Pass<Ask, Tell> {
    mount: Side,
    ask: Ask,
    tell: Tell,
    terms: Terms,
    chance: Rng,
    questions: usize,
    doubts: VecDeque<Doubt>,
    counts: BTreeMap<Operation, Compared>,
    unsteady: u64,
    told: Instant,
}

impl<Ask, Tell> Pass<Ask, Tell>
where
    Ask: FnMut(&Question) -> Result<Seen, Stopped>,
    Tell: FnMut(&Said) -> io::Result<()>,
{
    /// A walk that begins with the root.
    pub fn new(mount: Side, ask: Ask, tell: Tell, terms: Terms) -> Self {
        Self {
            mount,
            ask,
            tell,
            terms,
            chance: Rng::with_seed(terms.seed),
            questions: 0,
            doubts: VecDeque::new(),
            counts: BTreeMap::new(),
            unsteady: 0,
            told: Instant::now(),
        }
    }

    /// Walks, and tells.
    ///
    /// # Errors
    /// When it cannot go on.
    pub fn run(mut self) -> Result<(), Stopped> {
        self.news()?;
        self.examine(Vec::new(), What::FileSystem)?;
        self.examine(Vec::new(), What::Thing)?;
        let is_whole = self.walk()?;
        while let Some(doubt) = self.doubts.front() {
            let wait = doubt.due.saturating_duration_since(Instant::now());
            if wait.is_zero() {
                self.settle()?;
            } else {
                std::thread::sleep(wait.min(NEWS));
                self.news()?;
            }
        }
        self.news()?;
        Ok((self.tell)(&Said::Over { is_whole })?)
    }

    /// Whether all was seen.
    fn walk(&mut self) -> Result<bool, Stopped> {
        let mut folders = vec![Vec::new()];
        let mut is_whole = true;
        while let Some(folder) = folders.pop() {
            let mut names = self.examine(folder.clone(), What::Listing)?.names;
            self.chance.shuffle(&mut names);
            // One that is not there: that has to be said alike, too.
            names.push(format!(".no-such-name-{:016x}", self.chance.u64(..)).into());
            for name in names {
                if self.questions >= self.terms.questions {
                    return Ok(false);
                }
                let path: Vec<OsString> = folder.iter().cloned().chain([name]).collect();
                let look = self.examine(path.clone(), What::Thing)?;
                let field = |name: &str| look.seen.get(&Operation::GetAttr).and_then(|fields| fields.get(name));
                match field("type").map(String::as_str) {
                    Some("directory") if folders.len() < MOST_FOLDERS => folders.push(path),
                    Some("directory") => is_whole = false,
                    Some("file") => {
                        let size = field("size").and_then(|size| size.parse().ok()).unwrap_or(0);
                        let offsets = self.blocks(size);
                        self.examine(path, What::Content(offsets))?;
                    }
                    _ => {}
                }
            }
        }
        Ok(is_whole)
    }

    /// The first block, the last one, and one between.
    fn blocks(&mut self, size: u64) -> Vec<u64> {
        let blocks = size.div_ceil(BLOCK as u64).max(1);
        let mut chosen = vec![0, blocks - 1, self.chance.u64(0..blocks)];
        chosen.sort_unstable();
        chosen.dedup();
        chosen.into_iter().map(|block| block * BLOCK as u64).collect()
    }

    /// Asks both. What the mount says.
    fn examine(&mut self, path: Vec<OsString>, what: What) -> Result<Look, Stopped> {
        let question = Question { path, what };
        self.questions += 1;
        let began = Instant::now();
        let look = self.look(&question)?;
        let shadow = (self.ask)(&question)?;
        std::thread::sleep(self.terms.pace.max(LONGEST_REST.min(began.elapsed() * REST)));
        let mut operations = Vec::new();
        for operation in operations_of(&question, &look.seen, &shadow) {
            if look.seen.get(&operation) == shadow.get(&operation) {
                self.count(operation).compared += 1;
            } else if self.doubts.len() < MOST_DOUBTS {
                operations.push(operation);
            } else {
                self.count(operation).dropped += 1;
            }
        }
        if !operations.is_empty() {
            let due = Instant::now() + self.terms.patience;
            self.doubts.push_back(Doubt { question, operations, again: None, due });
        }
        while self.doubts.front().is_some_and(|doubt| doubt.due <= Instant::now()) {
            self.settle()?;
        }
        if self.told.elapsed() >= NEWS {
            self.news()?;
        }
        Ok(look)
    }

    /// Looks again at what is first in the row: at the mount before and after, because the tree lives.
    fn settle(&mut self) -> Result<(), Stopped> {
        let Some(Doubt { question, operations, again, .. }) = self.doubts.pop_front() else { return Ok(()) };
        let mut before = self.look(&question)?.seen;
        let mut shadow = (self.ask)(&question)?;
        let after = self.look(&question)?.seen;
        if question.what == What::FileSystem {
            // Space is taken and given back all the time; what has stayed is compared.
            let has_stayed = |name: &String, value: &String| {
                let is_same =
                    |seen: &Seen| seen.get(&Operation::StatFs).and_then(|fields| fields.get(name)) == Some(value);
                is_same(&after) && again.as_ref().is_none_or(is_same)
            };
            before.values_mut().for_each(|fields| fields.retain(|name, value| has_stayed(name, value)));
            if let Some(kept) = before.get(&Operation::StatFs) {
                shadow.values_mut().for_each(|fields| fields.retain(|name, _| kept.contains_key(name)));
            }
        } else if before != after || again.as_ref().is_some_and(|again| *again != before) {
            self.unsteady += operations.len() as u64;
            return Ok(());
        }
        let (same, other): (Vec<_>, Vec<_>) =
            operations.into_iter().partition(|operation| before.get(operation) == shadow.get(operation));
        for operation in same {
            self.count(operation).compared += 1;
        }
        if other.is_empty() {
            return Ok(());
        }
        if again.is_none() {
            let due = Instant::now() + self.terms.patience;
            self.doubts.push_back(Doubt { question, operations: other, again: Some(before), due });
            return Ok(());
        }
        for operation in other {
            let counts = self.count(operation);
            counts.compared += 1;
            counts.diverged += 1;
            for example in examples(&question, operation, before.get(&operation), shadow.get(&operation)) {
                (self.tell)(&Said::Differs(example))?;
            }
        }
        Ok(())
    }

    fn look(&self, question: &Question) -> Result<Look, Stopped> {
        self.mount.look(question).map_err(Stopped::Gone)
    }

    fn count(&mut self, operation: Operation) -> &mut Compared {
        self.counts.entry(operation).or_default()
    }

    fn news(&mut self) -> Result<(), Stopped> {
        self.told = Instant::now();
        let counts = std::mem::take(&mut self.counts);
        let unsteady = std::mem::take(&mut self.unsteady);
        Ok((self.tell)(&Said::Counted { counts, unsteady })?)
    }
}

fn operations_of(question: &Question, one: &Seen, other: &Seen) -> Vec<Operation> {
    let mut operations: Vec<_> = one.keys().chain(other.keys()).copied().collect();
    operations.sort_unstable();
    operations.dedup();
    operations.retain(|operation| question.is_about(*operation));
    operations
}

/// Each field that differs, but not all of a long listing.
fn examples(
    question: &Question,
    operation: Operation,
    mount: Option<&Fields>,
    shadow: Option<&Fields>,
) -> Vec<Example> {
    let none = Fields::new();
    let (mount, shadow) = (mount.unwrap_or(&none), shadow.unwrap_or(&none));
    let value = |fields: &Fields, field: &String| fields.get(field).cloned().unwrap_or_else(|| "nothing".into());
    let mut fields: Vec<_> = mount.keys().chain(shadow.keys()).collect();
    fields.sort_unstable();
    fields.dedup();
    fields.retain(|field| mount.get(*field) != shadow.get(*field));
    let example = |field: &String| Example {
        operation,
        path: question.place(),
        field: field.clone(),
        mount: value(mount, field),
        shadow: value(shadow, field),
    };
    fields.into_iter().take(MOST_FIELDS).map(example).collect()
}
