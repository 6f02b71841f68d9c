//! One mount for as long as the daemon wants it: adopts or starts its server, starts another when that dies, waits when it
//! cannot be served, and holds up nobody else meanwhile.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::mount::{Beginning, End, Facts, Phase, Request, Task};
use super::{Refusal, preflight, process};
use crate::api::ControlError;
use crate::config::{Backend, Mount};

/// For the source to answer: one on a dead network file system does not.
const CHECK: Duration = Duration::from_secs(10);
/// For a server that an earlier daemon has left to answer.
const ADOPTION: Duration = Duration::from_secs(5);
/// A server that has served so long is replaced at once when it dies.
const STEADY: Duration = Duration::from_secs(10);
/// Before the second attempt, the third …
const FIRST_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// What is the same for all attempts.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Where the mount's server waits for the next daemon; without it the mount ends with its daemon.
    pub meeting: Option<PathBuf>,
    /// Where the daemon listens.
    pub socket: PathBuf,
    /// Options of the program that its servers get too.
    pub server_arguments: Vec<String>,
    /// Whether the mount is all that its daemon is for: then what fails at first is not tried again, and the daemon ends
    /// when somebody unmounts it.
    pub alone: bool,
}

/// See the module.
pub struct Keeper {
    plan: Plan,
    device: Option<OwnedFd>,
    facts: watch::Sender<Facts>,
    requests: mpsc::Receiver<Request>,
    /// A look at the source that has not come back.
    checking: Option<JoinHandle<Result<PathBuf, Refusal>>>,
}

/// What to do after a server's end.
enum Next {
    Over,
    Idle,
    Again(Duration),
}

impl Keeper {
    /// A keeper, where its requests come from and where its facts go. `device` is a FUSE descriptor that was handed in.
    #[must_use]
    pub fn new(
        mount: Arc<Mount>,
        plan: Plan,
        device: Option<OwnedFd>,
    ) -> (Self, mpsc::Sender<Request>, watch::Receiver<Facts>) {
        let (facts, watcher) = watch::channel(Facts::new(mount));
        let (sender, requests) = mpsc::channel(16);
        (Self { plan, device, facts, requests, checking: None }, sender, watcher)
    }

    /// Runs until the mount is over for good. What its end was.
    pub async fn run(mut self) -> End {
        let is_given = self.device.is_some();
        let mut has_served = false;
        let mut failures = 0;
        let mut resume = None;
        loop {
            let began = Instant::now();
            let end = self.live(resume).await;
            let served = self.facts.borrow().greeting.is_some();
            let steady = served && began.elapsed() > STEADY;
            has_served |= served;
            failures = if steady { 0 } else { failures + 1 };
            // What an operator has switched to, unless it is what the server dies of.
            resume = self.facts.borrow().last_active.filter(|_| failures < 2);
            let next = match &end {
                End::Stopped | End::Forced(_) => Next::Over,
                End::Unmounted if self.plan.alone || is_given => Next::Over,
                End::Unmounted => Next::Idle,
                _ if is_given => Next::Over,
                End::Failed(_) | End::Refused(_) if self.plan.alone && !has_served => Next::Over,
                End::Failed(_) | End::Refused(_) => Next::Again(wait_before(failures)),
                End::Died(_) => Next::Again(if steady { Duration::ZERO } else { wait_before(failures) }),
            };
            let next = self.note(&end, next);
            let goes_on = match next {
                Next::Over => false,
                Next::Idle => self.wait(None).await,
                Next::Again(delay) => self.wait(Some(delay)).await,
            };
            if !goes_on {
                let end = if matches!(next, Next::Over) { end } else { End::Stopped };
                self.facts.send_modify(|facts| facts.phase = Phase::Ended(end.clone()));
                return end;
            }
        }
    }

    fn name(&self) -> String {
        self.facts.borrow().mount.name.clone()
    }

    fn note(&self, end: &End, next: Next) -> Next {
        let mount = self.name();
        let phase = match (&next, end) {
            (Next::Again(delay), End::Failed(why) | End::Refused(why) | End::Died(why)) => {
                tracing::error!(mount, again_in = ?delay, "not served: {why}");
                Phase::Waiting(why.clone())
            }
            (Next::Idle, _) => {
                tracing::warn!(
                    mount,
                    "somebody else has unmounted it; it stays so until a reload (SIGHUP) or a restart of the daemon"
                );
                Phase::Ended(end.clone())
            }
            _ => Phase::Ended(end.clone()),
        };
        let died = matches!(end, End::Died(_));
        // The last word of a mount that is over comes with the end of its task.
        let is_over = matches!(next, Next::Over);
        self.facts.send_modify(|facts| {
            if !is_over {
                facts.phase = phase;
            }
            facts.greeting = None;
            facts.deaths += u32::from(died);
        });
        next
    }

    /// One server, from its start or adoption to its end.
    async fn live(&mut self, resume: Option<Backend>) -> End {
        self.facts.send_modify(|facts| facts.phase = Phase::Starting);
        let (server, place, beginning) = match self.begin(resume).await {
            Ok(begun) => begun,
            Err(end) => return end,
        };
        match Task::new(place, server, &self.facts, &mut self.requests) {
            Ok(task) => task.run(beginning).await,
            Err(error) => End::Failed(format!("the server cannot be watched: {error}; see the limit on descriptors")),
        }
    }

    async fn begin(&mut self, resume: Option<Backend>) -> Result<(process::Server, Option<PathBuf>, Beginning), End> {
        if let Some(found) = self.adopt().await? {
            return Ok(found);
        }
        let mount = self.facts.borrow().mount.clone();
        let (device, place) = match self.device.take() {
            // A descriptor's mount is somebody else's: where it is, and what becomes of it, is theirs to say.
            Some(device) => (Some(device), None),
            None => (None, Some(self.check(&mount).await?)),
        };
        // As mountinfo will show it, so that every process speaks of the same place.
        if let Some(place) = &place
            && *place != mount.mountpoint
        {
            let settled = Arc::new(Mount { mountpoint: place.clone(), ..(*mount).clone() });
            self.facts.send_modify(|facts| facts.mount = settled);
        }
        let server =
            process::start(device, &self.plan.server_arguments).map_err(|error| End::Failed(error.to_string()))?;
        Ok((server, place, Beginning::Serve { meeting: self.plan.meeting.clone(), resume }))
    }

    /// The server that an earlier daemon has left, if it did and if that server serves what is wanted.
    async fn adopt(&self) -> Result<Option<(process::Server, Option<PathBuf>, Beginning)>, End> {
        let Some(meeting) = self.plan.meeting.clone() else { return Ok(None) };
        let found = tokio::task::spawn_blocking(move || process::adopt(&meeting, ADOPTION)).await;
        let found = found.map_err(|error| End::Failed(error.to_string()))?;
        let Some((server, hello)) = found.map_err(|error| End::Failed(error.to_string()))? else { return Ok(None) };
        let wanted = self.facts.borrow().mount.clone();
        let served = &hello.mount;
        if served.source != wanted.source
            || preflight::place(&served.mountpoint) != preflight::place(&wanted.mountpoint)
        {
            tracing::warn!(
                mount = wanted.name, source = %served.source.display(), mountpoint = %served.mountpoint.display(),
                "an earlier daemon's server serves something else under this name; it is told to unmount"
            );
            self.end(server).await?;
            return Ok(None);
        }
        let same = Mount {
            mountpoint: served.mountpoint.clone(),
            deadlines: served.deadlines,
            fallback: served.fallback,
            ..(*wanted).clone()
        };
        if same != *served {
            tracing::warn!(
                mount = wanted.name,
                "an earlier daemon's server is adopted, which was started with other settings: they count after a restart of this mount"
            );
        }
        tracing::info!(mount = wanted.name, active = %hello.active, "the server of an earlier daemon is adopted; it served all the time");
        let place = served.mounted_at.is_none().then(|| served.mountpoint.clone());
        let settled = Mount { deadlines: wanted.deadlines, fallback: wanted.fallback, ..served.clone() };
        self.facts.send_modify(|facts| facts.mount = Arc::new(settled));
        Ok(Some((server, place, Beginning::Adopted(hello))))
    }

    async fn end(&self, server: process::Server) -> Result<(), End> {
        let ended = tokio::task::spawn_blocking(move || process::end(server)).await;
        ended.map_err(|error| End::Failed(error.to_string()))?.map_err(|error| {
            End::Failed(format!(
                "the server of an earlier daemon does not end: {error}; end it with `lighthouse-fs end-servers`"
            ))
        })
    }

    /// Looks at source and mount point, on a thread of its own because the source may hang.
    async fn check(&mut self, mount: &Arc<Mount>) -> Result<PathBuf, End> {
        let mut check = self.checking.take().unwrap_or_else(|| {
            let (mount, socket) = (mount.clone(), self.plan.socket.clone());
            tokio::task::spawn_blocking(move || preflight::check(&mount, &socket))
        });
        match timeout(CHECK, &mut check).await {
            Ok(Ok(Ok(place))) => Ok(place),
            Ok(Ok(Err(Refusal::Configuration(why)))) => Err(End::Refused(why)),
            Ok(Ok(Err(Refusal::World(why)))) => Err(End::Failed(why)),
            Ok(Err(error)) => Err(End::Failed(format!("the look at source and mount point failed: {error}"))),
            Err(_) => {
                // Not another thread for each attempt: this one is still in the kernel.
                self.checking = Some(check);
                Err(End::Failed(format!(
                    "the source {} has not answered within {CHECK:?}: see whether its file system hangs",
                    mount.source.display()
                )))
            }
        }
    }

    /// Waits for `delay`, or for good, or until something asks for another attempt. `false`: told to stop.
    async fn wait(&mut self, delay: Option<Duration>) -> bool {
        let mut over = std::pin::pin!(async {
            match delay {
                Some(delay) => tokio::time::sleep(delay).await,
                None => std::future::pending().await,
            }
        });
        loop {
            let request = tokio::select! {
                () = &mut over => return true,
                request = self.requests.recv() => request,
            };
            match request {
                Some(Request::Switch { answer, .. }) => {
                    let mount = self.name();
                    let why = "it is not mounted; see `lighthouse-fs status`".into();
                    // A client that has gone does not need to be told.
                    let _ = answer.send(Err(ControlError::NotServed { mount, why }));
                }
                Some(Request::Reconfigure(mount)) => {
                    self.checking = None;
                    self.facts.send_modify(|facts| facts.mount = mount);
                    return true;
                }
                Some(Request::Stop) | None => return false,
            }
        }
    }
}

fn wait_before(failures: u32) -> Duration {
    FIRST_WAIT.saturating_mul(1 << failures.saturating_sub(1).min(8)).min(LONGEST_WAIT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attempts_become_rarer() {
        let waits: Vec<_> = (1..8).map(|failures| wait_before(failures).as_secs()).collect();
        assert_eq!(waits, [1, 2, 4, 8, 16, 30, 30]);
    }
}
