//! Control over HTTP: on a Unix socket, authorised by the uid of the peer, and over TCP, authorised by a token.
//!
//! [`model`] is what is said, [`events`] what happens, [`router`] the side that answers, [`Client`] the side that asks,
//! [`socket`] the place where they meet, and [`Admission`] who may come in over TCP. What lies behind the routes is a
//! [`Control`]; nothing here knows how a mount is served.

mod admission;
mod client;
mod control;
pub mod divergence;
pub mod events;
pub mod model;
mod problem;
mod routes;
mod serving;
pub mod socket;
mod token;

pub use admission::{Admission, Door, Peer, Secret};
pub use client::{Client, ClientError, Listener};
pub use control::{Answering, Control, ControlError};
pub use routes::{document, router};
pub use serving::{Bounds, serve, serve_tcp};
pub use token::{Token, TokenError};
