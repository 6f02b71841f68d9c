//! What API and command line say in JSON. The names are a promise to scripts and dashboards: fields are added, never
//! changed; raise [`SCHEMA`] otherwise. What belongs to a later part of the system is there already, `null` or empty.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::backend::drill::{Fault, Ongoing};
use crate::config::Backend;
use crate::ledger::Operation;
use crate::mirror::Example;

/// Version of every answer.
pub const SCHEMA: u32 = 1;

/// How a mount, or all of them, are doing.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    /// Served by the stable backend, nothing missing.
    Healthy,
    /// Served, but by the other backend, or with something missing.
    Degraded,
    /// Not served.
    Unhealthy,
}

impl Health {
    /// The name in answers and tables.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Healthy => "healthy",
            Self::Degraded => "degraded",
            Self::Unhealthy => "unhealthy",
        }
    }
}

/// Answer to `GET /api/v1/status`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Status {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Who answers.
    pub daemon: Daemon,
    /// Its mounts.
    pub mounts: Vec<MountStatus>,
}

/// The process that answers.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Daemon {
    /// Version of the program.
    pub version: String,
    /// Its process.
    pub pid: u32,
    /// When it started.
    #[serde(with = "humantime_serde")]
    #[schema(value_type = String, format = DateTime)]
    pub started: SystemTime,
    /// Where it was asked, which `lighthouse-fs status` adds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub socket: Option<PathBuf>,
    /// Why the daemon itself is degraded, whatever its mounts are.
    #[serde(default)]
    pub reasons: Vec<String>,
    /// Where it answers over TCP.
    #[serde(default)]
    pub listeners: Vec<ListenerStatus>,
}

/// A place where the daemon answers over TCP, or is to.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct ListenerStatus {
    /// `api`, `shadow` or `metrics`.
    pub name: String,
    /// Its address.
    #[schema(value_type = String)]
    pub address: SocketAddr,
    /// Whether it answers there.
    pub listening: bool,
}

/// Answer to `GET /health/live`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct LiveAnswer {
    /// [`SCHEMA`].
    pub schema: u32,
    /// `true`; a daemon that is stuck does not answer.
    pub live: bool,
}

/// The answer to `GET /api/v1/mounts/{name}`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct MountAnswer {
    /// Version of this JSON.
    pub schema: u32,
    /// The mount.
    #[serde(flatten)]
    pub mount: MountStatus,
}

/// One mount.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct MountStatus {
    /// Its name.
    pub name: String,
    /// Directory that is served.
    #[schema(value_type = String)]
    pub source: PathBuf,
    /// Where it appears.
    #[schema(value_type = String)]
    pub mountpoint: PathBuf,
    /// The serving process, if there is one.
    pub server_pid: Option<u32>,
    /// How it is doing.
    pub health: Health,
    /// Why it is not healthy.
    pub reasons: Vec<String>,
    /// The backend that serves by default.
    pub stable: Backend,
    /// The backend that is being tried.
    pub candidate: Option<Backend>,
    /// Backends that serve, with their weight in percent.
    pub active: BTreeMap<Backend, u8>,
    /// The pin to the stable backend.
    pub pinned: Option<PinStatus>,
    /// The rollout.
    pub rollout: Option<RolloutStatus>,
    /// What the guard says of what is tried, rule by rule; empty while nothing is.
    pub guard: Vec<GuardStatus>,
    /// Requests that are being handled now.
    pub in_flight: usize,
    /// Age of the oldest of them; 0 without any.
    pub oldest_in_flight_seconds: f64,
    /// The last change of backend.
    pub last_switch: Option<LastSwitch>,
    /// The drill that runs.
    #[serde(default)]
    pub drill: Option<DrillStatus>,
    /// What the prober sees, which asks through the mount.
    pub probe: ProbeStatus,
    /// Its shadow mount, if it is to have one.
    #[serde(default)]
    pub shadow: Option<ShadowStatus>,
    /// Each backend.
    pub backends: Vec<BackendStatus>,
}

/// A change of backend.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct LastSwitch {
    /// The backend that served before.
    pub from: Backend,
    /// The backend that served after.
    pub to: Backend,
    /// Why: `operator`, or what happened.
    pub reason: String,
    /// How long nobody was reading requests, in milliseconds.
    pub pause_ms: f64,
    /// When.
    #[serde(with = "humantime_serde")]
    #[schema(value_type = String, format = DateTime)]
    pub at: SystemTime,
}

/// What holds a mount to its stable backend.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct PinStatus {
    /// Why.
    pub reason: String,
    /// Since when.
    #[serde(with = "humantime_serde")]
    #[schema(value_type = String, format = DateTime)]
    pub since: SystemTime,
    /// What the decision rests on; null for an operator's.
    #[schema(value_type = Option<Object>)]
    pub figures: serde_json::Value,
    /// The backend that serves, whatever is configured meanwhile. Daemons of before do not say it.
    pub backend: Option<Backend>,
}

/// What the guard says by one rule.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct GuardStatus {
    /// `error_rate`, `p99`, `probe_p99`, `divergence`, `hang`, `consecutive_errors`, `failed_probe`, `ended_session`,
    /// `lost_requests`, `prometheus`.
    pub rule: String,
    /// `healthy`, `breach`, `no_data`; `source` if the stable backend breaks it too.
    pub verdict: String,
    /// What was measured: a share from 0 to 1, seconds, or a number, as the threshold is.
    pub value: Option<f64>,
    /// What it must not exceed.
    pub threshold: Option<f64>,
    /// How many answers, comparisons or questions that rests on.
    pub samples: u64,
    /// In words.
    pub reason: String,
}

/// How far a rollout is.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct RolloutStatus {
    /// `idle`, `running`, `paused`, `committed`, `aborted`, `rolled_back`, `unreadable`.
    pub state: String,
    /// The step that is under way, from 1.
    pub step: Option<usize>,
    /// How many there are; 0 for a fleet's share.
    pub steps: usize,
    /// The candidate's share of the operations in percent.
    pub weight: u8,
    /// When the step began, or the machine came into the fleet's share.
    #[serde(with = "humantime_serde")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub entered: Option<SystemTime>,
    /// How much of the step's bake time has been counted, in seconds.
    pub elapsed_seconds: Option<f64>,
    /// How much it needs, in seconds.
    pub for_seconds: Option<f64>,
    /// Why it is paused, aborted, rolled back or unreadable; or what a step waits for whose time is over.
    pub reason: Option<String>,
}

/// Longest reason that the command line sends, in characters.
pub const LONGEST_REASON: usize = 1000;

/// The body of `POST /api/v1/mounts/{name}/rollback`.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RollbackRequest {
    /// Why, for status, log and whoever comes next.
    #[serde(default)]
    pub reason: Option<String>,
}

/// The body of `POST /api/v1/mounts/{name}/rollout/promote`.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PromoteRequest {
    /// The step, from 1, that is to be left. At another one nothing happens, so that of two who promote at once the second is
    /// refused.
    #[serde(default, deserialize_with = "whole")]
    #[schema(minimum = 1, maximum = 50)]
    pub from: Option<usize>,
}

/// To JSON `2.0` is as whole a number as `2`.
fn whole<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<usize>, D::Error> {
    let Some(number) = Option::<f64>::deserialize(deserializer)? else { return Ok(None) };
    if number.fract() != 0. || !(0. ..=1e9).contains(&number) {
        return Err(serde::de::Error::custom(format!("{number} is the number of no step")));
    }
    Ok(Some(number as usize))
}

/// Answer to what was asked of a rollout.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct RolloutAnswer {
    /// [`SCHEMA`].
    pub schema: u32,
    /// What has happened, in sentences.
    pub notes: Vec<String>,
    /// Backends that serve from now on, with their weight in percent.
    pub active: BTreeMap<Backend, u8>,
    /// The rollout.
    pub rollout: Option<RolloutStatus>,
    /// The pin.
    pub pinned: Option<PinStatus>,
}

/// A drill that runs.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct DrillStatus {
    /// Whose requests are struck.
    pub backend: Backend,
    /// What becomes of them.
    pub fault: Fault,
    /// The share of them that is struck, at most 1.
    pub rate: f64,
    /// How long a delay is, in seconds.
    pub delay_seconds: Option<f64>,
    /// Only requests of this kind.
    pub operation: Option<Operation>,
    /// When it ends by itself.
    #[serde(with = "humantime_serde")]
    #[schema(value_type = String, format = DateTime)]
    pub until: SystemTime,
}

impl From<Ongoing> for DrillStatus {
    fn from(Ongoing { plan, until }: Ongoing) -> Self {
        Self {
            delay_seconds: plan.delay().map(|delay| delay.as_secs_f64()),
            backend: plan.backend,
            fault: plan.fault,
            rate: plan.rate,
            operation: plan.operation,
            until,
        }
    }
}

/// Answer to `POST /api/v1/mounts/{name}/drill`, whose body is a [`Plan`](crate::backend::drill::Plan).
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct DrillAnswer {
    /// [`SCHEMA`].
    pub schema: u32,
    /// What runs now.
    pub drill: DrillStatus,
}

/// Answer to `DELETE /api/v1/mounts/{name}/drill`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct DrillStopAnswer {
    /// [`SCHEMA`].
    pub schema: u32,
    /// What ran until now, if something did.
    pub stopped: Option<StoppedDrill>,
}

/// A drill that was stopped.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct StoppedDrill {
    /// Whose requests were struck.
    pub backend: Backend,
    /// What became of them.
    pub fault: Fault,
    /// How many they were.
    pub struck: u64,
}

/// What the prober sees.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct ProbeStatus {
    /// `answered`, `failed`, `silent`; `unknown` before the first answer; `blind` while no prober can be run; `not probed`.
    pub state: String,
    /// How long the last answer took, in milliseconds.
    pub took_ms: Option<f64>,
    /// Why it is not `answered`.
    pub reason: Option<String>,
}

/// The mount that the candidate alone serves, to be compared.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct ShadowStatus {
    /// Where it is.
    #[schema(value_type = String)]
    pub mountpoint: PathBuf,
    /// The candidate.
    pub backend: Backend,
    /// How it is doing.
    pub health: Health,
    /// Why it is not healthy.
    pub reasons: Vec<String>,
    /// The serving process, if there is one.
    pub server_pid: Option<u32>,
    /// Walks through both mounts that came to their end.
    pub passes: u64,
    /// Answers that were compared.
    pub compared: u64,
    /// Those of them that differed each time.
    pub diverged: u64,
    /// Why nothing is compared at the moment, if so.
    pub paused: Option<String>,
    /// The first differences.
    pub examples: Vec<Example>,
}

/// One backend of a mount.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct BackendStatus {
    /// Which.
    pub name: Backend,
    /// What its port is doing: `absent`, `parked`, `attached`, `draining`, `hung`, `ended`; or `unavailable`.
    pub state: String,
    /// Why it is not available.
    pub reason: Option<String>,
    /// Requests that it has answered.
    pub operations: u64,
    /// Those that failed by its own fault.
    pub errors: u64,
    /// Requests that it has read and lost.
    #[serde(default)]
    pub lost: u64,
    /// Time in the handler below which 99 % of them stayed, in milliseconds: the bound of a bucket of the metrics, at most
    /// 5000. `null` without any.
    #[serde(default)]
    pub p99_ms: Option<f64>,
}

/// Body of `POST /api/v1/mounts/{name}/switch`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SwitchRequest {
    /// The backend that is to serve.
    pub to: Backend,
}

/// What a switch did. From a backend to itself when it was serving already.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct SwitchAnswer {
    /// [`SCHEMA`].
    pub schema: u32,
    /// The backend that served before.
    pub from: Backend,
    /// The backend that serves now.
    pub to: Backend,
    /// How long nobody was reading requests, in milliseconds.
    pub pause_ms: f64,
    /// How long the whole switch took, with the old backend's drain, in milliseconds.
    pub total_ms: f64,
    /// Requests that the old backend held when it stopped reading.
    pub in_flight: usize,
    /// Those of them that it did not answer in time, so that they were answered EIO.
    pub answered_for_hung: usize,
}

/// Answer to `GET /health/ready`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct HealthAnswer {
    /// [`SCHEMA`].
    pub schema: u32,
    /// The worst of the mounts; degraded at least if the daemon itself is.
    pub health: Health,
    /// Why it is not healthy, each with the name of its mount; without one it is about the daemon.
    pub reasons: Vec<String>,
    /// Health of each mount, by name.
    pub mounts: BTreeMap<String, Health>,
}

impl From<&Status> for HealthAnswer {
    fn from(status: &Status) -> Self {
        let mounts = status.mounts.iter().map(|mount| (mount.name.clone(), mount.health, mount.reasons.clone()));
        let mut answer = Self::of(mounts);
        if !status.daemon.reasons.is_empty() {
            answer.health = answer.health.max(Health::Degraded);
            answer.reasons.splice(..0, status.daemon.reasons.iter().cloned());
        }
        answer
    }
}

impl HealthAnswer {
    fn of(mounts: impl Iterator<Item = (String, Health, Vec<String>)>) -> Self {
        let mut answer =
            Self { schema: SCHEMA, health: Health::Healthy, reasons: Vec::new(), mounts: BTreeMap::default() };
        for (name, health, reasons) in mounts {
            answer.health = answer.health.max(health);
            answer.reasons.extend(reasons.iter().map(|why| format!("{name}: {why}")));
            answer.mounts.insert(name, health);
        }
        answer
    }

    /// Whether the candidates answer in their shadow mounts; `None` if there is no such mount.
    #[must_use]
    pub fn of_candidates(status: &Status) -> Option<Self> {
        let shadows = status.mounts.iter().filter_map(|mount| {
            let shadow = mount.shadow.as_ref()?;
            Some((mount.name.clone(), shadow.health, shadow.reasons.clone()))
        });
        Some(Self::of(shadows)).filter(|answer| !answer.mounts.is_empty())
    }
}

/// Answer to `GET /health/ready` about candidates of which one does not answer: a problem that says more.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct NotReady {
    /// What there is to say.
    #[serde(flatten)]
    pub problem: Problem,
    /// Of all.
    #[serde(flatten)]
    pub answer: HealthAnswer,
}

/// An error, as `application/problem+json` (RFC 9457).
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Problem {
    /// The HTTP status in words.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// What was tried, what happened, what to do.
    pub detail: String,
}
