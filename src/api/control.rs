//! What lies behind the routes.

use std::time::Duration;

use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use futures_util::future::BoxFuture;

use super::divergence::MountDivergence;
use super::events::Events;
use super::model::{DrillAnswer, DrillStopAnswer, RolloutAnswer, Status, SwitchAnswer};
use super::problem::problem;
use crate::backend::drill::Plan;
use crate::config::Backend;
use crate::rollout;

/// An answer that takes a while.
pub type Answering<'a, T> = BoxFuture<'a, Result<T, ControlError>>;

/// What lies behind the routes.
pub trait Control: Send + Sync + 'static {
    /// Whether a group may control it: then whoever the mode of the socket lets in is admitted, since the kernel has looked
    /// at all groups of that process, of which SO_PEERCRED tells only one.
    fn admits_group(&self) -> bool;

    /// How everything is doing. Must not wait for anything.
    fn status(&self) -> Status;

    /// Changes the backend of a mount, and returns when it is done or has failed.
    fn switch<'a>(&'a self, mount: &'a str, to: Backend) -> Answering<'a, SwitchAnswer>;

    /// Asks something of a mount's rollout, and returns when it is done or refused.
    fn ask_rollout<'a>(&'a self, mount: &'a str, request: rollout::Request) -> Answering<'a, RolloutAnswer>;

    /// Begins to inject faults into a mount.
    fn drill<'a>(&'a self, mount: &'a str, plan: Plan) -> Answering<'a, DrillAnswer>;

    /// Injects no more. That nothing was injected is no error.
    fn stop_drill<'a>(&'a self, mount: &'a str) -> Answering<'a, DrillStopAnswer>;

    /// What comparisons of a mount's backends have found.
    fn divergence<'a>(&'a self, mount: &'a str) -> Answering<'a, MountDivergence>;

    /// All figures, in Prometheus' text format 0.0.4. Must not wait for anything.
    fn metrics(&self) -> String;

    /// What happens, for whoever listens.
    fn events(&self) -> Events;
}

/// Why an operation was not done.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ControlError {
    /// There is no such mount.
    #[error("no mount is called \"{0}\": `lighthouse-fs status` lists them")]
    UnknownMount(String),
    /// What is asked for means nothing.
    #[error("{0}")]
    Invalid(String),
    /// It cannot be done as things are; what was before goes on.
    #[error("{0}")]
    Refused(String),
    /// The mount is not served.
    #[error("mount \"{mount}\" is not served: {why}")]
    NotServed {
        /// Its name.
        mount: String,
        /// Why.
        why: String,
    },
    /// The server did not answer in time.
    #[error(
        "the server of mount \"{mount}\" gave no answer within {limit:?}: what was asked for may still be done; see `lighthouse-fs status`, and the log of the daemon"
    )]
    Late {
        /// Its name.
        mount: String,
        /// How long was waited.
        limit: Duration,
    },
}

impl IntoResponse for ControlError {
    fn into_response(self) -> Response {
        let status = match self {
            Self::UnknownMount(_) => StatusCode::NOT_FOUND,
            Self::Invalid(_) => StatusCode::UNPROCESSABLE_ENTITY,
            Self::Refused(_) => StatusCode::CONFLICT,
            Self::NotServed { .. } => StatusCode::SERVICE_UNAVAILABLE,
            Self::Late { .. } => StatusCode::GATEWAY_TIMEOUT,
        };
        problem(status, self.to_string())
    }
}
