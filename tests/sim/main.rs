//! The whole delivery under a seeded simulator: nothing lost, nothing twice, whatever happens.
//!
//! One seed is one story: producers, a disk, a network and brokers, and what goes wrong with each of them. What runs in it is the real thing: the
//! committer with its group commit, the outbox, pages and checkpoints, recovery, carrying and retention, the way of a report from its bytes to the
//! log, the feeds and the sessions. What is simulated is what is around it: clocks, chance, the disk, the network, brokers, producers; and the driving of a
//! lane, which in the service is a task over a socket. See [`world`] for how they hang together and [`oracle`] for what is checked at each step.
//!
//! | Promise | Held against |
//! |---|---|
//! | created = pending + delivered + dead + expired + discarded | each commit, by books of its own |
//! | fold(log) = live outbox = what a start recovers from checkpoint and pages | each commit, each start |
//! | nothing leaves before its commit: answers, PUBLISH, PUBREL | each of them |
//! | order per topic | each first PUBLISH, each PUBLISH sent again, each arrival |
//! | QoS 2 arrives once; twice only where a session was lost, and then it is counted | each arrival |
//! | Receive Maximum, the window of 3.1.1 | each PUBLISH a broker reads; what is beyond on 3.1.1 it drops, and that is missing at the end |
//! | a packet identifier stands for one report | each PUBLISH and PUBREL that a broker reads |
//! | nothing that was accepted is missing; with a key once | the end |
//! | left in peace the backlog is empty in bounded time | the end |
//!
//! | Environment | |
//! |---|---|
//! | `TIDINGS_SIM_SEED` | the one seed to run, or the first |
//! | `TIDINGS_SIM_SEEDS` | how many; 2,000 if not set, 1 if a seed is |
//! | `TIDINGS_SIM_SECONDS` | for so long instead, however many |
//! | `TIDINGS_SIM_TRACE` | `all`: the whole trace of a failure, and not its last lines |
//! | `TIDINGS_SIM_REQUESTS` | requests in the hour of churn |
//!
//! A seed that fails prints what was broken, the last lines of its story, and how to tell it again.

mod broker;
mod chance;
mod client;
mod cluster;
mod disk;
mod lane;
mod network;
mod oracle;
mod process;
mod producer;
mod seeds;
mod story;
mod trace;
mod world;
