//! When to roll back.

pub mod prometheus;
