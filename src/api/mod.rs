//! Control over a Unix socket: HTTP, authorised by the uid of the peer.
//!
//! [`model`] is what is said, [`router`] is the side that answers, [`Client`] the side that asks, and [`socket`] the
//! place where they meet. What lies behind the routes is a [`Control`]; nothing here knows how a mount is served.

mod client;
pub mod model;
mod routes;
pub mod socket;

pub use client::{Client, ClientError};
pub use routes::{Control, ControlError, Peer, router, serve};
