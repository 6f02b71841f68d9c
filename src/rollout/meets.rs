//! What meets what: the one table of what an operator's request does in each situation. Everything that may be refused is
//! refused by it, with the reason and what to do instead. docs/reference/actions.md is made from it.

/// What an operator can ask for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    /// `switch` to the stable backend.
    SwitchToStable,
    /// `switch` to the other one, which is the candidate if there is one.
    SwitchToCandidate,
    /// `rollback`
    Rollback,
    /// `unpin`
    Unpin,
    /// `rollout start`
    Start,
    /// `rollout pause`
    Pause,
    /// `rollout resume`
    Resume,
    /// `rollout promote`
    Promote,
    /// `rollout abort`
    Abort,
}

impl Action {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::SwitchToStable,
        Self::SwitchToCandidate,
        Self::Rollback,
        Self::Unpin,
        Self::Start,
        Self::Pause,
        Self::Resume,
        Self::Promote,
        Self::Abort,
    ];

    /// As people write it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::SwitchToStable => "switch STABLE",
            Self::SwitchToCandidate => "switch CANDIDATE",
            Self::Rollback => "rollback",
            Self::Unpin => "unpin",
            Self::Start => "start",
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Promote => "promote",
            Self::Abort => "abort",
        }
    }
}

/// What a mount is in, as far as requests meet it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Situation {
    /// Nothing is configured to be tried.
    NoCandidate,
    /// There is a plan, and it has not begun.
    Idle,
    /// As idle or aborted, but another backend serves than the one that should: its session ended, or did not start.
    Fallback,
    /// The fleet's share does not include this machine.
    FleetOutside,
    /// The fleet's share includes this machine: the candidate serves.
    FleetInside,
    /// A step is under way.
    Running,
    /// A step is held.
    Paused,
    /// The plan is through: the candidate serves.
    Committed,
    /// An operator or a change of configuration has ended it: stable serves.
    Aborted,
    /// Rolled back: stable serves, and nothing else until `unpin`.
    Pinned,
    /// What was kept of the mount cannot be read, so that it is not known whether it is pinned.
    Unreadable,
}

impl Situation {
    /// All of them.
    pub const ALL: [Self; 11] = [
        Self::NoCandidate,
        Self::Idle,
        Self::Fallback,
        Self::FleetOutside,
        Self::FleetInside,
        Self::Running,
        Self::Paused,
        Self::Committed,
        Self::Aborted,
        Self::Pinned,
        Self::Unreadable,
    ];

    /// In words.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::NoCandidate => "no candidate",
            Self::Idle => "idle",
            Self::Fallback => "fallback",
            Self::FleetOutside => "fleet, outside",
            Self::FleetInside => "fleet, inside",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Committed => "committed",
            Self::Aborted => "aborted",
            Self::Pinned => "pinned",
            Self::Unreadable => "unreadable state",
        }
    }

    /// What it means.
    #[must_use]
    pub fn about(self) -> &'static str {
        match self {
            Self::NoCandidate => "no other backend than the stable one is configured to be tried",
            Self::Idle => "there is a candidate, and its rollout has not begun; stable serves, or what was switched to",
            Self::Fallback => {
                "as idle or aborted, but another backend serves than should: its session ended or did not start"
            }
            Self::FleetOutside => {
                "`fleet` is configured and this machine is not in the share; stable serves, or what was switched to"
            }
            Self::FleetInside => "`fleet` is configured and this machine is in the share; the candidate serves",
            Self::Running => "a step of a rollout is under way",
            Self::Paused => "a step of a rollout is held: its weight stays, its time does not run",
            Self::Committed => "the rollout has come through; the candidate serves",
            Self::Aborted => "the rollout was ended by an operator or by a change of the configuration; stable serves",
            Self::Pinned => "rolled back: stable serves, and nothing else until `unpin`",
            Self::Unreadable => {
                "the mount's file in the state directory cannot be understood, or another daemon uses it; stable serves, and it is not known whether a pin is in the file"
            }
        }
    }
}

/// A cell of the table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cell {
    /// It is done: what happens.
    Do(&'static str),
    /// It is so already, and that is no error: a second operator may have asked for the same.
    Already(&'static str),
    /// It is not done.
    Refuse {
        /// Why.
        reason: &'static str,
        /// What to do.
        remedy: &'static str,
    },
}

/// The table. The words in capitals are filled in: MOUNT, STABLE, CANDIDATE, WHY (of a pin or a fallback), SINCE, STEP.
#[must_use]
#[rustfmt::skip]
pub fn cell(situation: Situation, action: Action) -> Cell {
    use Action as A;
    use Cell::{Already, Do, Refuse};
    use Situation as S;

    const NOT_PINNED: Cell = Already("MOUNT is not pinned");
    const PINS: Cell = Do("STABLE serves alone, and MOUNT is pinned to it");
    const BY_HAND: Cell = Do("CANDIDATE serves until the daemon is started anew by an operator");
    const NOTHING_RUNS: Cell = Refuse {
        reason: "no rollout of MOUNT is running",
        remedy: "`lighthouse-fs rollout start MOUNT` begins one",
    };
    const NOTHING_TO_RUN: Cell = Refuse {
        reason: "MOUNT has no candidate beside STABLE",
        remedy: "set candidate in its [mount.rollout], then reload the configuration (SIGHUP)",
    };
    const FLEET_DECIDES: Cell = Refuse {
        reason: "the fleet's weight decides whether MOUNT is served by CANDIDATE on this machine",
        remedy: "raise or lower fleet = { weight = … } in its [mount.rollout] and reload, or write steps instead",
    };
    const ITS_ROLLOUT_RUNS: Cell = Refuse {
        reason: "a rollout of MOUNT is running (STEP), and decides which backend serves",
        remedy: "`rollout promote MOUNT` goes to the next step, `rollout abort MOUNT` back to STABLE, `rollback MOUNT` pins it there",
    };
    const OVER: Cell = Refuse {
        reason: "the rollout of MOUNT is over: CANDIDATE is committed",
        remedy: "make it the stable one (backend = \"CANDIDATE\", without [mount.rollout]), or go back with `switch MOUNT STABLE`",
    };
    const PINNED: Cell = Refuse {
        reason: "MOUNT is pinned to STABLE since SINCE (WHY)",
        remedy: "if that is settled, `lighthouse-fs unpin MOUNT` lifts the pin",
    };
    const UNKNOWN: Cell = Refuse {
        reason: "it is not known whether MOUNT is pinned: WHY",
        remedy: "put that right, then reload the configuration (SIGHUP)",
    };

    match (situation, action) {
        (S::NoCandidate | S::Idle | S::FleetOutside, A::SwitchToStable) => Do("STABLE serves"),
        (S::NoCandidate | S::Idle | S::FleetOutside, A::SwitchToCandidate) => BY_HAND,
        (S::NoCandidate | S::Idle | S::FleetOutside, A::Rollback) => PINS,
        (S::NoCandidate | S::Idle | S::FleetOutside, A::Unpin) => NOT_PINNED,
        (S::NoCandidate, A::Start | A::Pause | A::Resume | A::Promote | A::Abort) => NOTHING_TO_RUN,
        (S::FleetOutside, A::Start | A::Pause | A::Resume | A::Promote | A::Abort) => FLEET_DECIDES,
        (S::Idle, A::Start) => Do("the rollout begins with the first step"),
        (S::Idle, A::Pause | A::Resume | A::Promote | A::Abort) => NOTHING_RUNS,

        (S::Fallback, A::SwitchToStable) => Do("STABLE is started anew, and serves"),
        (S::Fallback, A::SwitchToCandidate) => BY_HAND,
        (S::Fallback, A::Rollback) => PINS,
        (S::Fallback, A::Unpin) => NOT_PINNED,
        (S::Fallback, A::Start) => Refuse {
            reason: "CANDIDATE serves MOUNT already, because STABLE does not: WHY",
            remedy: "bring STABLE back first, with `switch MOUNT STABLE`: a rollout needs something to fall back on",
        },
        (S::Fallback, A::Pause | A::Resume | A::Promote | A::Abort) => NOTHING_RUNS,

        (S::FleetInside, A::SwitchToStable) => FLEET_DECIDES,
        (S::FleetInside, A::SwitchToCandidate) => Already("CANDIDATE serves MOUNT: this machine is in the fleet's share"),
        (S::FleetInside, A::Rollback) => PINS,
        (S::FleetInside, A::Unpin) => NOT_PINNED,
        (S::FleetInside, A::Start) => Already("this machine is in the fleet's share"),
        (S::FleetInside, A::Pause | A::Resume | A::Promote | A::Abort) => FLEET_DECIDES,

        (S::Running | S::Paused, A::SwitchToStable | A::SwitchToCandidate) => ITS_ROLLOUT_RUNS,
        (S::Running | S::Paused, A::Rollback) => PINS,
        (S::Running | S::Paused, A::Unpin) => NOT_PINNED,
        (S::Running, A::Start) => Refuse {
            reason: "a rollout of MOUNT is running already (STEP)",
            remedy: "see `rollout status MOUNT`; to begin with the first step again, `rollout abort MOUNT` before",
        },
        (S::Paused, A::Start) => Refuse {
            reason: "a rollout of MOUNT is paused (STEP)",
            remedy: "`rollout resume MOUNT` lets it go on; to begin with the first step again, `rollout abort MOUNT` before",
        },
        (S::Running, A::Pause) => Do("the weight stays, and the step's time stops"),
        (S::Paused, A::Pause) => Already("the rollout of MOUNT is paused"),
        (S::Running, A::Resume) => Already("the rollout of MOUNT is running"),
        (S::Paused, A::Resume) => Do("the step's time runs on; a backend that had ended is started anew"),
        (S::Running, A::Promote) => Do("the next step begins at once; after the last, CANDIDATE is committed"),
        (S::Paused, A::Promote) => Do("the next step begins at once, and is paused too; after the last, CANDIDATE is committed"),
        (S::Running | S::Paused, A::Abort) => Do("STABLE serves alone, and the rollout is over"),

        (S::Committed, A::SwitchToStable) => Do("STABLE serves; the rollout counts as not begun"),
        (S::Committed, A::SwitchToCandidate) => Do("CANDIDATE serves, started anew if it had ended"),
        (S::Committed, A::Rollback) => PINS,
        (S::Committed, A::Unpin) => NOT_PINNED,
        (S::Committed, A::Start | A::Pause | A::Resume | A::Promote | A::Abort) => OVER,

        (S::Aborted, A::SwitchToStable) => Do("STABLE serves"),
        (S::Aborted, A::SwitchToCandidate) => BY_HAND,
        (S::Aborted, A::Rollback) => PINS,
        (S::Aborted, A::Unpin) => NOT_PINNED,
        (S::Aborted, A::Start) => Do("the rollout begins with the first step"),
        (S::Aborted, A::Pause | A::Resume | A::Promote) => NOTHING_RUNS,
        (S::Aborted, A::Abort) => Already("the rollout of MOUNT is aborted"),

        (S::Pinned, A::SwitchToStable) => Do("STABLE serves, started anew if it had ended; the pin stays"),
        (S::Pinned, A::Rollback) => Already("MOUNT is pinned to STABLE since SINCE (WHY); the pin stays as it is"),
        (S::Pinned, A::Unpin) => Do("the pin is lifted; STABLE serves until something else is asked for"),
        (S::Pinned, A::Abort) => Already("MOUNT is pinned to STABLE since SINCE (WHY); no rollout is running"),
        (S::Pinned, A::SwitchToCandidate | A::Start | A::Pause | A::Resume | A::Promote) => PINNED,

        (S::Unreadable, A::SwitchToStable) => Do("STABLE serves, started anew if it had ended"),
        (S::Unreadable, A::Rollback) => Refuse {
            reason: "STABLE serves MOUNT alone already, and no pin can be kept: WHY",
            remedy: "put that right, reload the configuration (SIGHUP), and roll back again: until then nothing else serves",
        },
        (S::Unreadable, A::Abort) => Already("STABLE serves MOUNT, and no rollout is running"),
        (S::Unreadable, A::SwitchToCandidate | A::Unpin | A::Start | A::Pause | A::Resume | A::Promote) => UNKNOWN,
    }
}

/// Why a request was not heeded, and what to do instead.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{reason}; {remedy}")]
pub struct Refused {
    /// Why.
    pub reason: String,
    /// What to do.
    pub remedy: String,
}
