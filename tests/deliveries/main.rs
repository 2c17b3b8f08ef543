//! What operators do with deliveries: the real binary, asked over HTTP and by its commands.
//!
//! | Module | Claims about |
//! |---|---|
//! | `events` | what happens, live |
//! | `notices` | what is told of a gap, and dead letters past their retention |
//! | `reading` | lists, histories and payloads |
//! | `repairs` | dead letters and pending deliveries that somebody decides about, also through a kill |
//! | `replays` | what was delivered and is delivered again, also through a kill |

#[path = "../support/mod.rs"]
mod support;

mod events;
mod notices;
mod reading;
mod repairs;
mod replays;
