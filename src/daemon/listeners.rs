//! The listeners over TCP: bound where the configuration says, tried again when that fails, moved when it changes. What
//! goes wrong here makes the daemon degraded, and touches no mount.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::status::Mounts;
use crate::api::model::ListenerStatus;
use crate::api::{Admission, Bounds, Door, Secret, Token, serve_tcp};
use crate::config::Api;

/// Before the second attempt, the third …
const FIRST_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// For the token's file to be read.
const READING: Duration = Duration::from_secs(5);
/// More than [`Bounds::farewell`].
const FAREWELL: Duration = Duration::from_secs(2);
/// What a reason about the token is about.
const TOKEN: &str = "api.token_file";

/// All of them.
pub struct Listeners {
    wanted: watch::Sender<Api>,
    tasks: JoinSet<()>,
}

impl Listeners {
    /// Starts them; needs a runtime.
    #[must_use]
    pub fn start(api: &Api, mounts: &Mounts) -> Self {
        let (wanted, watcher) = watch::channel(api.clone());
        let admission = Admission::default();
        admission.set_hosts(api.hosts.clone());
        admission.set_secret(if api.token_file.is_some() { Secret::Unusable } else { Secret::None });
        let mut tasks = JoinSet::new();
        tasks.spawn(keep_rules(watcher.clone(), admission.clone(), mounts.clone()));
        for door in Door::ALL {
            let keeper = Keeper { door, mounts: mounts.clone(), admission: admission.clone() };
            tasks.spawn(keeper.run(watcher.clone()));
        }
        Self { wanted, tasks }
    }

    /// From now on they are to be like this. The token is read anew.
    pub fn reconfigure(&self, api: Api) {
        self.wanted.send_replace(api);
    }

    /// Stops them; answers on their way have a moment.
    pub async fn stop(mut self) {
        drop(self.wanted);
        let all = async { while self.tasks.join_next().await.is_some() {} };
        if timeout(FAREWELL, all).await.is_err() {
            tracing::debug!("a listener does not end; not waiting for it");
        }
    }
}

fn address(door: Door, api: &Api) -> Option<SocketAddr> {
    match door {
        Door::Api => api.listen,
        Door::Shadow => api.shadow_listen,
        Door::Metrics => api.metrics_listen,
    }
}

/// Keeps one listener.
struct Keeper {
    door: Door,
    mounts: Mounts,
    admission: Admission,
}

impl Keeper {
    /// Until nobody wants any listener.
    async fn run(self, mut wanted: watch::Receiver<Api>) {
        let mut failures = 0;
        loop {
            let address = address(self.door, &wanted.borrow_and_update());
            let Some(address) = address else {
                self.note(None, None);
                failures = 0;
                if wanted.changed().await.is_err() {
                    return;
                }
                continue;
            };
            match TcpListener::bind(address).await {
                Ok(listener) => {
                    failures = 0;
                    self.serve(listener, address, wanted.clone()).await;
                    if wanted.has_changed().is_err() {
                        return;
                    }
                }
                Err(error) => {
                    failures += 1;
                    let why = format!(
                        "the {} listener cannot use {address}: {error}; end what holds it, or change {}",
                        self.door.name(),
                        self.door.key()
                    );
                    if failures == 1 {
                        tracing::error!("{why}; the mounts are served all the same, and it is tried again");
                    }
                    self.note(Some((address, false)), Some(why));
                    if !pause(failures, &mut wanted).await {
                        return;
                    }
                }
            }
        }
    }

    /// Answers until another address, or none, is wanted.
    async fn serve(&self, listener: TcpListener, address: SocketAddr, mut wanted: watch::Receiver<Api>) {
        let door = self.door;
        let bound = listener.local_addr().unwrap_or(address);
        tracing::info!(address = %bound, "the {} listener answers", door.name());
        self.note(Some((bound, true)), None);
        let stop = async move { drop(wanted.wait_for(|api| self::address(door, api) != Some(address)).await) };
        let (mounts, admission) = (self.mounts.clone(), self.admission.clone());
        if let Err(error) = serve_tcp(listener, door, mounts, admission, Bounds::default(), stop).await {
            tracing::error!(address = %bound, %error, "the {} listener failed", door.name());
        }
        tracing::info!(address = %bound, "the {} listener has stopped", door.name());
    }

    fn note(&self, listener: Option<(SocketAddr, bool)>, reason: Option<String>) {
        let name = self.door.name().to_owned();
        self.mounts
            .set_listener(self.door, listener.map(|(address, listening)| ListenerStatus { name, address, listening }));
        self.mounts.set_reason(self.door.key(), reason);
    }
}

/// Keeps the token and the names: read at the start and at each reload, and again and again while the file cannot be used.
async fn keep_rules(mut wanted: watch::Receiver<Api>, admission: Admission, mounts: Mounts) {
    let mut failures = 0;
    loop {
        let Api { token_file, hosts, .. } = wanted.borrow_and_update().clone();
        admission.set_hosts(hosts);
        let read = match token_file {
            Some(path) => read_token(path).await.map(Secret::Known),
            None => Ok(Secret::None),
        };
        match read {
            Ok(secret) => {
                failures = 0;
                admission.set_secret(secret);
                mounts.set_reason(TOKEN, None);
                if wanted.changed().await.is_err() {
                    return;
                }
            }
            Err(why) => {
                failures += 1;
                if failures == 1 {
                    tracing::error!("{why}; nothing can be changed over TCP, and it is tried again");
                }
                // Not the one before: whoever has taken the file away does not want it any more.
                admission.set_secret(Secret::Unusable);
                mounts.set_reason(TOKEN, Some(why));
                if !pause(failures, &mut wanted).await {
                    return;
                }
            }
        }
    }
}

async fn read_token(path: PathBuf) -> Result<Token, String> {
    let late = |path: &Path| format!("the token file {} cannot be read within {READING:?}", path.display());
    let place = path.clone();
    // On a file system that hangs, the thread stays there.
    let read = tokio::task::spawn_blocking(move || Token::read(&place));
    let (token, warning) = timeout(READING, read)
        .await
        .map_err(|_| late(&path))?
        .map_err(|error| error.to_string())?
        .map_err(|error| error.to_string())?;
    if let Some(warning) = warning {
        tracing::warn!("{warning}");
    }
    Ok(token)
}

/// Waits for the next attempt, or for another configuration. `false`: nobody wants any listener.
async fn pause(failures: u32, wanted: &mut watch::Receiver<Api>) -> bool {
    let wait = FIRST_WAIT.saturating_mul(1 << (failures - 1).min(8)).min(LONGEST_WAIT);
    tokio::select! {
        () = sleep(wait) => true,
        changed = wanted.changed() => changed.is_ok(),
    }
}
