//! What API and command line say in JSON. The names are a promise to scripts and dashboards: fields are added, never
//! changed; raise [`SCHEMA`] otherwise. What belongs to a later part of the system is there already, `null` or empty.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::backend::drill::{Fault, Ongoing};
use crate::config::Backend;
use crate::ledger::Operation;

/// Version of every answer.
pub const SCHEMA: u32 = 1;

/// How a mount, or all of them, are doing.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
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
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Status {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Who answers.
    pub daemon: Daemon,
    /// Its mounts.
    pub mounts: Vec<MountStatus>,
}

/// The process that answers.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Daemon {
    /// Version of the program.
    pub version: String,
    /// Its process.
    pub pid: u32,
    /// When it started.
    #[serde(with = "humantime_serde")]
    pub started: SystemTime,
}

/// The answer to `GET /api/v1/mounts/{name}`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct MountAnswer {
    /// Version of this JSON.
    pub schema: u32,
    /// The mount.
    #[serde(flatten)]
    pub mount: MountStatus,
}

/// One mount.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct MountStatus {
    /// Its name.
    pub name: String,
    /// Directory that is served.
    pub source: PathBuf,
    /// Where it appears.
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
    pub pinned: Option<serde_json::Value>,
    /// The rollout.
    pub rollout: Option<serde_json::Value>,
    /// The guard's rules and verdicts.
    pub guard: Vec<serde_json::Value>,
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
    /// Each backend.
    pub backends: Vec<BackendStatus>,
}

/// A change of backend.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
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
    pub at: SystemTime,
}

/// A drill that runs.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
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
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct DrillAnswer {
    /// [`SCHEMA`].
    pub schema: u32,
    /// What runs now.
    pub drill: DrillStatus,
}

/// Answer to `DELETE /api/v1/mounts/{name}/drill`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct DrillStopAnswer {
    /// [`SCHEMA`].
    pub schema: u32,
    /// What ran until now, if something did.
    pub stopped: Option<StoppedDrill>,
}

/// A drill that was stopped.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct StoppedDrill {
    /// Whose requests were struck.
    pub backend: Backend,
    /// What became of them.
    pub fault: Fault,
    /// How many they were.
    pub struck: u64,
}

/// What the prober sees.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct ProbeStatus {
    /// `answered`, `failed`, `silent`; `unknown` before the first answer; `blind` while no prober can be run; `not probed`.
    pub state: String,
    /// How long the last answer took, in milliseconds.
    pub took_ms: Option<f64>,
    /// Why it is not `answered`.
    pub reason: Option<String>,
}

/// One backend of a mount.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
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
}

/// Body of `POST /api/v1/mounts/{name}/switch`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SwitchRequest {
    /// The backend that is to serve.
    pub to: Backend,
}

/// What a switch did. From a backend to itself when it was serving already.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
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
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct HealthAnswer {
    /// [`SCHEMA`].
    pub schema: u32,
    /// The worst of the mounts.
    pub health: Health,
    /// Why it is not healthy, each with the name of its mount.
    pub reasons: Vec<String>,
    /// Health of each mount, by name.
    pub mounts: BTreeMap<String, Health>,
}

impl From<&Status> for HealthAnswer {
    fn from(status: &Status) -> Self {
        let mounts = &status.mounts;
        let reasons = mounts.iter().flat_map(|mount| mount.reasons.iter().map(|why| format!("{}: {why}", mount.name)));
        Self {
            schema: SCHEMA,
            health: mounts.iter().map(|mount| mount.health).max().unwrap_or(Health::Healthy),
            reasons: reasons.collect(),
            mounts: mounts.iter().map(|mount| (mount.name.clone(), mount.health)).collect(),
        }
    }
}

/// An error, as `application/problem+json` (RFC 9457).
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Problem {
    /// The HTTP status in words.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// What was tried, what happened, what to do.
    pub detail: String,
}
