//! MQTT clients that publish to Tidings' listener: sessions that outlive their connections, QoS 0, 1 and 2, and DUP after a connection was lost. The
//! listener's side is the real state machine with the real store and sessions; how they are driven is as in `ingest::mqtt::connection`.
//!
//! What a client publishes at QoS 2 makes one delivery, however often it has to be sent; at QoS 1 at least one. A client is told only of what is durable.

use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use tidings::core::event::Properties;
use tidings::core::listener::{
    Ack, AckKind, Admission, Answer, Close, Connect, Incoming, Input, Limits, Outgoing, Output, Publish, Publisher as Machine,
};
use tidings::core::types::{Millis, Protocol, Qos};
use tidings::ingest::mqtt::registry::{Claim, Place, Registry};
use tidings::ingest::mqtt::sessions::{self, Sessions};
use tidings::ingest::mqtt::store::{Publisher, Recognised, Store};
use tidings::log::committer::{CommitError, Committed};

use crate::lane::{Waiting, look};
use crate::trace::{say, violated};
use crate::world::{What, World};

/// In flight of one client.
const IN_FLIGHT: usize = 4;

/// A client that hears nothing of what it has sent connects anew after this.
const PATIENCE_MS: u64 = 4_000;

/// A listener whose store is full looks again after this.
const TRY_AGAIN_MS: u64 = 1_000;

pub struct Client {
    name: String,
    protocol: Protocol,
    /// What it has still to publish.
    to_send: VecDeque<Publish>,
    /// What it has sent and is not through with, in order.
    in_flight: VecDeque<InFlight>,
    last_id: u16,
    connection: Option<u64>,
    is_welcome: bool,
    /// QoS of each of its reports, and whether it was told that it is taken.
    pub reports: Vec<(u64, Qos, bool)>,
    gave_up: bool,
}

struct InFlight {
    publish: Publish,
    /// PUBREC is here.
    is_recorded: bool,
}

/// What the listener has of all clients.
pub struct Listener {
    store: Store,
    sessions: Arc<Sessions>,
    registry: Arc<Registry>,
    conversations: std::collections::BTreeMap<u64, Conversation>,
}

/// The listener's side of one connection.
struct Conversation {
    client: usize,
    machine: Machine,
    work: Option<Work>,
    publisher: Publisher,
    place: Option<Place>,
    claim: Option<Claim>,
    recognised: Recognised,
    taken: u64,
    is_room_due: bool,
    is_over: bool,
}

enum Work {
    Greeting(Waiting<'static, Result<(Claim, Admission), Close>>),
    Storing(Waiting<'static, Result<Committed<()>, CommitError>>),
    Leaving(Waiting<'static, Result<(), CommitError>>),
}

/// What one side says to the other.
#[derive(Debug, Clone)]
pub enum Said {
    ToListener(Incoming),
    Sent(Outgoing),
    Acked(Ack),
    Refused(tidings::core::listener::Refused),
    Over,
}

/// A way between a client and the listener.
pub struct Way {
    client: usize,
    there_at: u64,
    here_at: u64,
    is_cut: bool,
}

impl Listener {
    pub fn new(store: Store, sessions: Sessions, registry: Arc<Registry>) -> Self {
        Listener { store, sessions: Arc::new(sessions), registry, conversations: std::collections::BTreeMap::new() }
    }
}

impl World {
    pub fn make_clients(&mut self) {
        let count = if self.story.publishes > 0 { self.chance.within(1, 3) } else { 0 };
        for number in 0..count {
            let protocol = self.chance.pick(&[Protocol::V5, Protocol::V311]);
            self.clients.push(Client {
                name: format!("zuul-{number}"),
                protocol,
                to_send: VecDeque::new(),
                in_flight: VecDeque::new(),
                last_id: 0,
                connection: None,
                is_welcome: false,
                reports: Vec::new(),
                gave_up: false,
            });
        }
        for _ in 0..self.story.publishes {
            let (client, at) = (self.chance.below(count) as usize, self.chance.below(self.story.span_ms));
            self.at(at, What::Publish { client });
        }
    }

    /// A client has something to say.
    pub fn on_publish(&mut self, number: usize) {
        self.last_report += 1;
        let report = self.last_report;
        let qos = self.chance.pick(&[Qos::AtMostOnce, Qos::AtLeastOnce, Qos::ExactlyOnce, Qos::ExactlyOnce]);
        let expires = self.chance.percent(self.story.expiring);
        let expiry_s = expires.then(|| self.chance.below(4) as u32);
        let topic = format!("ci/p{}", self.chance.below(self.story.topics));
        let client = &mut self.clients[number];
        client.to_send.push_back(Publish {
            topic,
            alias: None,
            qos,
            retain: false,
            dup: false,
            packet_id: 0,
            expiry_s: expiry_s.filter(|_| client.protocol == Protocol::V5),
            properties: Properties::default(),
            payload: Bytes::from(report.to_string()),
        });
        client.reports.push((report, qos, qos == Qos::AtMostOnce));
        if qos != Qos::AtMostOnce {
            self.unanswered += 1;
        }
        self.client_goes_on(number);
    }

    /// Connects, or sends what there is room for.
    fn client_goes_on(&mut self, number: usize) {
        let client = &mut self.clients[number];
        let Some(way) = client.connection else {
            self.last_link += 1;
            let way = self.last_link;
            client.connection = Some(way);
            client.is_welcome = false;
            let connect = Connect {
                protocol: client.protocol,
                client_id: client.name.clone(),
                clean: false,
                keepalive_s: 0,
                session_expiry_s: u32::MAX,
                maximum_packet_size: None,
                login: None,
                will: None,
                wants_authentication: false,
            };
            self.ways.insert(way, Way { client: number, there_at: self.now, here_at: self.now, is_cut: false });
            self.after(PATIENCE_MS, What::Patience { way });
            return self.tell(way, Said::ToListener(Incoming::Connect(Box::new(connect))));
        };
        if !client.is_welcome {
            return;
        }
        let mut leaving = Vec::new();
        while client.in_flight.len() < IN_FLIGHT
            && let Some(mut publish) = client.to_send.pop_front()
        {
            if publish.qos != Qos::AtMostOnce {
                client.last_id = client.last_id % 30 + 1;
                while client.in_flight.iter().any(|known| known.publish.packet_id == client.last_id) {
                    client.last_id = client.last_id % 30 + 1;
                }
                publish.packet_id = client.last_id;
                client.in_flight.push_back(InFlight { publish: publish.clone(), is_recorded: false });
            }
            leaving.push(publish);
        }
        for publish in leaving {
            self.tell(way, Said::ToListener(Incoming::Publish(Box::new(publish))));
        }
    }

    /// Something is on its way to the other side.
    fn tell(&mut self, way: u64, said: Said) {
        let delay = self.chance.within(0, 15);
        let Some(known) = self.ways.get_mut(&way) else { return };
        let at = if matches!(said, Said::ToListener(_)) { &mut known.there_at } else { &mut known.here_at };
        *at = (*at).max(self.now + delay);
        let at = *at;
        self.at(at, What::Said { way, said });
    }

    pub fn on_said(&mut self, way: u64, said: Said) {
        let Some(known) = self.ways.get(&way).filter(|known| !known.is_cut) else { return };
        let client = known.client;
        match said {
            Said::ToListener(packet) => self.listener_hears(way, client, packet),
            said => self.client_hears(way, client, said),
        }
    }

    fn client_hears(&mut self, way: u64, number: usize, said: Said) {
        let client = &mut self.clients[number];
        if client.connection != Some(way) {
            return;
        }
        say!(self, "client {number} hears on way {way}: {said:?}");
        match said {
            Said::Sent(Outgoing::Welcome { session_present, .. }) => {
                client.is_welcome = true;
                let mut again = Vec::new();
                for known in &client.in_flight {
                    // Without a session the PUBREL means nothing to it, and nothing is lost by that: the report was taken.
                    let packet = match known.is_recorded {
                        true => Incoming::PubRel { packet_id: known.publish.packet_id },
                        false => Incoming::Publish(Box::new(Publish { dup: true, ..known.publish.clone() })),
                    };
                    again.push(packet);
                }
                if !session_present && client.gave_up {
                    violated(format!("the session of client {number} is gone"));
                }
                client.gave_up = true;
                for packet in again {
                    self.tell(way, Said::ToListener(packet));
                }
                self.client_goes_on(number);
            }
            Said::Acked(Ack { kind, packet_id, .. }) => {
                let Some(place) = client.in_flight.iter().position(|known| known.publish.packet_id == packet_id) else { return };
                let report = crate::oracle::number_of(&client.in_flight[place].publish.payload);
                let told = client.reports.iter_mut().find(|(known, ..)| *known == report).expect("it was published");
                if !std::mem::replace(&mut told.2, true) {
                    self.unanswered -= 1;
                }
                let client = &mut self.clients[number];
                match kind {
                    AckKind::PubRec => {
                        client.in_flight[place].is_recorded = true;
                        self.tell(way, Said::ToListener(Incoming::PubRel { packet_id }));
                    }
                    AckKind::PubAck | AckKind::PubComp => {
                        client.in_flight.remove(place);
                        self.client_goes_on(number);
                    }
                }
            }
            // The store is full: it is published again, as something new.
            Said::Refused(refused) | Said::Sent(Outgoing::Refused(refused)) => {
                let place = client.in_flight.iter().position(|known| known.publish.packet_id == refused.packet_id);
                if let Some(known) = place.and_then(|place| client.in_flight.remove(place)) {
                    client.to_send.push_front(known.publish);
                    let delay = self.chance.within(200, 1_500);
                    self.after(delay, What::Again { client: number });
                }
            }
            Said::Sent(_) => {}
            Said::Over | Said::ToListener(_) => self.client_is_cut_off(way),
        }
    }

    pub fn on_again(&mut self, number: usize) {
        self.client_goes_on(number);
    }

    /// A client looks whether it gets on.
    pub fn on_patience(&mut self, way: u64) {
        let Some(known) = self.ways.get(&way) else { return };
        let client = &self.clients[known.client];
        if client.connection != Some(way) {
            return;
        }
        if client.is_welcome && client.in_flight.is_empty() {
            return self.after(PATIENCE_MS, What::Patience { way });
        }
        self.client_is_cut_off(way);
    }

    /// The network takes a way, with what is on it; the client comes again.
    pub fn client_is_cut_off(&mut self, way: u64) {
        let Some(known) = self.ways.get_mut(&way) else { return };
        known.is_cut = true;
        let client = known.client;
        say!(self, "client {client}: way {way} is cut");
        if self.clients[client].connection == Some(way) {
            self.clients[client].connection = None;
            let delay = self.chance.within(10, 800);
            self.after(delay, What::Again { client });
        }
        let delay = self.chance.below(300);
        self.after(delay, What::WayEnds { way });
    }

    pub fn open_ways(&self) -> Vec<u64> {
        self.ways.iter().filter(|(_, way)| !way.is_cut).map(|(number, _)| *number).collect()
    }

    // -- the listener --

    fn with_conversation(&mut self, way: u64, act: impl FnOnce(&mut World, &mut Conversation)) {
        let Some(listener) = self.process.as_mut().map(|process| &mut process.listener) else { return };
        let Some(mut conversation) = listener.conversations.remove(&way) else { return };
        act(self, &mut conversation);
        self.advance(way, &mut conversation);
        if let Some(process) = &mut self.process
            && !conversation.is_over
        {
            process.listener.conversations.insert(way, conversation);
        }
    }

    fn listener_hears(&mut self, way: u64, client: usize, packet: Incoming) {
        let now = Millis(self.now);
        let Some(process) = self.process.as_mut() else { return };
        if !process.listener.conversations.contains_key(&way) {
            if process.is_stopping || !matches!(packet, Incoming::Connect(_)) {
                return;
            }
            let limits = Limits {
                connect_timeout_ms: 20_000,
                receive_maximum: 1_024,
                topic_alias_maximum: 0,
                session_expiry_s: sessions::SESSION_EXPIRY_S,
                read_ahead: 256 << 10,
                largest: 1 << 20,
            };
            // Whoever has its client id is told to end, and waited for.
            let others: Vec<u64> =
                process.listener.conversations.iter().filter(|(_, known)| known.client == client).map(|(other, _)| *other).collect();
            process.listener.conversations.insert(
                way,
                Conversation {
                    client,
                    machine: Machine::new(limits, now),
                    work: None,
                    publisher: Publisher::default(),
                    place: None,
                    claim: None,
                    recognised: Arc::new(Mutex::new(HashSet::new())),
                    taken: 0,
                    is_room_due: false,
                    is_over: false,
                },
            );
            for other in others {
                self.with_conversation(other, |world, conversation| {
                    conversation.machine.handle(Millis(world.now), Input::End(Close::taken_over()));
                });
            }
        }
        say!(self, "listener hears on way {way}: {packet:?}");
        self.with_conversation(way, |world, conversation| {
            conversation.taken += 1;
            conversation.machine.handle(Millis(world.now), Input::Received(packet));
        });
    }

    pub fn on_way_ends(&mut self, way: u64) {
        self.ways.remove(&way);
        self.with_conversation(way, |world, conversation| {
            conversation.machine.handle(Millis(world.now), Input::End(Close::lost("the client closed the connection")));
        });
    }

    /// It is told to stop: what was read is stored and acknowledged.
    pub fn end_conversations(&mut self) {
        for way in self.conversations() {
            self.with_conversation(way, |world, conversation| {
                conversation.machine.handle(Millis(world.now), Input::End(Close::stopping()));
            });
        }
    }

    fn conversations(&self) -> Vec<u64> {
        self.process.iter().flat_map(|process| process.listener.conversations.keys().copied()).collect()
    }

    /// Cuts off whoever has not ended.
    pub fn forget_conversations(&mut self) {
        if let Some(process) = &mut self.process {
            process.listener.conversations.clear();
        }
    }

    pub fn has_conversations(&self) -> bool {
        self.process.as_ref().is_some_and(|process| !process.listener.conversations.is_empty())
    }

    /// The committer has done something.
    pub fn wake_conversations(&mut self) {
        for way in self.conversations() {
            self.with_conversation(way, |_, _| {});
        }
    }

    pub fn on_room(&mut self, way: u64) {
        self.with_conversation(way, |world, conversation| {
            conversation.is_room_due = false;
            conversation.machine.handle(Millis(world.now), Input::Retry);
        });
    }

    /// Does what follows, until there is nothing to do but wait.
    fn advance(&mut self, way: u64, conversation: &mut Conversation) {
        loop {
            while let Some(output) = conversation.machine.next_output() {
                self.act_for(way, conversation, output);
            }
            if !self.get_on(way, conversation) {
                break;
            }
        }
        if let Some(place) = &mut conversation.place {
            place.progress.note(conversation.taken, conversation.taken - (conversation.machine.held() as u64).min(conversation.taken));
            place.remember(conversation.machine.received());
        }
        if conversation.machine.is_held() && conversation.work.is_none() && !std::mem::replace(&mut conversation.is_room_due, true) {
            self.after(TRY_AGAIN_MS, What::TryAgain { way });
        }
    }

    /// Looks what has become of what it waits for; false if it waits on.
    fn get_on(&mut self, way: u64, conversation: &mut Conversation) -> bool {
        let now = Millis(self.now);
        match conversation.work.take() {
            None => return false,
            Some(Work::Greeting(mut greeting)) => match look(&mut greeting) {
                None => {
                    conversation.work = Some(Work::Greeting(greeting));
                    self.commit_soon();
                    return false;
                }
                Some(Ok((claim, admission))) => {
                    conversation.claim = Some(claim);
                    conversation.machine.handle(now, Input::Admitted(admission));
                }
                Some(Err(close)) => conversation.machine.handle(now, Input::End(close)),
            },
            Some(Work::Storing(mut storing)) => match look(&mut storing) {
                None => {
                    conversation.work = Some(Work::Storing(storing));
                    self.commit_soon();
                    return false;
                }
                Some(Ok(_proof)) => {
                    conversation.machine.handle(now, Input::Stored);
                    let mut later = Vec::new();
                    while let Some(output) = conversation.machine.next_output() {
                        match output {
                            Output::Acknowledge(answers) => self.acknowledge(way, conversation.client, answers),
                            other => later.push(other),
                        }
                    }
                    conversation.machine.put_back(later);
                }
                Some(Err(CommitError::Full(_) | CommitError::Overloaded)) => conversation.machine.handle(now, Input::Full),
                Some(Err(error)) => {
                    let close = Close::new("store_failed", tidings::core::listener::code::UNAVAILABLE, error.to_string());
                    conversation.machine.handle(now, Input::Failed(close));
                }
            },
            Some(Work::Leaving(mut leaving)) => match look(&mut leaving) {
                None => {
                    conversation.work = Some(Work::Leaving(leaving));
                    self.commit_soon();
                    return false;
                }
                Some(_) => {
                    conversation.claim = None;
                    conversation.is_over = true;
                    self.tell(way, Said::Over);
                    // Who waits for the client id gets it.
                    self.after(0, What::Wake);
                    return false;
                }
            },
        }
        true
    }

    fn acknowledge(&mut self, way: u64, client: usize, answers: Vec<Answer>) {
        for answer in answers {
            match answer {
                Answer::Ack(ack) => {
                    if ack.kind != AckKind::PubComp {
                        self.check_taken(client, ack.packet_id);
                    }
                    self.tell(way, Said::Acked(ack));
                }
                Answer::Refused(refused) => self.tell(way, Said::Refused(refused)),
            }
        }
    }

    /// What a client is told to be taken is durable.
    fn check_taken(&mut self, client: usize, packet_id: u16) {
        let known = self.clients[client].in_flight.iter().find(|known| known.publish.packet_id == packet_id);
        if let Some(known) = known {
            let report = crate::oracle::number_of(&known.publish.payload);
            if self.oracle.of_report(report).is_empty() {
                violated(format!("client {client} is told that report {report} is taken, and it is not durable"));
            }
        }
    }

    fn act_for(&mut self, way: u64, conversation: &mut Conversation, output: Output) {
        let Some(process) = &mut self.process else { return };
        let listener = &process.listener;
        match output {
            Output::Greet(connect) => {
                let place = listener.registry.enter(conversation.client as u64);
                let session = sessions::key("", &connect.client_id);
                conversation.publisher = Publisher { user: String::new(), session: session.clone(), scope: conversation.client as u64 };
                let (registry, sessions, connection) = (Arc::clone(&listener.registry), Arc::clone(&listener.sessions), place.connection);
                conversation.place = Some(place);
                let (clean, lasts) = (connect.clean, connect.session_expiry_s > 0);
                conversation.work = Some(Work::Greeting(Box::pin(async move {
                    let Some(claim) = registry.claim(&session, connection).await else {
                        return Err(Close::new("client_id_in_use", tidings::core::listener::code::BUSY, "it does not end"));
                    };
                    match sessions.open(&session, clean, lasts).await {
                        Ok(admission) => Ok((claim, admission)),
                        Err(error) => Err(Close::new(error.code(), tidings::core::listener::code::UNAVAILABLE, error.to_string())),
                    }
                })));
            }
            Output::Send(packet) => self.tell(way, Said::Sent(packet)),
            Output::Store => {
                let Some(place) = &conversation.place else { return };
                let (connection, progress) = (place.connection, Arc::clone(&place.progress));
                let planned = listener.store.plan(conversation.machine.steps(), &conversation.publisher, connection);
                let (store, registry) = (listener.store.clone(), Arc::clone(&listener.registry));
                let recognised = Arc::clone(&conversation.recognised);
                conversation.work =
                    Some(Work::Storing(Box::pin(async move { store.store(planned, &registry, connection, &progress, &recognised).await })));
            }
            Output::Acknowledge(_) => violated("acknowledged without the proof of what was stored".into()),
            Output::Ended(ended) => {
                conversation.place = None;
                let (sessions, session, has_claim) =
                    (Arc::clone(&listener.sessions), conversation.publisher.session.clone(), conversation.claim.is_some());
                let expiry_s = ended.session_expiry_s;
                conversation.work =
                    Some(Work::Leaving(Box::pin(async move { if has_claim { sessions.close(&session, expiry_s).await } else { Ok(()) } })));
            }
        }
    }

    /// What clients have published is there: at QoS 2 once.
    pub fn check_clients(&self) {
        for (number, client) in self.clients.iter().enumerate() {
            for (report, qos, is_told) in &client.reports {
                let deliveries = self.oracle.of_report(*report);
                if !is_told {
                    violated(format!("client {number} is never told of report {report}"));
                }
                if deliveries.is_empty() && *qos != Qos::AtMostOnce {
                    violated(format!("client {number} was told that report {report} is taken, and it has no delivery"));
                }
                if deliveries.len() > 1 && *qos != Qos::AtLeastOnce && !self.oracle.moved.contains(report) {
                    violated(format!(
                        "report {report} of client {number}, of QoS {}, was accepted {} times",
                        qos.level(),
                        deliveries.len()
                    ));
                }
            }
        }
    }
}
