//! The routes, who may use them, and what errors look like.

use std::future::Future;
use std::time::Duration;

use axum::extract::connect_info::Connected;
use axum::extract::rejection::JsonRejection;
use axum::extract::{ConnectInfo, DefaultBodyLimit, Path, Request, State};
use axum::http::{StatusCode, Uri, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::serve::IncomingStream;
use axum::{Json, Router};
use tokio::net::UnixListener;

use super::model::{
    DrillAnswer, DrillStopAnswer, Health, HealthAnswer, MountAnswer, Problem, SCHEMA, Status, SwitchAnswer,
    SwitchRequest,
};
use crate::backend::drill::Plan;
use crate::config::Backend;
use crate::metrics;

/// Largest request body in bytes; the longest sensible one has some 20.
const LARGEST_BODY: usize = 4 << 10;

/// What lies behind the routes.
pub trait Control: Clone + Send + Sync + 'static {
    /// Whether a group may control it: then whoever the mode of the socket lets in is admitted, since the kernel has looked
    /// at all groups of that process, of which SO_PEERCRED tells only one.
    fn admits_group(&self) -> bool;

    /// How everything is doing. Must not wait for anything.
    fn status(&self) -> Status;

    /// All metrics in the Prometheus text format (version 0.0.4).
    fn metrics(&self) -> String;

    /// Changes the backend of a mount, and returns when it is done or has failed.
    fn switch(&self, mount: &str, to: Backend) -> impl Future<Output = Result<SwitchAnswer, ControlError>> + Send;

    /// Begins to inject faults into a mount.
    fn drill(&self, mount: &str, plan: Plan) -> impl Future<Output = Result<DrillAnswer, ControlError>> + Send;

    /// Injects no more. That nothing was injected is no error.
    fn stop_drill(&self, mount: &str) -> impl Future<Output = Result<DrillStopAnswer, ControlError>> + Send;
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

/// The process at the other end of a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Peer {
    /// Its user, if the kernel told (SO_PEERCRED).
    pub uid: Option<u32>,
}

impl Peer {
    /// Whether this user may control a daemon that runs as `daemon`.
    fn may_control(self, daemon: u32, admits_group: bool) -> bool {
        self.uid.is_some_and(|uid| uid == 0 || uid == daemon || admits_group)
    }
}

impl Connected<IncomingStream<'_, UnixListener>> for Peer {
    fn connect_info(stream: IncomingStream<'_, UnixListener>) -> Self {
        Self { uid: stream.io().peer_cred().ok().map(|credentials| credentials.uid()) }
    }
}

/// Answers on `listener` until `stop` is done; requests that are being answered then get their answer.
///
/// # Errors
/// When the listener fails for good.
pub async fn serve(
    listener: UnixListener,
    control: impl Control,
    stop: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    let service = router(control).into_make_service_with_connect_info::<Peer>();
    axum::serve(listener, service).with_graceful_shutdown(stop).await
}

/// All routes. Each request must carry a [`ConnectInfo`] with its [`Peer`].
pub fn router<C: Control>(control: C) -> Router {
    Router::new()
        .route("/health/live", get(live))
        .route("/health/ready", get(ready::<C>))
        .route("/metrics", get(metrics::<C>))
        .route("/api/v1/status", get(status::<C>))
        .route("/api/v1/mounts/{name}", get(mount::<C>))
        .route("/api/v1/mounts/{name}/switch", post(switch::<C>))
        .route("/api/v1/mounts/{name}/drill", post(drill::<C>).delete(stop_drill::<C>))
        .fallback(unknown_route)
        .method_not_allowed_fallback(wrong_method)
        .layer(DefaultBodyLimit::max(LARGEST_BODY))
        .layer(middleware::from_fn_with_state(control.admits_group(), authorise))
        .with_state(control)
}

/// Lets root, the daemon's own user and the socket's group pass, for every route: what a mount serves, and from where, is nobody else's
/// business.
async fn authorise(
    State(admits_group): State<bool>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    request: Request,
    next: Next,
) -> Response {
    let daemon = rustix::process::geteuid().as_raw();
    if peer.may_control(daemon, admits_group) {
        return next.run(request).await;
    }
    problem(
        StatusCode::FORBIDDEN,
        format!("only root and the user with uid {daemon} may control this daemon: ask as one of them"),
    )
}

async fn live() -> Json<serde_json::Value> {
    Json(serde_json::json!({ "schema": SCHEMA, "live": true }))
}

async fn ready<C: Control>(State(control): State<C>) -> (StatusCode, Json<HealthAnswer>) {
    let answer = HealthAnswer::from(&control.status());
    let code = match answer.health {
        Health::Healthy | Health::Degraded => StatusCode::OK,
        Health::Unhealthy => StatusCode::SERVICE_UNAVAILABLE,
    };
    (code, Json(answer))
}

async fn metrics<C: Control>(State(control): State<C>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], control.metrics())
}

async fn status<C: Control>(State(control): State<C>) -> Json<Status> {
    Json(control.status())
}

async fn mount<C: Control>(
    State(control): State<C>,
    Path(name): Path<String>,
) -> Result<Json<MountAnswer>, ControlError> {
    let found = control.status().mounts.into_iter().find(|mount| mount.name == name);
    found.map(|mount| Json(MountAnswer { schema: SCHEMA, mount })).ok_or(ControlError::UnknownMount(name))
}

async fn switch<C: Control>(
    State(control): State<C>,
    Path(name): Path<String>,
    body: Result<Json<SwitchRequest>, JsonRejection>,
) -> Response {
    match body {
        Ok(Json(request)) => control.switch(&name, request.to).await.map(Json).into_response(),
        Err(rejection) => problem(rejection.status(), rejection.body_text()),
    }
}

async fn drill<C: Control>(
    State(control): State<C>,
    Path(name): Path<String>,
    body: Result<Json<Plan>, JsonRejection>,
) -> Response {
    match body {
        Ok(Json(plan)) => control.drill(&name, plan).await.map(Json).into_response(),
        Err(rejection) => problem(rejection.status(), rejection.body_text()),
    }
}

async fn stop_drill<C: Control>(
    State(control): State<C>,
    Path(name): Path<String>,
) -> Result<Json<DrillStopAnswer>, ControlError> {
    control.stop_drill(&name).await.map(Json)
}

async fn unknown_route(uri: Uri) -> Response {
    problem(StatusCode::NOT_FOUND, format!("there is no {}", uri.path()))
}

async fn wrong_method(request: Request) -> Response {
    problem(StatusCode::METHOD_NOT_ALLOWED, format!("{} is not for {}", request.uri().path(), request.method()))
}

fn problem(status: StatusCode, detail: String) -> Response {
    let title = status.canonical_reason().unwrap_or("Error").to_owned();
    let body = Json(Problem { title, status: status.as_u16(), detail });
    (status, [(header::CONTENT_TYPE, "application/problem+json")], body).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case(Some(0), false, true)]
    #[case(Some(1000), false, true)]
    #[case(Some(1001), false, false)]
    #[case(Some(1001), true, true)]
    #[case(None, true, false)]
    fn root_the_own_user_and_the_group_may(
        #[case] uid: Option<u32>,
        #[case] admits_group: bool,
        #[case] allowed: bool,
    ) {
        assert_eq!(Peer { uid }.may_control(1000, admits_group), allowed);
    }
}
