//! Compares one call after the other, in sessions that are replaced when they die.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::answers::Answer;
use super::call::{Manner, Sample};
use super::compare::{difference, misdecoded};
use super::recording::Recording;
use super::report::Side;
use super::sessions::{Session, Setting};
use crate::backend::drill::{Drill, Part};
use crate::config::{Backend, Cache};
use crate::connection::Negotiated;
use crate::vfs::Vfs;

/// What differs is looked at so many times: it must differ each time, and the reference must agree with itself each time.
/// A source that changes meanwhile is hardly ever caught out so often.
const LOOKS: usize = 3;
/// Before a session that has died is replaced: this long, and twice as long each time until it lives.
const FIRST_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_secs(64);
/// So many may hang at once. Each keeps a thread until the source lets it go.
const MOST_HUNG: u32 = 8;

/// Of what the sessions of all backends are made.
#[derive(Clone)]
pub struct Conditions {
    /// Lifetimes in the kernel's caches.
    pub cache: Cache,
    /// What was agreed with the kernel.
    pub negotiated: Negotiated,
    /// The mount's drill: wrong answers strike comparisons too.
    pub drill: Option<Arc<Drill>>,
    /// For an answer. A source that takes longer hangs, for all that a comparison cares.
    pub limit: Duration,
}

/// One backend in a comparison.
#[derive(Clone)]
pub struct Contender {
    backend: Backend,
    vfs: Arc<dyn Vfs>,
    recording: Arc<Recording>,
    recorder: Arc<dyn Vfs>,
}

impl Contender {
    /// Over this vfs; what would change something there is recorded instead.
    #[must_use]
    pub fn new(backend: Backend, vfs: Arc<dyn Vfs>) -> Self {
        let recording = Arc::new(Recording::default());
        Self { backend, vfs, recorder: recording.clone(), recording }
    }

    /// The same with something between its adapter and what records, for tests.
    #[must_use]
    pub fn with_recorder(self, between: impl FnOnce(Arc<dyn Vfs>) -> Arc<dyn Vfs>) -> Self {
        Self { recorder: between(self.recorder), ..self }
    }
}

/// What came of a comparison.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// The answers are the same.
    Same,
    /// The reference does not agree with itself: the source changes.
    Noise,
    /// The candidate says something else.
    Diverged(String),
    /// It could not be compared.
    Nothing(String),
}

/// A comparison with all that was said.
pub(super) struct Compared {
    pub verdict: Verdict,
    pub reference: Side,
    pub candidate: Side,
}

/// A place for a session, which is started when it is needed.
struct Place {
    backend: Backend,
    setting: Setting,
    session: Option<Session>,
    wait: Duration,
    not_before: Instant,
    hung: u32,
}

impl Place {
    fn new(backend: Backend, vfs: Arc<dyn Vfs>, conditions: &Conditions) -> Self {
        let setting = Setting {
            vfs,
            cache: conditions.cache,
            negotiated: conditions.negotiated,
            drill: conditions.drill.clone().map(Part::compared),
            limit: conditions.limit,
        };
        Self { backend, setting, session: None, wait: FIRST_WAIT, not_before: Instant::now(), hung: 0 }
    }

    fn ready(&mut self) -> Result<(), String> {
        if self.session.is_some() {
            return Ok(());
        }
        if self.hung >= MOST_HUNG {
            return Err(format!("{} of its sessions of {} hang: the source does not answer", self.hung, self.backend));
        }
        if Instant::now() < self.not_before {
            return Err(format!("a session of {} has died, and is started again", self.backend));
        }
        match Session::start(self.backend, &self.setting) {
            Ok(session) => self.session = Some(session),
            Err(error) => {
                self.put_off();
                return Err(error.to_string());
            }
        }
        Ok(())
    }

    fn put_off(&mut self) {
        self.not_before = Instant::now() + self.wait;
        self.wait = (self.wait * 2).min(LONGEST_WAIT);
    }

    fn run(&mut self, sample: &Sample) -> Answer {
        let Some(session) = &mut self.session else { return Answer::Silence("it has no session".into()) };
        let answer = session.run(sample);
        match &answer {
            Answer::Silence(why) => {
                tracing::warn!(backend = %self.backend, operation = sample.call.operation().name(), "a comparison session has given no answer: {why}");
                self.hung += 1;
                if let Some(session) = self.session.take() {
                    session.end();
                }
                self.put_off();
            }
            _ => (self.wait, self.hung) = (FIRST_WAIT, 0),
        }
        answer
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(session) = self.session.take() {
            session.end();
        }
    }
}

/// A session over something that records.
struct RecordingPlace {
    place: Place,
    recording: Arc<Recording>,
}

impl RecordingPlace {
    fn new(contender: &Contender, conditions: &Conditions) -> Self {
        let undrilled = Conditions { drill: None, ..conditions.clone() };
        let place = Place::new(contender.backend, contender.recorder.clone(), &undrilled);
        Self { place, recording: contender.recording.clone() }
    }

    fn run(&mut self, sample: &Sample) -> Side {
        drop(self.recording.take());
        let answer = self.place.run(sample);
        Side { answer, decoded: self.recording.take() }
    }
}

/// See the module. Two sessions of the reference and one of the candidate; and one of each that records.
pub struct Comparer {
    reference: [Place; 2],
    candidate: Place,
    records: RecordingPlace,
    candidate_records: RecordingPlace,
}

impl Comparer {
    /// Compares the candidate with the reference.
    #[must_use]
    pub fn new(reference: &Contender, candidate: &Contender, conditions: &Conditions) -> Self {
        let place = |of: &Contender| Place::new(of.backend, of.vfs.clone(), conditions);
        Self {
            reference: [place(reference), place(reference)],
            candidate: place(candidate),
            records: RecordingPlace::new(reference, conditions),
            candidate_records: RecordingPlace::new(candidate, conditions),
        }
    }

    /// Compares what both say to a call.
    pub fn compare(&mut self, sample: &Sample) -> Verdict {
        self.compare_in_full(sample).verdict
    }

    pub(super) fn compare_in_full(&mut self, sample: &Sample) -> Compared {
        match sample.call.manner() {
            Manner::Read | Manner::List => self.compare_answers(sample),
            Manner::Record => self.compare_decoded(sample),
        }
    }

    fn compare_answers(&mut self, sample: &Sample) -> Compared {
        let mut looks = 0;
        loop {
            let [one, other] = &mut self.reference;
            if let Err(why) = one.ready().and_then(|()| other.ready()).and_then(|()| self.candidate.ready()) {
                return Compared::nothing(why);
            }
            // The candidate between the two: what has changed in between, and is not changed back, is seen as noise.
            let before = one.run(sample);
            let candidate = self.candidate.run(sample);
            let after = other.run(sample);
            looks += 1;
            let is_silent = |answer: &Answer| matches!(answer, Answer::Silence(_));
            let is_noise =
                is_silent(&before) || is_silent(&after) || difference(&sample.call, &before, &after).is_some();
            let verdict = if is_noise {
                Verdict::Noise
            } else {
                match difference(&sample.call, &before, &candidate) {
                    None => Verdict::Same,
                    // It has died of it, or hangs: once is enough.
                    Some(_) if looks < LOOKS && !is_silent(&candidate) => continue,
                    Some(what) => Verdict::Diverged(what),
                }
            };
            let side = |answer| Side { answer, decoded: Vec::new() };
            return Compared { verdict, reference: side(before), candidate: side(candidate) };
        }
    }

    fn compare_decoded(&mut self, sample: &Sample) -> Compared {
        let Self { records, candidate_records, .. } = self;
        if let Err(why) = records.place.ready().and_then(|()| candidate_records.place.ready()) {
            return Compared::nothing(why);
        }
        let (reference, candidate) = (records.run(sample), candidate_records.run(sample));
        let wrong = |side: &Side, backend| match &side.answer {
            Answer::Silence(why) => Some(why.clone()),
            _ => misdecoded(backend, sample, &side.decoded),
        };
        let verdict = if let Some(what) = wrong(&reference, records.place.backend) {
            tracing::debug!(operation = sample.call.operation().name(), "the reference itself: {what}");
            Verdict::Noise
        } else {
            let what = wrong(&candidate, candidate_records.place.backend)
                .or_else(|| difference(&sample.call, &reference.answer, &candidate.answer));
            what.map_or(Verdict::Same, Verdict::Diverged)
        };
        Compared { verdict, reference, candidate }
    }
}

impl Compared {
    fn nothing(why: String) -> Self {
        let side = || Side { answer: Answer::Silence(why.clone()), decoded: Vec::new() };
        Self { reference: side(), candidate: side(), verdict: Verdict::Nothing(why) }
    }
}
