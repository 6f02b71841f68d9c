//! Whether a candidate may go on: what was seen of both backends, and what that means by the rules of `[mount.guard]`.
//!
//! Pure: somebody else looks ([`Counts`], [`Look`]), keeps a [`Window`], asks [`judge`], and does what its [`Finding`]s say.
//! A rule says *breach* only of what chance does not explain, *healthy* only of what it does not either, and of everything
//! between *no data*, by which nothing goes up. What ails the stable backend as well is the *source*'s fault and nobody's
//! reason to change backends.

mod figures;
pub mod prometheus;
mod rules;
#[cfg(test)]
mod simulation;
mod statistics;
#[cfg(test)]
mod tests;
mod verdict;
mod window;

pub use rules::{Comparison, Look, Lost, Probe, judge};
pub use statistics::{Interval, wilson};
pub use verdict::{Finding, Need, Rule, Verdict, breach, missing, source};
pub use window::{Counts, PerBackend, Span, Window};
