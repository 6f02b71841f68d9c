//! Two backends share a mount: they read requests by turns, for as long as gives the candidate its share of the operations.
//!
//! The share is steered, because a backend that is faster serves more in the same time: from how many operations a second
//! each has begun in its turns lately follows how long these must be, and what it is behind or ahead is made up for. Whoever
//! is far ahead has no turn before the other has caught up. What counts is what has begun: a slow handler's request has been
//! given to it, whenever it ends.

use std::time::{Duration, Instant};

use crate::config::Backend;

/// A turn of each backend together, under load.
const PERIOD: Duration = Duration::from_millis(20);
/// The same while nothing is asked for: turns cost wake-ups.
const IDLE_PERIOD: Duration = Duration::from_millis(640);
/// The shortest turn: some ten times what it costs to change turns.
const SHORTEST: Duration = Duration::from_millis(1);
/// And so many times what turns end too late, as they do on a busy machine.
const TIMES_LATE: u32 = 2;
/// The longest period for a small share.
const LONGEST_PERIOD: Duration = Duration::from_secs(2);
/// How much of what was measured before still counts after a period.
const SMOOTHING: f64 = 0.9;
/// Until so many operations were measured of a backend, it is taken to be as fast as both together.
const PRIOR: f64 = 20.;
/// So much of what a backend is behind is made up for in one period.
const CATCHING_UP: f64 = 0.2;
/// Who is so many periods' operations ahead has no turn.
const AHEAD: f64 = 0.5;
/// Then it is looked again after this time,
const LOOK: Duration = Duration::from_millis(5);
/// or after this one while requests are in handlers: whoever comes back from a slow one asks the quick one many times in five.
const QUICK_LOOK: Duration = Duration::from_micros(500);
/// and the turn passes all the same if its backend has begun nothing for so long though requests wait: nobody is to wait for
/// the balance.
const STALLED: Duration = Duration::from_millis(50);
/// What one is ahead must be such that the other can make up for it in this time; more is forgotten.
const PAYABLE: f64 = 1.;
/// And one turn must not make more than the other can make up for in this time, even if that turn is
const QUICK: f64 = 0.2;
/// as short as this.
const TINY: Duration = Duration::from_micros(200);
/// What is owed is forgotten slowly, over so many seconds, so that a burst long ago does not distort the share now.
const MEMORY: f64 = 10.;

/// The turns of a candidate and the stable backend.
#[derive(Debug)]
pub struct Slices {
    candidate: Backend,
    percent: u8,
    turn: Backend,
    began: Instant,
    due: Instant,
    /// Operations that each had begun when it was last looked.
    begun: [u64; Backend::ALL.len()],
    /// When that was.
    noted: Instant,
    /// When the one whose turn it is was last seen to have begun one.
    alive: Instant,
    /// Operations of the last period, as far as they came in [`PERIOD`].
    last: f64,
    /// Of the turns of this period that are over: how long, and how many operations.
    period: [(Duration, u64); Backend::ALL.len()],
    steering: Steering,
    length: Duration,
    /// How late turns have ended lately.
    late: Duration,
}

impl Slices {
    /// The candidate is to get so many percent of the operations, from 1 to 99. `turn` reads now; `begun` operations have
    /// begun so far.
    #[must_use]
    pub fn new(candidate: Backend, percent: u8, turn: Backend, begun: [u64; Backend::ALL.len()], now: Instant) -> Self {
        Self {
            candidate,
            percent,
            turn,
            began: now,
            due: now,
            begun,
            noted: now,
            alive: now,
            last: 0.,
            period: [(Duration::ZERO, 0); Backend::ALL.len()],
            steering: Steering::new(percent),
            length: PERIOD,
            late: Duration::ZERO,
        }
    }

    /// The backend that is tried.
    #[must_use]
    pub fn candidate(&self) -> Backend {
        self.candidate
    }

    /// Percent of the operations that a backend is to get.
    #[must_use]
    pub fn weight(&self, backend: Backend) -> u8 {
        if backend == self.candidate { self.percent } else { 100 - self.percent }
    }

    /// Another share from now on.
    pub fn set_percent(&mut self, percent: u8) {
        self.percent = percent;
        self.steering.aim(percent);
    }

    /// The backend that reads now.
    #[must_use]
    pub fn turn(&self) -> Backend {
        self.turn
    }

    /// When its turn ends.
    #[must_use]
    pub fn due(&self) -> Instant {
        self.due
    }

    /// The other cannot take over now, or would read nothing: the turn goes on for a while.
    pub fn put_off(&mut self, now: Instant) {
        self.due = now + PERIOD * 5;
    }

    fn note(&mut self, begun: [u64; Backend::ALL.len()], now: Instant) {
        let [candidate, stable] = [self.candidate, self.candidate.other()]
            .map(|one| begun[one.index()].saturating_sub(self.begun[one.index()]));
        self.steering.count(candidate, stable, now - self.noted);
        self.noted = now;
        for backend in Backend::ALL {
            let index = backend.index();
            let more = begun[index].saturating_sub(self.begun[index]);
            self.period[index].1 += more;
            if backend == self.turn && more > 0 {
                self.alive = now;
            }
        }
        self.begun = begun;
    }

    /// Its turn is to end; whether it goes on for a while, because the other is too far ahead. `begun` operations have begun
    /// so far, some are not done while `is_busy`, and while `is_queued` requests wait that nobody has read.
    pub fn goes_on(&mut self, begun: [u64; Backend::ALL.len()], is_busy: bool, is_queued: bool, now: Instant) -> bool {
        self.note(begun, now);
        if !is_queued {
            self.alive = now;
        }
        let next_is_candidate = self.turn != self.candidate;
        let share = if next_is_candidate { self.steering.weight } else { 1. - self.steering.weight };
        let ahead = if next_is_candidate { -self.steering.owed } else { self.steering.owed };
        let goes_on = ahead > (AHEAD * share * self.last).max(1.) && now - self.alive < STALLED;
        if goes_on {
            self.due = now + if is_busy { QUICK_LOOK } else { LOOK };
        }
        goes_on
    }

    /// Its turn has ended, and the other's begins; `begun` operations have begun so far, and while `is_busy` some are not
    /// done.
    pub fn turned(&mut self, begun: [u64; Backend::ALL.len()], is_busy: bool, now: Instant) {
        self.note(begun, now);
        let turned = now - self.began;
        self.late = (self.late * 7 + now.saturating_duration_since(self.due)) / 8;
        self.period[self.turn.index()].0 += turned;
        self.began = now;
        self.alive = now;
        self.turn = self.turn.other();
        if self.turn == self.candidate {
            self.end_period(is_busy);
        }
        let share = self.steering.share;
        let share = if self.turn == self.candidate { share } else { 1. - share };
        // It will be late again.
        let fair = self.length.mul_f64(share).saturating_sub(self.late).max(SHORTEST);
        self.due = now + fair.min(self.steering.longest(self.turn == self.candidate).max(TINY));
    }

    fn end_period(&mut self, is_busy: bool) {
        let [candidate, stable] =
            [self.candidate, self.candidate.other()].map(|backend| std::mem::take(&mut self.period[backend.index()]));
        self.steering.note(candidate, stable);
        let took = (candidate.0 + stable.0).max(PERIOD);
        self.last = (candidate.1 + stable.1) as f64 * PERIOD.div_duration_f64(took);
        self.length = if is_busy || candidate.1 + stable.1 > 0 { PERIOD } else { (self.length * 2).min(IDLE_PERIOD) };
        // A small share takes a longer period, because turns cannot be as short as one likes.
        let smaller = self.steering.share.min(1. - self.steering.share).max(0.001);
        let shortest = SHORTEST.max(self.late * TIMES_LATE);
        self.length = self.length.max(shortest.div_f64(smaller).min(LONGEST_PERIOD));
    }
}

/// How long the candidate's turns must be.
#[derive(Debug)]
struct Steering {
    weight: f64,
    /// Of the time, for the candidate.
    share: f64,
    /// Of candidate and stable backend, fading: seconds of turns, and operations.
    measured: [(f64, f64); 2],
    /// Operations that the candidate is behind.
    owed: f64,
}

impl Steering {
    fn new(percent: u8) -> Self {
        let weight = f64::from(percent) / 100.;
        Self { weight, share: weight, measured: [(0., 0.); 2], owed: 0. }
    }

    fn aim(&mut self, percent: u8) {
        self.weight = f64::from(percent) / 100.;
        self.owed = 0.;
        self.steer(0.);
    }

    /// A period is over, with so much time and so many operations for the candidate and the stable backend.
    fn note(&mut self, candidate: (Duration, u64), stable: (Duration, u64)) {
        let total = (candidate.1 + stable.1) as f64;
        if total == 0. || candidate.0.is_zero() || stable.0.is_zero() {
            return;
        }
        for (sum, (time, count)) in self.measured.iter_mut().zip([candidate, stable]) {
            *sum = (sum.0 * SMOOTHING + time.as_secs_f64(), sum.1 * SMOOTHING + count as f64);
        }
        self.steer(total);
    }

    /// So many operations more have begun in this time.
    fn count(&mut self, candidate: u64, stable: u64, time: Duration) {
        let (candidate, stable) = (candidate as f64, stable as f64);
        self.owed *= (-time.as_secs_f64() / MEMORY).exp();
        self.owed += self.weight * stable - (1. - self.weight) * candidate;
        let [candidate, stable] = self.rates();
        let (most, least) = (candidate * (1. - self.weight) * PAYABLE, -stable * self.weight * PAYABLE);
        // In the beginning nothing is known of the rates.
        if self.measured.iter().all(|(_, count)| *count > 0.) {
            self.owed = self.owed.clamp(least.min(-10.), most.max(10.));
        }
    }

    /// The longest turn after which the other can make up for it soon.
    fn longest(&self, of_candidate: bool) -> Duration {
        if self.measured.iter().any(|(_, count)| *count == 0.) {
            return Duration::MAX;
        }
        let [candidate, stable] = self.rates();
        let (own, other, share) =
            if of_candidate { (candidate, stable, self.weight) } else { (stable, candidate, 1. - self.weight) };
        Duration::try_from_secs_f64(QUICK * other * share / ((1. - share) * own)).unwrap_or(Duration::MAX)
    }

    /// Operations a second that candidate and stable backend serve in their own turns.
    fn rates(&self) -> [f64; 2] {
        let [(time, count), (other_time, other_count)] = self.measured;
        if count + other_count == 0. {
            return [1., 1.];
        }
        let together = (count + other_count) / (time + other_time);
        self.measured.map(|(time, count)| (count + PRIOR) / (time + PRIOR / together))
    }

    fn steer(&mut self, operations: f64) {
        let [candidate, stable] = self.rates();
        // w of the operations: share * candidate = w * (share * candidate + (1 - share) * stable).
        let [for_candidate, for_stable] = [self.weight * stable, (1. - self.weight) * candidate];
        let sum = for_candidate + for_stable;
        let fair = if sum > 0. { for_candidate / sum } else { self.weight };
        let correction = if operations > 0. { CATCHING_UP * self.owed / operations } else { 0. };
        // Never to nothing: who has no turn is not measured, and whoever serves nothing must not get all the time for it.
        let (least, most) = (0.2 * self.weight, 1. - 0.2 * (1. - self.weight));
        self.share = (fair + correction.clamp(-0.5 * fair, 0.5 * (1. - fair))).clamp(least, most);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    /// Turns over ten seconds that end up to `late` too late, with backends that serve so many operations a second; the
    /// candidate's share in percent.
    fn simulate(percent: u8, candidate: f64, stable: f64, wobble: f64, late: Duration) -> f64 {
        let mut served = [0_f64; 2];
        let mut now = Instant::now();
        let end = now + Duration::from_secs(10);
        let whole = |served: [f64; 2]| served.map(|count| count as u64);
        let mut slices = Slices::new(Backend::Fuse3, percent, Backend::Fuse2, [0, 0], now);
        let mut turns = 0_u32;
        while now < end {
            let then = slices.due().max(now) + late * (turns * 379 % 1000) / 1000;
            let rate = if slices.turn() == Backend::Fuse3 { candidate } else { stable };
            let rate = rate * (1. + wobble * f64::from(turns % 7) / 7.);
            served[slices.turn().index()] += rate * (then - now).as_secs_f64();
            now = then;
            if !slices.goes_on(whole(served), true, true, now) {
                slices.turned(whole(served), false, now);
            }
            turns += 1;
        }
        100. * served[1] / (served[0] + served[1])
    }

    #[rstest]
    fn the_share_is_kept_whoever_is_faster(
        #[values(1, 10, 25, 50, 75, 90, 99)] percent: u8,
        #[values((50_000., 50_000.), (20_000., 80_000.), (80_000., 20_000.), (300., 250.))] rates: (f64, f64),
        #[values(0., 1.)] wobble: f64,
        #[values(Duration::from_micros(200), Duration::from_millis(6))] late: Duration,
    ) {
        let share = simulate(percent, rates.0, rates.1, wobble, late);
        assert!((share - f64::from(percent)).abs() < 1., "{share} instead of {percent}");
    }

    /// Programs that each ask for one thing after the other, of backends that take so long for each; the candidate's share
    /// in percent after a second.
    fn simulate_programs(percent: u8, programs: usize, candidate: Duration, stable: Duration) -> f64 {
        const STEP: Duration = Duration::from_micros(50);
        let start = Instant::now();
        let mut slices = Slices::new(Backend::Fuse3, percent, Backend::Fuse2, [0, 0], start);
        let mut free_at = vec![start; programs];
        let mut begun = [0_u64; 2];
        let mut settled = [0_u64; 2];
        let mut now = start;
        while now < start + Duration::from_secs(11) {
            now += STEP;
            if now < start + Duration::from_secs(1) {
                settled = begun;
            }
            for free_at in free_at.iter_mut().filter(|free_at| **free_at <= now) {
                let backend = slices.turn();
                begun[backend.index()] += 1;
                *free_at = now + if backend == Backend::Fuse3 { candidate } else { stable };
            }
            if now >= slices.due() && !slices.goes_on(begun, true, false, now) {
                slices.turned(begun, true, now);
            }
        }
        let [stable, candidate] = [begun[0] - settled[0], begun[1] - settled[1]];
        100. * candidate as f64 / (stable + candidate) as f64
    }

    #[rstest]
    fn the_share_is_kept_whoever_takes_long(
        #[values(10, 50, 90)] percent: u8,
        #[values(1, 6, 30)] programs: usize,
        #[values((50_000, 100), (5_000, 100), (100, 50_000), (100, 100))] micros: (u64, u64),
    ) {
        let (candidate, stable) = (Duration::from_micros(micros.0), Duration::from_micros(micros.1));
        let share = simulate_programs(percent, programs, candidate, stable);
        // Where one takes five hundred times as long, ten seconds are few of its operations.
        let most = if micros.0.max(micros.1) > 10_000 { 20. } else { 4. };
        assert!((share - f64::from(percent)).abs() < most, "{share} instead of {percent}");
    }

    #[test]
    fn while_nothing_is_asked_for_turns_become_rare() {
        let mut now = Instant::now();
        let mut slices = Slices::new(Backend::Fuse3, 50, Backend::Fuse2, [0, 0], now);
        let mut turns = 0;
        let end = now + Duration::from_secs(20);
        while now < end {
            now = slices.due().max(now + Duration::from_micros(100));
            assert!(!slices.goes_on([0, 0], false, false, now));
            slices.turned([0, 0], false, now);
            turns += 1;
        }
        assert!(turns < 100, "{turns} in 20 seconds");
        let mut served = 0;
        for _ in 0..4 {
            now = slices.due();
            served += 100;
            slices.turned([served, served], false, now);
        }
        assert!(slices.due() - now <= PERIOD, "under load again");
    }
}
