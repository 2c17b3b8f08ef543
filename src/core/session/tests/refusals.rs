//! Brokers that refuse: how often they are asked, and what that costs.

use std::collections::{BTreeMap, BTreeSet};

use super::*;

/// A broker that answers everything at once, and a log that is as quick.
struct Table {
    session: Session,
    now: Millis,
    /// What there is to be delivered, and how much of that has been read.
    reports: Vec<Delivery>,
    read: usize,
    ids: BTreeMap<SendNo, Seq>,
    next_send: u64,
    /// What comes next.
    coming: VecDeque<Input>,
    /// And when nothing else comes, all at once.
    answers: Vec<Incoming>,
    /// Whose sessions the broker has, and who is connected.
    clients: BTreeSet<String>,
    client: String,
    published: u64,
    done: BTreeSet<Seq>,
    dead: Vec<Seq>,
    suspended: u64,
}

impl Table {
    /// So many reports of QoS 1 and of this size, each of a topic of its own.
    fn new(settings: Settings, reports: u64, size: usize) -> Table {
        let report = |send| Delivery { size, ..delivery(send, &format!("topic/{send}"), Qos::AtLeastOnce) };
        Table {
            session: Session::new(settings, Start::default()),
            now: Millis(1_000),
            reports: (0..reports).map(report).collect(),
            read: 0,
            ids: (0..reports).map(|send| (SendNo(send), Seq(send + 1))).collect(),
            next_send: reports,
            coming: VecDeque::new(),
            answers: Vec::new(),
            clients: BTreeSet::new(),
            client: String::new(),
            published: 0,
            done: BTreeSet::new(),
            dead: Vec::new(),
            suspended: 0,
        }
    }

    /// Goes on for so long, with a broker that answers with these codes.
    fn play(&mut self, for_ms: u64, answer: impl Fn(Seq) -> u8) {
        let end = self.now.plus(for_ms);
        loop {
            self.coming.push_back(Input::Tick);
            while let Some(input) = self.next_input() {
                self.session.handle(self.now, u32::MAX, input);
                while let Some(output) = self.session.next_output() {
                    self.act(output, &answer);
                }
                self.read();
            }
            match self.session.deadline() {
                Some(at) if at < end => self.now = self.now.max(at),
                _ => break,
            }
        }
        self.now = end;
    }

    fn next_input(&mut self) -> Option<Input> {
        let answered = || (!self.answers.is_empty()).then(|| Input::Received(std::mem::take(&mut self.answers)));
        self.coming.pop_front().or_else(answered)
    }

    fn read(&mut self) {
        if self.session.wants() > 0 && self.read < self.reports.len() {
            self.coming.push_back(Input::Offer(vec![self.reports[self.read].clone()]));
            self.read += 1;
        }
    }

    fn act(&mut self, output: Output, answer: &impl Fn(Seq) -> u8) {
        match output {
            Output::Open { .. } => self.coming.push_back(Input::Opened),
            Output::Close => self.answers.clear(),
            Output::Send(Outgoing::Connect { client_id, clean, .. }) => {
                let session_present = self.clients.remove(&client_id) && !clean;
                self.clients.extend(Some(client_id.clone()).filter(|_| !clean));
                self.client = client_id;
                let limits = BrokerLimits::default();
                self.answers.push(Incoming::ConnAck { session_present, code: 0, limits, reason: None, assigned_client_id: None });
            }
            Output::Send(Outgoing::Disconnect { end_session: true }) => _ = self.clients.remove(&self.client),
            Output::Send(Outgoing::Publish { send, packet_id: Some(packet_id), .. }) => {
                self.published += 1;
                let ack = Ack { packet_id, code: answer(self.ids[&send]), reason: None };
                self.answers.push(Incoming::PubAck(ack));
            }
            Output::Send(Outgoing::PingReq) => self.answers.push(Incoming::PingResp),
            Output::Append(events) => {
                let first = self.next_send;
                self.next_send += events.iter().filter(|event| matches!(event, Event::Resent { .. })).count() as u64;
                self.coming.push_back(Input::Committed { resent: (first..self.next_send).map(SendNo).collect() });
            }
            Output::Note(Note::Renumbered { from, to }) => {
                self.ids.insert(to, self.ids[&from]);
            }
            Output::Note(Note::Done { send, .. }) => {
                self.done.insert(self.ids[&send]);
            }
            Output::Note(Note::Dead { id, .. }) => self.dead.push(id),
            Output::Note(Note::Suspended { .. }) => self.suspended += 1,
            _ => {}
        }
    }
}

fn with_window(window_5: u16, initial_ms: u64, max_ms: u64) -> Settings {
    let retry = RetryPolicy { initial_ms, max_ms, attempts: 3 };
    Settings { window_5, packet_ids: 5_000, retry, ..settings(&calm()) }
}

const MINUTE: u64 = 60_000;

#[test]
fn a_broker_that_has_no_room_is_asked_ever_more_rarely() {
    for refusal in [code::QUOTA, code::UNSPECIFIED] {
        let mut table = Table::new(with_window(50, 100, 10_000), 50, 0);
        table.play(30_000, |_| refusal);
        // At 0, 0.1, 0.3, 0.7, 1.5, 3.1, 6.3, 12.7 and 22.7 s.
        assert_eq!((table.published, table.dead.len()), (9 * 50, 0), "0x{refusal:02x}");
        table.play(10_000, |_| 0);
        assert_eq!(table.done.len(), 50);
        // And soon again, when something has got through meanwhile.
        table.reports.push(delivery(table.next_send, "later", Qos::AtLeastOnce));
        table.ids.insert(SendNo(table.next_send), Seq(0));
        table.next_send += 1;
        table.published = 0;
        table.play(50, |_| refusal);
        table.play(100, |_| refusal);
        assert_eq!(table.published, 2);
    }
}

#[test]
fn a_broker_that_refuses_everything_without_a_reason_costs_two_reports_and_all_others_arrive_when_it_is_mended() {
    let reports = HELD_LIMIT as u64 + 30;
    let mut table = Table::new(with_window(8, 50, 400), reports, 0);
    table.play(5 * MINUTE, |_| code::IMPLEMENTATION);
    assert_eq!(table.dead.len(), 2, "it does not empty itself into the dead letters");
    assert!(table.suspended > 10, "and says so: {}", table.suspended);
    table.play(MINUTE, |_| 0);
    assert_eq!(table.done.len() as u64, reports - 2);
}

#[test]
fn reports_that_are_refused_without_a_reason_do_not_keep_others_from_being_read_however_large_they_are() {
    // Four of these are more than is held.
    let mut table = Table::new(with_window(8, 50, 400), 5, HELD_BYTES / 4 + 1);
    table.play(5 * MINUTE, |id| if id <= Seq(4) { code::UNSPECIFIED } else { 0 });
    assert!(table.done.contains(&Seq(5)), "{:?}", table.dead);
}

#[test]
fn a_retired_lane_ends_though_the_last_of_its_reports_is_refused_without_a_reason() {
    for is_retired in [true, false] {
        let mut table = Table::new(Settings { is_retired, ..with_window(8, 50, 400) }, 1, 0);
        table.play(5 * MINUTE, |_| code::UNSPECIFIED);
        assert_eq!((table.dead.len(), table.session.is_empty()), if is_retired { (1, true) } else { (0, false) });
    }
}
