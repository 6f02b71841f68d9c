//! Comparisons: the server makes them, and tells what they have found.

use tokio::sync::oneshot;

use super::{End, Task};
use crate::api::ControlError;
use crate::server::orders::{Order, Report};
use crate::shadow::Told;

impl Task<'_> {
    pub(super) async fn answer_compared(&mut self, answer: oneshot::Sender<Result<Told, ControlError>>) -> Option<End> {
        let told = self
            .order_done(&Order::TellCompared, |report| match report {
                Report::Compared(told) => Ok(*told),
                other => Err(other),
            })
            .await;
        self.pass_on(answer, told)
    }
}
