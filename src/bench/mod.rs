//! The load that demo, tests and soak use, in child processes: a process that serves a mount must never touch it.
//!
//! [`load`] is what one child does, [`Crew`] is the parent's side of many.

mod crew;
pub mod load;

pub use crew::Crew;
