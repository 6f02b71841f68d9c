//! The process that compares, pass by pass: as the prober it may hang, and is never waited for.

use std::convert::Infallible;
use std::io;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, ChildStdout, Command};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};
use tokio::time::{sleep, timeout};

use super::Report;
use crate::config::Cache;
use crate::connection::mountinfo;
use crate::daemon::facts::{Facts, Phase};
use crate::ledger::Ledger;
use crate::mirror::Said;

/// Processes: one that compares, and one that is stuck.
pub(super) const ROOM: usize = 2;
/// Between two passes, at least; a pass that takes longer is followed by a pause as long as itself.
const PAUSE: Duration = Duration::from_secs(5);
/// What the kernel may know longer than it may: it counts in ticks.
const MARGIN: Duration = Duration::from_millis(200);
/// Beyond the mount's deadline for an answer: a few looks are between two lines.
const SLACK: Duration = Duration::from_secs(5);

/// Compares whenever both mounts are served.
pub(super) struct Comparer {
    pub mount: watch::Receiver<Facts>,
    pub shadow: watch::Receiver<Facts>,
    pub report: Arc<Mutex<Report>>,
    /// A permit for each process that may exist, alive or stuck.
    pub room: Arc<Semaphore>,
}

/// The process that serves a mount, if it is served.
fn server(facts: &Facts) -> Option<u32> {
    let is_served = matches!(facts.phase, Phase::Serving | Phase::Switching);
    facts.server.as_ref().map(|(pid, _)| *pid).filter(|_| is_served)
}

/// Waits until a mount is served; `None` if nobody will.
async fn begun(facts: &mut watch::Receiver<Facts>) -> Option<Facts> {
    facts.wait_for(|facts| server(facts).is_some()).await.map(|facts| facts.clone()).ok()
}

/// Why it does not compare while a candidate has a share of the mount's operations. The candidate would be compared with itself, and
/// what a comparer asks would count as evidence for it, where no program has asked for anything.
const SHARES: &str = "the candidate serves in the mount itself";
/// Between two looks whether it does.
const LOOK: Duration = Duration::from_millis(500);

/// Whether the backend of the shadow mount serves in the mount as well.
fn has_share(mount: &Facts, shadow: &Facts) -> bool {
    mount.server.as_ref().is_some_and(|(_, ledger)| ledger.weight(shadow.mount.stable()) > 0)
}

/// Waits until that is so, or is not.
async fn until_share(mount: &Facts, shadow: &Facts, is_wanted: bool) {
    while has_share(mount, shadow) != is_wanted {
        sleep(LOOK).await;
    }
}

/// Before a difference is looked at again: as long as the kernel may keep an answer, and a little more.
fn patience(cache: &Cache) -> Duration {
    cache.attributes.max(cache.entries).max(cache.negative) + MARGIN
}

impl Comparer {
    /// Until it is dropped, and its process with it.
    pub async fn compare_on(mut self) -> Infallible {
        loop {
            let (Some(mount), Some(shadow)) = (begun(&mut self.mount).await, begun(&mut self.shadow).await) else {
                // Whoever watches the two ends this.
                return std::future::pending().await;
            };
            let (mut at_mount, mut at_shadow) = (self.mount.clone(), self.shadow.clone());
            if has_share(&mount, &shadow) {
                self.pause(SHARES);
            }
            until_share(&mount, &shadow, false).await;
            tokio::select! {
                never = self.pass_after_pass(&mount, &shadow) => match never {},
                () = until_share(&mount, &shadow, true) => self.pause(SHARES),
                _ = at_mount.wait_for(|facts| server(facts) != server(&mount)) => self.pause("the mount is not served"),
                _ = at_shadow.wait_for(|facts| server(facts) != server(&shadow)) => {
                    self.pause("the shadow mount is not served");
                }
            }
        }
    }

    async fn pass_after_pass(&self, mount: &Facts, shadow: &Facts) -> Infallible {
        loop {
            let began = Instant::now();
            if let Err(why) = self.pass(mount, shadow).await {
                tracing::warn!(mount = mount.mount.name, why, "the comparison of mount and shadow mount has stopped");
                self.pause(&why);
            }
            sleep(PAUSE.max(began.elapsed())).await;
        }
    }

    fn pause(&self, why: &str) {
        self.report.lock().paused = Some(why.into());
    }

    /// One pass, by a process of its own.
    async fn pass(&self, mount: &Facts, shadow: &Facts) -> Result<(), String> {
        let sides = [mount, shadow].map(|facts| facts.mount.place().to_path_buf());
        let [on_mount, on_shadow] = &sides;
        if on_mount.starts_with("/dev/fd") {
            return Err("where the mount is, is not known: say it with --mounted-at".into());
        }
        let table = mountinfo::read().map_err(|error| format!("/proc/self/mountinfo cannot be read: {error}"))?;
        let device = |place| {
            let found = mountinfo::at(&table, place).filter(|mounted| mounted.is_fuse());
            found.map(|mounted| mounted.device).ok_or_else(|| super::super::prober::misplaced(place))
        };
        let devices = (device(on_mount)?, device(on_shadow)?);
        // Two that are stuck are enough.
        let permit = self.room.clone().acquire_owned().await.map_err(|error| error.to_string())?;
        let patience = patience(&mount.mount.cache).max(patience(&shadow.mount.cache));
        let started = Process::start(&sides, devices, patience, permit);
        let mut process = started.map_err(|error| format!("the comparer does not run: {error}"))?;
        let limit = mount.mount.deadlines.probe.max(shadow.mount.deadlines.probe) + SLACK;
        loop {
            let line = timeout(limit, process.lines.recv()).await;
            let line =
                line.map_err(|_| format!("the comparer has said nothing for {limit:?}: a mount hangs, or its source"))?;
            let line = line.ok_or("the comparer has ended early; see the log")?;
            match serde_json::from_str(&line)
                .map_err(|error| format!("the comparer says what means nothing: {error}"))?
            {
                Said::Counted { counts, unsteady } => {
                    let mut report = self.report.lock();
                    report.paused = None;
                    report.unsteady += unsteady;
                    for (operation, counted) in counts {
                        report.count(operation, counted);
                        if let Some(ledger) = self.mount.borrow().counted.as_ref() {
                            note(ledger, operation, counted);
                        }
                    }
                }
                Said::Differs(example) => {
                    if self.report.lock().keep(example.clone()) {
                        tracing::warn!(
                            mount = mount.mount.name,
                            operation = example.operation.name(),
                            path = example.path,
                            field = example.field,
                            says = example.mount,
                            shadow_says = example.shadow,
                            "the candidate answers something else in the shadow mount"
                        );
                    }
                }
                Said::Over { is_whole } => {
                    let mut report = self.report.lock();
                    report.passes += 1;
                    report.whole_passes += u64::from(is_whole);
                    report.last_pass = Some(SystemTime::now());
                    return Ok(());
                }
                Said::Stopped { why } => return Err(why),
            }
        }
    }
}

/// Adds to what the guard and the metrics read.
fn note(ledger: &Ledger, operation: crate::ledger::Operation, counted: crate::ledger::Compared) {
    let comparisons = ledger.comparisons();
    for number in 0..counted.compared {
        comparisons.compared(operation, number < counted.diverged);
    }
    for _ in 0..counted.dropped {
        comparisons.dropped(operation);
    }
}

/// A running comparer. Dropping it kills it, without waiting until it is gone.
struct Process {
    lines: mpsc::Receiver<String>,
    _grip: oneshot::Sender<Infallible>,
}

impl Process {
    /// Starts one that takes up `room` until it is gone, and whoever looks into the shadow mount for it.
    fn start(
        [mount, shadow]: &[PathBuf; 2],
        ((major, minor), (shadow_major, shadow_minor)): ((u32, u32), (u32, u32)),
        patience: Duration,
        room: OwnedSemaphorePermit,
    ) -> io::Result<Self> {
        let mut child = Command::new("/proc/self/exe")
            .arg0("lighthouse-fs")
            .args(["compare", "--device", &format!("{major}:{minor}"), "--mountpoint"])
            .arg(mount)
            .args(["--shadow-device", &format!("{shadow_major}:{shadow_minor}"), "--shadow-mountpoint"])
            .arg(shadow)
            .args(["--patience", &humantime::format_duration(patience).to_string()])
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            // What a terminal sends to the daemon (Ctrl-C) is not for it.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()?;
        let output = child.stdout.take().ok_or_else(|| io::Error::other("it was started without a pipe"))?;
        let (grip, let_go) = oneshot::channel();
        let (tell, lines) = mpsc::channel(64);
        tokio::spawn(see_off(child, output, tell, let_go, room));
        Ok(Self { lines, _grip: grip })
    }
}

/// Passes lines on, and waits until nobody has the pipe any more; kills the process when nobody holds it.
async fn see_off(
    mut child: Child,
    output: ChildStdout,
    tell: mpsc::Sender<String>,
    let_go: oneshot::Receiver<Infallible>,
    room: OwnedSemaphorePermit,
) {
    let mut lines = BufReader::new(output).lines();
    let read = async {
        // A line that nobody takes any more is none.
        while let Ok(Some(line)) = lines.next_line().await {
            let _ = tell.send(line).await;
        }
    };
    let is_over = tokio::select! {
        () = read => true,
        _ = let_go => false,
    };
    let gone = if is_over { child.wait().await.map(drop) } else { child.kill().await };
    if let Err(error) = gone {
        tracing::error!(%error, "a comparer cannot be watched");
    }
    // Whoever looks into the shadow mount for it may outlive it, in the kernel.
    while let Ok(Some(_)) = lines.next_line().await {}
    drop(room);
}
