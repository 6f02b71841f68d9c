//! Do both backends answer the same? A share of a mount's calls is run a second time in sessions that no client uses, of
//! the backend that is trusted and of the one that is tried, and what they answer is compared.
//!
//! * [`Sampled`] stands between the backends and the vfs, and copies calls into a bounded queue. That is all that clients'
//!   requests meet.
//! * A thread takes them out and has three sessions run each: the reference, the candidate, and the reference once more.
//!   If the reference does not agree with itself the source has changed meanwhile, which is noise. What the candidate
//!   answers differently each time it is asked is a divergence.
//! * What changes something is never run twice: it is sent to sessions over a [`Recording`], and the call that they decode
//!   must be the one that was sent.
//!
//! What is compared are the replies' bytes and the calls, but for [`PERMITTED`]. What a comparison does counts nowhere but
//! in the ledger's comparisons; the lookups and handles that it gets it gives back.

mod answers;
mod call;
mod compare;
mod comparer;
mod encode;
mod recording;
mod report;
mod sampling;
mod sessions;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use parking_lot::Mutex;

use crate::ledger::Ledger;
use crate::vfs::Vfs;
use report::Findings;
use sampling::Tap;

pub use call::{Call, Data, Manner, Sample};
pub use compare::{PERMITTED, Permitted};
pub use comparer::{Comparer, Conditions, Contender, Verdict};
pub use recording::Recording;
pub use report::{Comparing, EXAMPLES, Example, Shown, Told};
pub use sampling::Sampled;

/// How often the thread looks whether it is to end while nothing is sampled.
const LOOK: Duration = Duration::from_millis(250);

/// The comparisons of one mount.
pub struct Shadow {
    vfs: Arc<dyn Vfs>,
    ledger: Ledger,
    tap: Arc<Tap>,
    samples: Arc<Mutex<Receiver<Sample>>>,
    findings: Arc<Findings>,
    running: Option<Running>,
}

/// The thread that compares.
struct Running {
    comparing: Comparing,
    is_over: Arc<AtomicBool>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.is_over.store(true, SeqCst);
    }
}

impl Shadow {
    /// For a mount of this vfs, which compares nothing yet; and the vfs that its backends are to call.
    #[must_use]
    pub fn over<V: Vfs>(vfs: Arc<V>, ledger: &Ledger) -> (Self, Arc<Sampled<V>>) {
        let (tap, samples) = Tap::new(ledger.clone());
        let sampled = Arc::new(Sampled::new(vfs.clone(), tap.clone()));
        let shadow = Self {
            vfs,
            ledger: ledger.clone(),
            tap,
            samples: Arc::new(Mutex::new(samples)),
            findings: Arc::default(),
            running: None,
        };
        (shadow, sampled)
    }

    /// From now on compares this, or nothing. Does not wait.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn compare(
        &mut self,
        wanted: Option<Comparing>,
        conditions: impl FnOnce() -> Conditions,
    ) -> std::io::Result<()> {
        let wanted = wanted.filter(|wanted| wanted.rate > 0.);
        if self.running.as_ref().map(|running| running.comparing) == wanted {
            return Ok(());
        }
        self.running = None;
        self.tap.set_rate(0.);
        self.findings.set_comparing(wanted);
        let Some(comparing) = wanted else { return Ok(()) };
        let is_over = Arc::new(AtomicBool::new(false));
        let worker = Worker {
            comparer: Comparer::new(
                &Contender::new(comparing.reference, self.vfs.clone()),
                &Contender::new(comparing.candidate, self.vfs.clone()),
                &conditions(),
            ),
            samples: self.samples.clone(),
            findings: self.findings.clone(),
            ledger: self.ledger.clone(),
            is_over: is_over.clone(),
        };
        std::thread::Builder::new().name("compare".into()).spawn(move || worker.run())?;
        self.running = Some(Running { comparing, is_over });
        self.tap.set_rate(comparing.rate);
        Ok(())
    }

    /// What was found.
    #[must_use]
    pub fn told(&self) -> Told {
        self.findings.told()
    }
}

struct Worker {
    comparer: Comparer,
    samples: Arc<Mutex<Receiver<Sample>>>,
    findings: Arc<Findings>,
    ledger: Ledger,
    is_over: Arc<AtomicBool>,
}

impl Worker {
    fn run(mut self) {
        // One before may still wait for an answer.
        let samples = self.samples.clone();
        let samples = samples.lock();
        while !self.is_over.load(SeqCst) {
            match samples.recv_timeout(LOOK) {
                Ok(sample) => self.compare(&sample),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
        // What nobody compares any more would be compared when somebody begins again, long after.
        while samples.try_recv().is_ok() {}
    }

    fn compare(&mut self, sample: &Sample) {
        let operation = sample.call.operation();
        let compared = self.comparer.compare_in_full(sample);
        let comparisons = self.ledger.comparisons();
        match &compared.verdict {
            Verdict::Same => comparisons.compared(operation, false),
            // Nothing can be said of it, so it is no evidence either: a source that changes all the time proves nobody right.
            Verdict::Noise => self.findings.count_noise(operation),
            Verdict::Diverged(what) => {
                let (reference, candidate) = (&compared.reference, &compared.candidate);
                if self.findings.add(operation, || report::example(sample, what, reference, candidate)) {
                    tracing::warn!(operation = operation.name(), "the candidate diverges: {what}");
                }
                comparisons.compared(operation, true);
            }
            Verdict::Nothing(why) => {
                self.findings.set_trouble(Some(why.clone()));
                comparisons.dropped(operation);
                return;
            }
        }
        self.findings.set_trouble(None);
    }
}
