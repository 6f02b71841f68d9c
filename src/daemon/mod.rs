//! The control process: starts and watches the server of each mount; holds no FUSE descriptor.
//!
//! It reads mountinfo and nothing else of a mount: no stat, canonicalize or open at or below a mount point, because a
//! thread that hangs there cannot even be killed.

mod dead_mount;
pub mod facts;
pub mod guard;
mod keeper;
pub mod leftover;
mod life;
mod listeners;
mod lost;
pub mod mirror;
pub mod mount;
mod ordering;
pub mod pilot;
mod preflight;
pub mod prober;
pub mod process;
mod recorder;
mod running;
mod status;

pub use keeper::{Adopts, Keeper, Plan};
pub use life::{Failure, Options, Reload, run};
pub use preflight::{Own, Refusal, check_all};
pub use recorder::Recorder;
pub use status::{Handle, Mounts};
