//! Faults on purpose, so that an operator rehearses, and tests see what a fault does. While a drill runs, requests of one
//! backend are struck by one kind of fault.
//!
//! Whether a request is struck is decided here and nowhere else ([`Part::strike`]); the adapters ask before they call the
//! vfs. Mounts that allow no drill have no [`Drill`]; without one that runs, asking is one relaxed load.

use std::fmt;
use std::str::FromStr;
use std::sync::atomic::{
    AtomicBool, AtomicU64,
    Ordering::{Relaxed, SeqCst},
};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime};

use parking_lot::{Condvar, Mutex, RwLock};
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use crate::config::{Backend, UnknownName};
use crate::ledger::{Operation, Slot};

/// How long a drill runs unless it is said, and at most.
const USUAL_LENGTH: Duration = Duration::from_secs(60);
const LONGEST: Duration = Duration::from_secs(3600);
/// How long a delay is unless it is said.
const USUAL_DELAY: Duration = Duration::from_secs(1);
const SHORTEST: Duration = Duration::from_millis(1);

/// What becomes of requests that are struck.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Fault {
    /// Answered EIO, and not run.
    Error,
    /// Run later.
    Delay,
    /// Not run before the drill is over.
    Hang,
    /// The handler panics.
    Panic,
    /// The session ends by itself, once.
    End,
    /// Answered wrongly, if it only reads.
    Diverge,
    /// Read, and neither run nor answered. The kernel may send it again; then it is spared.
    Lose,
}

impl Fault {
    /// All of them.
    pub const ALL: [Self; 7] =
        [Self::Error, Self::Delay, Self::Hang, Self::Panic, Self::End, Self::Diverge, Self::Lose];

    /// The name in options, answers and messages.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Delay => "delay",
            Self::Hang => "hang",
            Self::Panic => "panic",
            Self::End => "end",
            Self::Diverge => "diverge",
            Self::Lose => "lose",
        }
    }

    /// Whether a request of this kind can meet it.
    fn can_strike(self, operation: Operation) -> bool {
        use Operation::{Forget, GetAttr, Lookup, Other, Read, ReadDirPlus, ReadLink, Release, ReleaseDir, StatFs};
        match (self, operation) {
            // Nobody waits for an answer.
            (_, Forget | Other) => false,
            (Self::Diverge, of) => matches!(of, Lookup | GetAttr | ReadLink | Read | ReadDirPlus | StatFs),
            // Nobody looks at the answer, and what is not run would stay open for ever.
            (Self::Error | Self::Panic, Release | ReleaseDir) => false,
            _ => true,
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Fault {
    type Err = UnknownName;

    fn from_str(name: &str) -> Result<Self, UnknownName> {
        let expected = "error, delay, hang, panic, end, diverge or lose";
        let found = Self::ALL.into_iter().find(|fault| fault.name() == name);
        found.ok_or_else(|| UnknownName { what: "fault", given: name.into(), expected })
    }
}

/// What a drill is to do.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = DrillPlan)]
pub struct Plan {
    /// Whose requests.
    pub backend: Backend,
    /// What becomes of them.
    pub fault: Fault,
    /// The share of them that is struck: above 0, at most 1.
    #[serde(default = "all")]
    #[schema(required = false, exclusive_minimum = 0, maximum = 1)]
    pub rate: f64,
    /// How long a delay is.
    #[serde(default, with = "humantime_serde", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, pattern = "^([1-9][0-9]{0,2}(ms|s)|[1-9]m|[1-5][0-9]m)$", example = "500ms")]
    pub delay: Option<Duration>,
    /// Only requests of this kind.
    #[serde(default)]
    #[schema(example = "read")]
    pub operation: Option<Operation>,
    /// How long the drill runs.
    #[serde(default = "usual_length", rename = "for", with = "humantime_serde")]
    #[schema(value_type = String, required = false, pattern = "^([1-9][0-9]{0,2}(ms|s)|[1-9]m|[1-5][0-9]m)$", example = "1m")]
    pub length: Duration,
}

fn all() -> f64 {
    1.
}

fn usual_length() -> Duration {
    USUAL_LENGTH
}

impl Plan {
    /// Strikes every request of this backend, for the usual time.
    #[must_use]
    pub fn new(backend: Backend, fault: Fault) -> Self {
        Self { backend, fault, rate: all(), delay: None, operation: None, length: USUAL_LENGTH }
    }

    /// Checks what belongs together.
    ///
    /// # Errors
    /// What is wrong, and what would be right.
    pub fn check(&self) -> Result<(), String> {
        let Self { fault, rate, delay, operation, length, .. } = self;
        if !(*rate > 0. && *rate <= 1.) {
            return Err(format!("a rate of {rate} is no share: use a number above 0, and at most 1"));
        }
        if delay.is_some() && *fault != Fault::Delay {
            return Err(format!("a delay is for the fault delay, not for {fault}: leave it out"));
        }
        for (what, time) in [("drill", Some(length)), ("delay", delay.as_ref())] {
            if time.is_some_and(|time| !(SHORTEST..=LONGEST).contains(time)) {
                return Err(format!("the {what} is too short or too long: use 1ms to 1h"));
            }
        }
        if let Some(operation) = operation.filter(|operation| !fault.can_strike(*operation)) {
            let names: Vec<_> =
                Operation::ALL.iter().filter(|one| fault.can_strike(**one)).map(|one| one.name()).collect();
            let operation = operation.name();
            return Err(format!("the fault {fault} cannot strike {operation}: use one of {}", names.join(", ")));
        }
        Ok(())
    }

    /// How long a delay is.
    #[must_use]
    pub fn delay(&self) -> Option<Duration> {
        (self.fault == Fault::Delay).then(|| self.delay.unwrap_or(USUAL_DELAY))
    }

    fn strikes(&self, backend: Backend, operation: Operation, unique: u64) -> bool {
        self.backend == backend
            && self.operation.is_none_or(|only| only == operation)
            && self.fault.can_strike(operation)
            // Or it would be lost for as long as the drill runs.
            && !(self.fault == Fault::Lose && Slot::was_sent_before(unique))
            && fastrand::f64() < self.rate
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.fault)?;
        if let Some(delay) = self.delay() {
            write!(f, " of {}", humantime::format_duration(delay))?;
        }
        match self.rate {
            1. => f.write_str(" to all")?,
            rate => write!(f, " to {} % of the", (rate * 1e4).round() / 1e2)?,
        }
        let operation = self.operation.map_or(String::new(), |operation| format!("{} ", operation.name()));
        write!(f, " {operation}requests of {}", self.backend)
    }
}

/// A drill that runs, as it is told to others.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Ongoing {
    /// What it does.
    pub plan: Plan,
    /// When it ends by itself.
    #[serde(with = "humantime_serde")]
    pub until: SystemTime,
}

/// A drill that is over.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Ended {
    /// What it has done.
    pub plan: Plan,
    /// To how many requests.
    pub struck: u64,
}

/// What becomes of this request.
pub enum Strike {
    /// To be answered EIO.
    Error,
    /// Its handler is to panic.
    Panic,
    /// To be answered wrongly.
    Diverge,
    /// To be left without an answer.
    Lose,
    /// To be run when this is over.
    Wait(Wait),
}

/// How long a request is held up. It is let go when the drill is over, at the latest.
pub struct Wait {
    running: Arc<Running>,
    until: Instant,
}

impl Wait {
    /// Waits, on this thread.
    pub fn block(&self) {
        let mut is_over = self.running.is_over.lock();
        while !*is_over && !self.running.freed.wait_until(&mut is_over, self.until).timed_out() {}
    }

    /// Waits, on a runtime without a timer.
    #[cfg(feature = "fuse3")]
    pub async fn wait(&self) {
        loop {
            // Made before the look: `notify_waiters` reaches it even before it is first polled.
            let freed = self.running.told.notified();
            let left = self.until.saturating_duration_since(Instant::now());
            if left.is_zero() || *self.running.is_over.lock() {
                return;
            }
            tokio::select! {
                () = freed => {}
                () = crate::connection::port::pause(left) => {}
            }
        }
    }
}

struct Running {
    plan: Plan,
    until: Instant,
    ends: SystemTime,
    struck: AtomicU64,
    is_over: Mutex<bool>,
    freed: Condvar,
    told: Notify,
}

impl Running {
    fn ongoing(&self) -> Ongoing {
        Ongoing { plan: self.plan.clone(), until: self.ends }
    }
}

/// What a session has to do with its mount's drill.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Role {
    /// It serves, and every fault strikes it.
    Serving,
    /// It is only compared: wrong answers are to be found, and nothing else is to come of it.
    Compared,
}

/// A session's part in its mount's drill: whether a fault strikes it.
#[derive(Clone)]
pub struct Part {
    drill: Arc<Drill>,
    role: Role,
}

impl Part {
    /// Of a session that serves.
    #[must_use]
    pub fn serving(drill: Arc<Drill>) -> Self {
        Self { drill, role: Role::Serving }
    }

    /// Of a session that no client uses, and whose answers are compared.
    #[must_use]
    pub fn compared(drill: Arc<Drill>) -> Self {
        Self { drill, role: Role::Compared }
    }

    /// The drill.
    #[must_use]
    pub fn drill(&self) -> &Arc<Drill> {
        &self.drill
    }

    /// Asked by the adapters, for each request.
    #[inline]
    #[must_use]
    pub fn strike(&self, backend: Backend, operation: Operation, unique: u64) -> Option<Strike> {
        if !self.drill.is_running.load(Relaxed) {
            return None;
        }
        self.drill.decide(self.role, backend, operation, unique)
    }
}

/// The drill of a mount that allows one.
#[derive(Default)]
pub struct Drill {
    is_running: AtomicBool,
    running: RwLock<Option<Arc<Running>>>,
    /// A session is to end, and nobody has seen to it yet.
    is_end_due: AtomicBool,
    on_end_due: OnceLock<Box<dyn Fn() + Send + Sync>>,
}

impl Drill {
    /// What is called, by a reader of requests, when a session is to end: sessions are ended by the control loop only.
    pub fn call_when_end_is_due(&self, call: impl Fn() + Send + Sync + 'static) {
        // Set once, by whoever serves; a second value would only be dropped.
        drop(self.on_end_due.set(Box::new(call)));
    }

    #[cold]
    fn decide(&self, role: Role, backend: Backend, operation: Operation, unique: u64) -> Option<Strike> {
        let running = self.running.read().clone()?;
        let now = Instant::now();
        if role == Role::Compared && running.plan.fault != Fault::Diverge {
            return None;
        }
        if now >= running.until || !running.plan.strikes(backend, operation, unique) {
            return None;
        }
        if running.plan.fault == Fault::End && running.struck.swap(1, SeqCst) > 0 {
            return None;
        }
        let strike = match running.plan.fault {
            Fault::Error => Strike::Error,
            Fault::Panic => Strike::Panic,
            Fault::Diverge => Strike::Diverge,
            Fault::Lose => Strike::Lose,
            Fault::Hang => Strike::Wait(Wait { until: running.until, running: running.clone() }),
            Fault::Delay => {
                let until = now + running.plan.delay().unwrap_or_default();
                Strike::Wait(Wait { until, running: running.clone() })
            }
            Fault::End => {
                self.is_end_due.store(true, SeqCst);
                if let Some(call) = self.on_end_due.get() {
                    call();
                }
                return None;
            }
        };
        running.struck.fetch_add(1, Relaxed);
        Some(strike)
    }

    /// Begins one.
    ///
    /// # Errors
    /// The one that runs already.
    pub fn start(&self, plan: Plan) -> Result<Ongoing, Ongoing> {
        let mut place = self.running.write();
        if let Some(running) = &*place {
            return Err(running.ongoing());
        }
        let running = Running {
            until: Instant::now() + plan.length,
            ends: SystemTime::now() + plan.length,
            plan,
            struck: AtomicU64::new(0),
            is_over: Mutex::new(false),
            freed: Condvar::new(),
            told: Notify::new(),
        };
        let ongoing = running.ongoing();
        *place = Some(Arc::new(running));
        self.is_running.store(true, SeqCst);
        Ok(ongoing)
    }

    /// Ends the one that runs, and lets go what it holds up.
    pub fn stop(&self) -> Option<Ended> {
        let running = self.running.write().take()?;
        self.is_running.store(false, SeqCst);
        self.is_end_due.store(false, SeqCst);
        *running.is_over.lock() = true;
        running.freed.notify_all();
        running.told.notify_waiters();
        Some(Ended { plan: running.plan.clone(), struck: running.struck.load(SeqCst) })
    }

    /// The one that runs.
    #[must_use]
    pub fn ongoing(&self) -> Option<Ongoing> {
        self.running.read().as_ref().map(|running| running.ongoing())
    }

    /// Whether the time of the one that runs is over, so that it is to be stopped.
    #[must_use]
    pub fn is_overdue(&self) -> bool {
        self.is_running.load(Relaxed) && self.running.read().as_ref().is_some_and(|one| Instant::now() >= one.until)
    }

    /// Whether a session is to end, asked once. Then the drill is done.
    #[must_use]
    pub fn take_end_due(&self) -> bool {
        self.is_running.load(Relaxed) && self.is_end_due.swap(false, SeqCst)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    const SENT_AGAIN: u64 = 1 << 63 | 8;

    impl Drill {
        fn strike(&self, backend: Backend, operation: Operation, unique: u64) -> Option<Strike> {
            self.decide(Role::Serving, backend, operation, unique)
        }
    }

    fn struck(plan: Plan, backend: Backend, operation: Operation, unique: u64) -> usize {
        let drill = Drill::default();
        drill.start(plan).unwrap();
        (0..1000).filter(|_| drill.strike(backend, operation, unique).is_some()).count()
    }

    #[test]
    fn nothing_is_struck_without_a_drill() {
        let drill = Drill::default();
        assert!(drill.strike(Backend::Fuse2, Operation::Read, 8).is_none());
        drill.start(Plan::new(Backend::Fuse2, Fault::Error)).unwrap();
        assert!(drill.strike(Backend::Fuse2, Operation::Read, 8).is_some());
        assert_eq!(drill.stop().unwrap().struck, 1);
        assert!(drill.strike(Backend::Fuse2, Operation::Read, 8).is_none());
        assert!(drill.stop().is_none());
    }

    #[test]
    fn backend_operation_and_rate_choose() {
        let reads = Plan { operation: Some(Operation::Read), ..Plan::new(Backend::Fuse2, Fault::Error) };
        assert_eq!(struck(reads.clone(), Backend::Fuse2, Operation::Read, 8), 1000);
        assert_eq!(struck(reads.clone(), Backend::Fuse2, Operation::Write, 8), 0);
        assert_eq!(struck(reads.clone(), Backend::Fuse3, Operation::Read, 8), 0);
        let some = struck(Plan { rate: 0.3, ..reads }, Backend::Fuse2, Operation::Read, 8);
        assert!((200..400).contains(&some), "{some}");
    }

    #[test]
    fn of_sessions_that_are_compared_only_the_answers_are_struck() {
        for fault in Fault::ALL {
            let drill = Arc::<Drill>::default();
            drill.start(Plan::new(Backend::Fuse2, fault)).unwrap();
            let strike = Part::compared(drill.clone()).strike(Backend::Fuse2, Operation::Read, 8);
            assert_eq!(strike.is_some(), fault == Fault::Diverge, "{fault}");
            assert!(!drill.take_end_due(), "{fault}");
        }
    }

    #[test]
    fn one_that_was_sent_again_is_not_lost_again() {
        let lose = || Plan::new(Backend::Fuse3, Fault::Lose);
        assert_eq!(struck(lose(), Backend::Fuse3, Operation::Read, 8), 1000);
        assert_eq!(struck(lose(), Backend::Fuse3, Operation::Read, SENT_AGAIN), 0);
    }

    #[test]
    fn a_session_ends_once() {
        let drill = Drill::default();
        drill.start(Plan::new(Backend::Fuse2, Fault::End)).unwrap();
        assert!(drill.strike(Backend::Fuse2, Operation::Read, 8).is_none(), "it is served as any");
        assert!(drill.take_end_due() && !drill.take_end_due());
        assert!(drill.strike(Backend::Fuse2, Operation::Read, 8).is_none() && !drill.take_end_due());
        assert_eq!(drill.stop().unwrap().struck, 1);
    }

    #[test]
    fn a_hung_request_comes_back_when_the_drill_is_over() {
        let drill = Drill::default();
        let hang = || Plan { length: Duration::from_millis(30), ..Plan::new(Backend::Fuse2, Fault::Hang) };
        drill.start(hang()).unwrap();
        let Some(Strike::Wait(wait)) = drill.strike(Backend::Fuse2, Operation::Read, 8) else { panic!("not struck") };
        wait.block();
        assert!(drill.is_overdue());
        assert!(drill.strike(Backend::Fuse2, Operation::Read, 8).is_none(), "its time is over");
        drill.stop();
        drill.start(Plan { length: LONGEST, ..hang() }).unwrap();
        let Some(Strike::Wait(wait)) = drill.strike(Backend::Fuse2, Operation::Read, 8) else { panic!("not struck") };
        std::thread::scope(|threads| {
            let hung = threads.spawn(|| wait.block());
            drill.stop();
            hung.join().unwrap();
        });
    }

    #[test]
    fn two_at_a_time_are_refused() {
        let drill = Drill::default();
        let first = drill.start(Plan::new(Backend::Fuse2, Fault::Error)).unwrap();
        assert_eq!(drill.start(Plan::new(Backend::Fuse3, Fault::Lose)).unwrap_err(), first);
    }

    #[rstest]
    #[case(r#"{"backend": "fuse2", "fault": "error"}"#, "error to all requests of fuse2")]
    #[case(
        r#"{"backend": "fuse3", "fault": "delay", "rate": 0.125, "operation": "read"}"#,
        "delay of 1s to 12.5 % of the read requests of fuse3"
    )]
    #[case(
        r#"{"backend": "fuse3", "fault": "delay", "delay": "1500ms", "for": "5m"}"#,
        "delay of 1s 500ms to all requests of fuse3"
    )]
    fn plans_are_short_in_json_and_words(#[case] json: &str, #[case] words: &str) {
        let plan: Plan = serde_json::from_str(json).unwrap();
        plan.check().unwrap();
        assert_eq!(plan.to_string(), words);
        let again: Plan = serde_json::from_value(serde_json::to_value(&plan).unwrap()).unwrap();
        assert_eq!(again, plan);
    }

    #[rstest]
    #[case(r#"{"backend": "fuse2", "fault": "error", "rate": 0}"#, "no share")]
    #[case(r#"{"backend": "fuse2", "fault": "error", "rate": 1.01}"#, "no share")]
    #[case(r#"{"backend": "fuse2", "fault": "error", "delay": "1s"}"#, "leave it out")]
    #[case(r#"{"backend": "fuse2", "fault": "delay", "delay": "2h"}"#, "use 1ms to 1h")]
    #[case(r#"{"backend": "fuse2", "fault": "error", "for": "0s"}"#, "use 1ms to 1h")]
    #[case(r#"{"backend": "fuse2", "fault": "diverge", "operation": "write"}"#, "use one of lookup, getattr")]
    #[case(r#"{"backend": "fuse2", "fault": "panic", "operation": "release"}"#, "cannot strike release")]
    fn plans_that_mean_nothing_are_refused(#[case] json: &str, #[case] why: &str) {
        let plan: Plan = serde_json::from_str(json).unwrap();
        let error = plan.check().unwrap_err();
        assert!(error.contains(why), "{error}");
    }
}
