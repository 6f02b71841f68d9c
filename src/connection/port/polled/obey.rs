//! What the runtime's thread does when the control loop gives an order.

use std::future::Future;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use super::timer::pause;
use super::{Command, Drained, Gate, LAST_ANSWERS, PolledPort, PortError};
use crate::config::Backend;

impl PolledPort {
    /// Obeys orders until the session is retired. `session` is the session's main task. To be run by `block_on`.
    pub async fn run(&self, session: impl Future<Output = ()>) {
        let Some(mut inbox) = self.inbox.lock().take() else { return };
        let mut session = std::pin::pin!(session);
        loop {
            let command = tokio::select! {
                command = inbox.recv() => command,
                () = &mut session, if !self.has_ended.load(SeqCst) => { self.session_ended(); continue }
            };
            let obey = async {
                match command {
                    Some(Command::Ping(answer)) => drop(answer.send(self.obey_ping().await)),
                    Some(Command::Detach(ticket, answer)) if ticket.take() => {
                        drop(answer.send(self.obey_detach().await));
                    }
                    Some(Command::Detach(..)) => {}
                    Some(Command::Drain(end, answer)) => drop(answer.send(self.obey_drain(end).await)),
                    Some(Command::Settle(end, answer)) => drop(answer.send(Ok(self.wait_for_tasks(0, end).await))),
                    Some(Command::Retire) | None => return self.obey_retire().await,
                }
                false
            };
            let mut obey = std::pin::pin!(obey);
            let over = loop {
                tokio::select! {
                    biased;
                    () = &mut session, if !self.has_ended.load(SeqCst) => self.session_ended(),
                    over = &mut obey => break over,
                }
            };
            if over {
                return;
            }
        }
    }

    async fn pass_nudges(&self, count: u64) -> Result<(), PortError> {
        for _ in 0..count {
            let wanted = self.nudges.load(SeqCst) + 1;
            self.wires.nudge(wanted).map_err(|source| PortError::System { what: "a nudge to the session", source })?;
            while self.nudges.load(SeqCst) < wanted {
                if self.has_ended.load(SeqCst) {
                    return Err(PortError::Ended(Backend::Fuse3));
                }
                self.nudged.notified().await;
            }
        }
        Ok(())
    }

    async fn obey_ping(&self) -> Result<(), PortError> {
        if self.has_ended.load(SeqCst) {
            return Err(PortError::Ended(Backend::Fuse3));
        }
        self.pass_nudges(1).await
    }

    async fn obey_detach(&self) -> Result<usize, PortError> {
        let plug = self.plug()?;
        self.take_device_out();
        self.set_gate(Gate::Closed);
        let silenced = match plug.point_at(&self.wires.socket) {
            Ok(()) => self.pass_nudges(2).await,
            Err(error) => Err(error),
        };
        // The runtime may have hung in between, and everything been done without it.
        let is_given_up = self.is_given_up.lock();
        if *is_given_up {
            return Err(PortError::Ended(Backend::Fuse3));
        }
        let restored = plug.point_at(self.wires.device());
        self.set_gate(Gate::Open);
        drop(is_given_up);
        restored?;
        // A session that has ended reads no more either; its tasks still answer.
        match silenced {
            Ok(()) | Err(PortError::Ended(_)) => Ok(self.requests_alive()),
            Err(error) => {
                self.join_set(self.wires.device())?;
                Err(error)
            }
        }
    }

    async fn obey_drain(&self, end: Instant) -> Result<Drained, PortError> {
        let in_flight = self.in_hand.load(SeqCst);
        let mut answered_for_hung = 0;
        if !self.wait_for_tasks(0, end).await {
            let abandoned = self.answer_for_all();
            answered_for_hung = abandoned.1;
            // Tasks that never got a slot are in no list: they answer EIO themselves, now.
            self.set_gate(Gate::Stale);
            self.wait_for_tasks(abandoned.0, Instant::now() + LAST_ANSWERS).await;
        }
        self.plug()?.point_at(&self.wires.socket)?;
        Ok(Drained { in_flight, answered_for_hung })
    }

    /// Waits until at most `left` requests are alive. `false`: not in time.
    async fn wait_for_tasks(&self, left: usize, end: Instant) -> bool {
        let mut glances = 0_u32;
        while self.requests_alive() > left {
            if Instant::now() >= end {
                return false;
            }
            glances += 1;
            if glances < 100 {
                tokio::task::yield_now().await;
            } else {
                pause(Duration::from_micros(500)).await;
            }
        }
        true
    }

    async fn obey_retire(&self) -> bool {
        while self.requests_alive() > 0 {
            pause(Duration::from_millis(50)).await;
        }
        if !self.has_ended.load(SeqCst) {
            if let Err(error) = self.wires.destroy() {
                tracing::warn!(%error, "a retired session of fuse3 could not be told to end");
                return true;
            }
            while !self.has_ended.load(SeqCst) {
                self.nudged.notified().await;
            }
        }
        true
    }
}
