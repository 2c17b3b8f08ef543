//! Several owners of the lane, one after the other: who has been dispossessed goes on for a while, and hears of it from the log alone.

use super::*;

/// One that drives the lane, or thinks that it does: its process, its connection, and what the broker knows of that.
pub(in crate::core::session) struct Driver {
    pub(super) me: u64,
    session: Session,
    fed: usize,
    reads_to: usize,
    known: HashMap<SendNo, Seq>,
    appending: VecDeque<Vec<Event>>,
    open: bool,
    at: usize,
    looking: Option<usize>,
    to_broker: VecDeque<(Outgoing, Option<Seq>)>,
    to_client: VecDeque<Incoming>,
    left: Vec<SendNo>,
    client: Option<(String, bool)>,
    in_window: BTreeSet<u16>,
    is_ended: bool,
}

impl World {
    /// Another one takes the lane, and starts from what the log says. Who had it does not know.
    pub(in crate::core::session) fn take_over(&mut self) {
        let (start, fed, known) = start_of(&self.log, &self.outbox);
        self.owner += 1;
        // No feed reads on behind that.
        self.reads_to = self.log.len();
        let next = Driver {
            me: self.owner,
            session: Session::new(settings(&self.story), start),
            fed,
            reads_to: usize::MAX,
            known,
            appending: VecDeque::new(),
            open: false,
            at: self.at,
            looking: None,
            to_broker: VecDeque::new(),
            to_client: VecDeque::new(),
            left: Vec::new(),
            client: None,
            in_window: BTreeSet::new(),
            is_ended: false,
        };
        self.others.push(next);
        self.swap(self.others.len() - 1);
        assert!(self.is_owner());
    }

    /// Goes on as one of the others, who takes the place of this one.
    pub(in crate::core::session) fn swap(&mut self, with: usize) {
        let other = &mut self.others[with];
        std::mem::swap(&mut self.me, &mut other.me);
        std::mem::swap(&mut self.session, &mut other.session);
        std::mem::swap(&mut self.fed, &mut other.fed);
        std::mem::swap(&mut self.reads_to, &mut other.reads_to);
        std::mem::swap(&mut self.known, &mut other.known);
        std::mem::swap(&mut self.appending, &mut other.appending);
        std::mem::swap(&mut self.open, &mut other.open);
        std::mem::swap(&mut self.at, &mut other.at);
        std::mem::swap(&mut self.looking, &mut other.looking);
        std::mem::swap(&mut self.to_broker, &mut other.to_broker);
        std::mem::swap(&mut self.to_client, &mut other.to_client);
        std::mem::swap(&mut self.left, &mut other.left);
        std::mem::swap(&mut self.client, &mut other.client);
        std::mem::swap(&mut self.in_window, &mut other.in_window);
        std::mem::swap(&mut self.is_ended, &mut other.is_ended);
    }

    pub(in crate::core::session) fn is_owner(&self) -> bool {
        self.me == self.owner
    }

    /// One of those that have been dispossessed makes a step.
    pub(in crate::core::session) fn step_of_another(&mut self, which: usize) {
        self.swap(which);
        self.step();
        let is_over = std::mem::take(&mut self.is_over);
        if is_over {
            // Its task ends, and its connection with it.
            let still_read = self.random.below(self.to_broker.len() as u64 + 1);
            self.broker_reads_some(still_read as usize);
            self.broker_sees_close();
        }
        self.swap(which);
        if is_over {
            self.others.remove(which);
        }
    }

    /// What happens to owners between two steps of the one that is.
    pub(super) fn own_and_disown(&mut self) {
        if !self.calm && self.random.below(1_000) < self.story.takeovers {
            self.take_over();
        }
        if !self.others.is_empty() && self.random.chance(50) {
            let which = self.random.below(self.others.len() as u64) as usize;
            self.step_of_another(which);
        }
    }

    /// A client id is connected once: who had it before is cut off, and reads what the broker has sent until then.
    pub(super) fn end_earlier_connection(&mut self, client_id: &str) {
        let at = self.at;
        let has_it = |other: &&mut Driver| other.at == at && other.client.as_ref().is_some_and(|(client, _)| client == client_id);
        for other in self.others.iter_mut().filter(has_it) {
            (other.client, other.is_ended) = (None, true);
            other.in_window.clear();
            other.to_broker.clear();
        }
    }
}
