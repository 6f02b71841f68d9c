//! Waiting on a runtime without a timer.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use tokio::io::unix::AsyncFd;

/// Waits. On a timer of the kernel, since the runtime has none: tokio's would read the clock at each of its turns, which are
/// as many as requests.
pub async fn pause(length: Duration) {
    // SAFETY: an OwnedFd gives the same open descriptor for as long as it lives.
    match timer(length).ok().and_then(|timer| unsafe { AsyncFd::register(timer) }.ok()) {
        // Readable means over, and so does an error.
        Some(timer) => drop(timer.readable().await),
        // Without descriptors the caller looks again sooner.
        None => tokio::task::yield_now().await,
    }
}

fn timer(length: Duration) -> io::Result<OwnedFd> {
    use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};
    let timer =
        rustix::time::timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)?;
    let once = Itimerspec {
        it_interval: Timespec::default(),
        it_value: Timespec::try_from(length).unwrap_or(Timespec { tv_sec: 1, tv_nsec: 0 }),
    };
    rustix::time::timerfd_settime(&timer, TimerfdTimerFlags::empty(), &once)?;
    Ok(timer)
}
