//! What `status` says of each mount: from the ledger and the task's facts, never by asking a server.

use std::collections::BTreeMap;
use std::process;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, SystemTime};

use parking_lot::RwLock;
use tokio::sync::{mpsc, oneshot, watch};

use super::facts::{End, Facts, Phase};
use super::mirror::Mirror;
use super::mount::Request;
use super::pilot::{OPERATOR, Outcome, Pilot, Shown};
use super::prober::{Probed, Prober};
use crate::api::divergence::MountDivergence;
use crate::api::events::Events;
use crate::api::model::{
    BackendStatus, Daemon, DrillAnswer, DrillStopAnswer, GuardStatus, Health, ListenerStatus, MountStatus, PinStatus,
    RolloutAnswer, RolloutStatus, SCHEMA, Status, StoppedDrill, SwitchAnswer,
};
use crate::api::{Answering, Control, ControlError, Door};
use crate::backend::drill::{Ongoing, Plan};
use crate::config::Backend;
use crate::connection::fusectl;
use crate::connection::mountinfo::{self, Mounted};
use crate::guard::Finding;
use crate::ledger::{AnswerStatus, Ledger, PortState, Totals, coarse_now};
use crate::metrics::{self, Figures, MountFigures, RolloutFigures};
use crate::rollout::{self, Pin, Serving};
use crate::server::orders::Switched;
use crate::shadow::Told;

/// All mounts of a daemon, as the API sees them.
#[derive(Clone)]
pub struct Mounts(Arc<Inner>);

struct Inner {
    started: SystemTime,
    admits_group: bool,
    is_reload_taken: AtomicBool,
    /// In the order of the configuration.
    mounts: RwLock<Vec<Handle>>,
    events: Events,
    /// Why the daemon itself is degraded, by what it is about.
    reasons: RwLock<BTreeMap<&'static str, String>>,
    listeners: RwLock<BTreeMap<Door, ListenerStatus>>,
}

/// One mount, as the API sees it.
#[derive(Clone)]
pub struct Handle {
    /// What its keeper knows.
    pub facts: watch::Receiver<Facts>,
    /// What asks through it.
    pub prober: Prober,
    /// Where its keeper takes requests.
    pub requests: mpsc::Sender<Request>,
    /// Who says what serves.
    pub pilot: Pilot,
    /// Its shadow mount.
    pub mirror: Mirror,
}

impl Mounts {
    /// No mounts yet, of a daemon that starts now. `admits_group`: the group of the socket may control it.
    #[must_use]
    pub fn new(admits_group: bool) -> Self {
        Self(Arc::new(Inner {
            started: SystemTime::now(),
            admits_group,
            is_reload_taken: AtomicBool::new(true),
            mounts: RwLock::default(),
            events: Events::default(),
            reasons: RwLock::default(),
            listeners: RwLock::default(),
        }))
    }

    /// From now on the daemon itself is degraded for this reason, or no longer.
    pub fn set_reason(&self, about: &'static str, reason: Option<String>) {
        let mut reasons = self.0.reasons.write();
        match reason {
            Some(reason) => reasons.insert(about, reason),
            None => reasons.remove(about),
        };
    }

    /// From now on this is said of a listener.
    pub fn set_listener(&self, door: Door, listener: Option<ListenerStatus>) {
        let mut listeners = self.0.listeners.write();
        match listener {
            Some(listener) => listeners.insert(door, listener),
            None => listeners.remove(&door),
        };
    }

    /// All of them now.
    #[must_use]
    pub fn all(&self) -> Vec<Handle> {
        self.0.mounts.read().clone()
    }

    /// What a scrape of the metrics shows. Reads `/sys/fs/fuse/connections`, which does not wait for a server.
    #[must_use]
    pub fn figures(&self) -> Figures {
        let table = mountinfo::read().unwrap_or_default();
        let mounts = self.all().iter().map(|handle| handle.figures(&table)).collect();
        Figures { mounts, is_reload_taken: self.0.is_reload_taken.load(Relaxed) }
    }

    /// Notes what became of a reload.
    pub fn note_reload(&self, is_taken: bool) {
        self.0.is_reload_taken.store(is_taken, Relaxed);
    }

    fn find(&self, mount: &str) -> Result<Handle, ControlError> {
        let found = self.all().into_iter().find(|handle| handle.name() == mount);
        found.ok_or_else(|| ControlError::UnknownMount(mount.into()))
    }

    /// From now on these.
    pub fn set(&self, mounts: Vec<Handle>) {
        *self.0.mounts.write() = mounts;
    }
}

impl Control for Mounts {
    fn admits_group(&self) -> bool {
        self.0.admits_group
    }

    fn status(&self) -> Status {
        let daemon = Daemon {
            version: env!("CARGO_PKG_VERSION").into(),
            pid: process::id(),
            started: self.0.started,
            socket: None,
            reasons: self.0.reasons.read().values().cloned().collect(),
            listeners: self.0.listeners.read().values().cloned().collect(),
        };
        Status { schema: SCHEMA, daemon, mounts: self.all().iter().map(Handle::status).collect() }
    }

    fn switch<'a>(&'a self, mount: &'a str, to: Backend) -> Answering<'a, SwitchAnswer> {
        Box::pin(Self::switch(self, mount, to))
    }

    fn ask_rollout<'a>(&'a self, mount: &'a str, request: rollout::Request) -> Answering<'a, RolloutAnswer> {
        Box::pin(Self::ask_rollout(self, mount, request))
    }

    fn drill<'a>(&'a self, mount: &'a str, plan: Plan) -> Answering<'a, DrillAnswer> {
        Box::pin(Self::drill(self, mount, plan))
    }

    fn stop_drill<'a>(&'a self, mount: &'a str) -> Answering<'a, DrillStopAnswer> {
        Box::pin(Self::stop_drill(self, mount))
    }

    fn divergence<'a>(&'a self, mount: &'a str) -> Answering<'a, MountDivergence> {
        Box::pin(Self::divergence(self, mount))
    }

    fn metrics(&self) -> String {
        metrics::text(self.figures()).unwrap_or_else(|error| {
            tracing::error!(%error, "the metrics cannot be shown");
            String::new()
        })
    }

    fn events(&self) -> Events {
        self.0.events.clone()
    }
}

impl Mounts {
    async fn switch(&self, mount: &str, to: Backend) -> Result<SwitchAnswer, ControlError> {
        let handle = self.find(mount)?;
        if !to.is_built_in() {
            return Err(ControlError::Refused(format!(
                "this build has no {to}: build it with the cargo feature `{to}`"
            )));
        }
        let outcome = handle.pilot.ask(mount, rollout::Request::Switch(to)).await?;
        // It serves already.
        let switched = outcome.switched.unwrap_or(Switched {
            from: to,
            to,
            reason: OPERATOR.into(),
            pause_ms: 0.,
            total_ms: 0.,
            in_flight: 0,
            answered_for_hung: 0,
        });
        Ok(SwitchAnswer {
            schema: SCHEMA,
            from: switched.from,
            to: switched.to,
            pause_ms: switched.pause_ms,
            total_ms: switched.total_ms,
            in_flight: switched.in_flight,
            answered_for_hung: switched.answered_for_hung,
        })
    }

    async fn ask_rollout(&self, mount: &str, request: rollout::Request) -> Result<RolloutAnswer, ControlError> {
        let handle = self.find(mount)?;
        let Outcome { notes, .. } = handle.pilot.ask(mount, request).await?;
        let MountStatus { active, rollout, pinned, .. } = handle.status();
        Ok(RolloutAnswer { schema: SCHEMA, notes, active, rollout, pinned })
    }

    async fn drill(&self, mount: &str, plan: Plan) -> Result<DrillAnswer, ControlError> {
        let handle = self.find(mount)?;
        let allowed = handle.facts.borrow().mount.drill;
        if !allowed {
            return Err(ControlError::Refused(format!(
                "mount \"{mount}\" allows no drill: set drill = true for it (without a file: serve --drill), and mount it again"
            )));
        }
        let for_shadow = plan.clone();
        plan.check().map_err(ControlError::Invalid)?;
        let ongoing = handle.ask(|answer| Request::Drill { plan, answer }).await?;
        if let Some(Err(error)) = handle.mirror.drill(&for_shadow).await {
            tracing::warn!(mount, %error, "the drill does not reach the shadow mount");
        }
        Ok(DrillAnswer { schema: SCHEMA, drill: ongoing.into() })
    }

    async fn stop_drill(&self, mount: &str) -> Result<DrillStopAnswer, ControlError> {
        let handle = self.find(mount)?;
        let in_shadow = handle.mirror.stop_drill().await;
        let ended = handle.ask(|answer| Request::StopDrill { answer }).await?;
        let struck = [&ended, &in_shadow].into_iter().flatten().map(|ended| ended.struck).sum();
        let stopped = ended.or(in_shadow).map(|ended| StoppedDrill {
            backend: ended.plan.backend,
            fault: ended.plan.fault,
            struck,
        });
        Ok(DrillStopAnswer { schema: SCHEMA, stopped })
    }

    async fn divergence(&self, mount: &str) -> Result<MountDivergence, ControlError> {
        let handle = self.find(mount)?;
        // Without a server the counts are there all the same.
        let told = match handle.ask(|answer| Request::TellCompared { answer }).await {
            Ok(told) => told,
            Err(error) => Told { trouble: Some(error.to_string()), ..Told::default() },
        };
        let counted = handle.facts.borrow().counted.clone();
        Ok(MountDivergence::new(mount, told, counted.as_ref().map(|ledger| ledger.comparisons())))
    }
}

impl Handle {
    /// The mount's name.
    #[must_use]
    pub fn name(&self) -> String {
        self.facts.borrow().mount.name.clone()
    }

    /// Asks its keeper for something, and waits for the answer.
    async fn ask<T>(
        &self,
        request: impl FnOnce(oneshot::Sender<Result<T, ControlError>>) -> Request,
    ) -> Result<T, ControlError> {
        let over = |why: &str| ControlError::NotServed { mount: self.name(), why: why.into() };
        let (answer, answered) = oneshot::channel();
        self.requests.send(request(answer)).await.map_err(|_| over("it has ended"))?;
        answered.await.map_err(|_| over("it is being unmounted"))?
    }

    fn figures(&self, table: &[Mounted]) -> MountFigures {
        let facts = self.facts.borrow().clone();
        let status = self.status();
        let shown = self.pilot.shown();
        let is_served = facts.server.is_some();
        let device = mountinfo::at(table, facts.mount.place()).filter(|mounted| mounted.is_fuse() && is_served);
        let usable = |backend: Backend| {
            let of = |one: &&BackendStatus| one.name == backend;
            let state = status.backends.iter().find(of).map_or("unavailable", |found| found.state.as_str());
            !matches!(state, "unavailable" | "absent" | "hung" | "ended")
        };
        MountFigures {
            name: status.name.clone(),
            ledger: facts.counted,
            is_served,
            is_up: status.health != Health::Unhealthy,
            is_degraded: status.health == Health::Degraded,
            is_available: Backend::ALL.map(usable),
            probes: Backend::ALL.map(|backend| self.prober.seen(backend)),
            kernel_waiting: device.and_then(|mounted| fusectl::waiting(mounted.device)),
            rollout: shown.as_ref().and_then(|shown| shown.rollout.as_ref()).map(|status| RolloutFigures {
                state: status.number(),
                step: status.step.unwrap_or(0),
                entered: status.entered,
            }),
            is_pinned: status.pinned.is_some(),
            rollbacks: shown.map(|shown| shown.rollbacks).unwrap_or_default(),
            verdicts: self.pilot.judged().findings.iter().map(|one| (one.rule.name(), one.verdict.name())).collect(),
        }
    }

    fn status(&self) -> MountStatus {
        let facts = self.facts.borrow().clone();
        let ledger = facts.server.as_ref().map(|(_, ledger)| ledger);
        // A server that has just attached takes no orders before it has said so.
        let takes_orders = matches!(facts.phase, Phase::Serving | Phase::Switching | Phase::Detached { .. });
        let active = ledger.filter(|_| takes_orders).and_then(|ledger| ledger.active());
        let in_flight = ledger.map_or_else(Vec::new, |ledger| ledger.in_flight());
        // Those that the deadline has answered are in a handler, but nobody waits for them.
        let in_flight: Vec<_> = in_flight.into_iter().filter(|one| !one.abandoned).collect();
        let oldest = in_flight.iter().map(crate::ledger::InFlight::age).max().unwrap_or_default();
        let stable = facts.stable();
        let backends: Vec<_> = Backend::ALL.into_iter().map(|backend| backend_status(backend, &facts)).collect();
        let heartbeat = ledger.map_or_else(coarse_now, |ledger| ledger.heartbeat());
        let silence = Duration::from_nanos(coarse_now().saturating_sub(heartbeat));
        let probed = self.prober.probed();
        let (shown, judged) = (self.pilot.shown(), self.pilot.judged());
        let (mut health, mut reasons) = judge(&facts, shown.as_ref(), silence, &probed, stable, active, &backends);
        let shadow = self.mirror.status();
        if let Some(shadow) = shadow.as_ref().filter(|shadow| shadow.health != Health::Healthy) {
            health = health.max(Health::Degraded);
            let place = shadow.mountpoint.display();
            reasons.extend(shadow.reasons.iter().map(|why| format!("shadow mount {place}: {why}")));
        }
        MountStatus {
            name: facts.mount.name.clone(),
            source: facts.mount.source.clone(),
            mountpoint: facts.mount.mountpoint.clone(),
            server_pid: facts.server.as_ref().map(|(pid, _)| *pid),
            health,
            reasons,
            stable,
            candidate: shown.as_ref().and_then(|shown| shown.candidate),
            active: ledger.filter(|_| active.is_some()).map_or_else(BTreeMap::new, weights),
            pinned: shown.as_ref().and_then(|shown| shown.pin.as_ref()).map(pinned),
            rollout: shown.as_ref().and_then(|shown| shown.rollout.as_ref()).map(rollout_status),
            guard: judged.findings.iter().map(guard_status).collect(),
            in_flight: in_flight.len(),
            oldest_in_flight_seconds: oldest.as_secs_f64(),
            last_switch: facts.last_switch,
            drill: facts.drill.map(Into::into),
            probe: probed.status(),
            shadow,
            backends,
        }
    }
}

/// Backends that serve, with their share.
fn weights(ledger: &Ledger) -> BTreeMap<Backend, u8> {
    let is_serving = |backend: &Backend| ledger.port_state(*backend) == PortState::Attached;
    let share = |backend: Backend| {
        let is_shared = ledger.weight(backend.other()) > 0;
        (backend, if is_shared { ledger.weight(backend) as u8 } else { 100 })
    };
    Backend::ALL.into_iter().filter(is_serving).map(share).collect()
}

fn guard_status(finding: &Finding) -> GuardStatus {
    let Finding { rule, verdict, value, threshold, samples, reason, .. } = finding;
    GuardStatus {
        rule: rule.name().into(),
        verdict: verdict.name().into(),
        value: *value,
        threshold: *threshold,
        samples: *samples,
        reason: reason.clone(),
    }
}

fn pinned(pin: &Pin) -> PinStatus {
    PinStatus { reason: pin.reason.clone(), since: pin.since, figures: pin.figures.clone(), backend: pin.backend }
}

fn rollout_status(status: &rollout::Status) -> RolloutStatus {
    RolloutStatus {
        state: status.state.into(),
        step: status.step,
        steps: status.steps,
        weight: status.weight,
        entered: status.entered,
        elapsed_seconds: status.elapsed.map(|elapsed| elapsed.as_secs_f64()),
        for_seconds: status.bake.map(|bake| bake.as_secs_f64()),
        reason: status.reason.clone(),
    }
}

fn backend_status(backend: Backend, facts: &Facts) -> BackendStatus {
    let unavailable = facts.unavailable.iter().find(|unavailable| unavailable.backend == backend);
    let ledger = facts.server.as_ref().map(|(_, ledger)| ledger);
    let port = ledger.map_or(PortState::Absent, |ledger| ledger.port_state(backend));
    let (state, reason) = match port {
        _ if !backend.is_built_in() => ("unavailable", Some("this build does not have it".into())),
        PortState::Absent if unavailable.is_some() => {
            ("unavailable", unavailable.map(|unavailable| unavailable.reason.clone()))
        }
        PortState::Hung => (
            "hung",
            Some("requests of it were answered EIO at the deadline; `switch` to it starts a fresh session".into()),
        ),
        PortState::Ended => ("ended", Some("its session ended by itself; the log says why".into())),
        state => (state.name(), unavailable.map(|unavailable| unavailable.reason.clone())),
    };
    let totals = facts.counted.as_ref().map(|ledger| ledger.totals(backend));
    BackendStatus {
        name: backend,
        state: state.into(),
        reason,
        operations: totals.as_ref().map_or(0, Totals::operations),
        errors: totals.as_ref().map_or(0, |totals| totals.with_status(AnswerStatus::BackendError)),
        lost: facts.counted.as_ref().map_or(0, |ledger| ledger.lost(backend)),
        p99_ms: totals.and_then(|totals| totals.all_durations().quantile(0.99)).map(|bound| bound as f64 / 1e6),
    }
}

/// A server's control loop shows twice a second that it lives.
const LONGEST_SILENCE: Duration = Duration::from_secs(5);

/// How a shadow mount is doing: nobody but its candidate is to serve it.
pub(super) fn judge_shadow(facts: &Facts, probed: &Probed) -> (Health, Vec<String>) {
    let candidate = facts.mount.stable();
    let ledger = facts.server.as_ref().map(|(_, ledger)| ledger);
    let heartbeat = ledger.map_or_else(coarse_now, |ledger| ledger.heartbeat());
    let silence = Duration::from_nanos(coarse_now().saturating_sub(heartbeat));
    let backends = [backend_status(candidate, facts)];
    judge(facts, None, silence, probed, candidate, ledger.and_then(|ledger| ledger.active()), &backends)
}

/// The one place that decides how a mount is doing.
fn judge(
    facts: &Facts,
    shown: Option<&Shown>,
    silence: Duration,
    probed: &Probed,
    stable: Backend,
    active: Option<Backend>,
    backends: &[BackendStatus],
) -> (Health, Vec<String>) {
    let unhealthy = |why: String| (Health::Unhealthy, vec![why]);
    match (&facts.phase, active) {
        (Phase::Starting | Phase::Ended(End::Superseded), _) => {
            return unhealthy(format!("it is starting: {}", facts.step));
        }
        (Phase::Stopping, _) => return unhealthy("it is being unmounted".into()),
        (Phase::Detached { again }, _) => return unhealthy(again.why_detached().into()),
        (Phase::Ended(End::Stopped), _) => return unhealthy("it was stopped".into()),
        (Phase::Ended(End::Unmounted), _) => return unhealthy("somebody else has unmounted it".into()),
        (
            Phase::Waiting(why)
            | Phase::Ended(End::Failed(why) | End::Refused(why) | End::Died(why) | End::Forced(why)),
            _,
        ) => return unhealthy(why.clone()),
        // During a switch its control loop is busy; the switch has a deadline of its own.
        (Phase::Serving, _) if silence > LONGEST_SILENCE => {
            return unhealthy(format!("its server has shown no sign of life for {} s", silence.as_secs()));
        }
        (Phase::Serving, None) => return unhealthy("no backend is attached".into()),
        (Phase::Serving | Phase::Switching, _) => {}
    }
    let mut reasons = Vec::new();
    let outdated = facts.outdated();
    if !outdated.is_empty() {
        reasons.push(format!(
            "it is served as it was configured before: {} counts when it is mounted again (umount, then SIGHUP)",
            outdated.join(", ")
        ));
    }
    match probed.verdict() {
        Some((Health::Unhealthy, why)) => return unhealthy(why),
        Some((_, why)) => reasons.push(why),
        None => {}
    }
    let why = facts.last_switch.as_ref().map_or("since the start", |last| last.reason.as_str());
    // What somebody wants is no fault.
    let wanted = shown.map_or(Serving::Only(stable), |shown| shown.wanted);
    if let (Serving::Only(wanted), Some(active)) = (wanted, active)
        && active != wanted
    {
        let what = if wanted == stable { "stable" } else { "wanted" };
        reasons.push(format!("{active} serves instead of the {what} {wanted} ({why})"));
    }
    reasons.extend(shown.into_iter().flat_map(|shown| shown.reasons.iter().cloned()));
    if let Some(Ongoing { plan, until }) = &facts.drill {
        reasons.push(format!("a drill runs until {}: {plan}", humantime::format_rfc3339_seconds(*until)));
    }
    // A backend that this build leaves out on purpose is not missing.
    for backend in backends.iter().filter(|backend| backend.name.is_built_in()) {
        if let Some(reason) = &backend.reason {
            reasons.push(format!("{} is {}: {reason}", backend.name, backend.state));
        }
    }
    (if reasons.is_empty() { Health::Healthy } else { Health::Degraded }, reasons)
}
