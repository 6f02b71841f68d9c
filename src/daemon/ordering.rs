//! What a pilot has ordered its mount's server: one order at a time, and the newest level next.
//!
//! Orders are levels, so of those that wait only the last one counts. The pilot goes on deciding meanwhile: a server that does
//! not answer must not hold up that a rollback is kept.

use futures_util::future::BoxFuture;
use tokio::sync::{mpsc, oneshot};

use super::mount::Request;
use super::pilot::Outcome;
use crate::api::ControlError;
use crate::ledger::Cause;
use crate::rollout::Serving;
use crate::server::orders::Switched;

/// What a server is to do.
pub struct Order {
    /// What is to serve.
    pub serving: Serving,
    /// What kind of thing makes it so.
    pub cause: Cause,
    /// In words.
    pub reason: String,
    /// What makes it so, for whoever counts.
    pub by: &'static str,
    /// Who waits for it.
    pub clients: Vec<Client>,
}

/// Somebody who waits for an order to be done.
pub struct Client {
    /// Whether it is that or nothing. What else was decided stays so, and is ordered again.
    pub is_switch: bool,
    /// Where the answer goes.
    pub answer: oneshot::Sender<Result<Outcome, ControlError>>,
}

impl Order {
    /// Tells those who wait what came of it; of an error, too, whether what was ordered is wanted still.
    pub fn answer(self, result: &Result<Outcome, (ControlError, bool)>) {
        for Client { is_switch, answer } in self.clients {
            let told = match result {
                Ok(outcome) => Ok(outcome.clone()),
                Err((error, true)) if !is_switch => {
                    Ok(Outcome { notes: vec![format!("not done yet, and tried again: {error}")], switched: None })
                }
                Err((error, _)) => Err(error.clone()),
            };
            // A client that has gone does not need to be told.
            let _ = answer.send(told);
        }
    }
}

/// See the module.
#[derive(Default)]
pub struct Ordering {
    under_way: Option<UnderWay>,
    next: Option<Order>,
}

struct UnderWay {
    order: Order,
    answer: BoxFuture<'static, Result<Option<Switched>, ControlError>>,
}

impl Ordering {
    /// Whether the server is at something.
    pub fn is_under_way(&self) -> bool {
        self.under_way.is_some()
    }

    /// Sends it, or has it sent next, in the place of what waits already.
    pub fn submit(&mut self, mut order: Order, mount: &str, requests: &mpsc::Sender<Request>) {
        if let Some(before) = self.next.take() {
            if before.serving == order.serving {
                // A rollback is more than the switch: the kernel is made to forget.
                if before.cause == Cause::Rollback {
                    (order.cause, order.reason) = (before.cause, before.reason);
                }
                order.clients.extend(before.clients);
            } else {
                let why = "something else was asked for before it could be done".to_owned();
                before.answer(&Err((ControlError::Refused(why), false)));
            }
        }
        self.next = Some(order);
        self.go_on(mount, requests);
    }

    /// Sends the next order, unless one is under way.
    pub fn go_on(&mut self, mount: &str, requests: &mpsc::Sender<Request>) {
        if self.under_way.is_none()
            && let Some(order) = self.next.take()
        {
            let answer = Box::pin(send(&order, mount.into(), requests.clone()));
            self.under_way = Some(UnderWay { order, answer });
        }
    }

    /// What was to be sent next.
    pub fn take_next(&mut self) -> Option<Order> {
        self.next.take()
    }

    /// What came of the one that is under way; never, if none is. May be cancelled.
    pub async fn done(&mut self) -> (Order, Result<Option<Switched>, ControlError>) {
        let Some(UnderWay { answer, .. }) = &mut self.under_way else { return std::future::pending().await };
        let result = answer.await;
        match self.under_way.take() {
            Some(UnderWay { order, .. }) => (order, result),
            None => std::future::pending().await,
        }
    }
}

/// Has the mount's keeper do it.
fn send(
    order: &Order,
    mount: String,
    requests: mpsc::Sender<Request>,
) -> impl Future<Output = Result<Option<Switched>, ControlError>> + Send + 'static {
    let (candidate, percent) = match order.serving {
        Serving::Only(backend) => (backend, 100),
        Serving::Both { candidate, weight } => (candidate, weight),
    };
    let (answer, answered) = oneshot::channel();
    let request = Request::Weigh { candidate, percent, cause: order.cause, reason: order.reason.clone(), answer };
    let over = move |why: &str| ControlError::NotServed { mount: mount.clone(), why: why.into() };
    async move {
        requests.send(request).await.map_err(|_| over("it has ended"))?;
        answered.await.map_err(|_| over("it is being unmounted"))?
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Backend;

    fn order(serving: Serving, cause: Cause) -> (Order, oneshot::Receiver<Result<Outcome, ControlError>>) {
        let (answer, answered) = oneshot::channel();
        let clients = vec![Client { is_switch: false, answer }];
        (Order { serving, cause, reason: format!("{cause:?}"), by: "operator", clients }, answered)
    }

    fn weigh(
        requests: &mut mpsc::Receiver<Request>,
    ) -> (u8, Cause, oneshot::Sender<Result<Option<Switched>, ControlError>>) {
        match requests.try_recv().expect("an order") {
            Request::Weigh { percent, cause, answer, .. } => (percent, cause, answer),
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn the_newest_level_is_ordered_when_the_server_answers() {
        let (sender, mut requests) = mpsc::channel(16);
        let mut ordering = Ordering::default();
        let half = Serving::Both { candidate: Backend::Fuse3, weight: 50 };
        let stable = Serving::Only(Backend::Fuse2);
        let (first, first_done) = order(Serving::Both { candidate: Backend::Fuse3, weight: 10 }, Cause::Rollout);
        let (second, second_done) = order(half, Cause::Rollout);
        let (back, back_done) = order(stable, Cause::Rollback);
        let (again, again_done) = order(stable, Cause::Operator);
        for next in [first, second, back, again] {
            ordering.submit(next, "projects", &sender);
            // As the pilot's loop does, which has more to heed.
            tokio::select! { biased; _ = ordering.done() => panic!("nobody has answered"), () = std::future::ready(()) => {} }
        }
        let (percent, _, answer) = weigh(&mut requests);
        assert_eq!((percent, requests.try_recv().is_err()), (10, true), "one at a time");
        assert!(second_done.await.unwrap().is_err(), "it was not done, and will not be");
        answer.send(Ok(None)).unwrap();
        let (done, result) = ordering.done().await;
        assert_eq!((done.serving, &result), (Serving::Both { candidate: Backend::Fuse3, weight: 10 }, &Ok(None)));
        done.answer(&Ok(Outcome::default()));
        assert_eq!(first_done.await.unwrap(), Ok(Outcome::default()));

        ordering.go_on("projects", &sender);
        tokio::select! { biased; _ = ordering.done() => panic!("nobody has answered"), () = std::future::ready(()) => {} }
        let (percent, cause, answer) = weigh(&mut requests);
        assert_eq!((percent, cause), (100, Cause::Rollback), "the kernel is to forget all the same");
        answer.send(Err(ControlError::Refused("no slots".into()))).unwrap();
        let (done, result) = ordering.done().await;
        done.answer(&Err((result.unwrap_err(), true)));
        for told in [back_done, again_done] {
            assert_eq!(told.await.unwrap().unwrap().notes, ["not done yet, and tried again: no slots"]);
        }
        assert!(!ordering.is_under_way());
    }
}
