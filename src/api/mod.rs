//! Control over a Unix socket: HTTP, authorised by the uid and gid of the peer.
