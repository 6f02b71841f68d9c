//! The order of a switch: who is attached and detached when, and what follows when somebody does not react.

use std::time::Instant;

use crate::config::Deadlines;
use crate::connection::port::{Drained, Order, Port, PortError, Unbegun};

/// Attaches `new` and detaches `old`, in the order that `old` needs. Since when `new` reads, and what was answered by force,
/// if `old` did not react.
///
/// # Errors
/// When it cannot be done; then `new` is not attached, and `old` is as before, unless it had to be detached by force.
pub(super) fn hand_over(
    old: &dyn Port,
    new: &dyn Port,
    deadlines: &Deadlines,
) -> Result<(Instant, Option<Drained>), PortError> {
    if old.order() == Order::NextFirst {
        let since = new.attach()?;
        return match old.detach(deadlines.switch) {
            Ok(()) => Ok((since, None)),
            Err(error) => {
                // Both are attached, and both serve: the new one is taken back.
                tracing::error!(%error, "the old backend could not be detached");
                new.detach(deadlines.switch)?;
                new.drain(deadlines.drain)?;
                Err(error)
            }
        };
    }
    // A runtime that does not react holds everyone up, so it has no longer than the requests that it holds.
    let forced = match old.detach(deadlines.drain.min(deadlines.switch)) {
        Ok(()) | Err(PortError::Ended(_)) => None,
        Err(error @ PortError::Silent { .. }) => {
            tracing::warn!(%error, "it is parked by force");
            Some(old.force_detach(Unbegun::SendAgain))
        }
        Err(error) => return Err(error),
    };
    match new.attach() {
        Ok(since) => Ok((since, forced)),
        Err(error) => {
            if forced.is_none() {
                old.attach()?;
            }
            Err(error)
        }
    }
}

/// Waits for what `old` still holds, while `new` serves.
pub(super) fn drain(old: &dyn Port, new: &dyn Port, deadlines: &Deadlines) -> Drained {
    let error = match old.drain(deadlines.drain) {
        Ok(drained) => return drained,
        Err(error) => error,
    };
    tracing::warn!(%error, "what the old backend holds is not known");
    if old.order() == Order::NextFirst {
        return Drained::default();
    }
    // What it has read and not begun must be sent again, and while that happens nobody else may hold a request.
    let unbegun = match new.detach(deadlines.switch).and_then(|()| new.drain(deadlines.drain)) {
        Ok(_) => Unbegun::SendAgain,
        Err(error) => {
            tracing::warn!(%error, "the new backend could not be held back");
            Unbegun::Leave
        }
    };
    let drained = old.force_detach(unbegun);
    if let Err(error) = new.attach() {
        tracing::error!(%error, "the new backend could not be attached again");
    }
    drained
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use parking_lot::Mutex;
    use rstest::rstest;

    use super::*;
    use crate::config::Backend;
    use crate::connection::port::State;

    /// A port that fails as it is told, and remembers what was asked of it.
    struct Fake {
        backend: Backend,
        order: Order,
        failing: &'static [&'static str],
        state: Mutex<State>,
        asked: Mutex<Vec<&'static str>>,
    }

    impl Fake {
        fn new(backend: Backend, order: Order, state: State, failing: &'static [&'static str]) -> Self {
            Self { backend, order, failing, state: Mutex::new(state), asked: Mutex::default() }
        }

        fn asked(&self) -> Vec<&'static str> {
            self.asked.lock().clone()
        }

        fn ask(&self, what: &'static str, then: State) -> Result<(), PortError> {
            self.asked.lock().push(what);
            if self.failing.contains(&what) {
                let limit = Duration::from_secs(1);
                return Err(PortError::Silent { backend: self.backend, what, limit });
            }
            *self.state.lock() = then;
            Ok(())
        }
    }

    impl Port for Fake {
        fn backend(&self) -> Backend {
            self.backend
        }
        fn state(&self) -> State {
            *self.state.lock()
        }
        fn order(&self) -> Order {
            self.order
        }
        fn ping(&self, _: Duration) -> Result<(), PortError> {
            self.ask("ping", self.state())
        }
        fn attach(&self) -> Result<Instant, PortError> {
            self.ask("attach", State::Attached).map(|()| Instant::now())
        }
        fn detach(&self, _: Duration) -> Result<(), PortError> {
            self.ask("detach", State::Draining)
        }
        fn force_detach(&self, _: Unbegun) -> Drained {
            self.asked.lock().push("force");
            *self.state.lock() = State::Hung;
            Drained { in_flight: 2, answered_for_hung: 2 }
        }
        fn has_free_reader(&self) -> bool {
            true
        }
        fn drain(&self, _: Duration) -> Result<Drained, PortError> {
            self.ask("drain", State::Parked).map(|()| Drained { in_flight: 1, answered_for_hung: 0 })
        }
        fn has_settled(&self, _: Duration) -> bool {
            true
        }
        fn retire(&self) {}
        fn end_by_itself(&self) -> Result<(), PortError> {
            Ok(())
        }
    }

    fn threads(state: State, failing: &'static [&'static str]) -> Fake {
        Fake::new(Backend::Fuse2, Order::NextFirst, state, failing)
    }

    fn tasks(state: State, failing: &'static [&'static str]) -> Fake {
        Fake::new(Backend::Fuse3, Order::DetachFirst, state, failing)
    }

    #[test_log::test]
    fn threads_give_way_after_the_next_is_there() {
        let (old, new) = (threads(State::Attached, &[]), tasks(State::Parked, &[]));
        assert_eq!(hand_over(&old, &new, &Deadlines::default()).unwrap().1, None);
        assert_eq!(drain(&old, &new, &Deadlines::default()).in_flight, 1);
        assert_eq!((old.state(), new.state()), (State::Parked, State::Attached));
    }

    #[test_log::test]
    fn tasks_prove_that_they_have_stopped_first() {
        let (old, new) = (tasks(State::Attached, &[]), threads(State::Parked, &[]));
        assert_eq!(hand_over(&old, &new, &Deadlines::default()).unwrap().1, None);
        assert_eq!((old.asked(), new.asked()), (vec!["detach"], vec!["attach"]));
    }

    #[rstest]
    #[case::threads(threads(State::Attached, &[]), tasks(State::Parked, &["attach"]))]
    #[case::tasks(tasks(State::Attached, &[]), threads(State::Parked, &["attach"]))]
    fn a_target_that_dies_leaves_the_old_one_serving(#[case] old: Fake, #[case] new: Fake) {
        assert!(hand_over(&old, &new, &Deadlines::default()).is_err());
        assert_eq!((old.state(), new.state()), (State::Attached, State::Parked));
    }

    #[test_log::test]
    fn an_old_one_that_cannot_be_detached_goes_on_alone() {
        let (old, new) = (threads(State::Attached, &["detach"]), tasks(State::Parked, &[]));
        assert!(hand_over(&old, &new, &Deadlines::default()).is_err());
        assert_eq!((old.state(), new.state()), (State::Attached, State::Parked));
    }

    #[test_log::test]
    fn a_stuck_runtime_is_parked_by_force_before_the_next_is_attached() {
        let (old, new) = (tasks(State::Attached, &["detach"]), threads(State::Parked, &[]));
        let (_, forced) = hand_over(&old, &new, &Deadlines::default()).unwrap();
        assert_eq!(forced, Some(Drained { in_flight: 2, answered_for_hung: 2 }));
        assert_eq!((old.asked(), new.asked()), (vec!["detach", "force"], vec!["attach"]));
        assert_eq!((old.state(), new.state()), (State::Hung, State::Attached));
    }

    #[test_log::test]
    fn what_was_detached_by_force_is_not_attached_again() {
        let (old, new) = (tasks(State::Attached, &["detach"]), threads(State::Parked, &["attach"]));
        assert!(hand_over(&old, &new, &Deadlines::default()).is_err());
        assert_eq!((old.state(), new.state()), (State::Hung, State::Parked));
    }

    #[test_log::test]
    fn a_runtime_that_gets_stuck_while_it_drains_is_forced_with_nobody_else_attached() {
        let (old, new) = (tasks(State::Draining, &["drain"]), threads(State::Attached, &[]));
        assert_eq!(drain(&old, &new, &Deadlines::default()).answered_for_hung, 2);
        assert_eq!(new.asked(), ["detach", "drain", "attach"]);
        assert_eq!((old.state(), new.state()), (State::Hung, State::Attached));
    }
}
