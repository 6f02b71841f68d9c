//! A daemon's life: listen, keep each mount, answer, reload, stop.

use std::error::Error;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use nix::sys::signal::{SIGCHLD, SIGHUP, SIGINT, SIGTERM, SigSet};
use parking_lot::RwLock;
use sd_notify::NotifyState;
use tokio::net::UnixListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;

use super::facts::{End, Facts, Phase};
use super::keeper::{Adopts, Keeper, Plan};
use super::leftover::Ended;
use super::listeners::Listeners;
use super::lost::watch_for_lost;
use super::mirror::{self, Mirror};
use super::mount::Request;
use super::pilot::{Controls, Pilot};
use super::prober::Prober;
use super::status::{Handle, Mounts};
use super::{Own, Refusal, leftover, mount, preflight, process};
use crate::api::events::{Event, ReloadOutcome};
use crate::api::socket::{self, Listening};
use crate::api::{self, Control};
use crate::config::{self, Effect, Loaded, Mount, Settings};
use crate::rollout::{MachineId, Store};

/// For a look at the paths of all mounts.
const CHECK: Duration = Duration::from_secs(5);

/// Between two looks at what systemd is to be told.
const LOOKS: Duration = Duration::from_secs(1);
/// For the configuration to be read again.
const READING: Duration = Duration::from_secs(5);

/// How to take a new configuration.
pub struct Reload {
    /// The file.
    pub configuration: PathBuf,
    /// Reads it again. The message of an error says all that is wrong with it. May hang with the file's file system.
    pub load: Arc<dyn Fn() -> Result<Loaded, String> + Send + Sync>,
    /// Changes what is logged from now on.
    pub set_level: Box<dyn Fn(&str) + Send + Sync>,
}

/// What a daemon is to do.
pub struct Options {
    /// What is configured.
    pub settings: Settings,
    /// Whether its one mount is all that it is for: what fails at the start ends it, and so does an unmount by others.
    pub alone: bool,
    /// Whether the mounts end with it, however it ends. Else their servers wait for the next daemon when it is killed.
    pub mounts_end_too: bool,
    /// Takes a new configuration; without it SIGHUP is a hang-up, and stops, unless there is a token to be read again.
    pub reload: Option<Reload>,
    /// Options of the program that its servers get too: those of the log.
    pub server_arguments: fn(&config::Daemon) -> Vec<String>,
}

impl Options {
    /// What the daemon needs while it serves.
    fn own(&self) -> Vec<Own> {
        own(&self.settings, self.reload.as_ref())
    }
}

fn own(settings: &Settings, reload: Option<&Reload>) -> Vec<Own> {
    let mut own = Own::of_this_process();
    own.push(Own::socket(&settings.daemon.socket));
    own.push(Own::state(&settings.daemon.state_dir));
    own.extend(settings.api.token_file.as_ref().map(Own::token));
    own.extend(reload.map(|reload| Own::configuration(&reload.configuration)));
    own
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

/// Runs a daemon until it is told to stop, or, if it is for one mount alone, that is gone. To be called by a process that
/// has one thread, besides the log's, and has opened nothing yet.
///
/// # Errors
/// When it cannot begin; for one mount alone also when that fails.
pub fn run(options: Options) -> Result<(), Failure> {
    socket::check_length(&options.settings.daemon.socket).map_err(Failure::Configuration)?;
    // Whoever has started this process may have left them blocked.
    SigSet::from_iter([SIGTERM, SIGINT, SIGHUP, SIGCHLD]).thread_unblock().map_err(other)?;
    let device = match (&options.settings.mounts[..], options.alone) {
        ([mount], true) => process::device(&mount.mountpoint).map_err(other)?,
        _ => None,
    };
    if let ([mount], true) = (&options.settings.mounts[..], options.alone) {
        check_alone(mount, device.is_some(), &options)?;
    }
    if !options.alone {
        check_together(&options.settings, options.own())?;
    }
    let daemon = &options.settings.daemon;
    let mut listening = socket::listen(&daemon.socket, daemon.socket_group.as_deref()).map_err(other)?;
    let servers = socket::servers(&daemon.socket);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(other)?;
    let end = runtime.block_on(async {
        let mut life = Life::new(options);
        life.live(device, &mut listening).await
    });
    // Not waiting for a helper that hangs on a dead mount: its deadline has passed.
    runtime.shutdown_background();
    // Not empty if a server was left for the next daemon.
    if let Err(error) = std::fs::remove_dir(&servers) {
        tracing::debug!(%error, "the folder of the servers' sockets stays");
    }
    end
}

/// What is wrong with the only mount is said before anything is made, unless a server of it is to be adopted.
fn check_alone(mount: &Mount, is_given: bool, options: &Options) -> Result<(), Failure> {
    if is_given {
        return Ok(preflight::check_source(&mount.source)?);
    }
    if socket::server(&options.settings.daemon.socket, &mount.name).symlink_metadata().is_ok() {
        return Ok(());
    }
    preflight::check(mount, &options.own())?;
    Ok(())
}

/// What is wrong in itself with the mounts of a file once links are followed. Everything else is the keepers' to say.
fn check_together(settings: &Settings, own: Vec<Own>) -> Result<(), Failure> {
    let mounts = settings.mounts.clone();
    let (tell, told) = mpsc::channel();
    // A path may lead through a file system that hangs; then the keeper of that mount will say so.
    std::thread::Builder::new()
        .name("preflight".into())
        .spawn(move || drop(tell.send(preflight::check_all(&mounts, &own))))
        .map_err(other)?;
    let Ok(Err(refused)) = told.recv_timeout(CHECK) else { return Ok(()) };
    let wrong: Vec<_> = refused
        .into_iter()
        .filter_map(|(name, refusal)| match refusal {
            Refusal::Configuration(why) => Some(format!("mount {name:?}: {why}")),
            Refusal::World(_) => None,
        })
        .collect();
    if wrong.is_empty() { Ok(()) } else { Err(Failure::Configuration(wrong.join("\n"))) }
}

/// What may mean a reload.
const HANG_UP: &str = "SIGHUP";

/// What a daemon heeds.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: signal(SignalKind::hangup())?,
        })
    }

    /// The name of the next one.
    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
            _ = self.hang_up.recv() => HANG_UP,
        }
    }
}

/// How far a stop has got.
#[derive(Clone, Copy)]
enum Stop {
    Begun,
    Over,
}

struct Life {
    options: Options,
    server_arguments: Arc<RwLock<Vec<String>>>,
    /// Whether readiness was announced.
    is_ready: Arc<AtomicBool>,
    mounts: Mounts,
    keepers: JoinSet<(String, End)>,
    /// Their shadow mounts.
    mirrors: JoinSet<()>,
    /// Once they are started.
    listeners: Option<Listeners>,
    /// A look at the configuration that has not come back.
    reading: Option<JoinHandle<Result<Loaded, String>>>,
    /// What tells systemd how it goes, until the stop.
    announcing: Option<JoinHandle<()>>,
}

impl Life {
    fn new(options: Options) -> Self {
        let daemon = &options.settings.daemon;
        let server_arguments = Arc::new(RwLock::new((options.server_arguments)(daemon)));
        let mounts = Mounts::new(daemon.socket_group.is_some());
        Self {
            options,
            server_arguments,
            is_ready: Arc::default(),
            mounts,
            keepers: JoinSet::new(),
            mirrors: JoinSet::new(),
            listeners: None,
            reading: None,
            announcing: None,
        }
    }

    async fn live(&mut self, device: Option<std::os::fd::OwnedFd>, listening: &mut Listening) -> Result<(), Failure> {
        if !self.options.mounts_end_too {
            let folder = socket::servers(&self.options.settings.daemon.socket);
            socket::make_private(&folder).map_err(other)?;
            self.note_stop(Stop::Over);
            // Whoever serves one directory by hand does not speak for what a service has left there.
            if !self.options.alone {
                self.end_strangers(folder);
            }
        }
        let mut handles = Vec::new();
        let mut device = device;
        for mount in self.options.settings.mounts.clone() {
            handles.push(self.keep(mount, device.take()));
        }
        self.mounts.set(handles);
        let (stop_api, api) = start_api(listening, self.mounts.clone())?;
        self.listeners = Some(Listeners::start(&self.options.settings.api, &self.mounts));
        let announcing = announce(self.mounts.clone(), self.options.alone, self.is_ready.clone());
        self.announcing = Some(tokio::spawn(announcing));
        tokio::spawn(feed_watchdog());
        let end = self.heed_signals().await;
        self.end_mirrors().await;
        // A client has a moment to read its answer.
        drop(stop_api);
        let stop_listeners = async {
            if let Some(listeners) = self.listeners.take() {
                listeners.stop().await;
            }
        };
        let (answered, ()) = tokio::join!(api, stop_listeners);
        answered.map_err(other)?;
        end
    }

    /// Starts a keeper.
    fn keep(&mut self, mount: Mount, device: Option<std::os::fd::OwnedFd>) -> Handle {
        let socket = self.options.settings.daemon.socket.clone();
        // Nobody could hand the same descriptor to the next daemon.
        let is_left = !self.options.mounts_end_too && device.is_none();
        let (happened, heard) = tokio::sync::mpsc::unbounded_channel();
        let plan = Plan {
            happened,
            meeting: is_left.then(|| socket::server(&socket, &mount.name)),
            own: self.options.own().into(),
            events: self.mounts.events(),
            server_arguments: self.server_arguments.clone(),
            alone: self.options.alone,
            adopts: Adopts::SamePlaces,
        };
        let name = mount.name.clone();
        let daemon = &self.options.settings.daemon;
        // Daemons without a file share a folder, and their mounts often a name.
        let kept_as = if self.options.alone { mount.place().display().to_string() } else { name.clone() };
        let store = Store::new(&daemon.state_dir, &kept_as);
        let machine = MachineId::of(daemon);
        let own = plan.own.clone();
        let (keeper, requests, facts) = Keeper::new(Arc::new(mount), plan, device);
        watch_for_lost(facts.clone(), requests.clone());
        let prober = Prober::start(facts.clone());
        let pilot = Pilot::start(Controls {
            store,
            machine,
            facts: facts.clone(),
            prober: prober.clone(),
            happened: heard,
            requests: requests.clone(),
            events: self.mounts.events(),
        });
        self.keepers.spawn(async { (name, keeper.run().await) });
        let controls = mirror::Controls {
            facts: facts.clone(),
            socket: (!self.options.mounts_end_too).then_some(socket),
            own,
            server_arguments: self.server_arguments.clone(),
        };
        let mirror = Mirror::start(controls, &mut self.mirrors);
        Handle { prober, facts, requests, pilot, mirror }
    }

    /// Servers that an earlier daemon has left and nobody wants any more.
    fn end_strangers(&self, folder: PathBuf) {
        let mounts = self.options.settings.mounts.iter();
        let wanted: Vec<_> = mounts
            .flat_map(|mount| [Some(mount.name.clone()), mount.shadow().map(|shadow| shadow.name)])
            .flatten()
            .collect();
        tokio::task::spawn_blocking(move || {
            for (name, result) in leftover::end(&folder, |name| !wanted.iter().any(|wanted| wanted == name)) {
                match result {
                    Ok(Ended::ObeysAnother) => {
                        tracing::warn!(
                            mount = name,
                            "it is not configured here, but another daemon gives its server orders: left alone"
                        );
                    }
                    Ok(_) => {
                        tracing::warn!(mount = name, "it is no longer configured, but was still served: unmounted");
                    }
                    Err(error) => {
                        tracing::error!(mount = name, %error, "it is no longer configured, and its server does not end");
                    }
                }
            }
        });
    }

    async fn heed_signals(&mut self) -> Result<(), Failure> {
        let mut signals = Signals::new().map_err(other)?;
        loop {
            let name = tokio::select! {
                name = signals.next() => name,
                Some(ended) = self.keepers.join_next() => {
                    if let Some(end) = self.bury(ended)? {
                        return end;
                    }
                    continue;
                }
            };
            if name == HANG_UP && self.options.reload.is_some() {
                self.reload().await;
                continue;
            }
            // A token is renewed as one of a file's daemon is; whoever has one has not started this by hand in a terminal.
            if name == HANG_UP
                && self.options.settings.api.token_file.is_some()
                && let Some(listeners) = &self.listeners
            {
                listeners.reconfigure(self.options.settings.api.clone());
                tracing::info!(
                    "SIGHUP: the token file is read again; without a configuration file nothing else can change"
                );
                continue;
            }
            tracing::info!("{name}: unmounting");
            return self.stop(&mut signals).await;
        }
    }

    /// A keeper has ended by itself. What that means for the daemon, if anything.
    fn bury(
        &self,
        ended: Result<(String, End), tokio::task::JoinError>,
    ) -> Result<Option<Result<(), Failure>>, Failure> {
        let (mount, end) = match ended {
            Ok(ended) => ended,
            Err(error) if self.options.alone => return Err(other(error)),
            // Its bug is no reason to give up the others.
            Err(error) => {
                tracing::error!(%error, "the keeper of a mount has failed; SIGHUP starts another");
                return Ok(None);
            }
        };
        if !self.options.alone {
            tracing::info!(mount, "no longer served");
            return Ok(None);
        }
        Ok(Some(match end {
            End::Stopped | End::Superseded => Ok(()),
            End::Unmounted => {
                tracing::info!(mount, "somebody else has unmounted it; nothing is left to serve");
                Ok(())
            }
            End::Refused(why) => Err(Failure::Configuration(why)),
            End::Failed(why) => Err(Failure::Other(why)),
            End::Died(why) | End::Forced(why) => Err(Failure::Other(format!("mount {mount:?}: {why}"))),
        }))
    }

    /// Unmounts all, side by side. A mount that had to be taken away by force has stopped all the same.
    async fn stop(&mut self, signals: &mut Signals) -> Result<(), Failure> {
        if let Some(announcing) = self.announcing.take() {
            announcing.abort();
        }
        tell_systemd(&[NotifyState::Stopping, NotifyState::Status("unmounting")]);
        self.note_stop(Stop::Begun);
        let mounts = self.mounts.all();
        // Whoever still compares would keep them busy.
        join_all(mounts.iter().map(|handle| handle.mirror.stop())).await;
        for handle in mounts {
            // One that has ended by itself at the same moment takes no more requests.
            let _ = handle.requests.send(Request::Stop).await;
        }
        let began = Instant::now();
        let mut failures = Vec::new();
        loop {
            let ended = tokio::select! {
                ended = self.keepers.join_next() => match ended {
                    Some(ended) => ended,
                    None => break,
                },
                name = signals.next() => {
                    self.say_what_stops(name, began);
                    continue;
                }
            };
            let (mount, end) = ended.map_err(other)?;
            if let End::Died(why) | End::Forced(why) = end {
                failures.push(format!("mount {mount:?}: not unmounted in order: {why}"));
            }
        }
        self.end_mirrors().await;
        if !failures.is_empty() {
            return Err(Failure::Other(failures.join("; ")));
        }
        self.note_stop(Stop::Over);
        Ok(())
    }

    /// Has the shadow mounts unmounted. Their servers have deadlines.
    async fn end_mirrors(&mut self) {
        join_all(self.mounts.all().iter().map(|handle| handle.mirror.stop())).await;
        while self.mirrors.join_next().await.is_some() {}
    }

    /// For somebody who is impatient.
    fn say_what_stops(&self, signal: &str, began: Instant) {
        let facts = self.mounts.all().into_iter().map(|handle| handle.facts.borrow().clone());
        let waited_for: Vec<_> = facts.filter(|facts| !matches!(facts.phase, Phase::Ended(_))).collect();
        let limit = waited_for.iter().map(|facts| mount::stop_limit(&facts.mount.deadlines)).max().unwrap_or_default();
        let names: Vec<_> = waited_for.iter().map(|facts| facts.mount.name.as_str()).collect();
        tracing::warn!(
            "{signal}: still unmounting {}, for {} s at most, then what is in use is detached; SIGKILL would end this process alone, and each server goes on with its unmount",
            names.join(", "),
            limit.saturating_sub(began.elapsed()).as_secs()
        );
    }

    /// Lets `end-servers --after-stop` know a stop that fails from a crash: systemd calls both by the same name.
    fn note_stop(&self, stop: Stop) {
        let path = socket::stopping(&self.options.settings.daemon.socket);
        let noted = match stop {
            _ if self.options.mounts_end_too => Ok(()),
            Stop::Begun => std::fs::write(&path, ""),
            Stop::Over => std::fs::remove_file(&path),
        };
        if let Err(error) =
            noted.or_else(|error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) })
        {
            tracing::warn!(path = %path.display(), %error, "that the daemon stops cannot be noted");
        }
    }

    /// Takes a new configuration, as far as that goes without a restart. A bad one changes nothing.
    async fn reload(&mut self) {
        match NotifyState::monotonic_usec_now() {
            Ok(now) => tell_systemd(&[NotifyState::Reloading, now]),
            Err(error) => tracing::debug!(%error, "no clock"),
        }
        let checked = self.read_again().await;
        self.mounts.note_reload(checked.is_ok());
        let refused = checked.as_ref().err().map(|why| {
            // The whole of it is in the log.
            let first = why.lines().next().unwrap_or_default();
            format!("the last reload (SIGHUP) was refused, and nothing has changed: {first}")
        });
        self.mounts.set_reason("configuration", refused);
        let (outcome, reason) = match checked {
            Ok(loaded) => {
                if let Some(reload) = &self.options.reload {
                    (reload.set_level)(&loaded.settings.daemon.log_level);
                }
                for warning in loaded.warnings {
                    tracing::warn!("{warning}");
                }
                self.take(loaded.settings);
                (ReloadOutcome::Accepted, None)
            }
            Err(why) => {
                tracing::error!("SIGHUP: the configuration is not good, and nothing has changed: {why}");
                (ReloadOutcome::Refused, Some(why))
            }
        };
        self.mounts.events().publish(Event::Reload { outcome, reason });
        // At the start, when that is over.
        if self.is_ready.load(Relaxed) {
            tell_systemd(&[NotifyState::Ready]);
        }
    }

    /// Reads the configuration again, and checks it. On a thread of its own, because its file system may hang; and as long as
    /// that does, not on another one.
    async fn read_again(&mut self) -> Result<Loaded, String> {
        let Some(reload) = &self.options.reload else { return Err("there is no file".into()) };
        let hangs =
            |what: &str| format!("{} {what}: see whether its file system hangs", reload.configuration.display());
        if self.reading.as_ref().is_some_and(|reading| !reading.is_finished()) {
            return Err(hangs("is still being read for an earlier reload"));
        }
        let load = reload.load.clone();
        let reading = self.reading.insert(tokio::task::spawn_blocking(move || load()));
        let read = timeout(READING, reading).await;
        let loaded = read.map_err(|_| hangs(&format!("was not read within {READING:?}")))?;
        self.reading = None;
        let loaded = loaded.map_err(|error| error.to_string())??;
        let own = own(&loaded.settings, Some(reload));
        let check = tokio::task::spawn_blocking(move || check_together(&loaded.settings, own).map(|()| loaded)).await;
        check.map_err(other).and_then(|checked| checked).map_err(|error| error.to_string())
    }

    /// What holds now: of a mount that is served, what its server was started with, but for what could change since. The last
    /// file may have asked for more.
    fn in_force(&self) -> Settings {
        let handles = self.mounts.all();
        let mut settings = self.options.settings.clone();
        for mount in &mut settings.mounts {
            let served = handles.iter().find(|handle| handle.name() == mount.name).map(|handle| handle.facts.borrow());
            if let Some(facts) = served.filter(|facts| facts.greeting.is_some()) {
                let shadow_mountpoint = facts.wanted.shadow_mountpoint.clone();
                let Mount { backend, deadlines, fallback, rollout, guard, .. } = mount.clone();
                *mount = Mount {
                    backend,
                    deadlines,
                    fallback,
                    rollout,
                    guard,
                    shadow_mountpoint,
                    ..(*facts.started_as).clone()
                };
            }
        }
        settings
    }

    fn take(&mut self, settings: Settings) {
        let changes = config::changes(&self.in_force(), &settings);
        for change in changes.values {
            let mount = change.mount.as_deref();
            match change.effect {
                Effect::Live => tracing::info!(mount, "{}: {} instead of {}", change.key, change.to, change.from),
                Effect::Remount => tracing::warn!(
                    mount,
                    "{}: {} instead of {} counts when this mount is mounted again",
                    change.key,
                    change.to,
                    change.from
                ),
                Effect::Restart => tracing::warn!(
                    "{}: {} instead of {} needs a restart of the daemon",
                    change.key,
                    change.to,
                    change.from
                ),
            }
        }
        let old = std::mem::replace(&mut self.options.settings, settings);
        let daemon = &mut self.options.settings.daemon;
        daemon.socket.clone_from(&old.daemon.socket);
        daemon.socket_group.clone_from(&old.daemon.socket_group);
        daemon.log_format = old.daemon.log_format;
        let new_level = (daemon.log_level != old.daemon.log_level).then(|| daemon.log_level.clone());
        *self.server_arguments.write() = (self.options.server_arguments)(daemon);
        let mut known = self.mounts.all();
        let mut handles = Vec::new();
        for mount in self.options.settings.mounts.clone() {
            // One that was removed before and has ended takes no more requests.
            let found = known.iter().position(|handle| handle.name() == mount.name && !handle.requests.is_closed());
            let Some(index) = found else {
                tracing::info!(mount = mount.name, "new in the configuration: mounting");
                handles.push(self.keep(mount, None));
                continue;
            };
            let handle = known.swap_remove(index);
            if let Some(level) = &new_level {
                handle.mirror.set_log_level(level.clone());
            }
            let requests = [Some(Request::Reconfigure(Arc::new(mount))), new_level.clone().map(Request::LogLevel)];
            let keeper = handle.requests.clone();
            // One that is busy takes them later, in the order of the reloads.
            tokio::spawn(async move {
                for request in requests.into_iter().flatten() {
                    // It has ended: then it is wanted no more.
                    let _ = keeper.send(request).await;
                }
            });
            handles.push(handle);
        }
        for gone in known {
            tracing::info!(mount = gone.name(), "no longer in the configuration: unmounting");
            tokio::spawn(async move {
                gone.mirror.stop().await;
                drop(gone.requests.send(Request::Stop).await);
            });
        }
        self.mounts.set(handles);
        if let Some(listeners) = &self.listeners {
            listeners.reconfigure(self.options.settings.api.clone());
        }
        tracing::info!(mounts = self.options.settings.mounts.len(), "SIGHUP: the configuration was read again");
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
            tracing::error!(%error, "the control socket failed; the mounts are served on");
        }
    });
    Ok((stop, api))
}

/// Says that the daemon is ready, on standard output and to systemd, when every mount is served or has failed; and from then
/// on tells systemd what has changed.
async fn announce(mounts: Mounts, alone: bool, is_ready: Arc<AtomicBool>) {
    for Handle { mut facts, prober, .. } in mounts.all() {
        let settled =
            |facts: &Facts| facts.greeting.is_some() || matches!(facts.phase, Phase::Ended(_) | Phase::Waiting(_));
        if facts.wait_for(settled).await.is_ok_and(|facts| facts.greeting.is_some()) {
            // Served is what answers; or what does not, and is reported.
            prober.first_answer().await;
        }
    }
    let mut line = summary(&mounts);
    if alone && line.served == 0 {
        // The only one, and the daemon ends with it.
        return;
    }
    tracing::debug!("{}", line.text);
    if let Err(error) = writeln!(io::stdout(), "{}", line.text) {
        tracing::debug!(%error, "nobody reads the ready line");
    }
    is_ready.store(true, Relaxed);
    tell_systemd(&[NotifyState::Ready, NotifyState::Status(&line.text)]);
    let mut looks = tokio::time::interval(LOOKS);
    loop {
        looks.tick().await;
        let now = summary(&mounts);
        if now != line {
            tell_systemd(&[NotifyState::Status(&now.text)]);
            line = now;
        }
    }
}

/// What is served, in a line.
#[derive(PartialEq, Eq)]
struct Summary {
    served: usize,
    text: String,
}

fn summary(mounts: &Mounts) -> Summary {
    let all = mounts.all();
    let served: Vec<_> = all
        .iter()
        .filter_map(|handle| {
            let facts = handle.facts.borrow();
            let is_served = !matches!(facts.phase, Phase::Detached { .. } | Phase::Ended(_));
            let greeting = facts.greeting.as_ref().filter(|_| is_served)?;
            Some(format!(
                "{} at {} by {} ({}, protocol 7.{})",
                printable(&facts.mount.source),
                printable(&facts.mount.mountpoint),
                greeting.active,
                greeting.helper,
                greeting.protocol_minor
            ))
        })
        .collect();
    let text = match &served[..] {
        [one] if all.len() == 1 => format!("serving {one}"),
        _ => format!("serving {} of {} mounts", served.len(), all.len()),
    };
    Summary { served: served.len(), text }
}

/// Without what a terminal would obey, or systemd would take for another message.
fn printable(path: &Path) -> String {
    path.display().to_string().replace(char::is_control, "\u{fffd}")
}

/// Tells systemd, if that is who has started the daemon (`sd_notify(3)`).
fn tell_systemd(state: &[NotifyState<'_>]) {
    match sd_notify::notify(state) {
        // mount(8)'s helper, which wanted to know of the start alone.
        Err(error) if error.kind() == io::ErrorKind::NotFound => tracing::debug!("nobody is there to be told"),
        Err(error) => tracing::warn!(%error, "systemd cannot be told"),
        Ok(()) => {}
    }
}

/// Shows systemd's watchdog that this loop turns. Never that a mount answers: a hung mount is no reason to end the others.
async fn feed_watchdog() {
    let Some(limit) = sd_notify::watchdog_enabled() else { return };
    let mut turns = tokio::time::interval(limit / 3);
    loop {
        turns.tick().await;
        tell_systemd(&[NotifyState::Watchdog]);
    }
}
