//! Delivery: each lane drives a [`core::session`](crate::core::session) over a socket.
//!
//! ```text
//!   log pages ─▶ feed ─▶ Session (pure) ─▶ transport ─▶ broker
//!                           │  ▲               │
//!                  outcomes ▼  └── Committed   ▼ acks
//!                          log ◀───────────────┘
//! ```
//!
//! A lane never touches the outbox: it starts from a snapshot of its part of it, follows the log, and hands outcomes back to the log.
//!
//! | Module | Holds |
//! |---|---|
//! | [`lane`] | a lane at work: the task that owns session, socket and feed |
//! | [`feed`] | what is a lane's in the log, in send order |
//! | [`backlog`] | what is pending on a whole connection, in the order of acceptance: for handing it over |
//! | [`codec`] | packets to bytes and back |
//! | [`transport`] | the way to a broker: TCP, TLS, WebSocket, Unix sockets |
//! | [`probe`] | asks a broker what it is, in a session of its own |
//! | [`precedence`] | who of a connection's lanes may send: fresh first, replay in the gaps |
//! | [`board`] | what every lane is doing, for status and health |

pub mod backlog;
pub mod board;
pub mod codec;
pub mod feed;
pub mod lane;
pub mod precedence;
pub mod probe;
pub mod transport;
