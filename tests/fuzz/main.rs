//! What is read from outside, mutated under a seed: nothing panics, nothing takes more memory than its input allows, and what is accepted
//! means what it says.
//!
//! cargo-fuzz needs a nightly compiler and the service is built with a stable one, so this is a mutator of its own. It knows the structure
//! of what it mutates ([`mutate`]), and keeps what came to an outcome that was not seen before as the seed of further mutations, which
//! stands in for coverage ([`run`]).
//!
//! ```text
//!   tests/corpus/<target>/* ─▶ as they are ─▶ check
//!            └──▶ population ─▶ mutate (seed, case) ─▶ check ─▶ outcome: new? ─▶ population
//!                                                       └ fails ─▶ made smaller ─▶ tests/corpus/<target>/found-…
//! ```
//!
//! | Target | What is read | It holds that |
//! |---|---|---|
//! | `report` | `POST /v1/reports`, one report | accepted is JSON to another reader, too, and a report; refused has a code and a place |
//! | `batch` | NDJSON, `Idempotency-Key` | reports are the lines, in order, whole |
//! | `http` | bytes of a connection to the running service | answers are HTTP, and 202 means in the books |
//! | `topic` | templates and reports | what parses renders or says why; topics are valid; as Python's `str.format` has it |
//! | `config` | `tidings.toml` | every mistake has file and line; what is understood is in bounds |
//! | `units` | durations and sizes | what is shown reads back as the same |
//! | `address` | `servers` | what is shown reads back as the same |
//! | `zuul_ini`, `zuul_yaml` | Zuul's own files | the same, and bombs take no more than they are long |
//! | `page` | pages of the log | an error, or exactly what was written |
//! | `store` | identity, witness and seals of a store | an error, or everything that was accepted |
//! | `broker` | what brokers answer | the same packets however the stream is cut |
//! | `publisher` | what publishers send | the same packets however the stream is cut |
//! | `publish` | deliveries as bytes | another reader finds topic, payload and properties in them |
//!
//! | Environment | |
//! |---|---|
//! | `TIDINGS_FUZZ_SEED` | what chance decides; always the same if not set, the time with `TIDINGS_FUZZ_SECONDS` |
//! | `TIDINGS_FUZZ_CASES` | mutations for each target, instead of its own number |
//! | `TIDINGS_FUZZ_SECONDS` | how long for each target, instead of a number |
//!
//! A failure names the file that it was written to, which from then on is run first. What ends the whole process (a stack that overflows) is
//! left in `target/tmp/fuzz-<target>`: copy it into the corpus.

#[path = "../support/mod.rs"]
mod support;

mod address;
mod broker;
mod chance;
mod config;
mod delivery;
mod http;
mod memory;
mod mutate;
mod page;
mod publisher;
mod report;
mod run;
mod store;
mod stream;
mod topic;
mod zuul;
