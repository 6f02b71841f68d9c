//! What is to be tried on a mount, as it is configured and as this machine takes part.

use super::fleet::{MachineId, MachineIdError};
use crate::config::{Backend, Mount, Rollout, Step};

/// What is tried, and how.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Plan {
    /// The backend that is tried.
    pub candidate: Backend,
    /// How.
    pub way: Way,
}

/// How a candidate is tried.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Way {
    /// Step by step, from an operator's start on; never empty.
    Steps(Vec<Step>),
    /// On a share of machines, with all operations, as long as it is configured so.
    Fleet {
        /// The share, in percent.
        weight: u8,
        /// Whether this machine takes part; or why that is not known, so that it does not.
        takes_part: Result<bool, MachineIdError>,
    },
}

impl Plan {
    /// The plan of a mount; `None` without a candidate. `machine` matters to fleets only.
    #[must_use]
    pub fn of(mount: &Mount, machine: &Result<MachineId, MachineIdError>) -> Option<Self> {
        let Rollout { candidate, steps, fleet, .. } = &mount.rollout;
        let candidate = (*candidate)?;
        let way = match fleet {
            Some(weight) => Way::Fleet {
                weight: *weight,
                takes_part: machine
                    .as_ref()
                    .map(|machine| machine.takes_part(&mount.name, candidate, *weight))
                    .map_err(Clone::clone),
            },
            None => Way::Steps(steps.clone().unwrap_or_else(Rollout::default_steps)),
        };
        Some(Self { candidate, way })
    }

    /// Why it is not known whether this machine takes part.
    #[must_use]
    pub fn trouble(&self) -> Option<&MachineIdError> {
        match &self.way {
            Way::Fleet { takes_part, .. } => takes_part.as_ref().err(),
            Way::Steps(_) => None,
        }
    }
}

/// What a mount's state meets: names for messages, what serves by default, and the plan.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Terms {
    /// The mount's name.
    pub mount: String,
    /// The stable backend: as configured, or, with `auto`, the one that works.
    pub stable: Backend,
    /// What is to be tried.
    plan: Option<Plan>,
}

impl Terms {
    /// Of a mount as it is configured. `served`: its stable backend as it is served now, if it is.
    #[must_use]
    pub fn of(mount: &Mount, served: Option<Backend>, machine: &Result<MachineId, MachineIdError>) -> Self {
        Self {
            mount: mount.name.clone(),
            stable: served.unwrap_or_else(|| mount.stable()),
            plan: Plan::of(mount, machine),
        }
    }

    /// What is to be tried beside the stable backend.
    #[must_use]
    pub fn plan(&self) -> Option<&Plan> {
        self.plan.as_ref().filter(|plan| plan.candidate != self.stable)
    }

    /// The steps of the plan; none for a fleet.
    #[must_use]
    pub fn steps(&self) -> &[Step] {
        match self.plan().map(|plan| &plan.way) {
            Some(Way::Steps(steps)) => steps,
            _ => &[],
        }
    }
}
