//! The kernel's side of a mount: making it, negotiating it, and the ports by which backends are plugged into it.

pub mod helper;
