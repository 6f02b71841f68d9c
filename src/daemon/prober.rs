//! Whether a mount answers, seen from where programs see it.
//!
//! A child process asks, because whoever asks may hang: a line to it is a question, a line from it the answer. It is given
//! a deadline and never waited for beyond it. One that is stuck in the kernel survives SIGKILL until its request is
//! answered or the connection is aborted; so at most one more is started beside it.

use std::convert::Infallible;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch};
use tokio::time::{sleep, timeout};

use super::facts::{Facts, Phase};
use crate::api::model::{Health, ProbeStatus};
use crate::config::{Backend, Mount};
use crate::connection::mountinfo::{self, Mounted};
use crate::ledger::{Durations, Ledger, Times};

/// From the answer to one question until the next.
const INTERVAL: Duration = Duration::from_secs(1);
/// Until a prober that has ended is replaced; doubled each time that one ends without having answered anything.
const SHORTEST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// Processes of one mount: one that asks, and one that is stuck.
const ROOM: usize = 2;

/// What the prober's process says to a question.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "mount", rename_all = "lowercase")]
pub enum Answer {
    /// The mount answers.
    Answered {
        /// How long it took.
        took: Duration,
    },
    /// It gives an error, or something else is in its place.
    Failed {
        /// What, on what.
        why: String,
    },
}

/// Why a mount does not answer that is not where it is looked for.
#[must_use]
pub fn misplaced(place: &Path) -> String {
    format!("nothing, or something else, is mounted at {}", place.display())
}

/// What is known of a mount from asking through it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Probed {
    /// Nobody asks.
    Off {
        /// Why not.
        why: &'static str,
    },
    /// There is no answer yet since the mount began to be served.
    Unknown,
    /// It answers.
    Answered {
        /// When it last did.
        at: Instant,
        /// How long that took.
        took: Duration,
    },
    /// It answers with an error.
    Failed {
        /// What, on what.
        why: String,
        /// Since when.
        since: Instant,
        /// The backend that has given it, if one has.
        by: Option<Backend>,
    },
    /// It does not answer.
    Silent {
        /// When the question was asked.
        since: Instant,
    },
    /// No prober can be run, so that nobody knows.
    Blind {
        /// Why not.
        why: String,
    },
}

impl Probed {
    /// What it makes of the mount's health, and in which words; nothing if all is well, or nobody asks.
    #[must_use]
    pub fn verdict(&self) -> Option<(Health, String)> {
        match self {
            Self::Off { .. } | Self::Answered { .. } => None,
            Self::Unknown => Some((Health::Unhealthy, "the mount has not answered the prober yet".into())),
            Self::Failed { why, .. } => Some((Health::Unhealthy, format!("the mount does not answer: {why}"))),
            Self::Silent { since } => {
                let seconds = since.elapsed().as_secs();
                Some((Health::Unhealthy, format!("the mount has not answered the prober for {seconds} s")))
            }
            Self::Blind { why } => Some((Health::Degraded, format!("not probed: {why}"))),
        }
    }

    /// The same for `status`.
    #[must_use]
    pub fn status(&self) -> ProbeStatus {
        let state = match self {
            Self::Off { .. } => "not probed",
            Self::Blind { .. } => "blind",
            Self::Unknown => "unknown",
            Self::Answered { .. } => "answered",
            Self::Failed { .. } => "failed",
            Self::Silent { .. } => "silent",
        };
        let took_ms = match self {
            Self::Answered { took, .. } => Some(took.as_secs_f64() * 1e3),
            _ => None,
        };
        let reason = match self {
            Self::Off { why } => Some((*why).into()),
            other => other.verdict().map(|(_, why)| why),
        };
        ProbeStatus { state: state.into(), took_ms, reason }
    }
}

/// Asks through one mount as long as it is served.
#[derive(Clone, Debug)]
pub struct Prober {
    probed: watch::Receiver<Probed>,
    seen: Arc<Seen>,
}

/// What was seen of the backends since the daemon began.
#[derive(Debug, Default)]
struct Seen {
    answers: [Times; Backend::ALL.len()],
    failures: [AtomicU64; Backend::ALL.len()],
}

impl Prober {
    /// A prober that begins whenever `facts` say that the mount is served. Needs a runtime.
    #[must_use]
    pub fn start(facts: watch::Receiver<Facts>) -> Self {
        let (sender, probed) = watch::channel(Probed::Unknown);
        let seen = Arc::<Seen>::default();
        tokio::spawn(follow(facts, sender, seen.clone()));
        Self { probed, seen }
    }

    /// Asks nobody.
    #[must_use]
    pub fn off(why: &'static str) -> Self {
        Self { probed: watch::channel(Probed::Off { why }).1, seen: Arc::default() }
    }

    /// What is known now.
    #[must_use]
    pub fn probed(&self) -> Probed {
        self.probed.borrow().clone()
    }

    /// How long answers of a backend have taken, and how many questions got none, or an error, while it served.
    #[must_use]
    pub fn seen(&self, backend: Backend) -> (Durations, u64) {
        let index = backend.index();
        (self.seen.answers[index].durations(), self.seen.failures[index].load(Relaxed))
    }

    /// Waits until something is known: that the mount answers, or that it does not, or that nobody can ask. Comes within
    /// the mount's deadline for probes once it is served.
    pub async fn first_answer(&self) -> Probed {
        let mut probed = self.probed.clone();
        // Without a sender the mount has ended, and what is known is the last word.
        let known = probed.wait_for(|probed| *probed != Probed::Unknown).await.map(|probed| probed.clone());
        known.unwrap_or_else(|_| self.probed())
    }
}

/// Why nobody is to ask, if so.
fn off(mount: &Mount) -> Option<&'static str> {
    if mount.deadlines.probe.is_zero() {
        return Some("probing is turned off");
    }
    let is_unknown = mount.place().starts_with("/dev/fd");
    is_unknown.then_some("where the descriptor is mounted is not known: say it with --mounted-at")
}

/// The task behind a [`Prober`]: asks anew whenever another server serves, or the mount is to be another.
async fn follow(mut facts: watch::Receiver<Facts>, probed: watch::Sender<Probed>, seen: Arc<Seen>) {
    let room = Arc::new(Semaphore::new(ROOM));
    loop {
        let Ok(begun) = facts.wait_for(is_served).await.map(|facts| facts.clone()) else { return };
        let is_other = |facts: &Facts| {
            !is_served(facts) || server(facts) != server(&begun) || asked(&facts.mount) != asked(&begun.mount)
        };
        let over = facts.wait_for(is_other);
        let is_over = if let Some(why) = off(&begun.mount) {
            probed.send_replace(Probed::Off { why });
            over.await.is_err()
        } else {
            let asking = Asking {
                mount: begun.mount.name.clone(),
                place: begun.mount.place().into(),
                is_lent: begun.mount.mounted_at.is_some(),
                deadline: begun.mount.deadlines.probe,
                probed: &probed,
                seen: &seen,
                ledger: begun.counted.clone(),
                room: room.clone(),
            };
            tokio::select! {
                never = asking.ask_on() => match never {},
                over = over => over.is_err(),
            }
        };
        probed.send_replace(Probed::Unknown);
        if is_over {
            return;
        }
    }
}

/// What the questions depend on.
fn asked(mount: &Mount) -> (&Path, Duration) {
    (mount.place(), mount.deadlines.probe)
}

fn server(facts: &Facts) -> Option<u32> {
    facts.server.as_ref().map(|(pid, _)| *pid)
}

/// Asking of one server.
struct Asking<'a> {
    mount: String,
    place: PathBuf,
    /// Whether somebody else has mounted it, perhaps under another type.
    is_lent: bool,
    deadline: Duration,
    probed: &'a watch::Sender<Probed>,
    seen: &'a Seen,
    /// Where adapters note who has answered.
    ledger: Option<Ledger>,
    /// A permit for each process that may exist, alive or stuck.
    room: Arc<Semaphore>,
}

/// Why a prober is of no more use.
enum Lost {
    /// It has not answered in time.
    Silent,
    /// It is gone, or never came.
    Ended { error: io::Error, has_answered: bool },
}

impl Asking<'_> {
    /// Asks until it is dropped, and its process with it.
    async fn ask_on(&self) -> Infallible {
        let device = self.device().await;
        let mut pause = SHORTEST_PAUSE;
        loop {
            let Lost::Ended { error, has_answered } = self.ask_through_one(device).await else { continue };
            if has_answered {
                pause = SHORTEST_PAUSE;
            } else {
                self.blind(&error);
            }
            tracing::warn!(mount = self.mount, %error, "the prober has ended; the next one follows in {pause:?}");
            sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Asks through one process until it is of no more use.
    async fn ask_through_one(&self, device: (u32, u32)) -> Lost {
        let mut has_answered = false;
        let mut process = match self.start(device).await {
            Ok(process) => process,
            Err(error) => return Lost::Ended { error, has_answered },
        };
        loop {
            let asked = Instant::now();
            if let Some(ledger) = &self.ledger {
                ledger.forget_probe();
            }
            let answer = process.ask();
            tokio::pin!(answer);
            let answer = match timeout(self.deadline, &mut answer).await {
                Ok(answer) => answer,
                Err(_) => {
                    self.silent(asked);
                    // The last one that there is room for is kept: its answer may still come.
                    tokio::select! {
                        biased;
                        answer = &mut answer => answer,
                        _ = self.room.acquire() => return Lost::Silent,
                    }
                }
            };
            match answer {
                Ok(Answer::Answered { took }) => self.answered(took),
                Ok(Answer::Failed { why }) => self.failed(why),
                Err(error) => return Lost::Ended { error, has_answered },
            }
            has_answered = true;
            sleep(INTERVAL).await;
        }
    }

    async fn start(&self, device: (u32, u32)) -> io::Result<Process> {
        let permit = self.room.clone().acquire_owned().await.map_err(io::Error::other)?;
        let (process, pid) = Process::start(&self.place, device, permit)?;
        if let (Some(ledger), Some(pid)) = (&self.ledger, pid) {
            ledger.set_prober(pid);
        }
        Ok(process)
    }

    /// Device number of the mount, by which the prober knows it.
    async fn device(&self) -> (u32, u32) {
        loop {
            match self.find() {
                Ok(device) => return device,
                Err(why) => self.failed(why),
            }
            sleep(INTERVAL).await;
        }
    }

    fn find(&self) -> Result<(u32, u32), String> {
        let mounts = mountinfo::read().map_err(|error| format!("/proc/self/mountinfo cannot be read: {error}"))?;
        let is_right = |mounted: &&Mounted| if self.is_lent { mounted.is_fuse() } else { mounted.is_ours() };
        let found = mountinfo::at(&mounts, &self.place).filter(is_right);
        found.map(|mounted| mounted.device).ok_or_else(|| misplaced(&self.place))
    }

    /// The backend that has answered, or should have.
    fn backend(&self) -> Option<Backend> {
        self.ledger.as_ref().and_then(|ledger| ledger.active())
    }

    fn count_failure(&self) {
        if let Some(backend) = self.backend() {
            self.seen.failures[backend.index()].fetch_add(1, Relaxed);
        }
    }

    fn answered(&self, took: Duration) {
        let noted = self.ledger.as_ref().and_then(|ledger| ledger.probe_answered_by());
        if let Some(backend) = noted.or_else(|| self.backend()) {
            self.seen.answers[backend.index()].record(took.as_nanos() as u64);
        }
        let before = self.probed.send_replace(Probed::Answered { at: Instant::now(), took });
        if let Probed::Failed { since, .. } | Probed::Silent { since } = before {
            tracing::info!(mount = self.mount, after = ?since.elapsed(), "the mount answers again");
        }
    }

    fn failed(&self, why: String) {
        self.count_failure();
        let by = self.ledger.as_ref().and_then(|ledger| ledger.probe_answered_by());
        self.probed.send_if_modified(|probed| {
            let since = match probed {
                Probed::Failed { why: before, by: of, .. } if *before == why && *of == by => return false,
                Probed::Failed { since, .. } => *since,
                _ => Instant::now(),
            };
            tracing::error!(mount = self.mount, why, "the mount does not answer");
            *probed = Probed::Failed { why, since, by };
            true
        });
    }

    fn blind(&self, error: &io::Error) {
        self.probed.send_if_modified(|probed| {
            // What was seen last holds until somebody sees again, unless it was good.
            let is_news = matches!(probed, Probed::Unknown | Probed::Answered { .. } | Probed::Blind { .. });
            if is_news {
                *probed = Probed::Blind { why: format!("the prober does not run: {error}") };
            }
            is_news
        });
    }

    fn silent(&self, asked: Instant) {
        self.count_failure();
        self.probed.send_if_modified(|probed| {
            // The first question that got no answer counts.
            let is_news = !matches!(probed, Probed::Silent { .. });
            if is_news {
                tracing::error!(mount = self.mount, limit = ?self.deadline, "the mount has not answered the prober");
                *probed = Probed::Silent { since: asked };
            }
            is_news
        });
    }
}

fn is_served(facts: &Facts) -> bool {
    matches!(facts.phase, Phase::Serving | Phase::Switching)
}

/// A running prober. Dropping it kills it, without waiting until it is gone.
struct Process {
    questions: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
    _grip: oneshot::Sender<Infallible>,
}

impl Process {
    /// Starts one that takes up `room` until it is gone. Also its number.
    fn start(place: &Path, (major, minor): (u32, u32), room: OwnedSemaphorePermit) -> io::Result<(Self, Option<u32>)> {
        let mut child = Command::new("/proc/self/exe")
            .arg0("lighthouse-fs")
            .args(["probe", "--device", &format!("{major}:{minor}"), "--mountpoint"])
            .arg(place)
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // What a terminal sends to the daemon (Ctrl-C) is not for it.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()?;
        let pid = child.id();
        let pipes = child.stdin.take().zip(child.stdout.take());
        let (questions, answers) = pipes.ok_or_else(|| io::Error::other("it was started without pipes"))?;
        let (grip, let_go) = oneshot::channel();
        tokio::spawn(see_off(child, let_go, room));
        Ok((Self { questions, answers: BufReader::new(answers).lines(), _grip: grip }, pid))
    }

    /// Asks once. A question that is given up is still asked: the process is then to be dropped.
    async fn ask(&mut self) -> io::Result<Answer> {
        self.questions.write_all(b"\n").await?;
        let line = self.answers.next_line().await?.ok_or_else(|| io::Error::other("it has closed its output"))?;
        serde_json::from_str(&line).map_err(io::Error::from)
    }
}

/// Waits until a process is gone, and kills it when nobody holds it any more.
async fn see_off(mut child: Child, let_go: oneshot::Receiver<Infallible>, room: OwnedSemaphorePermit) {
    let gone = tokio::select! {
        gone = child.wait() => gone.map(drop),
        _ = let_go => child.kill().await,
    };
    if let Err(error) = gone {
        tracing::error!(%error, "a prober cannot be watched");
    }
    drop(room);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn nobody_asks_where_it_is_not_known_where() {
        let lent = Arc::new(Mount::new("lent", "/srv", "/dev/fd/7"));
        let (_facts, facts) = watch::channel(Facts { phase: Phase::Serving, ..Facts::new(lent) });
        let prober = Prober::start(facts);
        assert!(matches!(prober.first_answer().await, Probed::Off { why } if why.contains("--mounted-at")));
        assert_eq!(prober.probed().verdict(), None, "which is no fault");
        assert_eq!(prober.probed().status().state, "not probed");
    }

    #[test]
    fn only_an_answer_is_health() {
        let now = Instant::now();
        let health = |probed: Probed| probed.verdict().map(|(health, _)| health);
        assert_eq!(health(Probed::Answered { at: now, took: Duration::ZERO }), None);
        assert_eq!(health(Probed::Unknown), Some(Health::Unhealthy));
        assert_eq!(health(Probed::Silent { since: now }), Some(Health::Unhealthy));
        assert_eq!(health(Probed::Failed { why: "EIO".into(), since: now, by: None }), Some(Health::Unhealthy));
        assert_eq!(health(Probed::Blind { why: "no processes".into() }), Some(Health::Degraded));
    }
}
