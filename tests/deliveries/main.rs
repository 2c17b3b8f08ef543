//! What operators do with deliveries: the real binary, asked over HTTP and by its commands.
//!
//! | Module | Claims about |
//! |---|---|
//! | `reading` | lists, histories and payloads |

#[path = "../support/mod.rs"]
mod support;

mod reading;
