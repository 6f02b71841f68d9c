//! Drills: the server runs them, and tells when one has ended.

use tokio::sync::oneshot;
use tokio::time::timeout;

use super::{End, Event, MARGIN, Task};
use crate::api::ControlError;
use crate::backend::drill::{Ended, Ongoing, Plan};
use crate::server::{
    self,
    orders::{Order, Report},
};

/// An order was not obeyed, perhaps because the mount has ended.
pub(super) type Failed = (ControlError, Option<End>);

impl Task<'_> {
    pub(super) async fn answer_drill(
        &mut self,
        plan: Plan,
        answer: oneshot::Sender<Result<Ongoing, ControlError>>,
    ) -> Option<End> {
        let told = self
            .order_done(&Order::Drill { plan }, |report| match report {
                Report::Drilling(ongoing) => Ok(ongoing),
                other => Err(other),
            })
            .await;
        if let Ok(ongoing) = &told {
            self.set_drill(Some(ongoing.clone()));
        }
        self.pass_on(answer, told)
    }

    pub(super) async fn answer_stop_drill(
        &mut self,
        answer: oneshot::Sender<Result<Option<Ended>, ControlError>>,
    ) -> Option<End> {
        let told = self
            .order_done(&Order::StopDrill, |report| match report {
                Report::DrillStopped { ended } => Ok(ended),
                other => Err(other),
            })
            .await;
        if told.is_ok() {
            self.set_drill(None);
        }
        self.pass_on(answer, told)
    }

    /// Notes what the server says of drills when it is not asked, or late.
    pub(super) fn note_drill(&mut self, report: Report) {
        match report {
            Report::Drilling(ongoing) => {
                self.owed = self.owed.saturating_sub(1);
                self.set_drill(Some(ongoing));
            }
            Report::DrillStopped { .. } => {
                self.owed = self.owed.saturating_sub(1);
                self.set_drill(None);
            }
            Report::DrillOver(_) => self.set_drill(None),
            _ => {}
        }
    }

    fn set_drill(&self, drill: Option<Ongoing>) {
        self.facts.send_modify(|facts| facts.drill = drill);
    }

    /// Sends an order and waits for the report that `takes` takes.
    pub(super) async fn order_done<T>(
        &mut self,
        order: &Order,
        takes: impl Fn(Report) -> Result<T, Report>,
    ) -> Result<T, Failed> {
        // It obeys at once, or when the switch or failover is done at which it is.
        let limit = server::switch_limit(&self.mount.deadlines) + MARGIN;
        self.server.send(order).map_err(|error| (ControlError::Refused(error.to_string()), None))?;
        let obeyed = async {
            loop {
                let Some(event) = self.event_unless_stopped().await else {
                    return Err((self.is_stopped(), None));
                };
                let end = match event {
                    Event::Report(report) if self.owed > 0 => self.note(report),
                    Event::Report(report) => match takes(report) {
                        Ok(told) => return Ok(told),
                        Err(Report::Failed { message }) => return Err((ControlError::Refused(message), None)),
                        Err(other) => self.note(other),
                    },
                    Event::Gone(why) => Some(End::Died(why)),
                };
                if let Some(end) = end {
                    let why = format!("it ended meanwhile ({end:?})");
                    return Err((ControlError::NotServed { mount: self.mount.name.clone(), why }, Some(end)));
                }
            }
        };
        match timeout(limit, obeyed).await {
            Ok(result) => result,
            Err(_) => {
                self.owed += 1;
                Err((ControlError::Late { mount: self.mount.name.clone(), limit }, None))
            }
        }
    }

    pub(super) fn pass_on<T>(
        &self,
        answer: oneshot::Sender<Result<T, ControlError>>,
        told: Result<T, Failed>,
    ) -> Option<End> {
        let (result, end) = match told {
            Ok(told) => (Ok(told), None),
            Err((error, end)) => (Err(error), end),
        };
        self.reply(answer, result);
        end
    }
}
