//! The shadow mount of a mount: the candidate serves the same source read-only at a second place, through a keeper of its
//! own, and a comparer looks whether both show the same. Nothing that happens here touches the mount itself.

mod comparer;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::{Mutex, RwLock};
use serde::Serialize;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::facts::{End, Facts};
use super::keeper::{Adopts, Keeper, Plan};
use super::lost::watch_for_lost;
use super::mount::Request;
use super::pilot::Happened;
use super::prober::Prober;
use super::{Own, status};
use crate::api::ControlError;
use crate::api::events::Events;
use crate::api::model::{Health, ShadowStatus};
use crate::api::socket;
use crate::backend::drill::{Ended, Ongoing, Plan as DrillPlan};
use crate::config::{Backend, Mount};
use crate::ledger::{Compared, Operation};
use crate::mirror::Example;
use crate::rollout::Serving;

/// Examples of one operation that are kept: the first ones, which are nearest to the cause.
const MOST_EXAMPLES: usize = 5;
/// For a comparer to be gone when it was killed; one that hangs in the shadow mount holds nothing of the mount.
const GONE: Duration = Duration::from_secs(1);
/// Before one that has ended by a bug is begun anew.
const AGAIN: Duration = Duration::from_secs(1);
/// For the task to take notice.
const NOTICE: Duration = Duration::from_secs(3);

/// What the comparer has found since the shadow mount was configured so.
#[derive(Clone, PartialEq, Debug, Default, Serialize)]
pub struct Report {
    /// Walks that came to their end.
    pub passes: u64,
    /// Those that have seen the whole tree.
    pub whole_passes: u64,
    /// When the last one ended.
    #[serde(with = "humantime_serde")]
    pub last_pass: Option<SystemTime>,
    /// Compared, with whatever result.
    pub compared: u64,
    /// Those of them that differed each time.
    pub diverged: u64,
    /// Differences that meant nothing, because what was looked at had changed.
    pub unsteady: u64,
    /// By operation.
    pub operations: BTreeMap<Operation, Compared>,
    /// The first differences.
    pub examples: Vec<Example>,
    /// Why nothing is compared at the moment, if so.
    pub paused: Option<String>,
}

impl Report {
    fn count(&mut self, operation: Operation, counted: Compared) {
        self.compared += counted.compared;
        self.diverged += counted.diverged;
        let sum = self.operations.entry(operation).or_default();
        sum.compared += counted.compared;
        sum.diverged += counted.diverged;
        sum.dropped += counted.dropped;
    }

    /// Whether it is a new one that there is room for.
    fn keep(&mut self, example: Example) -> bool {
        let of_operation = self.examples.iter().filter(|other| other.operation == example.operation).count();
        let is_kept = of_operation < MOST_EXAMPLES && !self.examples.contains(&example);
        if is_kept {
            self.examples.push(example);
        }
        is_kept
    }
}

/// What a shadow mount needs of its daemon.
pub struct Controls {
    /// What is known of the mount.
    pub facts: watch::Receiver<Facts>,
    /// The control socket, beside which its server listens for the next daemon; without one it ends with this.
    pub socket: Option<PathBuf>,
    /// What the daemon needs, which must not lie in it.
    pub own: Arc<[Own]>,
    /// Options of the program that its servers get too.
    pub server_arguments: Arc<RwLock<Vec<String>>>,
}

/// The shadow mount of one mount, or its absence.
#[derive(Clone)]
pub struct Mirror {
    current: watch::Receiver<Option<Current>>,
    stop: Arc<watch::Sender<bool>>,
    quiet: watch::Receiver<bool>,
}

/// A shadow mount that is wanted.
#[derive(Clone)]
struct Current {
    facts: watch::Receiver<Facts>,
    prober: Prober,
    requests: mpsc::Sender<Request>,
    candidate: Backend,
    report: Arc<Mutex<Report>>,
}

impl Mirror {
    /// Keeps one whenever the mount is to have one, on one of `tasks`, which ends when it is unmounted. Needs a runtime.
    #[must_use]
    pub fn start(controls: Controls, tasks: &mut JoinSet<()>) -> Self {
        let (show, current) = watch::channel(None);
        let (stop, stopping) = watch::channel(false);
        let (fall_quiet, quiet) = watch::channel(true);
        let task = Task { controls, show, stopping, fall_quiet };
        tasks.spawn(task.run());
        Self { current, stop: Arc::new(stop), quiet }
    }

    /// None, whatever is configured.
    #[must_use]
    pub fn off() -> Self {
        Self { current: watch::channel(None).1, stop: Arc::new(watch::channel(false).0), quiet: watch::channel(true).1 }
    }

    /// Has it unmounted, and returns as soon as nobody compares any more: a mount in which somebody looks is busy.
    pub async fn stop(&self) {
        self.stop.send_replace(true);
        let mut quiet = self.quiet.clone();
        if timeout(NOTICE, quiet.wait_for(|quiet| *quiet)).await.is_err() {
            tracing::warn!("the comparer of a shadow mount does not end: its mount may be busy");
        }
    }

    /// How it is doing, if there is to be one.
    #[must_use]
    pub fn status(&self) -> Option<ShadowStatus> {
        let Current { facts, prober, candidate, report, .. } = self.current.borrow().clone()?;
        let facts = facts.borrow().clone();
        let (health, reasons) = status::judge_shadow(&facts, &prober.probed());
        let report = report.lock();
        Some(ShadowStatus {
            mountpoint: facts.mount.mountpoint.clone(),
            backend: candidate,
            health,
            reasons,
            server_pid: facts.server.as_ref().map(|(pid, _)| *pid),
            passes: report.passes,
            compared: report.compared,
            diverged: report.diverged,
            paused: report.paused.clone().filter(|_| health != Health::Unhealthy),
            examples: report.examples.clone(),
        })
    }

    /// What the comparer has found, if there is to be one.
    #[must_use]
    pub fn report(&self) -> Option<Report> {
        self.current.borrow().as_ref().map(|current| current.report.lock().clone())
    }

    /// Has its server log this from now on, if there is one.
    pub fn set_log_level(&self, level: String) {
        if let Some(requests) = self.current.borrow().as_ref().map(|current| current.requests.clone()) {
            tokio::spawn(async move { drop(requests.send(Request::LogLevel(level)).await) });
        }
    }

    /// Injects faults into it too, if they are the candidate's.
    pub async fn drill(&self, plan: &DrillPlan) -> Option<Result<Ongoing, ControlError>> {
        let current = self.current.borrow().clone().filter(|current| current.candidate == plan.backend)?;
        Some(current.ask(|answer| Request::Drill { plan: plan.clone(), answer }).await)
    }

    /// Injects no more. What was injected, if something was.
    pub async fn stop_drill(&self) -> Option<Ended> {
        let current = self.current.borrow().clone()?;
        current.ask(|answer| Request::StopDrill { answer }).await.ok().flatten()
    }
}

impl Current {
    async fn ask<T>(
        &self,
        request: impl FnOnce(oneshot::Sender<Result<T, ControlError>>) -> Request,
    ) -> Result<T, ControlError> {
        let over =
            || ControlError::NotServed { mount: self.facts.borrow().mount.name.clone(), why: "it has ended".into() };
        let (answer, answered) = oneshot::channel();
        self.requests.send(request(answer)).await.map_err(|_| over())?;
        answered.await.map_err(|_| over())?
    }
}

/// Why one life of a shadow mount is over.
enum Over {
    /// Another one, or none, is wanted.
    Changed,
    /// Somebody else than the candidate serves it.
    Strange,
    /// It has ended by itself.
    Ended,
    /// Nobody wants any.
    Stopped,
}

struct Task {
    controls: Controls,
    show: watch::Sender<Option<Current>>,
    stopping: watch::Receiver<bool>,
    /// Whether nobody compares.
    fall_quiet: watch::Sender<bool>,
}

impl Task {
    async fn run(mut self) {
        let mut report = Arc::<Mutex<Report>>::default();
        let mut last = None;
        while !*self.stopping.borrow() {
            let wanted = self.controls.facts.borrow_and_update().wanted.shadow();
            let Some(wanted) = wanted else {
                self.show.send_replace(None);
                tokio::select! {
                    changed = self.controls.facts.changed() => if changed.is_err() { break },
                    () = is_stopping(&mut self.stopping) => {}
                }
                continue;
            };
            // What was found of another one is of no more interest.
            if last.as_ref() != Some(&wanted) {
                report = Arc::default();
                last = Some(wanted.clone());
            }
            match self.live(wanted, report.clone()).await {
                Over::Stopped => break,
                Over::Changed | Over::Strange | Over::Ended => {}
            }
        }
        self.show.send_replace(None);
    }

    /// One shadow mount, from its start or adoption until it is to be another.
    async fn live(&mut self, shadow: Mount, report: Arc<Mutex<Report>>) -> Over {
        let (happened, mut heard) = mpsc::unbounded_channel();
        let candidate = shadow.stable();
        let plan = Plan {
            meeting: self.controls.socket.as_ref().map(|socket| socket::server(socket, &shadow.name)),
            own: self.controls.own.clone(),
            // Whoever listens for events listens for mounts.
            events: Events::default(),
            happened,
            server_arguments: self.controls.server_arguments.clone(),
            alone: false,
            adopts: Adopts::Same,
        };
        let (keeper, requests, facts) = Keeper::new(Arc::new(shadow.clone()), plan, None);
        watch_for_lost(facts.clone(), requests.clone());
        let mut keeper = tokio::spawn(keeper.run());
        let current = Current {
            prober: Prober::start(facts.clone()),
            facts: facts.clone(),
            requests: requests.clone(),
            candidate,
            report: report.clone(),
        };
        self.show.send_replace(Some(current));
        let room = Arc::new(Semaphore::new(comparer::ROOM));
        self.fall_quiet.send_replace(false);
        let over = {
            let comparer =
                comparer::Comparer { mount: self.controls.facts.clone(), shadow: facts, report, room: room.clone() };
            let mut comparing = std::pin::pin!(comparer.compare_on());
            let mut live = shadow;
            let mut seen = self.controls.facts.borrow().wanted.clone();
            loop {
                tokio::select! {
                    never = &mut comparing => match never {},
                    () = is_stopping(&mut self.stopping) => break Over::Stopped,
                    _ = &mut keeper => break Over::Ended,
                    what = heard.recv() => if let Some(what) = what
                        && is_strange(what, candidate)
                    {
                        break Over::Strange;
                    },
                    changed = self.controls.facts.changed() => {
                        if changed.is_err() {
                            break Over::Stopped;
                        }
                        let wanted = self.controls.facts.borrow_and_update().wanted.clone();
                        if Arc::ptr_eq(&wanted, &seen) {
                            continue;
                        }
                        seen = wanted;
                        match seen.shadow() {
                            // Whatever can change live; and a reload mounts again what somebody else has unmounted.
                            Some(shadow) if (Mount { deadlines: live.deadlines, ..shadow.clone() }) == live => {
                                live = shadow.clone();
                                drop(requests.send(Request::Reconfigure(Arc::new(shadow))).await);
                            }
                            _ => break Over::Changed,
                        }
                    }
                }
            }
        };
        // Killed by now. One that hangs in the shadow mount goes when that is unmounted.
        let _ = timeout(GONE, room.acquire_many(comparer::ROOM as u32)).await;
        self.fall_quiet.send_replace(true);
        match over {
            Over::Strange => tracing::error!(
                shadow = %self.controls.facts.borrow().mount.name, %candidate,
                "the candidate does not serve its shadow mount any more; it is mounted anew"
            ),
            Over::Ended => tracing::error!(
                shadow = %self.controls.facts.borrow().mount.name,
                "the shadow mount has ended by itself; it is mounted anew"
            ),
            Over::Changed | Over::Stopped => {}
        }
        if matches!(over, Over::Ended) {
            tokio::time::sleep(AGAIN).await;
            return over;
        }
        drop(requests.send(Request::Stop).await);
        // Its waits have deadlines.
        let end = until_over(keeper, &mut heard, candidate).await;
        if let Some(End::Died(why) | End::Forced(why)) = end {
            tracing::error!("a shadow mount was not unmounted in order: {why}");
        }
        over
    }
}

async fn is_stopping(stopping: &mut watch::Receiver<bool>) {
    // With nobody left who could say so, nobody wants it.
    drop(stopping.wait_for(|stop| *stop).await);
}

/// Waits for the keeper's end, and answers it meanwhile.
async fn until_over(
    mut keeper: tokio::task::JoinHandle<End>,
    heard: &mut mpsc::UnboundedReceiver<Happened>,
    candidate: Backend,
) -> Option<End> {
    loop {
        tokio::select! {
            end = &mut keeper => return end.ok(),
            what = heard.recv() => if let Some(what) = what { is_strange(what, candidate); },
        }
    }
}

/// Whether it says that somebody else serves than the candidate, which is all that ever is to.
fn is_strange(what: Happened, candidate: Backend) -> bool {
    match what {
        Happened::Begins { answer } => {
            // A keeper that has not waited goes by its configuration, which says the same.
            let _ = answer.send((Serving::Only(candidate), None));
            false
        }
        Happened::Began { serving, .. } => serving != candidate,
        Happened::FailedOver { to, .. } => to != candidate,
        Happened::Ended { .. } => false,
    }
}
