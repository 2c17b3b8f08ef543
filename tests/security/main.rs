//! Who may do what over HTTP: the real binary, with tokens, and clients that have them or not.
//!
//! | Module | Claims about |
//! |---|---|
//! | `matrix` | every route, for whoever has no token, a wrong one, or one of each role |
//! | `large` | bodies of 100 MB, to every route |
//! | `rotation` | tokens that change while the service runs, and wrong ones again and again |
//! | `tenants` | tokens that are for some tenants only |
//! | `secrets` | what is never shown |
//! | `history` | the audit |
//! | `https` | TLS |
//! | `commands` | what the commands say without a token |
//! | `setup` | tokens in files, and a client that shows them |

#[path = "../support/certificates.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod certificates;
#[path = "../support/mod.rs"]
mod support;

mod commands;
mod history;
mod https;
mod large;
mod matrix;
mod rotation;
mod secrets;
mod setup;
mod tenants;
