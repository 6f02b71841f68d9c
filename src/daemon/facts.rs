//! What the daemon knows of a mount beside its ledger: noted by the task of its server and by its keeper
//! ([`Recorder`](super::Recorder)), read by whoever tells of it.

use std::sync::Arc;

use crate::api::model::LastSwitch;
use crate::backend::drill::Ongoing;
use crate::config::{Backend, Mount};
use crate::ledger::Ledger;
use crate::server::orders::Unavailable;

/// Where a mount's life has got to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Phase {
    /// It is not served yet.
    Starting,
    /// It serves.
    Serving,
    /// It serves, and changes its backend at this moment.
    Switching,
    /// Somebody else has unmounted it, and programs that use it are still served.
    Detached {
        /// What mounts it again, if anything.
        again: Again,
    },
    /// It is unmounting.
    Stopping,
    /// It is not served, for this reason, and is to be tried again.
    Waiting(String),
    /// It is over, until somebody wants it again.
    Ended(End),
}

/// What becomes of a mount that somebody else has unmounted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Again {
    /// A reload or a restart of the daemon mounts it again.
    Reload,
    /// Nothing: its daemon ends with it.
    Never,
}

impl Again {
    /// What is to be said of it while programs still use it.
    #[must_use]
    pub fn why_detached(self) -> &'static str {
        match self {
            Self::Reload => {
                "somebody else has unmounted it; a reload (SIGHUP) or a restart of the daemon mounts it again; programs that still use the old one are served until they let go"
            }
            Self::Never => {
                "somebody else has unmounted it; programs that still use it are served until they let go, and the daemon ends with the last of them"
            }
        }
    }
}

/// How a mount ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum End {
    /// As it was told to.
    Stopped,
    /// Somebody else unmounted it.
    Unmounted,
    /// A reload wants it anew, at once: it hung while it started, or somebody else has unmounted it.
    Superseded,
    /// It never began.
    Failed(String),
    /// It is wrong in itself, and will not begin on any machine.
    Refused(String),
    /// The server died, or had to be killed.
    Died(String),
    /// It was told to stop, and did not in order.
    Forced(String),
}

/// What the daemon knows of a mount beside its ledger.
#[derive(Clone)]
pub struct Facts {
    /// What it is, as far as it is served: its place as mountinfo shows it, and what could change live has.
    pub mount: Arc<Mount>,
    /// What is configured now; what could not change live counts for the next server.
    pub wanted: Arc<Mount>,
    /// What was configured when its server started.
    pub started_as: Arc<Mount>,
    /// Where its life has got to.
    pub phase: Phase,
    /// What is being done while it is [`Phase::Starting`].
    pub step: String,
    /// The serving process, and what it counts.
    pub server: Option<(u32, Ledger)>,
    /// What all its servers have counted, also when none serves.
    pub counted: Option<Ledger>,
    /// How it is mounted and served, once it is.
    pub greeting: Option<Greeting>,
    /// Backends that cannot serve.
    pub unavailable: Vec<Unavailable>,
    /// The backend that the last server's end has met.
    pub last_active: Option<Backend>,
    /// Attempts that have failed since it was last served.
    pub failures: u32,
    /// The last change of backend.
    pub last_switch: Option<LastSwitch>,
    /// The drill that runs.
    pub drill: Option<Ongoing>,
}

impl Facts {
    /// Of a mount that is about to start.
    #[must_use]
    pub fn new(mount: Arc<Mount>) -> Self {
        Self {
            wanted: mount.clone(),
            started_as: mount.clone(),
            mount,
            phase: Phase::Starting,
            step: "it begins".into(),
            server: None,
            counted: None,
            greeting: None,
            unavailable: Vec::new(),
            last_active: None,
            failures: 0,
            last_switch: None,
            drill: None,
        }
    }

    /// The backend that serves when nobody wants another: the configured one, but where that is open the one that works.
    #[must_use]
    pub fn stable(&self) -> Backend {
        let configured = self.wanted.stable();
        let is_missing = self.server.is_some() && self.unavailable.iter().any(|one| one.backend == configured);
        if is_missing && self.wanted.is_stable_open() { configured.other() } else { configured }
    }

    /// Keys whose configured values do not count before another server starts.
    #[must_use]
    pub fn outdated(&self) -> Vec<&'static str> {
        let (now, then) = (&self.wanted, &self.started_as);
        [
            ("source", now.source != then.source),
            ("mountpoint", now.mountpoint != then.mountpoint),
            ("helper", now.helper != then.helper),
            ("allow_other", now.allow_other != then.allow_other),
            ("read_only", now.read_only != then.read_only),
            ("suid", now.suid != then.suid),
            ("dev", now.dev != then.dev),
            ("exec", now.exec != then.exec),
            ("sync", now.sync != then.sync),
            ("drill", now.drill != then.drill),
            ("io", now.io != then.io),
            ("cache", now.cache != then.cache),
        ]
        .into_iter()
        .filter_map(|(key, is_other)| is_other.then_some(key))
        .collect()
    }
}

/// What a server says when it begins to serve.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Greeting {
    /// The backend that serves.
    pub active: Backend,
    /// Minor version of the FUSE protocol that the kernel speaks.
    pub protocol_minor: u32,
    /// How it was mounted.
    pub helper: String,
}
