//! Requests that a backend has read and will never answer.
//!
//! The kernel's count of unanswered requests then stays above what is in handlers. Under load it does so all the time,
//! because of what is queued; so that is a suspicion only, and the server looks: for a moment it reads nothing, and what the
//! kernel still waits for then, and sends again when asked (Linux 6.9), was lost. Older kernels cannot be asked; there it
//! counts as lost what stays above while nothing at all is answered.

use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::facts::{Facts, Phase};
use super::mount::Request;
use crate::config::Backend;
use crate::connection::{fusectl, mountinfo};
use crate::ledger::Ledger;

/// Between two looks.
const TICK: Duration = Duration::from_millis(250);
/// So many looks in a row make a suspicion: a second.
const LOOKS: u32 = 4;
/// After a suspicion that was wrong; doubled with each.
const SHORTEST_REST: Duration = Duration::from_secs(5);
const LONGEST_REST: Duration = Duration::from_secs(300);
/// What is in a handler for so long holds up a look at what else there is.
const SLOW: Duration = Duration::from_millis(20);
/// Minor version of the protocol since which the kernel can be asked to send requests again.
const RESEND: u32 = 40;

/// Watches one mount as long as its keeper lives. Needs a runtime.
pub(super) fn watch_for_lost(facts: watch::Receiver<Facts>, requests: mpsc::Sender<Request>) {
    tokio::spawn(follow(facts, requests));
}

async fn follow(mut facts: watch::Receiver<Facts>, requests: mpsc::Sender<Request>) {
    loop {
        let is_served = |facts: &Facts| facts.phase == Phase::Serving && facts.server.is_some();
        let Ok(begun) = facts.wait_for(is_served).await.map(|facts| facts.clone()) else { return };
        let server = begun.server.as_ref().map(|(pid, _)| *pid);
        let is_over = |facts: &Facts| facts.server.as_ref().map(|(pid, _)| *pid) != server;
        tokio::select! {
            () = look_on(&begun, &facts, &requests) => {}
            over = { let mut facts = facts.clone(); async move { facts.wait_for(is_over).await.map(drop) } } => {
                if over.is_err() {
                    return;
                }
            }
        }
        if facts.wait_for(is_over).await.is_err() {
            return;
        }
    }
}

/// Looks at one server. Ends when there is nothing to look at.
async fn look_on(begun: &Facts, facts: &watch::Receiver<Facts>, requests: &mpsc::Sender<Request>) {
    let (Some(ledger), Some(greeting)) = (&begun.counted, &begun.greeting) else { return };
    let Some(device) = device_of(begun) else { return };
    if fusectl::waiting(device).is_none() {
        return tracing::debug!(
            mount = begun.mount.name,
            "/sys/fs/fuse/connections cannot be read here: lost requests are not looked for"
        );
    }
    let mut watch = Watch::new(greeting.protocol_minor >= RESEND, begun.mount.io.threads);
    let mut told = Backend::ALL.map(|backend| ledger.lost(backend));
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        // Also what a session that has ended by itself has left behind.
        for backend in Backend::ALL {
            let lost = ledger.lost(backend);
            let count = lost.saturating_sub(std::mem::replace(&mut told[backend.index()], lost));
            if watch.can_ask && count > 0 {
                tracing::warn!(mount = begun.mount.name, %backend, count, "requests were read and not answered: the kernel has sent them again");
            }
        }
        let Some(waiting) = fusectl::waiting(device) else { return };
        if facts.borrow().phase != Phase::Serving {
            watch.forget();
            continue;
        }
        match watch.look(&watch.now(waiting, ledger)) {
            Verdict::Nothing => {}
            Verdict::Suspicion => {
                tracing::debug!(mount = begun.mount.name, waiting, "requests may be lost; the server looks");
                if requests.send(Request::RecoverLost).await.is_err() {
                    return;
                }
            }
            Verdict::Lost(count) => {
                let Some(backend) = ledger.active() else { continue };
                tracing::error!(mount = begun.mount.name, %backend, count, "requests were read and not answered, and this kernel cannot send them again (before Linux 6.9): whoever waits for them can be killed; a restart of the mount answers them");
                (0..count).for_each(|_| ledger.count_lost(backend));
            }
        }
    }
}

/// Whether requests that are lost are found here.
pub(super) fn is_seen(facts: &Facts) -> bool {
    device_of(facts).and_then(fusectl::waiting).is_some()
}

/// The file system's device number, if it can be told.
fn device_of(facts: &Facts) -> Option<(u32, u32)> {
    let mounts = mountinfo::read().ok()?;
    mountinfo::at(&mounts, facts.mount.place()).filter(|mounted| mounted.is_fuse()).map(|mounted| mounted.device)
}

/// What there is to see at one moment.
struct Look {
    /// Requests that the kernel waits for.
    waiting: u64,
    in_handlers: u64,
    oldest: Duration,
    /// All that was ever answered; only known where the kernel cannot be asked.
    answered: u64,
    lost: u64,
    active: Option<Backend>,
}

impl Watch {
    fn now(&self, waiting: u64, ledger: &Ledger) -> Look {
        // What the deadline has answered, the kernel does not wait for.
        let in_flight: Vec<_> = ledger.in_flight().into_iter().filter(|one| !one.abandoned).collect();
        let sum = |of: fn(&Ledger, Backend) -> u64| Backend::ALL.into_iter().map(|backend| of(ledger, backend)).sum();
        Look {
            waiting,
            in_handlers: in_flight.len() as u64,
            oldest: in_flight.iter().map(crate::ledger::InFlight::age).max().unwrap_or_default(),
            answered: if self.can_ask { 0 } else { sum(|ledger, backend| ledger.operations(backend)) },
            lost: sum(|ledger, backend| ledger.lost(backend)),
            active: ledger.active(),
        }
    }
}

#[derive(PartialEq, Eq, Debug)]
enum Verdict {
    Nothing,
    /// The server is to look.
    Suspicion,
    /// So many more than before.
    Lost(u64),
}

/// What several looks in a row make of it.
struct Watch {
    can_ask: bool,
    threads: usize,
    in_a_row: u32,
    /// Least excess over what is in handlers in these.
    least: u64,
    answered: u64,
    /// What was found, when the server was last told to look.
    lost: u64,
    rest: Duration,
    resting_until: Option<Instant>,
    /// Counted as lost already.
    known: u64,
}

impl Watch {
    fn new(can_ask: bool, threads: usize) -> Self {
        Self {
            can_ask,
            threads,
            in_a_row: 0,
            least: u64::MAX,
            answered: 0,
            lost: 0,
            rest: SHORTEST_REST,
            resting_until: None,
            known: 0,
        }
    }

    fn forget(&mut self) {
        self.in_a_row = 0;
        self.least = u64::MAX;
    }

    fn look(&mut self, look: &Look) -> Verdict {
        let excess = look.waiting.saturating_sub(look.in_handlers);
        // With all its threads in handlers fuse2 reads nothing: what waits is queued.
        let is_full = look.active == Some(Backend::Fuse2) && look.in_handlers >= self.threads as u64;
        if !self.can_ask {
            self.known = self.known.min(excess);
        }
        if excess <= self.known || is_full {
            self.forget();
            return Verdict::Nothing;
        }
        if !self.can_ask && look.answered != self.answered {
            self.forget();
        }
        self.answered = look.answered;
        self.least = self.least.min(excess);
        self.in_a_row += 1;
        if self.in_a_row <= LOOKS {
            return Verdict::Nothing;
        }
        let least = self.least;
        if !self.can_ask {
            self.forget();
            let more = least - self.known;
            self.known = least;
            return Verdict::Lost(more);
        }
        // After a look that has found something, the next suspicion is as good as the first.
        let has_found = look.lost > self.lost;
        let is_resting = !has_found && self.resting_until.is_some_and(|until| Instant::now() < until);
        if is_resting || look.oldest > SLOW {
            return Verdict::Nothing;
        }
        // The rest grows while looks find nothing.
        self.rest = if has_found { SHORTEST_REST } else { (self.rest * 2).min(LONGEST_REST) };
        self.lost = look.lost;
        self.resting_until = Some(Instant::now() + self.rest);
        self.forget();
        Verdict::Suspicion
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(waiting: u64, in_handlers: u64, answered: u64) -> Look {
        Look { waiting, in_handlers, oldest: Duration::ZERO, answered, lost: 0, active: Some(Backend::Fuse2) }
    }

    #[tokio::test(start_paused = true)]
    async fn what_stays_above_for_a_second_is_suspicious() {
        let mut watch = Watch::new(true, 16);
        let verdicts: Vec<_> = (0..5).map(|_| watch.look(&look(3, 1, 0))).collect();
        assert!(verdicts[..4].iter().all(|verdict| *verdict == Verdict::Nothing));
        assert_eq!(verdicts[4], Verdict::Suspicion);
    }

    #[tokio::test(start_paused = true)]
    async fn a_queue_that_empties_now_and_then_is_none() {
        let mut watch = Watch::new(true, 16);
        assert!((0..40).all(|turn| watch.look(&look(if turn % 4 == 0 { 1 } else { 9 }, 1, turn)) == Verdict::Nothing));
    }

    #[tokio::test(start_paused = true)]
    async fn with_all_threads_busy_what_waits_is_queued() {
        let mut watch = Watch::new(true, 16);
        assert!((0..40).all(|_| watch.look(&look(60, 16, 0)) == Verdict::Nothing));
    }

    #[tokio::test(start_paused = true)]
    async fn wrong_suspicions_become_rare() {
        let mut watch = Watch::new(true, 16);
        let mut suspicions = 0;
        for turn in 0..4 * 600 {
            suspicions += u32::from(watch.look(&look(9, 1, turn)) == Verdict::Suspicion);
            tokio::time::advance(TICK).await;
        }
        assert!((3..12).contains(&suspicions), "{suspicions} in ten minutes");
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_lost_again_is_found_as_soon() {
        let mut watch = Watch::new(true, 16);
        let mut lost = 0;
        for _ in 0..5 * 10 {
            let seen = Look { lost, ..look(9, 1, 0) };
            lost += u64::from(watch.look(&seen) == Verdict::Suspicion);
            tokio::time::advance(TICK).await;
        }
        assert_eq!(lost, 10);
    }

    #[tokio::test(start_paused = true)]
    async fn a_kernel_that_cannot_be_asked_must_be_idle() {
        let mut watch = Watch::new(false, 16);
        assert!((0..40).all(|turn| watch.look(&look(3, 1, turn)) == Verdict::Nothing), "under load");
        let verdicts: Vec<_> = (0..40).map(|_| watch.look(&look(3, 1, 40))).collect();
        assert_eq!(verdicts.iter().filter(|verdict| **verdict == Verdict::Lost(2)).count(), 1, "counted once");
        assert!((0..20).any(|_| watch.look(&look(4, 1, 41)) == Verdict::Lost(1)), "one more");
    }
}
