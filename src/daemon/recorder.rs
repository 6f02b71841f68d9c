//! Where a mount's facts are noted. Whoever watches sees the latest; whatever they say of the mount's state becomes an
//! event besides, of which none is lost.

use tokio::sync::watch;

use super::facts::{End, Facts, Phase};
use crate::api::events::{Event, Events, MountState};

/// See the module.
pub struct Recorder {
    facts: watch::Sender<Facts>,
    events: Events,
}

impl Recorder {
    /// Facts go to `facts`, events to `events`.
    #[must_use]
    pub fn new(facts: watch::Sender<Facts>, events: Events) -> Self {
        Self { facts, events }
    }

    /// What is known.
    pub fn borrow(&self) -> watch::Ref<'_, Facts> {
        self.facts.borrow()
    }

    /// Notes something.
    pub fn send_modify(&self, modify: impl FnOnce(&mut Facts)) {
        let mut change = None;
        self.facts.send_modify(|facts| {
            let before = state(&facts.phase);
            modify(facts);
            let after = state(&facts.phase);
            change = (before != after).then(|| (facts.mount.name.clone(), after));
        });
        if let Some((mount, (state, reason))) = change {
            self.publish(Event::Mount { mount, state, reason });
        }
    }

    /// Makes it known that something has happened to the mount.
    pub fn publish(&self, event: Event) {
        self.events.publish(event);
    }
}

fn state(phase: &Phase) -> (MountState, Option<String>) {
    match phase {
        Phase::Starting => (MountState::Starting, None),
        Phase::Serving | Phase::Switching => (MountState::Serving, None),
        Phase::Detached { again } => (MountState::Detached, Some(again.why_detached().into())),
        Phase::Stopping => (MountState::Stopping, None),
        Phase::Waiting(why) => (MountState::Waiting, Some(why.clone())),
        Phase::Ended(End::Superseded) => (MountState::Starting, None),
        Phase::Ended(End::Stopped) => (MountState::Ended, None),
        Phase::Ended(End::Unmounted) => (MountState::Ended, Some("somebody else has unmounted it".into())),
        Phase::Ended(End::Failed(why) | End::Refused(why) | End::Died(why) | End::Forced(why)) => {
            (MountState::Ended, Some(why.clone()))
        }
    }
}
