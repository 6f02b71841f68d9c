//! What happens, as it happens: a ring of the last events, and streams of them for whoever listens.
//!
//! Publishing never waits. A stream reads the ring at its client's pace, and ends when the ring has overtaken it; its
//! client comes back with the last id that it has seen, and gets what the ring still has.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::response::sse;
use futures_util::stream::{self, Stream};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use utoipa::ToSchema;

use super::model::SCHEMA;
use super::serving::stopped;
use crate::config::Backend;

/// How many events are kept for clients that come back.
pub const KEPT: usize = 1024;
/// How many clients may listen at a time, by each way: those who come over TCP, who may be anybody, keep nobody from the
/// control socket.
const MOST_STREAMS: usize = 32;
/// After how long a client should come back.
const RETRY: Duration = Duration::from_secs(1);

/// Something that has happened.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// The backend was changed, because somebody wanted it.
    Switch {
        /// The mount.
        mount: String,
        /// The backend that served before.
        from: Backend,
        /// The backend that serves now.
        to: Backend,
        /// Why, in a word.
        reason: String,
        /// How long nobody was reading requests, in milliseconds.
        pause_ms: f64,
        /// Requests that the old backend held when it stopped reading.
        in_flight: usize,
        /// Those of them that were answered EIO at the deadline.
        answered_for_hung: usize,
    },
    /// A change of backend has failed; what served before serves on.
    SwitchFailed {
        /// The mount.
        mount: String,
        /// The backend that was to serve.
        to: Backend,
        /// What went wrong.
        reason: String,
    },
    /// A backend ended by itself, and the other one has taken over.
    Failover {
        /// The mount.
        mount: String,
        /// The backend that ended.
        from: Backend,
        /// The backend that serves now.
        to: Backend,
        /// What happened.
        reason: String,
        /// How long nobody was reading requests, in milliseconds.
        pause_ms: f64,
    },
    /// A mount began or ceased to be served.
    Mount {
        /// The mount.
        mount: String,
        /// How it is now.
        state: MountState,
        /// Why, if it is not served.
        reason: Option<String>,
    },
    /// A step of a rollout begins.
    Step {
        /// The mount.
        mount: String,
        /// Its number, from 1.
        step: usize,
        /// The candidate's share of the operations in percent.
        weight: u8,
        /// What made it begin.
        reason: String,
    },
    /// The stable backend serves alone, and the mount is pinned to it.
    Rollback {
        /// The mount.
        mount: String,
        /// Why.
        reason: String,
        /// What the decision rests on; null for an operator's.
        #[schema(value_type = Option<Object>)]
        figures: serde_json::Value,
    },
    /// The guard says something else by a rule than before.
    Verdict {
        /// The mount.
        mount: String,
        /// The rule.
        rule: String,
        /// `healthy`, `breach`, `no_data`, `source`.
        verdict: String,
        /// What was measured.
        value: Option<f64>,
        /// What it must not exceed.
        threshold: Option<f64>,
        /// How many answers, comparisons or questions that rests on.
        samples: u64,
        /// In words.
        reason: String,
    },
    /// Something else has happened to a rollout.
    Rollout {
        /// The mount.
        mount: String,
        /// What, in a sentence.
        message: String,
    },
    /// The configuration was read again.
    Reload {
        /// What came of it.
        outcome: ReloadOutcome,
        /// Why it was refused.
        reason: Option<String>,
    },
    /// Events after the one that the client has seen last are no longer known.
    Gap {
        /// The id that the client has named.
        after: u64,
    },
}

/// Where a mount's life has got to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum MountState {
    /// A server is mounting.
    Starting,
    /// It is served.
    Serving,
    /// Somebody else has unmounted it, and programs that use it are still served.
    Detached,
    /// It is being unmounted.
    Stopping,
    /// It is not served, and will be tried again.
    Waiting,
    /// It is over.
    Ended,
}

/// What came of reading the configuration again.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ReloadOutcome {
    /// It is in force.
    Accepted,
    /// It is not good, and nothing has changed.
    Refused,
}

impl Event {
    /// The name in streams, the same as `event` in JSON.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Switch { .. } => "switch",
            Self::SwitchFailed { .. } => "switch_failed",
            Self::Failover { .. } => "failover",
            Self::Mount { .. } => "mount",
            Self::Step { .. } => "step",
            Self::Rollback { .. } => "rollback",
            Self::Verdict { .. } => "verdict",
            Self::Rollout { .. } => "rollout",
            Self::Reload { .. } => "reload",
            Self::Gap { .. } => "gap",
        }
    }
}

/// An event with its number and its time: the `data` of a stream.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Published {
    /// Version of this JSON.
    pub schema: u32,
    /// Greater than that of every event before, also before a restart of the daemon.
    pub id: u64,
    /// When.
    #[serde(with = "humantime_serde")]
    #[schema(value_type = String, format = DateTime)]
    pub at: SystemTime,
    /// What.
    #[serde(flatten)]
    pub event: Event,
}

impl Published {
    fn new(id: u64, event: Event) -> Self {
        Self { schema: SCHEMA, id, at: SystemTime::now(), event }
    }
}

/// The events of a daemon. Clones are the same.
#[derive(Clone, Debug)]
pub struct Events(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    ring: Mutex<Ring>,
    newest: watch::Sender<u64>,
    on_socket: Arc<Semaphore>,
    over_tcp: Arc<Semaphore>,
}

/// The way by which a client has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Way {
    /// The control socket.
    Socket,
    /// A TCP listener.
    Tcp,
}

#[derive(Debug)]
struct Ring {
    events: VecDeque<Arc<Published>>,
    /// The newest id of which nothing is known any more.
    floor: u64,
    newest: u64,
}

/// Events after some id.
enum Since {
    /// All of them.
    All(Vec<Arc<Published>>),
    /// Some are missing, the last of which has this id; the others are here.
    Some(u64, Vec<Arc<Published>>),
}

impl Default for Events {
    fn default() -> Self {
        let now = micros();
        let ring = Ring { events: VecDeque::with_capacity(KEPT), floor: now, newest: now };
        let [on_socket, over_tcp] = [(); 2].map(|()| Arc::new(Semaphore::new(MOST_STREAMS)));
        Self(Arc::new(Inner { ring: Mutex::new(ring), newest: watch::Sender::new(now), on_socket, over_tcp }))
    }
}

impl Events {
    /// Makes it known that this has happened. Never waits for anybody.
    pub fn publish(&self, event: Event) {
        let mut ring = self.0.ring.lock();
        // By the clock, so that the next daemon's numbers are greater without being told of these.
        let id = micros().max(ring.newest + 1);
        if ring.events.len() == KEPT
            && let Some(oldest) = ring.events.pop_front()
        {
            ring.floor = oldest.id;
        }
        ring.events.push_back(Arc::new(Published::new(id, event)));
        ring.newest = id;
        self.0.newest.send_replace(id);
    }

    fn since(&self, id: u64) -> Since {
        let ring = self.0.ring.lock();
        // An id from the future is of another daemon.
        if id < ring.floor || id > ring.newest {
            return Since::Some(ring.floor, ring.events.iter().cloned().collect());
        }
        Since::All(ring.events.iter().filter(|event| event.id > id).cloned().collect())
    }

    /// The events after `last`, which a client has seen, or from now on; until `stopping` is true, or the client has
    /// fallen so far behind that the ring has overtaken it. `None` when enough clients listen already that have come this way.
    pub(super) fn stream(
        &self,
        last: Option<u64>,
        way: Way,
        stopping: watch::Receiver<bool>,
    ) -> Option<impl Stream<Item = Result<sse::Event, Infallible>> + Send + use<>> {
        let places = match way {
            Way::Socket => &self.0.on_socket,
            Way::Tcp => &self.0.over_tcp,
        };
        let permit = places.clone().try_acquire_owned().ok()?;
        let changes = self.0.newest.subscribe();
        let cursor = last.unwrap_or_else(|| *changes.borrow());
        let mut follower =
            Follower { events: self.clone(), cursor, queue: VecDeque::new(), changes, stopping, _permit: permit };
        match self.since(cursor) {
            Since::All(events) => {
                // The id without data is no event, but a client that comes back before the first one names it.
                follower.queue.push_back(sse::Event::default().retry(RETRY).id(cursor.to_string()));
                follower.take(events);
            }
            Since::Some(floor, events) => {
                let gap = Arc::new(Published::new(floor, Event::Gap { after: cursor }));
                follower.queue.push_back(sse::Event::default().retry(RETRY));
                follower.take([gap]);
                follower.take(events);
            }
        }
        Some(stream::unfold(follower, |mut follower| async { Some((Ok(follower.next().await?), follower)) }))
    }
}

/// One client's place in the events.
struct Follower {
    events: Events,
    cursor: u64,
    queue: VecDeque<sse::Event>,
    changes: watch::Receiver<u64>,
    stopping: watch::Receiver<bool>,
    _permit: OwnedSemaphorePermit,
}

impl Follower {
    fn take(&mut self, events: impl IntoIterator<Item = Arc<Published>>) {
        for event in events {
            self.cursor = event.id;
            let text = sse::Event::default().id(event.id.to_string()).event(event.event.name());
            match text.json_data(&*event) {
                Ok(text) => self.queue.push_back(text),
                Err(error) => tracing::error!(%error, "an event cannot be put into JSON"),
            }
        }
    }

    async fn next(&mut self) -> Option<sse::Event> {
        loop {
            if let Some(event) = self.queue.pop_front() {
                return Some(event);
            }
            let is_last = tokio::select! {
                () = stopped(&mut self.stopping) => true,
                changed = self.changes.changed() => changed.is_err(),
            };
            let Since::All(events) = self.events.since(self.cursor) else {
                tracing::info!("a client has not kept up with the events; it may come back");
                return None;
            };
            self.take(events);
            if is_last && self.queue.is_empty() {
                return None;
            }
        }
    }
}

fn micros() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::StreamExt;

    fn event(number: u64) -> Event {
        Event::Reload { outcome: ReloadOutcome::Refused, reason: Some(number.to_string()) }
    }

    fn ids(events: &Events, id: u64) -> (bool, Vec<u64>) {
        let ids = |events: Vec<Arc<Published>>| events.iter().map(|event| event.id).collect();
        match events.since(id) {
            Since::All(events) => (true, ids(events)),
            Since::Some(_, events) => (false, ids(events)),
        }
    }

    #[test]
    fn ids_only_grow_and_the_ring_keeps_the_last() {
        let events = Events::default();
        let start = *events.0.newest.borrow();
        (0..=KEPT as u64).for_each(|number| events.publish(event(number)));
        let (all, known) = ids(&events, 0);
        assert!(!all && known.len() == KEPT && known.is_sorted_by(|one, next| one < next) && known[0] > start);
        // Whoever has seen the one that was dropped misses nothing; whoever has not, does.
        let floor = events.0.ring.lock().floor;
        assert_eq!((ids(&events, floor).0, ids(&events, floor - 1).0), (true, false));
        assert_eq!(ids(&events, known[1000]), (true, known[1001..].to_vec()));
        assert_eq!(ids(&events, known[KEPT - 1]), (true, vec![]));
        assert!(!ids(&events, u64::MAX).0, "an id that this daemon has not given");
        // The next daemon begins above, unless this one had more than one event a microsecond.
        while micros() <= known[KEPT - 1] {
            std::hint::spin_loop();
        }
        assert!(*Events::default().0.newest.borrow() >= known[KEPT - 1]);
    }

    #[test]
    fn names_are_those_of_the_json() {
        let mount = || "a".to_owned();
        let (from, to, reason, pause_ms) = (Backend::Fuse2, Backend::Fuse3, mount(), 0.5);
        for event in [
            event(0),
            Event::Gap { after: 1 },
            Event::Mount { mount: mount(), state: MountState::Serving, reason: None },
            Event::SwitchFailed { mount: mount(), to, reason: mount() },
            Event::Failover { mount: mount(), from, to, reason: mount(), pause_ms },
            Event::Verdict {
                mount: mount(),
                rule: mount(),
                verdict: mount(),
                value: Some(0.5),
                threshold: None,
                samples: 7,
                reason: mount(),
            },
            Event::Switch { mount: mount(), from, to, reason, pause_ms, in_flight: 0, answered_for_hung: 0 },
        ] {
            let published = Published::new(7, event.clone());
            let json = serde_json::to_value(&published).unwrap();
            assert_eq!((json["event"].as_str(), json["id"].as_u64()), (Some(event.name()), Some(7)));
            assert_eq!(serde_json::from_value::<Published>(json).unwrap(), published);
        }
    }

    #[tokio::test]
    async fn a_slow_client_is_dropped_and_holds_up_nobody() {
        let events = Events::default();
        let (_stop, stopping) = watch::channel(false);
        let mut stream = std::pin::pin!(events.stream(None, Way::Tcp, stopping.clone()).unwrap());
        assert!(stream.next().await.is_some(), "the place from which it goes on");
        (0..=KEPT as u64).for_each(|number| events.publish(event(number)));
        assert!(stream.next().await.is_none());
        // There is room for so many, and for as many again when those have gone.
        for _ in 0..2 {
            let listen = |way| (0..99).map_while(|_| events.stream(None, way, stopping.clone())).collect::<Vec<_>>();
            let others = listen(Way::Tcp);
            assert_eq!(others.len(), MOST_STREAMS);
            // Whoever comes by the control socket has places of its own.
            assert_eq!(listen(Way::Socket).len(), MOST_STREAMS);
        }
    }

    #[tokio::test]
    async fn a_stream_ends_when_its_listener_stops_with_what_was_said_before() {
        // Which of the two is heard first is a matter of chance.
        for number in 0..32 {
            let (stop, stopping) = watch::channel(false);
            let events = Events::default();
            let mut stream = std::pin::pin!(events.stream(None, Way::Socket, stopping).unwrap());
            assert!(stream.next().await.is_some());
            events.publish(event(number));
            stop.send_replace(true);
            assert!(stream.next().await.is_some());
            assert!(stream.next().await.is_none());
        }
    }
}
