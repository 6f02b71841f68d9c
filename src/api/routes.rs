//! The routes, and the document that describes them: both come from the same list.

use std::sync::Arc;
use std::time::Duration;

use axum::body::HttpBody;
use axum::extract::{DefaultBodyLimit, FromRequest, Path, Request, State};
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::middleware;
use axum::response::sse::{KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Extension, Json, Router};
use futures_util::future::join_all;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::time::timeout;
use utoipa::openapi::OpenApi;
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityScheme};
use utoipa::{OpenApi as _, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::admission::{self, Door, Gate, Reader};
use super::divergence::{DivergenceAnswer, MountDivergenceAnswer};
use super::events::Published;
use super::model::{
    DrillAnswer, DrillStopAnswer, Health, HealthAnswer, LiveAnswer, MountAnswer, MountStatus, Problem, PromoteRequest,
    RollbackRequest, RolloutAnswer, SCHEMA, Status, SwitchAnswer, SwitchRequest,
};
use super::problem::{self, problem};
use super::serving::Connection;
use super::{Control, ControlError};
use crate::backend::drill::Plan;
use crate::metrics::CONTENT_TYPE;
use crate::rollout;

/// Largest request body in bytes: a reason of [`LONGEST_REASON`](super::model::LONGEST_REASON) fits, whatever it consists of.
const LARGEST_BODY: usize = 8 << 10;
/// How often a stream without news shows that it lives.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

type Shared = Arc<dyn Control>;

#[derive(utoipa::OpenApi)]
#[openapi(info(
    title = "Lighthouse FS",
    version = "1",
    description = "Control of one daemon. On its Unix socket the peer's user and group decide; over TCP whatever changes \
                   something needs the token, and, where other machines get in, reading does too.",
    license(name = "MIT OR Apache-2.0", identifier = "MIT OR Apache-2.0")
))]
struct Document;

fn api() -> OpenApiRouter<Shared> {
    OpenApiRouter::with_openapi(Document::openapi())
        .routes(routes!(live))
        .routes(routes!(ready))
        .routes(routes!(status))
        .routes(routes!(mount))
        .routes(routes!(switch))
        .routes(routes!(rollback))
        .routes(routes!(unpin))
        .routes(routes!(rollout_start))
        .routes(routes!(rollout_pause))
        .routes(routes!(rollout_resume))
        .routes(routes!(rollout_promote))
        .routes(routes!(rollout_abort))
        .routes(routes!(drill, stop_drill))
        .routes(routes!(divergence))
        .routes(routes!(mount_divergence))
        .routes(routes!(events))
        .routes(routes!(openapi_json))
}

/// The description of the API.
#[must_use]
pub fn document() -> OpenApi {
    let mut document = api().into_openapi();
    let token = SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer));
    document.components.get_or_insert_default().add_security_scheme("token", token);
    document
}

/// The API as it is on the Unix socket. Each request must carry a [`ConnectInfo`](axum::extract::ConnectInfo) with its
/// [`Peer`](super::Peer).
pub fn router(control: impl Control) -> Router {
    let admits_group = control.admits_group();
    let routes = Router::from(api()).route("/metrics", get(metrics));
    finish(routes, control).layer(middleware::from_fn_with_state(admits_group, admission::of_peer))
}

/// What is behind a door.
pub(super) fn over_tcp(door: Door, control: impl Control, gate: Gate) -> Router {
    let routes = match door {
        Door::Api => api().into(),
        Door::Shadow => {
            Router::new().route("/health/ready", get(candidate_ready)).route("/api/v1/divergence", get(divergence))
        }
        Door::Metrics => Router::new()
            .route("/metrics", get(metrics))
            .route("/health/live", get(live))
            .route("/health/ready", get(ready)),
    };
    finish(routes, control).layer(middleware::from_fn_with_state(gate, Gate::admit))
}

fn finish(routes: Router<Shared>, control: impl Control) -> Router {
    routes
        .fallback(unknown_route)
        .method_not_allowed_fallback(wrong_method)
        .layer(DefaultBodyLimit::max(LARGEST_BODY))
        .layer(middleware::from_fn(problem::everywhere))
        .with_state(Arc::new(control))
}

/// Whether the daemon's own loop turns
#[utoipa::path(get, path = "/health/live", responses((status = 200, body = LiveAnswer)))]
async fn live() -> Json<LiveAnswer> {
    Json(LiveAnswer { schema: SCHEMA, live: true })
}

/// Whether the mounts are served
#[utoipa::path(get, path = "/health/ready", responses(
    (status = 200, description = "Healthy or degraded", body = HealthAnswer),
    (status = 503, description = "A mount is not served", body = HealthAnswer),
    (status = "default", response = inline(Refusal)),
))]
async fn ready(State(control): State<Shared>, Extension(reader): Extension<Reader>) -> impl IntoResponse {
    health_answer(HealthAnswer::from(&control.status()), reader)
}

/// Whether the candidates answer in their shadow mounts.
async fn candidate_ready(State(control): State<Shared>, Extension(reader): Extension<Reader>) -> Response {
    match HealthAnswer::of_candidates(&control.status()) {
        None => problem(
            StatusCode::NOT_FOUND,
            "there is no shadow mount: set shadow_mountpoint for a mount that has a candidate",
        ),
        Some(answer) => match health_answer(answer, reader) {
            (StatusCode::OK, answer) => answer.into_response(),
            (status, Json(answer)) => problem::not_ready(status, answer),
        },
    }
}

fn health_answer(mut answer: HealthAnswer, reader: Reader) -> (StatusCode, Json<HealthAnswer>) {
    // They name paths.
    if reader == Reader::Stranger {
        answer.reasons.clear();
    }
    let code = match answer.health {
        Health::Healthy | Health::Degraded => StatusCode::OK,
        Health::Unhealthy => StatusCode::SERVICE_UNAVAILABLE,
    };
    (code, Json(answer))
}

/// How everything is doing
#[utoipa::path(get, path = "/api/v1/status", responses(
    (status = 200, body = Status),
    (status = "default", response = inline(Refusal)),
))]
async fn status(State(control): State<Shared>) -> Json<Status> {
    Json(control.status())
}

/// How one mount is doing
#[utoipa::path(get, path = "/api/v1/mounts/{name}", params(("name" = String, Path, description = "The mount")), responses(
    (status = 200, body = MountAnswer),
    (status = 404, description = "There is no such mount", body = Problem, content_type = "application/problem+json"),
    (status = "default", response = inline(Refusal)),
))]
async fn mount(State(control): State<Shared>, Path(name): Path<String>) -> Result<Json<MountAnswer>, ControlError> {
    let is_meant = |mount: &MountStatus| mount.name == name;
    let found = control.status().mounts.into_iter().find(is_meant);
    found.map(|mount| Json(MountAnswer { schema: SCHEMA, mount })).ok_or(ControlError::UnknownMount(name))
}

/// Change the backend of a mount
#[utoipa::path(post, path = "/api/v1/mounts/{name}/switch", params(("name" = String, Path, description = "The mount")),
    request_body = SwitchRequest, security(("token" = [])), responses(
    (status = 200, description = "Done; nothing was to do if it served already", body = SwitchAnswer),
    (status = 404, description = "There is no such mount", body = Problem, content_type = "application/problem+json"),
    (status = 409, description = "It cannot be done; the old backend serves on", body = Problem, content_type = "application/problem+json"),
    (status = "default", response = inline(Refusal)),
))]
async fn switch(
    State(control): State<Shared>,
    Path(name): Path<String>,
    Sent(request): Sent<SwitchRequest>,
) -> Result<Json<SwitchAnswer>, ControlError> {
    control.switch(&name, request.to).await.map(Json)
}

/// Back to the stable backend, and pinned to it
#[utoipa::path(post, path = "/api/v1/mounts/{name}/rollback", params(("name" = String, Path, description = "The mount")),
    request_body = Option<RollbackRequest>, security(("token" = [])), responses(
    (status = 200, description = "Done, or so already", body = RolloutAnswer),
    (status = 404, description = "There is no such mount", body = Problem, content_type = "application/problem+json"),
    (status = 409, description = "It cannot be done as things are; nothing has changed", body = Problem, content_type = "application/problem+json"),
    (status = "default", response = inline(Refusal)),
))]
async fn rollback(
    State(control): State<Shared>,
    Path(name): Path<String>,
    SentOrNot(request): SentOrNot<RollbackRequest>,
) -> Result<Json<RolloutAnswer>, ControlError> {
    control.ask_rollout(&name, rollout::Request::Rollback { reason: request.reason }).await.map(Json)
}

/// Lift the pin
#[utoipa::path(post, path = "/api/v1/mounts/{name}/unpin", params(("name" = String, Path, description = "The mount")),
    security(("token" = [])), responses(
    (status = 200, description = "Done, or so already", body = RolloutAnswer),
    (status = 404, description = "There is no such mount", body = Problem, content_type = "application/problem+json"),
    (status = 409, description = "It cannot be done as things are; nothing has changed", body = Problem, content_type = "application/problem+json"),
    (status = "default", response = inline(Refusal)),
))]
async fn unpin(State(control): State<Shared>, Path(name): Path<String>) -> Result<Json<RolloutAnswer>, ControlError> {
    control.ask_rollout(&name, rollout::Request::Unpin).await.map(Json)
}

/// Begin the rollout with its first step
#[utoipa::path(post, path = "/api/v1/mounts/{name}/rollout/start", params(("name" = String, Path, description = "The mount")),
    security(("token" = [])), responses(
    (status = 200, description = "Done, or so already", body = RolloutAnswer),
    (status = 404, description = "There is no such mount", body = Problem, content_type = "application/problem+json"),
    (status = 409, description = "It cannot be done as things are; nothing has changed", body = Problem, content_type = "application/problem+json"),
    (status = "default", response = inline(Refusal)),
))]
async fn rollout_start(
    State(control): State<Shared>,
    Path(name): Path<String>,
) -> Result<Json<RolloutAnswer>, ControlError> {
    control.ask_rollout(&name, rollout::Request::Start).await.map(Json)
}

/// Hold the step: its weight stays, its time does not run
#[utoipa::path(post, path = "/api/v1/mounts/{name}/rollout/pause", params(("name" = String, Path, description = "The mount")),
    security(("token" = [])), responses(
    (status = 200, description = "Done, or so already", body = RolloutAnswer),
    (status = 404, description = "There is no such mount", body = Problem, content_type = "application/problem+json"),
    (status = 409, description = "It cannot be done as things are; nothing has changed", body = Problem, content_type = "application/problem+json"),
    (status = "default", response = inline(Refusal)),
))]
async fn rollout_pause(
    State(control): State<Shared>,
    Path(name): Path<String>,
) -> Result<Json<RolloutAnswer>, ControlError> {
    control.ask_rollout(&name, rollout::Request::Pause).await.map(Json)
}

/// Let a step that is held go on
#[utoipa::path(post, path = "/api/v1/mounts/{name}/rollout/resume", params(("name" = String, Path, description = "The mount")),
    security(("token" = [])), responses(
    (status = 200, description = "Done, or so already", body = RolloutAnswer),
    (status = 404, description = "There is no such mount", body = Problem, content_type = "application/problem+json"),
    (status = 409, description = "It cannot be done as things are; nothing has changed", body = Problem, content_type = "application/problem+json"),
    (status = "default", response = inline(Refusal)),
))]
async fn rollout_resume(
    State(control): State<Shared>,
    Path(name): Path<String>,
) -> Result<Json<RolloutAnswer>, ControlError> {
    control.ask_rollout(&name, rollout::Request::Resume).await.map(Json)
}

/// Go to the next step at once
#[utoipa::path(post, path = "/api/v1/mounts/{name}/rollout/promote", params(("name" = String, Path, description = "The mount")),
    request_body = Option<PromoteRequest>, security(("token" = [])), responses(
    (status = 200, description = "Done, or so already", body = RolloutAnswer),
    (status = 404, description = "There is no such mount", body = Problem, content_type = "application/problem+json"),
    (status = 409, description = "It cannot be done as things are; nothing has changed", body = Problem, content_type = "application/problem+json"),
    (status = "default", response = inline(Refusal)),
))]
async fn rollout_promote(
    State(control): State<Shared>,
    Path(name): Path<String>,
    SentOrNot(request): SentOrNot<PromoteRequest>,
) -> Result<Json<RolloutAnswer>, ControlError> {
    control.ask_rollout(&name, rollout::Request::Promote { from: request.from }).await.map(Json)
}

/// Back to the stable backend, and no rollout
#[utoipa::path(post, path = "/api/v1/mounts/{name}/rollout/abort", params(("name" = String, Path, description = "The mount")),
    security(("token" = [])), responses(
    (status = 200, description = "Done, or so already", body = RolloutAnswer),
    (status = 404, description = "There is no such mount", body = Problem, content_type = "application/problem+json"),
    (status = 409, description = "It cannot be done as things are; nothing has changed", body = Problem, content_type = "application/problem+json"),
    (status = "default", response = inline(Refusal)),
))]
async fn rollout_abort(
    State(control): State<Shared>,
    Path(name): Path<String>,
) -> Result<Json<RolloutAnswer>, ControlError> {
    control.ask_rollout(&name, rollout::Request::Abort).await.map(Json)
}

/// Begin to inject faults into a mount
#[utoipa::path(post, path = "/api/v1/mounts/{name}/drill", params(("name" = String, Path, description = "The mount")),
    request_body = Plan, security(("token" = [])), responses(
    (status = 200, description = "It runs", body = DrillAnswer),
    (status = 404, description = "There is no such mount", body = Problem, content_type = "application/problem+json"),
    (status = 409, description = "The mount allows no drill, or one runs", body = Problem, content_type = "application/problem+json"),
    (status = 422, description = "The plan means nothing", body = Problem, content_type = "application/problem+json"),
    (status = "default", response = inline(Refusal)),
))]
async fn drill(
    State(control): State<Shared>,
    Path(name): Path<String>,
    Sent(plan): Sent<Plan>,
) -> Result<Json<DrillAnswer>, ControlError> {
    control.drill(&name, plan).await.map(Json)
}

/// Inject no more faults
#[utoipa::path(delete, path = "/api/v1/mounts/{name}/drill", params(("name" = String, Path, description = "The mount")),
    security(("token" = [])), responses(
    (status = 200, description = "None runs any more", body = DrillStopAnswer),
    (status = 404, description = "There is no such mount", body = Problem, content_type = "application/problem+json"),
    (status = "default", response = inline(Refusal)),
))]
async fn stop_drill(
    State(control): State<Shared>,
    Path(name): Path<String>,
) -> Result<Json<DrillStopAnswer>, ControlError> {
    control.stop_drill(&name).await.map(Json)
}

/// What comparisons of the backends have found
#[utoipa::path(get, path = "/api/v1/divergence", responses(
    (status = 200, body = DivergenceAnswer),
    (status = "default", response = inline(Refusal)),
))]
async fn divergence(State(control): State<Shared>) -> Json<DivergenceAnswer> {
    let names: Vec<_> = control.status().mounts.into_iter().map(|mount| mount.name).collect();
    let mounts = join_all(names.iter().map(|name| control.divergence(name))).await;
    // One that has gone meanwhile is not told of.
    Json(DivergenceAnswer { schema: SCHEMA, mounts: mounts.into_iter().flatten().collect() })
}

/// What comparisons of one mount's backends have found
#[utoipa::path(get, path = "/api/v1/mounts/{name}/divergence", params(("name" = String, Path, description = "The mount")),
    responses(
    (status = 200, body = MountDivergenceAnswer),
    (status = 404, description = "There is no such mount", body = Problem, content_type = "application/problem+json"),
    (status = "default", response = inline(Refusal)),
))]
async fn mount_divergence(
    State(control): State<Shared>,
    Path(name): Path<String>,
) -> Result<Json<MountDivergenceAnswer>, ControlError> {
    control.divergence(&name).await.map(|mount| Json(MountDivergenceAnswer { schema: SCHEMA, mount }))
}

/// What happens, as server-sent events
///
/// The `data` of each is a JSON object, its `event` the object's field of that name. A client that names the last id that it
/// has seen gets what it has missed, after an event `gap` if something of that is no longer known.
#[utoipa::path(get, path = "/api/v1/events",
    params(("last-event-id" = Option<u64>, Header, description = "The last event that the client has seen")), responses(
    (status = 200, description = "A stream without end", body = Published, content_type = "text/event-stream"),
    (status = 503, description = "Enough clients listen already", body = Problem, content_type = "application/problem+json"),
    (status = "default", response = inline(Refusal)),
))]
async fn events(
    State(control): State<Shared>,
    Extension(connection): Extension<Connection>,
    headers: HeaderMap,
) -> Response {
    let last = match headers.get("last-event-id").map(|id| id.to_str().ok().and_then(|id| id.trim().parse().ok())) {
        Some(None) => return problem(StatusCode::BAD_REQUEST, "the header `last-event-id` is no id of an event"),
        Some(id) => id,
        None => None,
    };
    match control.events().stream(last, connection.way, connection.stopping) {
        Some(stream) => {
            let stream = Sse::new(stream).keep_alive(KeepAlive::new().interval(KEEP_ALIVE));
            // Proxies are not to gather them.
            ([("x-accel-buffering", "no")], stream).into_response()
        }
        None => {
            problem(StatusCode::SERVICE_UNAVAILABLE, "as many clients as there may be listen already: end one of them")
        }
    }
}

/// This document
#[utoipa::path(get, path = "/api/v1/openapi.json", responses((status = 200, body = Object)))]
async fn openapi_json() -> Json<OpenApi> {
    Json(document())
}

async fn metrics(State(control): State<Shared>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, CONTENT_TYPE)], control.metrics())
}

async fn unknown_route(uri: Uri) -> Response {
    problem(StatusCode::NOT_FOUND, format!("there is no {}", uri.path()))
}

async fn wrong_method(request: Request) -> Response {
    problem(StatusCode::METHOD_NOT_ALLOWED, format!("{} is not for {}", request.uri().path(), request.method()))
}

/// An error in the document.
#[derive(Serialize, ToSchema, utoipa::ToResponse)]
#[response(description = "It was not done, and why", content_type = "application/problem+json")]
struct Refusal(Problem);

/// The body of a request, in JSON, if it comes in time.
struct Sent<T>(T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Sent<T> {
    type Rejection = Response;

    async fn from_request(request: Request, state: &S) -> Result<Self, Response> {
        let bounds = request.extensions().get::<Connection>().map(|connection| connection.bounds).unwrap_or_default();
        match timeout(bounds.body, Json::from_request(request, state)).await {
            Ok(Ok(Json(body))) => Ok(Self(body)),
            Ok(Err(rejection)) if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE => Err(problem(
                rejection.status(),
                format!(
                    "the body of a request has {LARGEST_BODY} bytes at most: nothing was done; send less, a shorter `reason` for example"
                ),
            )),
            Ok(Err(rejection)) => Err(problem(rejection.status(), rejection.body_text())),
            Err(_) => Err(problem(StatusCode::REQUEST_TIMEOUT, "the body of the request has not come in time")),
        }
    }
}

/// The same where everything in it has a default: a request without a body means that.
struct SentOrNot<T>(T);

impl<T: DeserializeOwned + Default, S: Send + Sync> FromRequest<S> for SentOrNot<T> {
    type Rejection = Response;

    async fn from_request(request: Request, state: &S) -> Result<Self, Response> {
        if request.body().is_end_stream() {
            return Ok(Self(T::default()));
        }
        Sent::from_request(request, state).await.map(|Sent(body): Sent<Option<T>>| Self(body.unwrap_or_default()))
    }
}
