//! How FUSE is spoken: one session of a FUSE crate, plugged into a connection by a port.
