//! The side that asks. What comes back is another process's word, perhaps another user's: it is bounded in size and time.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::{Method, Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::divergence::{MountDivergence, MountDivergenceAnswer};
use super::events::Published;
use super::model::{
    DrillAnswer, DrillStopAnswer, HealthAnswer, MountStatus, Problem, RolloutAnswer, Status, SwitchAnswer,
    SwitchRequest,
};
use super::socket;
use crate::backend::drill::Plan;
use crate::config::Backend;

/// For what the daemon knows without asking anybody.
const READ_DEADLINE: Duration = Duration::from_secs(5);
/// For a switch, and what waits until one is done: the daemon has deadlines of its own, which are shorter, and says which of them has passed.
const SWITCH_DEADLINE: Duration = Duration::from_secs(120);
/// Largest answer in bytes.
const LARGEST_ANSWER: usize = 16 << 20;

/// Asks the daemon behind one control socket.
#[derive(Clone, Debug)]
pub struct Client {
    socket: PathBuf,
}

/// Why there is no answer, or not the one that was hoped for.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens.
    #[error(
        "no daemon answers on {}: {source}; start one with `lighthouse-fs serve`, or name its socket with --socket",
        socket.display()
    )]
    NoDaemon {
        /// Where it was looked for.
        socket: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// Somebody has removed the socket of a daemon that runs, or it is in another mount namespace.
    #[error(
        "the control socket {} is not there, but a daemon listens on it: restart that daemon, which makes it again, or ask in its container; `ss -xlp` shows its process",
        socket.display()
    )]
    Removed {
        /// Where it was.
        socket: PathBuf,
    },
    /// It accepted, and then was silent.
    #[error("the daemon on {} has not answered within {limit:?}: see whether it is stopped or stuck", socket.display())]
    Silent {
        /// Where it listens.
        socket: PathBuf,
        /// How long was waited.
        limit: Duration,
    },
    /// The socket is another user's.
    #[error("{} belongs to another user: ask as that user or as root", socket.display())]
    Denied {
        /// Where it listens.
        socket: PathBuf,
    },
    /// The daemon says no.
    #[error("{}", .0.detail)]
    Refused(Problem),
    /// The answer cannot be understood.
    #[error("the answer from {} cannot be understood: {why}; is something else listening there?", socket.display())]
    Malformed {
        /// Where it listens.
        socket: PathBuf,
        /// What is wrong with it.
        why: String,
    },
}

impl ClientError {
    /// Whether it means that no daemon answers there.
    #[must_use]
    pub fn is_unanswered(&self) -> bool {
        matches!(self, Self::NoDaemon { .. } | Self::Removed { .. } | Self::Silent { .. })
    }
}

impl Client {
    /// A client of the daemon that listens on `socket`. Connects when asked something.
    #[must_use]
    pub fn new(socket: &Path) -> Self {
        Self { socket: socket.into() }
    }

    /// How everything is doing.
    ///
    /// # Errors
    /// When the daemon does not answer, or refuses.
    pub async fn status(&self) -> Result<Status, ClientError> {
        self.ask(Method::GET, "/api/v1/status", None::<()>, READ_DEADLINE).await
    }

    /// How one mount is doing.
    ///
    /// # Errors
    /// As [`status`](Self::status), and when there is no such mount.
    pub async fn mount(&self, name: &str) -> Result<MountStatus, ClientError> {
        self.ask(Method::GET, &format!("/api/v1/mounts/{}", escape(name)), None::<()>, READ_DEADLINE).await
    }

    /// How everything is doing, in a word. That something is unhealthy is an answer, and no error.
    ///
    /// # Errors
    /// As [`status`](Self::status).
    pub async fn health(&self) -> Result<HealthAnswer, ClientError> {
        self.ask(Method::GET, "/health/ready", None::<()>, READ_DEADLINE).await
    }

    /// Asks something of a mount's rollout: `action` is the end of the route, such as `rollout/start`.
    ///
    /// # Errors
    /// As [`mount`](Self::mount), and when it is refused; then nothing has changed.
    pub async fn ask_rollout(
        &self,
        mount: &str,
        action: &str,
        body: Option<impl Serialize>,
    ) -> Result<RolloutAnswer, ClientError> {
        let path = format!("/api/v1/mounts/{}/{action}", escape(mount));
        self.ask(Method::POST, &path, body, SWITCH_DEADLINE).await
    }

    /// Changes the backend of a mount.
    ///
    /// # Errors
    /// As [`mount`](Self::mount), and when the switch fails; then the old backend serves on.
    pub async fn switch(&self, mount: &str, to: Backend) -> Result<SwitchAnswer, ClientError> {
        let path = format!("/api/v1/mounts/{}/switch", escape(mount));
        self.ask(Method::POST, &path, Some(SwitchRequest { to }), SWITCH_DEADLINE).await
    }

    /// Begins to inject faults into a mount.
    ///
    /// # Errors
    /// As [`mount`](Self::mount), and when the mount allows none, or something is injected already.
    pub async fn drill(&self, mount: &str, plan: &Plan) -> Result<DrillAnswer, ClientError> {
        let path = format!("/api/v1/mounts/{}/drill", escape(mount));
        self.ask(Method::POST, &path, Some(plan), SWITCH_DEADLINE).await
    }

    /// What comparisons of a mount's backends have found.
    ///
    /// # Errors
    /// As [`mount`](Self::mount).
    pub async fn divergence(&self, mount: &str) -> Result<MountDivergence, ClientError> {
        let path = format!("/api/v1/mounts/{}/divergence", escape(mount));
        // The server may be in the middle of a switch.
        let answer: MountDivergenceAnswer = self.ask(Method::GET, &path, None::<()>, SWITCH_DEADLINE).await?;
        Ok(answer.mount)
    }

    /// Injects no more faults. That nothing was injected is no error.
    ///
    /// # Errors
    /// As [`mount`](Self::mount).
    pub async fn stop_drill(&self, mount: &str) -> Result<DrillStopAnswer, ClientError> {
        let path = format!("/api/v1/mounts/{}/drill", escape(mount));
        self.ask(Method::DELETE, &path, None::<()>, SWITCH_DEADLINE).await
    }

    /// Listens to what happens from now on.
    ///
    /// # Errors
    /// As [`status`](Self::status).
    pub async fn events(&self) -> Result<Listener, ClientError> {
        let request = Request::builder().uri("/api/v1/events").header(header::HOST, "localhost");
        let request = request.body(Full::<Bytes>::default()).map_err(|error| self.malformed(&error))?;
        let stream = UnixStream::connect(&self.socket).await.map_err(|error| self.unreachable(error))?;
        let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
        let (mut sender, connection) = handshake.map_err(|error| self.malformed(&error))?;
        let mut carrier = JoinSet::new();
        // How the connection ends is seen by whoever reads the answer.
        carrier.spawn(async { drop(connection.await) });
        let silent = |_| ClientError::Silent { socket: self.socket.clone(), limit: READ_DEADLINE };
        let answer = timeout(READ_DEADLINE, sender.send_request(request)).await.map_err(silent)?;
        let answer = answer.map_err(|error| self.malformed(&error))?;
        if !answer.status().is_success() {
            return Err(self.malformed(&answer.status()));
        }
        let body = answer.into_body();
        Ok(Listener { client: self.clone(), body, received: Vec::new(), _carrier: carrier })
    }

    async fn ask<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<impl Serialize>,
        limit: Duration,
    ) -> Result<T, ClientError> {
        let body = body.map(|body| serde_json::to_vec(&body)).transpose();
        let body = body.map_err(|error| self.malformed(&error))?.unwrap_or_default();
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "localhost")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::<Bytes>::from(body))
            .map_err(|error| self.malformed(&error))?;
        let silent = |_| ClientError::Silent { socket: self.socket.clone(), limit };
        let (status, bytes) = timeout(limit, self.exchange(request)).await.map_err(silent)??;
        if status.is_success() {
            return serde_json::from_slice(&bytes).map_err(|error| self.malformed(&error));
        }
        match serde_json::from_slice(&bytes) {
            Ok(problem) => Err(ClientError::Refused(problem)),
            // What is not ready says so by 503, and is the answer all the same.
            Err(_) => serde_json::from_slice(&bytes).map_err(|_| self.malformed(&status)),
        }
    }

    async fn exchange(&self, request: Request<Full<Bytes>>) -> Result<(StatusCode, Bytes), ClientError> {
        let stream = UnixStream::connect(&self.socket).await.map_err(|error| self.unreachable(error))?;
        let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
        let (mut sender, connection) = handshake.map_err(|error| self.malformed(&error))?;
        let exchange = async {
            let answer = sender.send_request(request).await.map_err(|error| self.malformed(&error))?;
            let status = answer.status();
            let body = Limited::new(answer.into_body(), LARGEST_ANSWER).collect().await;
            Ok((status, body.map_err(|error| self.malformed(&error))?.to_bytes()))
        };
        tokio::pin!(exchange, connection);
        tokio::select! {
            biased;
            answer = &mut exchange => answer,
            ended = &mut connection => match ended {
                Ok(()) => exchange.await,
                Err(error) => Err(self.malformed(&error)),
            },
        }
    }

    fn unreachable(&self, source: io::Error) -> ClientError {
        let socket = self.socket.clone();
        match source.kind() {
            io::ErrorKind::PermissionDenied => ClientError::Denied { socket },
            io::ErrorKind::NotFound if socket::has_listener(&socket) => ClientError::Removed { socket },
            _ => ClientError::NoDaemon { socket, source },
        }
    }

    fn malformed(&self, why: &impl ToString) -> ClientError {
        ClientError::Malformed { socket: self.socket.clone(), why: why.to_string() }
    }
}

/// Hears what happens, in order.
pub struct Listener {
    client: Client,
    body: Incoming,
    /// What does not end with a line yet.
    received: Vec<u8>,
    /// Ended when this is dropped.
    _carrier: JoinSet<()>,
}

impl Listener {
    /// The next event; waits until there is one. May be cancelled.
    ///
    /// # Errors
    /// When the daemon hangs up, or says what cannot be understood.
    pub async fn next(&mut self) -> Result<Published, ClientError> {
        loop {
            while let Some(end) = self.received.iter().position(|byte| *byte == b'\n') {
                let line: Vec<_> = self.received.drain(..=end).collect();
                // The rest of an event says again what is in its data (Server-Sent Events, HTML standard 9.2).
                if let Some(data) = line.strip_prefix(b"data:") {
                    return serde_json::from_slice(data).map_err(|error| self.client.malformed(&error));
                }
            }
            match self.body.frame().await {
                Some(Ok(frame)) => self.received.extend(frame.into_data().unwrap_or_default()),
                Some(Err(error)) => return Err(self.client.malformed(&error)),
                None => return Err(self.client.malformed(&"the daemon has hung up")),
            }
            if self.received.len() > LARGEST_ANSWER {
                return Err(self.client.malformed(&"an event without an end"));
            }
        }
    }
}

/// Percent-encodes a path segment (RFC 3986: all but the unreserved characters).
fn escape(segment: &str) -> String {
    segment
        .bytes()
        .map(|byte| match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => char::from(byte).to_string(),
            other => format!("%{other:02X}"),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_leave_their_place_in_the_path() {
        assert_eq!(escape("a/../b?c ä"), "a%2F..%2Fb%3Fc%20%C3%A4");
    }
}
