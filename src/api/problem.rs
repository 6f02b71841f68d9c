//! What errors look like: `application/problem+json` (RFC 9457), whoever has found them.

use axum::Json;
use axum::body::to_bytes;
use axum::extract::Request;
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::model::{HealthAnswer, NotReady, Problem};

const CONTENT_TYPE: &str = "application/problem+json";
/// Longest text of a library's own error, in bytes.
const LONGEST: usize = 4 << 10;

/// An answer that says what was tried, what happened, what to do.
pub(super) fn problem(status: StatusCode, detail: impl Into<String>) -> Response {
    let title = status.canonical_reason().unwrap_or("Error").to_owned();
    let body = Json(Problem { title, status: status.as_u16(), detail: detail.into() });
    (status, [(header::CONTENT_TYPE, CONTENT_TYPE)], body).into_response()
}

/// One that says how each mount is doing, too.
pub(super) fn not_ready(status: StatusCode, answer: HealthAnswer) -> Response {
    let title = status.canonical_reason().unwrap_or("Error").to_owned();
    let detail = if answer.reasons.is_empty() { "not ready".into() } else { answer.reasons.join("; ") };
    let body = Json(NotReady { problem: Problem { title, status: status.as_u16(), detail }, answer });
    (status, [(header::CONTENT_TYPE, CONTENT_TYPE)], body).into_response()
}

/// Makes a problem of every error that a library has answered as text.
pub(super) async fn everywhere(request: Request, next: Next) -> Response {
    let answer = next.run(request).await;
    let status = answer.status();
    let is_json = |value: &HeaderValue| value.as_bytes().ends_with(b"json");
    if !(status.is_client_error() || status.is_server_error())
        || answer.headers().get(header::CONTENT_TYPE).is_some_and(is_json)
    {
        return answer;
    }
    let (head, body) = answer.into_parts();
    let text = to_bytes(body, LONGEST).await.unwrap_or_default();
    let mut said = problem(status, String::from_utf8_lossy(&text));
    // `allow` of a 405, for example; what belongs to the old body goes with it.
    for (name, value) in &head.headers {
        if ![header::CONTENT_TYPE, header::CONTENT_LENGTH].contains(name) {
            said.headers_mut().insert(name, value.clone());
        }
    }
    said
}
