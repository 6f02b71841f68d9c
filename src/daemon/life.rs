//! A daemon's life: check, listen, start the server, answer, stop.

use std::error::Error;
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::mount::{End, Facts, Phase, Request, Task};
use super::status::{Handle, Mounts};
use super::{Refusal, preflight, process};
use crate::api;
use crate::api::socket::{self, Listening};
use crate::config::Mount;

/// For answers that are on their way when the daemon ends.
const FAREWELL: Duration = Duration::from_secs(1);

/// What a daemon is to do.
#[derive(Clone, Debug)]
pub struct Options {
    /// What it serves.
    pub mount: Mount,
    /// Where it listens.
    pub socket: PathBuf,
    /// Options of the program that its servers get too: those of the log.
    pub server_arguments: Vec<String>,
}

/// Why a daemon ended other than by being told to.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// Wrong in itself, on any machine.
    #[error("{0}")]
    Configuration(String),
    /// Everything else.
    #[error("{0}")]
    Other(String),
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Configuration(why) => Self::Configuration(why),
            Refusal::World(why) => Self::Other(why),
        }
    }
}

fn other(error: impl Into<Box<dyn Error + Send + Sync>>) -> Failure {
    Failure::Other(error.into().to_string())
}

/// Runs a daemon until it is told to stop or its mount is gone. To be called by a process that has one thread and has
/// opened nothing yet.
///
/// # Errors
/// When it cannot begin, or its server dies.
pub fn run(mut options: Options) -> Result<(), Failure> {
    let device = process::device(&options.mount.mountpoint).map_err(other)?;
    // A descriptor's mount is somebody else's: where it is, and what becomes of it, is theirs to say.
    let place = match device {
        Some(_) => preflight::check_source(&options.mount.source).map(|()| None)?,
        None => Some(preflight::check(&options.mount, &options.socket)?),
    };
    // As mountinfo will show it, so that every process speaks of the same place.
    if let Some(place) = &place {
        options.mount.mountpoint.clone_from(place);
    }
    let mut listening = socket::listen(&options.socket).map_err(other)?;
    let server = process::start(device, &options.server_arguments).map_err(other)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(other)?;
    let end = runtime.block_on(live(Arc::new(options.mount), place, server, &mut listening));
    // Not waiting for a helper that hangs on a dead mount: its deadline has passed.
    runtime.shutdown_background();
    end
}

async fn live(
    mount: Arc<Mount>,
    place: Option<PathBuf>,
    server: process::Server,
    listening: &mut Listening,
) -> Result<(), Failure> {
    let ledger = server.ledger.clone();
    let (task, requests, facts) = Task::new(mount.clone(), place, server).map_err(other)?;
    let handle = Handle { mount: mount.clone(), ledger, facts: facts.clone(), requests: requests.clone() };
    let mut serving = tokio::spawn(task.run());
    let (stop_api, api) = start_api(listening, Mounts::new(vec![handle]))?;
    tokio::spawn(announce(mount.clone(), facts));

    let end = tokio::select! {
        end = &mut serving => end,
        stopped = stop_signal(&requests) => {
            stopped.map_err(other)?;
            serving.await.map(|end| told_to_stop(&mount, end))
        }
    };
    if stop_api.send(()).is_ok() && timeout(FAREWELL, api).await.is_err() {
        tracing::info!("a client still waits for an answer; not waiting for it");
    }
    match end.map_err(other)? {
        End::Stopped => Ok(()),
        End::Unmounted => {
            tracing::info!(mount = mount.name, "somebody else has unmounted it; nothing is left to serve");
            Ok(())
        }
        End::Failed(why) => Err(Failure::Other(why)),
        End::Died(why) => Err(Failure::Other(format!("mount \"{}\": {why}", mount.name))),
    }
}

/// A mount that had to be taken away by force has stopped all the same, as it was told to.
fn told_to_stop(mount: &Mount, end: End) -> End {
    match end {
        End::Died(why) => End::Failed(format!("mount {:?}: not unmounted in order: {why}", mount.name)),
        other => other,
    }
}

type Api = (oneshot::Sender<()>, JoinHandle<()>);

fn start_api(listening: &mut Listening, mounts: Mounts) -> Result<Api, Failure> {
    let listener = listening.take().ok_or_else(|| other("the control socket is taken already"))?;
    let listener = UnixListener::from_std(listener).map_err(other)?;
    let (stop, stopped) = oneshot::channel::<()>();
    let stopped = async { stopped.await.unwrap_or(()) };
    let api = tokio::spawn(async {
        if let Err(error) = api::serve(listener, mounts, stopped).await {
            tracing::error!(%error, "the control socket failed; the mount is served on");
        }
    });
    Ok((stop, api))
}

/// Prints the ready line, and tells whoever started this as a service (sd_notify(3)), when the mount is served.
async fn announce(mount: Arc<Mount>, mut facts: watch::Receiver<Facts>) {
    let Ok(facts) = facts.wait_for(|facts| facts.greeting.is_some() || matches!(facts.phase, Phase::Ended(_))).await
    else {
        return;
    };
    if let Some(greeting) = &facts.greeting {
        let line = format!(
            "serving {} at {} by {} ({}, protocol 7.{})",
            mount.source.display(),
            mount.mountpoint.display(),
            greeting.active,
            greeting.helper,
            greeting.protocol_minor
        );
        tracing::debug!("{line}");
        if let Err(error) = writeln!(io::stdout(), "{line}") {
            tracing::debug!(%error, "nobody reads the ready line");
        }
        if let Err(error) = sd_notify::notify(&[sd_notify::NotifyState::Ready]) {
            tracing::warn!(%error, "whoever set NOTIFY_SOCKET cannot be told that the mount answers");
        }
    }
}

/// Waits for a signal to stop, and tells the mount.
async fn stop_signal(requests: &mpsc::Sender<Request>) -> io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hang_up = signal(SignalKind::hangup())?;
    let name = tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
        _ = hang_up.recv() => "SIGHUP",
    };
    tracing::info!("{name}: unmounting");
    if requests.send(Request::Stop).await.is_err() {
        tracing::debug!("the mount has ended by itself at the same moment");
    }
    Ok(())
}
