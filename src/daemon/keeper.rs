//! One mount for as long as the daemon wants it: adopts or starts its server, starts another when that dies, waits when it
//! cannot be served, and holds up nobody else meanwhile.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::RwLock;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::facts::{End, Facts, Phase};
use super::mount::{Beginning, Request, Task};
use super::pilot::{Happened, begin_with};
use super::process::Ended;
use super::recorder::Recorder;
use super::{Own, Refusal, preflight, process};
use crate::api::events::Events;
use crate::api::socket;
use crate::config::{Backend, Deadlines, Mount};
use crate::server::orders::Hello;

/// For the source to answer: one on a dead network file system does not.
const CHECK: Duration = Duration::from_secs(10);
/// For a server that an earlier daemon has left to answer.
const ADOPTION: Duration = Duration::from_secs(5);
/// A server that has served so long is replaced at once when it dies.
const STEADY: Duration = Duration::from_secs(10);
/// Before the second attempt, the third …
const FIRST_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// So many servers may die in a row while a backend serves alone, before the next one begins with another.
const DEATHS: u32 = 2;

/// What is the same for all attempts.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Where the mount's server waits for the next daemon; without it the mount ends with its daemon.
    pub meeting: Option<PathBuf>,
    /// What the daemon needs, which must not lie in the mount.
    pub own: Arc<[Own]>,
    /// Where what happens to the mount is made known.
    pub events: Events,
    /// Where its pilot hears what happens to the mount.
    pub happened: mpsc::UnboundedSender<Happened>,
    /// Options of the program that its servers get too.
    pub server_arguments: Arc<RwLock<Vec<String>>>,
    /// Whether the mount is all that its daemon is for: then what fails at first is not tried again, and the daemon ends
    /// when somebody unmounts it.
    pub alone: bool,
    /// Which server of an earlier daemon is taken over.
    pub adopts: Adopts,
}

/// When a server that an earlier daemon has left serves what is wanted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Adopts {
    /// If source and mount point are the same; other settings count when it is mounted again.
    SamePlaces,
    /// If all settings are that could not be changed live.
    Same,
}

/// See the module.
pub struct Keeper {
    plan: Plan,
    device: Option<OwnedFd>,
    facts: Recorder,
    requests: mpsc::Receiver<Request>,
    /// A look at the source that has not come back.
    checking: Option<JoinHandle<Result<PathBuf, Refusal>>>,
}

impl Plan {
    /// What servers are to log.
    fn log_level(&self) -> Option<String> {
        let arguments = self.server_arguments.read();
        arguments.iter().find_map(|argument| argument.strip_prefix("--log-level=")).map(str::to_owned)
    }
}

/// A server that an earlier daemon has left.
struct Found {
    server: process::Server,
    hello: Box<Hello>,
    /// Whether it serves what is wanted, where it is wanted.
    is_wanted: bool,
}

/// Looks for one at `meeting`. Blocks: the paths may lead through a file system that hangs.
fn look(meeting: &Path, wanted: &Mount, adopts: Adopts) -> Result<Option<Found>, End> {
    let found = process::adopt(meeting, ADOPTION).map_err(|error| End::Failed(error.to_string()))?;
    let Some((server, hello)) = found else { return Ok(None) };
    let is_same =
        |served: &Path, wanted: &Path| served == wanted || preflight::place(served) == preflight::place(wanted);
    let Mount { source, mountpoint, deadlines, .. } = wanted.clone();
    let is_wanted = is_same(&hello.mount.source, &source)
        && is_same(&hello.mount.mountpoint, &mountpoint)
        && (adopts == Adopts::SamePlaces || Mount { source, mountpoint, deadlines, ..hello.mount.clone() } == *wanted);
    if !is_wanted {
        // What works is not ended for the sake of what cannot.
        preflight::check_source(&wanted.source).map_err(|refusal| End::Failed(refusal.to_string()))?;
    }
    Ok(Some(Found { server, hello, is_wanted }))
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
        let facts = Recorder::new(facts, plan.events.clone());
        (Self { plan, device, facts, requests, checking: None }, sender, watcher)
    }

    /// Runs until the mount is over for good. What its end was.
    pub async fn run(mut self) -> End {
        let is_given = self.device.is_some();
        let mut has_served = false;
        let mut failures = 0;
        let mut deaths = Deaths::default();
        loop {
            let began = Instant::now();
            let end = self.live(&deaths).await;
            let served = self.facts.borrow().greeting.is_some();
            let steady = served && began.elapsed() > STEADY;
            has_served |= served;
            failures = if steady || end == End::Superseded { 0 } else { failures + 1 };
            if served {
                deaths.note(&end, self.facts.borrow().last_active.filter(|_| !steady));
            }
            let next = match &end {
                End::Stopped | End::Forced(_) => Next::Over,
                End::Unmounted if self.plan.alone || is_given => Next::Over,
                End::Unmounted => Next::Idle,
                End::Superseded => Next::Again(Duration::ZERO),
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
                let end = if matches!(next, Next::Over) { end } else { self.end_unadopted().await };
                self.facts.send_modify(|facts| facts.phase = Phase::Ended(end.clone()));
                return end;
            }
        }
    }

    /// Lets `status` say what is being done.
    fn step(&self, step: String) {
        self.facts.send_modify(|facts| facts.step = step);
    }

    fn name(&self) -> String {
        self.facts.borrow().mount.name.clone()
    }

    /// Told to stop while it is not served: a server that could not be adopted is not to be left.
    async fn end_unadopted(&self) -> End {
        let Some(meeting) = self.plan.meeting.clone() else { return End::Stopped };
        match tokio::task::spawn_blocking(move || process::end(&meeting)).await {
            Ok(Ok(Ended::ObeysAnother)) => {
                tracing::info!(mount = self.name(), "its server obeys another daemon: left alone");
                End::Stopped
            }
            Ok(Ok(Ended::Nobody | Ended::Gone)) => End::Stopped,
            Ok(Err(error)) => End::Forced(error.to_string()),
            Err(error) => End::Forced(error.to_string()),
        }
    }

    fn note(&self, end: &End, next: Next) -> Next {
        let mount = self.name();
        let phase = match (&next, end) {
            (Next::Again(delay), End::Failed(why) | End::Refused(why) | End::Died(why)) => {
                tracing::error!(mount, again_in = ?delay, "not served: {why}");
                Phase::Waiting(why.clone())
            }
            (Next::Again(_), _) => Phase::Starting,
            (Next::Idle, _) => {
                tracing::warn!(
                    mount,
                    "somebody else has unmounted it; it stays so until a reload (SIGHUP) or a restart of the daemon"
                );
                Phase::Ended(end.clone())
            }
            _ => Phase::Ended(end.clone()),
        };
        // The last word of a mount that is over comes with the end of its task.
        let is_over = matches!(next, Next::Over);
        self.facts.send_modify(|facts| {
            if !is_over {
                facts.phase = phase;
            }
            facts.greeting = None;
            facts.failures += u32::from(matches!(next, Next::Again(_)) && *end != End::Superseded);
        });
        next
    }

    /// One server, from its start or adoption to its end.
    async fn live(&mut self, deaths: &Deaths) -> End {
        let (server, place, beginning) = match self.begin(deaths).await {
            Ok(begun) => begun,
            Err(end) => return end,
        };
        match Task::new(place, server, &self.plan, &self.facts, &mut self.requests) {
            Ok(task) => task.run(beginning).await,
            Err(error) => End::Failed(format!("the server cannot be watched: {error}; see the limit on descriptors")),
        }
    }

    async fn begin(&mut self, deaths: &Deaths) -> Result<(process::Server, Option<PathBuf>, Beginning), End> {
        if let Some(found) = self.adopt().await? {
            return Ok(found);
        }
        let wanted = self.facts.borrow().wanted.clone();
        let mut mount = (*wanted).clone();
        let (device, place) = match self.device.take() {
            // A descriptor's mount is somebody else's: where it is, and what becomes of it, is theirs to say.
            Some(device) => (Some(device), None),
            None => {
                self.step(format!("source and mount point are looked at, which may take {CHECK:?}"));
                let place = self.check(&wanted).await?;
                // As mountinfo will show it, so that every process speaks of the same place.
                mount.mountpoint.clone_from(&place);
                (None, Some(place))
            }
        };
        if let Some(at) = mount.mounted_at.take() {
            let settled = tokio::task::spawn_blocking(move || preflight::place(&at));
            mount.mounted_at = timeout(CHECK, settled).await.ok().and_then(Result::ok);
        }
        self.facts.send_modify(|facts| {
            facts.mount = Arc::new(mount);
            facts.started_as = wanted;
        });
        // Whoever clears /tmp may have taken it away since the last one.
        if let Some(folder) = self.plan.meeting.as_deref().and_then(Path::parent) {
            socket::make_private(folder).map_err(|error| End::Failed(error.to_string()))?;
        }
        let counted = self.facts.borrow().counted.clone();
        let server = process::start(&self.name(), device, counted, &self.plan.server_arguments.read())
            .map_err(|error| End::Failed(error.to_string()))?;
        let (resume, given_up) = match begin_with(&self.plan.happened).await {
            Some((wanted, Some(instead))) if deaths.are_too_many(wanted) => (Some(instead), Some(wanted)),
            wanted => (wanted.map(|(wanted, _)| wanted), None),
        };
        Ok((server, place, Beginning::Serve { meeting: self.plan.meeting.clone(), resume, given_up }))
    }

    /// The server that an earlier daemon has left, if it did and if that server serves what is wanted.
    async fn adopt(&self) -> Result<Option<(process::Server, Option<PathBuf>, Beginning)>, End> {
        let Some(meeting) = self.plan.meeting.clone() else { return Ok(None) };
        let wanted = self.facts.borrow().wanted.clone();
        self.step(format!("whether an earlier daemon has left its server is seen, which may take {ADOPTION:?}"));
        let look = tokio::task::spawn_blocking({
            let wanted = wanted.clone();
            let adopts = self.plan.adopts;
            move || look(&meeting, &wanted, adopts)
        });
        let Ok(found) = timeout(ADOPTION + CHECK, look).await else {
            let why = "whether an earlier daemon has left its server cannot be seen: a path to its mount point hangs";
            return Err(End::Failed(why.into()));
        };
        let found = found.map_err(|error| End::Failed(error.to_string()))??;
        let Some(Found { server, hello, is_wanted }) = found else { return Ok(None) };
        let served = &hello.mount;
        if !is_wanted {
            tracing::warn!(
                mount = wanted.name, source = %served.source.display(), mountpoint = %served.mountpoint.display(),
                "an earlier daemon's server serves something else under this name; it is told to unmount"
            );
            self.step("the server of an earlier daemon, which serves something else, unmounts".into());
            self.end(server, served.deadlines).await?;
            return Ok(None);
        }
        tracing::info!(mount = wanted.name, active = %hello.active, "the server of an earlier daemon is adopted; it served all the time");
        let place = served.mounted_at.is_none().then(|| served.mountpoint.clone());
        let mount = Mount { deadlines: wanted.deadlines, fallback: wanted.fallback, ..served.clone() };
        // The paths are the same, however they are written.
        let (source, mountpoint) = (wanted.source.clone(), wanted.mountpoint.clone());
        let started_as = Mount { source, mountpoint, ..mount.clone() };
        self.facts.send_modify(|facts| {
            facts.mount = Arc::new(mount);
            facts.started_as = Arc::new(started_as);
        });
        let outdated = self.facts.borrow().outdated().join(", ");
        if !outdated.is_empty() {
            tracing::warn!(
                mount = wanted.name,
                "it was started with other settings ({outdated}): the new ones count when it is mounted again"
            );
        }
        let log_level = self.plan.log_level();
        Ok(Some((server, place, Beginning::Adopted { hello, log_level })))
    }

    async fn end(&self, server: process::Server, deadlines: Deadlines) -> Result<(), End> {
        let ended = tokio::task::spawn_blocking(move || process::end_adopted(&server, &deadlines)).await;
        ended.map_err(|error| End::Failed(error.to_string()))?.map_err(|error| {
            End::Failed(format!(
                "the server of an earlier daemon does not end: {error}; end it with `lighthouse-fs end-servers`"
            ))
        })
    }

    /// Looks at source and mount point, on a thread of its own because the source may hang.
    async fn check(&mut self, mount: &Arc<Mount>) -> Result<PathBuf, End> {
        let mut check = self.checking.take().unwrap_or_else(|| {
            let (mount, own) = (mount.clone(), self.plan.own.clone());
            tokio::task::spawn_blocking(move || preflight::check(&mount, &own))
        });
        let checked = {
            let mut checked = std::pin::pin!(timeout(CHECK, &mut check));
            loop {
                match self.heed_until(&mut checked).await {
                    Until::Over(checked) => break checked,
                    // Of another mount it is of no more interest.
                    Until::Reconfigured if self.facts.borrow().wanted != *mount => return Err(End::Superseded),
                    Until::Reconfigured => {}
                    Until::Stopped => return Err(End::Stopped),
                }
            }
        };
        match checked {
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
        let over = async {
            match delay {
                Some(delay) => tokio::time::sleep(delay).await,
                None => std::future::pending().await,
            }
        };
        match self.heed_until(over).await {
            Until::Over(()) => true,
            Until::Reconfigured => {
                self.checking = None;
                true
            }
            Until::Stopped => false,
        }
    }

    /// Heeds requests while there is no server, until `over`, or until one of them changes what is to be done.
    async fn heed_until<T>(&mut self, over: impl Future<Output = T>) -> Until<T> {
        let mut over = std::pin::pin!(over);
        loop {
            let request = tokio::select! {
                over = &mut over => return Until::Over(over),
                request = self.requests.recv() => request,
            };
            match request {
                Some(
                    request @ (Request::Weigh { .. }
                    | Request::Drill { .. }
                    | Request::StopDrill { .. }
                    | Request::TellCompared { .. }),
                ) => {
                    request.refuse(&self.name(), "it is not mounted; see `lighthouse-fs status`");
                }
                Some(Request::Reconfigure(mount)) => {
                    self.facts.send_modify(|facts| facts.wanted = mount);
                    return Until::Reconfigured;
                }
                // The next server gets it among its arguments.
                Some(Request::LogLevel(_) | Request::RecoverLost | Request::Compare(_)) => {}
                Some(Request::Stop) | None => return Until::Stopped,
            }
        }
    }
}

/// What has ended a wait.
enum Until<T> {
    /// What was waited for.
    Over(T),
    /// A reload.
    Reconfigured,
    /// The order to stop.
    Stopped,
}

/// Servers that have died in a row, by the backend that served. One that did not come to serve tells nothing of a backend.
#[derive(Default)]
struct Deaths([u32; 2]);

impl Deaths {
    /// Notes how a server has ended that has served. `served`: the backend that did last, unless it did so for long.
    fn note(&mut self, end: &End, served: Option<Backend>) {
        match (end, served) {
            (End::Died(_), Some(backend)) => self.0[backend.index()] += 1,
            _ => *self = Self::default(),
        }
    }

    fn are_too_many(&self, backend: Backend) -> bool {
        self.0[backend.index()] >= DEATHS
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

    #[test]
    fn a_backend_is_given_up_when_servers_die_of_it_and_of_nothing_else() {
        let died = End::Died("SIGKILL".into());
        let mut deaths = Deaths::default();
        let is_given_up = |deaths: &Deaths| Backend::ALL.map(|backend| deaths.are_too_many(backend));
        deaths.note(&died, Some(Backend::Fuse3));
        deaths.note(&died, Some(Backend::Fuse2));
        assert_eq!(is_given_up(&deaths), [false, false], "one each");
        deaths.note(&died, Some(Backend::Fuse3));
        assert_eq!(is_given_up(&deaths), [false, true]);
        for other in [End::Unmounted, End::Superseded, End::Stopped] {
            deaths.note(&other, Some(Backend::Fuse3));
            assert_eq!(is_given_up(&deaths), [false, false], "{other:?}");
            deaths.note(&died, Some(Backend::Fuse3));
            assert_eq!(is_given_up(&deaths), [false, false], "{other:?}");
        }
        // It had served for long.
        deaths.note(&died, None);
        deaths.note(&died, Some(Backend::Fuse3));
        assert_eq!(is_given_up(&deaths), [false, false]);
    }

    #[tokio::test]
    async fn a_look_at_the_source_that_hangs_is_given_up_for_another_source() {
        let mount = Arc::new(Mount::new("a", "/srv/hangs", "/mnt/a"));
        let plan = Plan {
            happened: mpsc::unbounded_channel().0,
            meeting: None,
            own: Arc::default(),
            server_arguments: Arc::default(),
            alone: false,
            adopts: Adopts::SamePlaces,
            events: Events::default(),
        };
        let (mut keeper, requests, _facts) = Keeper::new(mount.clone(), plan, None);
        keeper.checking = Some(tokio::spawn(std::future::pending()));
        let other = Arc::new(Mount::new("a", "/srv/answers", "/mnt/a"));
        for request in [Request::Reconfigure(mount.clone()), Request::Reconfigure(other)] {
            requests.send(request).await.unwrap();
        }
        let checked = timeout(CHECK / 2, keeper.check(&mount)).await.expect("at once");
        assert_eq!(checked, Err(End::Superseded));
        assert!(keeper.checking.is_none(), "the other one is looked at afresh");
    }
}
