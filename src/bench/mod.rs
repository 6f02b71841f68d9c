//! The load that demo and tests use.
