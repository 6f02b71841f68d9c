//! Tables that map node and handle numbers to the descriptors behind them.
//!
//! The records are plain atomics of fixed layout without pointers, so that they can lie in a mapping that outlives the
//! process; what else is here (the index of nodes) can be rebuilt from them. A descriptor is used only through a *pin*,
//! which keeps it open: a handler that its deadline gave up may still be at work when FORGET or RELEASE arrives, and
//! must not find another file under its descriptor's number.

mod handles;
mod nodes;
mod records;

pub(super) use handles::{HandleKind, HandlePin, HandleTable};
pub(super) use nodes::{Identity, NodePin, NodeTable};
