//! The order in which a lane's deliveries are first sent, and who waits behind whom.
//!
//! ```text
//!   offer ─▶ fresh ───────────────────────────▶ sent
//!              │ its topic is held up                ▲
//!              ▼                                     │
//!            parked ── all of the topic ─▶ Resent ─▶ resent (goes first: these are older)
//!                                            ▲
//!   refused ─▶ waiting ── retry is due ──────┘
//! ```
//!
//! A topic is held up from a refusal until the outcome of its last resent delivery is durable. While it is, what comes fresh for it is
//! parked. Refused deliveries of a topic are sent again in their order, as far as their time has come; what was parked follows when all
//! of them are done.
//! Both get new numbers by `Resent`, so that the numbers of fresh sends stay in order and the log alone tells what may be on the wire.
//!
//! What an operator requeues waits as well, and holds nothing up. It gets its new number only when nothing fresh is ready, and a few at a time: thousands
//! of dead letters that are given back go out in the gaps, and delay what comes fresh by no more than these few.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use super::packet::Delivery;
use crate::core::types::{Millis, SendNo, Seq};

/// So many requeued deliveries are under way at once: what comes fresh meanwhile stands behind these.
const REQUEUED_AT_ONCE: usize = 8;

/// See the module.
#[derive(Debug, Default)]
pub struct Queue {
    fresh: VecDeque<Delivery>,
    resent: VecDeque<Delivery>,
    topics: BTreeMap<Arc<str>, HeldUp>,
    /// Deliveries that are waiting or parked.
    held: usize,
    /// Those of them that were requeued, and hold nothing up.
    requeued: usize,
    /// When something is due that has been refused, or parked.
    next_due: Option<Millis>,
    /// When something is due that was requeued.
    next_requeued: Option<Millis>,
    /// Requeued deliveries that have their new numbers, and are not done.
    requeued_under_way: usize,
}

/// As a topic's `sent_through`: everything fresh may go on. No send number is as high.
pub const HOLDS_NOTHING_UP: SendNo = SendNo(u64::MAX);

/// A topic that is held up.
#[derive(Debug)]
struct HeldUp {
    /// Refused deliveries by id, and when they may be sent again.
    waiting: BTreeMap<Seq, (Delivery, Millis)>,
    /// What came after.
    parked: VecDeque<Delivery>,
    /// Resent deliveries whose outcome is not durable yet, from the asking for their numbers on.
    under_way: usize,
    /// Fresh sends of the topic up to here had left before it was held up.
    sent_through: SendNo,
}

impl HeldUp {
    fn new(sent_through: SendNo) -> Self {
        HeldUp { waiting: BTreeMap::new(), parked: VecDeque::new(), under_way: 0, sent_through }
    }

    /// It has nothing but what was requeued.
    fn holds_nothing_up(&self) -> bool {
        self.sent_through == HOLDS_NOTHING_UP
    }
}

impl Queue {
    /// A fresh delivery, with a higher number than any before.
    pub fn offer(&mut self, delivery: Delivery) {
        match self.topics.get_mut(&delivery.topic) {
            Some(topic) if delivery.send > topic.sent_through => {
                topic.parked.push_back(delivery);
                self.held += 1;
                if topic.under_way == 0 && topic.waiting.is_empty() {
                    self.next_due = Some(Millis(0));
                }
            }
            _ => self.fresh.push_back(delivery),
        }
    }

    /// Deliveries that were sent and have to be sent again under the same number, in order.
    pub fn give_back(&mut self, deliveries: Vec<Delivery>) {
        let (mut resent, mut fresh): (Vec<_>, Vec<_>) = deliveries.into_iter().partition(|delivery| delivery.is_resent);
        resent.extend(self.resent.drain(..));
        resent.sort_by_key(|delivery| delivery.send);
        self.resent = resent.into();
        fresh.extend(self.fresh.drain(..));
        fresh.sort_by_key(|delivery| delivery.send);
        self.fresh = fresh.into();
    }

    /// A delivery was refused, under a number that is spent. Its topic is held up, but for what had left by then: everything fresh up to
    /// `left_through`, or up to where it was held up already. Returns that number, which belongs into the refusal's event.
    pub fn wait(&mut self, delivery: Delivery, retry_at: Millis, left_through: SendNo) -> SendNo {
        let topic = self.topics.entry(Arc::clone(&delivery.topic)).or_insert_with(|| HeldUp::new(left_through));
        if topic.holds_nothing_up() {
            // What was requeued of it is older, and goes before.
            topic.sent_through = left_through;
            self.requeued -= topic.waiting.len();
        }
        if delivery.is_resent {
            topic.under_way = topic.under_way.saturating_sub(1);
        }
        let through = topic.sent_through;
        let (stay, park): (VecDeque<_>, VecDeque<_>) =
            self.fresh.drain(..).partition(|fresh| fresh.topic != delivery.topic || fresh.send <= through);
        self.fresh = stay;
        self.held += park.len() + 1;
        // In order, before anything that was parked already.
        for parked in park.into_iter().rev() {
            topic.parked.push_front(parked);
        }
        topic.waiting.insert(delivery.id, (delivery, retry_at));
        self.update_due();
        through
    }

    /// The first fresh delivery of a topic that is here.
    pub fn first_fresh(&self, topic: &Arc<str>) -> Option<SendNo> {
        self.fresh.iter().find(|fresh| fresh.topic == *topic).map(|fresh| fresh.send)
    }

    /// A delivery waits that has been refused once more. What came after it in its topic, has its new number and is not sent, is parked behind it, and
    /// will get another number. Returns those.
    pub fn park_behind(&mut self, topic: &Arc<str>, id: Seq) -> Vec<Delivery> {
        let Some(held_up) = self.topics.get_mut(topic) else { return Vec::new() };
        let is_behind = |resent: &Delivery| resent.topic == *topic && resent.id > id;
        let (behind, ready): (VecDeque<_>, VecDeque<_>) = self.resent.drain(..).partition(is_behind);
        self.resent = ready;
        held_up.under_way = held_up.under_way.saturating_sub(behind.len());
        self.held += behind.len();
        // In order, before anything that was parked already.
        for parked in behind.iter().rev() {
            held_up.parked.push_front(parked.clone());
        }
        self.update_due();
        behind.into()
    }

    /// A dead letter was given back: it is to be sent again, but holds nothing up.
    pub fn requeue(&mut self, delivery: Delivery, retry_at: Millis) {
        let topic = self.topics.entry(Arc::clone(&delivery.topic)).or_insert_with(|| HeldUp::new(HOLDS_NOTHING_UP));
        self.requeued += usize::from(topic.holds_nothing_up());
        topic.waiting.insert(delivery.id, (delivery, retry_at));
        self.held += 1;
        self.update_due();
    }

    /// A delivery that was resent before a restart, under its newest number; `sent_through` as in its refusal.
    pub fn hold_for_resent(&mut self, topic: &Arc<str>, sent_through: SendNo) {
        let topic = self.topics.entry(Arc::clone(topic)).or_insert_with(|| HeldUp::new(sent_through));
        topic.under_way += 1;
        if sent_through != HOLDS_NOTHING_UP && (topic.holds_nothing_up() || topic.sent_through < sent_through) {
            self.requeued -= if topic.holds_nothing_up() { topic.waiting.len() } else { 0 };
            topic.sent_through = sent_through;
        }
        self.update_due();
    }

    /// Takes out what is to get a new number now: refused deliveries whose time has come, and what was parked behind.
    pub fn take_due(&mut self, now: Millis) -> Vec<Delivery> {
        if self.next_due().is_none_or(|due| due > now) {
            return Vec::new();
        }
        let mut due = Vec::new();
        let mut room = self.room_for_requeued();
        for topic in self.topics.values_mut().filter(|topic| topic.under_way == 0) {
            let before = due.len();
            let is_requeued = topic.holds_nothing_up();
            while !is_requeued || room > 0 {
                let Some(oldest) = topic.waiting.first_entry().filter(|oldest| oldest.get().1 <= now) else { break };
                due.push(oldest.remove().0);
                room -= usize::from(is_requeued);
                self.requeued -= usize::from(is_requeued);
            }
            if topic.waiting.is_empty() && due.len() == before {
                due.extend(topic.parked.drain(..));
            }
            topic.under_way = due.len() - before;
        }
        due.sort_by_key(|delivery| delivery.id);
        self.held -= due.len();
        self.update_due();
        due
    }

    /// A delivery has its new number and goes before the fresh ones.
    pub fn push_resent(&mut self, delivery: Delivery) {
        self.resent.push_back(delivery);
    }

    /// A resent delivery is done, or dead: what waits behind it may get its new numbers. Its topic stays held up for what comes fresh
    /// until the outcome is durable, see [`Queue::release_if_free`].
    pub fn resent_done(&mut self, topic: &Arc<str>) {
        if let Some(held_up) = self.topics.get_mut(topic) {
            held_up.under_way = held_up.under_way.saturating_sub(1);
        }
        self.update_due();
    }

    /// The outcome of a resent delivery is durable: if nothing of its topic waits any more, the topic is free.
    pub fn release_if_free(&mut self, topic: &Arc<str>) {
        if self.topics.get(topic).is_some_and(|held| held.under_way == 0 && held.waiting.is_empty() && held.parked.is_empty()) {
            self.topics.remove(topic);
        }
    }

    /// Whether a fresh delivery has to wait behind others of its topic.
    pub fn holds_up(&self, delivery: &Delivery) -> bool {
        self.topics.get(&delivery.topic).is_some_and(|topic| delivery.send > topic.sent_through)
    }

    fn update_due(&mut self) {
        let of = |requeued: bool| self.topics.values().filter(move |topic| topic.holds_nothing_up() == requeued);
        let due = |topic: &HeldUp| match topic.waiting.first_key_value() {
            Some((_, (_, retry_at))) => Some(*retry_at),
            None => (!topic.parked.is_empty()).then_some(Millis(0)),
        };
        let next_due = of(false).filter(|topic| topic.under_way == 0).filter_map(due).min();
        let next_requeued = of(true).filter(|topic| topic.under_way == 0).filter_map(due).min();
        let under_way = of(true).map(|topic| topic.under_way).sum();
        (self.next_due, self.next_requeued, self.requeued_under_way) = (next_due, next_requeued, under_way);
    }

    /// So many requeued deliveries may go now.
    fn room_for_requeued(&self) -> usize {
        if self.fresh.is_empty() { REQUEUED_AT_ONCE.saturating_sub(self.requeued_under_way) } else { 0 }
    }

    /// When [`Queue::take_due`] will have something.
    pub fn next_due(&self) -> Option<Millis> {
        let requeued = self.next_requeued.filter(|_| self.room_for_requeued() > 0);
        [self.next_due, requeued].into_iter().flatten().min()
    }

    /// The next delivery to send: resent ones first, which are older, unless `untried_first`.
    pub fn peek(&self, untried_first: bool) -> Option<&Delivery> {
        match self.is_fresh_next(untried_first) {
            false => self.resent.front().or_else(|| self.fresh.front()),
            true => self.fresh.front().or_else(|| self.resent.front()),
        }
    }

    /// Takes the next delivery to send.
    pub fn pop(&mut self, untried_first: bool) -> Option<Delivery> {
        match self.is_fresh_next(untried_first) {
            false => self.resent.pop_front().or_else(|| self.fresh.pop_front()),
            true => self.fresh.pop_front().or_else(|| self.resent.pop_front()),
        }
    }

    /// What was in flight before a resent one of its topic, and was given back when its session was lost, is older than that; and fresh ones go in
    /// their order.
    fn is_fresh_next(&self, untried_first: bool) -> bool {
        // Fresh ones stand by their sends, and so by their ids: the look ends at the first that came later.
        let is_older = |resent: &Delivery| {
            let mut before = self.fresh.iter().take_while(|fresh| fresh.id < resent.id);
            before.any(|fresh| fresh.topic == resent.topic)
        };
        untried_first || self.resent.front().is_some_and(is_older)
    }

    /// Takes one that is ready out of its turn.
    pub fn take(&mut self, send: SendNo) -> Option<Delivery> {
        [&mut self.resent, &mut self.fresh].into_iter().find_map(|ready| {
            let place = ready.iter().position(|delivery| delivery.send == send)?;
            ready.remove(place)
        })
    }

    /// A delivery that [`Queue::take_due`] has just given waits on, as it did before.
    pub fn put_back(&mut self, delivery: Delivery, retry_at: Millis) {
        if let Some(topic) = self.topics.get_mut(&delivery.topic) {
            topic.under_way = topic.under_way.saturating_sub(1);
            self.requeued += usize::from(topic.holds_nothing_up());
            topic.waiting.insert(delivery.id, (delivery, retry_at));
            self.held += 1;
            self.update_due();
        }
    }

    /// How many are ready to be sent.
    pub fn ready(&self) -> usize {
        self.resent.len() + self.fresh.len()
    }

    /// The size of what is ready to be sent, in bytes.
    pub fn ready_bytes(&self) -> usize {
        self.resent.iter().chain(&self.fresh).map(|delivery| delivery.size).sum()
    }

    /// How many are waiting or parked.
    pub fn held(&self) -> usize {
        self.held
    }

    /// How many are waiting or parked, but for what was requeued.
    pub fn held_up(&self) -> usize {
        self.held - self.requeued
    }

    /// What was refused, or stood behind that, has its new number and is ready to be sent again.
    pub fn resent(&self) -> impl ExactSizeIterator<Item = &Delivery> {
        self.resent.iter()
    }

    /// The size of what is waiting or parked, in bytes, but for what was requeued.
    pub fn held_up_bytes(&self) -> usize {
        let sizes = |topic: &HeldUp| {
            let waiting = topic.waiting.values().map(|(delivery, _)| delivery.size).sum::<usize>();
            waiting + topic.parked.iter().map(|delivery| delivery.size).sum::<usize>()
        };
        self.topics.values().filter(|topic| !topic.holds_nothing_up()).map(sizes).sum()
    }

    /// How many wait for a retry.
    pub fn waiting(&self) -> usize {
        self.topics.values().map(|topic| topic.waiting.len()).sum()
    }

    /// When the oldest of all that is not sent was accepted.
    pub fn oldest_accepted_at(&self) -> Option<Millis> {
        let held = self.topics.values().flat_map(|topic| {
            let waiting = topic.waiting.first_key_value().map(|(_, (delivery, _))| delivery.accepted_at);
            waiting.into_iter().chain(topic.parked.front().map(|delivery| delivery.accepted_at))
        });
        held.chain(self.peek(false).map(|delivery| delivery.accepted_at))
            .chain(self.fresh.front().map(|delivery| delivery.accepted_at))
            .min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::session::tests::delivery;
    use crate::core::types::Qos;

    /// What may go, in order, as ids.
    fn all(queue: &mut Queue) -> Vec<u64> {
        std::iter::from_fn(|| queue.pop(false)).map(|delivery| delivery.id.0).collect()
    }

    /// Gives everything that is due its new number, from `send` on.
    fn renumber(queue: &mut Queue, now: u64, send: u64) {
        for (number, delivery) in (send..).zip(queue.take_due(Millis(now))) {
            queue.push_resent(Delivery { send: SendNo(number), is_resent: true, ..delivery });
        }
    }

    #[test]
    fn what_has_its_new_number_waits_again_when_the_one_before_it_is_refused_once_more() {
        let mut queue = Queue::default();
        let [first, second, other] = [(0, "t"), (1, "t"), (2, "u")].map(|(send, topic)| delivery(send, topic, Qos::ExactlyOnce));
        for waiting in [&first, &second, &other] {
            queue.wait(waiting.clone(), Millis(5), SendNo(2));
        }
        renumber(&mut queue, 5, 3);
        let first = queue.pop(false).unwrap();
        queue.wait(first, Millis(50), SendNo(2));
        let behind: Vec<u64> = queue.park_behind(&Arc::from("t"), Seq(1)).iter().map(|delivery| delivery.id.0).collect();
        assert_eq!(behind, [2]);
        assert_eq!(all(&mut queue), [3], "another topic goes on");
        renumber(&mut queue, 49, 6);
        assert!(all(&mut queue).is_empty(), "its time has not come");
        renumber(&mut queue, 50, 6);
        assert_eq!(all(&mut queue), [1]);
        queue.resent_done(&Arc::from("t"));
        renumber(&mut queue, 50, 7);
        assert_eq!(all(&mut queue), [2], "and then what waited behind it");
    }

    #[test]
    fn what_has_not_left_waits_behind_a_refused_one_and_what_was_in_flight_behind_it_does_not() {
        let mut queue = Queue::default();
        for (send, topic) in [(2, "t"), (3, "u"), (4, "t")] {
            queue.offer(delivery(send, topic, Qos::ExactlyOnce));
        }
        // Number 2 was in flight, and is here to be sent again.
        queue.wait(delivery(0, "t", Qos::ExactlyOnce), Millis(5), SendNo(2));
        queue.offer(delivery(5, "t", Qos::AtMostOnce));
        assert_eq!(all(&mut queue), [3, 4]);
        renumber(&mut queue, 5, 6);
        assert_eq!(all(&mut queue), [1]);
        queue.resent_done(&Arc::from("t"));
        renumber(&mut queue, 5, 7);
        assert_eq!(all(&mut queue), [5, 6]);
    }

    #[test]
    fn what_was_requeued_goes_in_the_gaps_and_a_few_at_a_time() {
        let mut queue = Queue::default();
        for send in 0..20 {
            queue.requeue(delivery(send, &format!("t{send}"), Qos::ExactlyOnce), Millis(0));
        }
        queue.offer(delivery(20, "u", Qos::ExactlyOnce));
        assert_eq!((queue.next_due(), queue.take_due(Millis(9)).len(), queue.held(), queue.held_up()), (None, 0, 20, 0));
        assert_eq!(all(&mut queue), [21], "fresh first");
        renumber(&mut queue, 9, 21);
        queue.offer(delivery(40, "u", Qos::ExactlyOnce));
        assert_eq!((queue.ready(), queue.next_due(), queue.held()), (REQUEUED_AT_ONCE + 1, None, 20 - REQUEUED_AT_ONCE));
        let sent = all(&mut queue);
        assert_eq!((sent.len(), sent.last()), (REQUEUED_AT_ONCE + 1, Some(&41)));
        assert_eq!(queue.next_due(), None, "these have to be done first");
        (0..20).for_each(|send| queue.resent_done(&Arc::from(format!("t{send}"))));
        assert_eq!(queue.take_due(Millis(9)).len(), REQUEUED_AT_ONCE);
    }

    #[test]
    fn what_was_requeued_does_not_wait_for_a_gap_where_its_topic_is_held_up() {
        let mut queue = Queue::default();
        queue.requeue(delivery(0, "t", Qos::ExactlyOnce), Millis(0));
        queue.offer(delivery(5, "u", Qos::ExactlyOnce));
        queue.wait(delivery(1, "t", Qos::ExactlyOnce), Millis(5), SendNo(1));
        assert_eq!((queue.held(), queue.held_up()), (2, 2));
        let due: Vec<u64> = queue.take_due(Millis(5)).iter().map(|delivery| delivery.id.0).collect();
        assert_eq!(due, [1, 2]);
    }

    #[test]
    fn what_was_sent_before_and_is_given_back_goes_before_a_later_one_with_a_new_number() {
        let mut queue = Queue::default();
        queue.offer(delivery(3, "u", Qos::ExactlyOnce));
        queue.push_resent(Delivery { send: SendNo(9), is_resent: true, ..delivery(2, "t", Qos::ExactlyOnce) });
        queue.give_back(vec![delivery(1, "t", Qos::ExactlyOnce)]);
        assert_eq!(all(&mut queue), [2, 3, 4]);
    }
}
