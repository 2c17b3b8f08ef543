//! A committer without a thread of its own, for simulations: whoever holds it decides when a commit happens, and what is in it.
//!
//! It is the same committer; only the waiting is left out. What is asked for by its [`LogHandle`] waits until [`Stepped::step`] is called, and has its
//! answer when that returns. Carrying, which reads on another thread so that commits go on, is over when the step is.

use std::collections::VecDeque;
use std::sync::Arc;

use super::{Command, Committer, Limits, LogHandle, build};
use crate::core::event::Event;
use crate::core::outbox::Outbox;
use crate::log::EventLog;
use crate::metrics::Metrics;

/// See the module. Dropping it without a stop is a kill.
pub struct Stepped {
    /// None once it has been stopped.
    committer: Option<Committer>,
    /// What was asked for before a carrier spoke up, which goes first.
    later: VecDeque<Command>,
}

/// A committer that works when it is told to, and the way to it.
pub fn stepped(log: Box<dyn EventLog>, outbox: Outbox, limits: Limits, metrics: Arc<Metrics>) -> (LogHandle, Stepped) {
    let (handle, committer) = build(log, outbox, limits, metrics);
    (handle, Stepped::of(committer))
}

impl Stepped {
    pub(super) fn of(committer: Committer) -> Stepped {
        Stepped { committer: Some(committer), later: VecDeque::new() }
    }

    /// Takes one command, and all that waits behind it, into one commit, as the thread does. False if nothing waits, or it has been stopped.
    pub fn step(&mut self) -> bool {
        let Some(committer) = &mut self.committer else { return false };
        let next = committer.next_up.take().or_else(|| self.later.pop_front());
        let Some(command) = next.or_else(|| committer.inbox.try_recv().ok()) else { return false };
        let stop = committer.take(command);
        committer.settle();
        match stop {
            Some(reply) => {
                committer.close(reply);
                self.committer = None;
            }
            None => self.let_carry(),
        }
        true
    }

    /// Whether there is something for the next step.
    pub fn has_more(&self) -> bool {
        self.committer
            .as_ref()
            .is_some_and(|committer| committer.next_up.is_some() || !self.later.is_empty() || !committer.inbox.is_empty())
    }

    /// Housekeeping, which the thread does once a second.
    pub fn tick(&mut self) {
        if let Some(committer) = &mut self.committer {
            committer.tick();
            self.let_carry();
        }
    }

    /// Where the log is shared: reads what others have appended, which the thread does all the time.
    pub fn follow(&mut self) {
        if let Some(committer) = &mut self.committer {
            committer.follow();
        }
    }

    /// Waits for a carrier, which is on a thread of its own and asks for one thing at a time.
    fn let_carry(&mut self) {
        let Some(committer) = &mut self.committer else { return };
        while committer.is_carrying {
            let Some(command) = committer.inbox.blocking_recv() else { break };
            let is_carriers = match &command {
                Command::CarriedForward { .. } => true,
                Command::Append(append) => matches!(append.events.first(), Some(Event::Carried(_))),
                _ => false,
            };
            match is_carriers {
                // Nothing stands behind it: whoever else asks is waiting for this to return.
                true => {
                    committer.take(command);
                    committer.settle();
                }
                false => self.later.push_back(command),
            }
        }
    }

    /// The outbox as of the last commit; none once it has been stopped.
    pub fn outbox(&self) -> Option<&Outbox> {
        self.committer.as_ref().map(|committer| &committer.outbox)
    }
}
