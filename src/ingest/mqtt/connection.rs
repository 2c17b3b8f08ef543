//! One publisher's connection: drives [`Machine`] over a socket.
//!
//! One task owns everything. It waits for whatever comes first (`wait` gives a typed [`Event`]), hands it to the machine, and does what the
//! machine wants done. While something is being stored, reading goes on as far as the budget allows.

mod reading;

use std::collections::HashSet;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::{OwnedSemaphorePermit, watch};

use reading::{READ_AT_LEAST, READ_AT_MOST, read};

use super::access::{self, Login, Owner};
use super::budget::Lease;
use super::codec::{self, write};
use super::registry::{Claim, Place};
use super::sessions::{self, Greeting};
use super::store::{Publisher, Recognised};
use super::{MAX_RECEIVED, Shared};
use crate::core::listener::{Admission, Answer, Close, Connect, Ended, Incoming, Input, Outgoing, Output, Publisher as Machine, code};
use crate::core::types::{Millis, Protocol};
use crate::failpoint::{self, Point};
use crate::log::committer::{CommitError, Committed, LogHandle};
use crate::server::timers::Timers;

/// A packet that has begun has to be whole after so long: a sender that is slower holds what others could use.
const PACKET_TIMEOUT: Duration = Duration::from_secs(60);

/// A client that takes nothing of its answers for so long is let go.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);

/// While so many bytes wait to be written, nothing more is read: who sends and never reads can't make Tidings hold more than this and what
/// one piece of packets is answered with.
const WRITE_AHEAD: usize = 64 << 10;

/// The last answers get so long to leave.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// A store that is full is tried again after this: room shows itself with the next commit or tick.
const TRY_AGAIN: Duration = Duration::from_millis(250);

/// A plain or an encrypted connection.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

type Work = Pin<Box<dyn Future<Output = Event> + Send>>;

/// What a connection waits for.
enum Event {
    Read { asked: usize, read: std::io::Result<usize> },
    Written(std::io::Result<usize>),
    Stalled,
    Budget(Option<OwnedSemaphorePermit>),
    Greeted(Result<(Claim, Greeting, Admission), Close>),
    Stored(Result<Committed<()>, CommitError>),
    Room,
    Evicted,
    Stopping,
    Tick,
}

/// See the module.
pub struct Conversation {
    shared: Arc<Shared>,
    peer: SocketAddr,
    certified: Option<String>,
    machine: Machine,
    protocol: Option<Protocol>,
    reader: ReadHalf<Box<dyn Stream>>,
    writer: WriteHalf<Box<dyn Stream>>,
    arrived: BytesMut,
    outgoing: BytesMut,
    /// The client has shut its side, or the socket failed.
    is_gone: bool,
    stalled_since: Option<tokio::time::Instant>,
    /// The client takes nothing any more. What it has sent before it went may still be there to be read: QoS 0 that comes right behind a CONNECT.
    deaf_since: Option<tokio::time::Instant>,
    packet_since: Option<tokio::time::Instant>,
    /// Nothing was read for a while, for reasons of our own.
    was_paused: bool,
    lease: Lease,
    /// The next read takes so many bytes, if there is room for them.
    next_read: usize,
    timers: Timers,
    budget: Option<Work>,
    work: Option<Work>,
    publisher: Publisher,
    /// Whoever was let in had to say this.
    login: Option<Login>,
    place: Option<Arc<Mutex<Place>>>,
    claim: Option<Claim>,
    largest_answer: usize,
    recognised: Recognised,
    taken: u64,
    is_told_to_stop: bool,
}

impl Conversation {
    /// A connection that has just been made.
    pub fn new(stream: Box<dyn Stream>, peer: SocketAddr, certified: Option<String>, shared: Arc<Shared>) -> Self {
        let (reader, writer) = tokio::io::split(stream);
        let machine = Machine::new(shared.limits, shared.clock.now());
        let lease = Lease::new(Arc::clone(&shared.budget));
        Conversation {
            shared,
            peer,
            certified,
            machine,
            protocol: None,
            reader,
            writer,
            arrived: BytesMut::new(),
            outgoing: BytesMut::new(),
            is_gone: false,
            stalled_since: None,
            deaf_since: None,
            packet_since: None,
            was_paused: false,
            lease,
            next_read: READ_AT_LEAST,
            timers: Timers::default(),
            budget: None,
            work: None,
            publisher: Publisher::default(),
            login: None,
            place: None,
            claim: None,
            largest_answer: usize::MAX,
            recognised: Arc::new(Mutex::new(HashSet::new())),
            taken: 0,
            is_told_to_stop: false,
        }
    }

    /// Talks until the end, and tidies up.
    pub async fn run(mut self, mut stopping: watch::Receiver<bool>) {
        let ended = loop {
            if let Some(ended) = self.advance() {
                break ended;
            }
            let event = self.wait(&mut stopping).await;
            self.apply(event);
        };
        self.shared.note_end(&ended.close, self.peer, &self.publisher);
        // What was acknowledged should arrive before anybody else has the session.
        let sent = tokio::time::timeout(LAST_WORDS, self.writer.write_all_buf(&mut self.outgoing)).await;
        self.place = None;
        self.leave(&ended).await;
        self.claim = None;
        if matches!(sent, Ok(Ok(()))) && !self.is_gone {
            self.linger().await;
        }
    }

    /// The session is kept or ended, and the will goes its way.
    async fn leave(&mut self, ended: &Ended) {
        let Some(_claim) = &self.claim else { return };
        let session = self.publisher.session.clone();
        if let Err(error) = self.shared.sessions.close(&session, ended.session_expiry_s).await {
            tracing::debug!(%error, "the end of an MQTT session was not noted");
        }
        if let Some(will) = ended.will.clone() {
            self.shared.send_will(session, will, ended.session_expiry_s, self.publisher.user.clone());
        }
    }

    /// Closing with something unread makes the kernel answer with a reset, on which a client may throw away what it was told last.
    async fn linger(&mut self) {
        const RUBBISH: u64 = 256 << 10;
        let last = async {
            self.writer.shutdown().await?;
            tokio::io::copy(&mut (&mut self.reader).take(RUBBISH), &mut tokio::io::sink()).await
        };
        let _ = tokio::time::timeout(LAST_WORDS, last).await;
    }

    /// Hands over what has arrived, and does what follows, until there is nothing to do but wait.
    fn advance(&mut self) -> Option<Ended> {
        loop {
            while let Some(output) = self.machine.next_output() {
                if let Some(ended) = self.act(output) {
                    return Some(ended);
                }
            }
            if !self.machine.wants_packets() || self.outgoing.len() >= WRITE_AHEAD {
                break;
            }
            match codec::read(self.protocol, &mut self.arrived, self.shared.largest_packet()) {
                Ok(Some(packet)) => {
                    self.packet_since = None;
                    self.taken += 1;
                    if let Incoming::Connect(connect) = &packet {
                        self.protocol = Some(connect.protocol);
                    }
                    self.give(Input::Received(packet));
                }
                Ok(None) => {
                    if self.is_gone {
                        self.give(Input::End(Close::lost("the client closed the connection")));
                        // The loop goes on with what follows from it.
                        if self.machine.wants_packets() {
                            break;
                        }
                        continue;
                    }
                    break;
                }
                Err(close) => {
                    if close.reason_code == code::PROTOCOL_VERSION {
                        write::unknown_protocol(&mut self.outgoing);
                    }
                    // Nothing behind it can be understood.
                    self.arrived.clear();
                    self.give(Input::End(close));
                }
            }
        }
        self.note_progress();
        None
    }

    fn give(&mut self, input: Input) {
        self.machine.handle(self.shared.clock.now(), input);
    }

    fn act(&mut self, output: Output) -> Option<Ended> {
        match output {
            Output::Greet(connect) => self.greet(&connect),
            Output::Send(packet) => {
                if let Outgoing::Refused(refused) = &packet {
                    self.shared.count_refusal(refused.code);
                }
                self.write(|protocol, told, out| write::outgoing(protocol, &packet, told, out));
            }
            Output::Store => self.store(),
            // Only after a commit, see `stored`.
            Output::Acknowledge(_) => debug_assert!(false, "taken where its proof is"),
            Output::Ended(ended) => return Some(*ended),
        }
        None
    }

    fn write(&mut self, write: impl FnOnce(Protocol, write::Told, &mut BytesMut)) {
        let before = self.outgoing.len();
        let protocol = self.protocol.unwrap_or(Protocol::V311);
        write(protocol, self.shared.told(), &mut self.outgoing);
        if self.outgoing.len() - before > self.largest_answer {
            // MQTT 5.0 §3.1.2.11.4: it is not sent.
            self.outgoing.truncate(before);
        }
        if self.deaf_since.is_some() {
            self.outgoing.clear();
        } else if self.outgoing.len() > before {
            self.stalled_since.get_or_insert_with(tokio::time::Instant::now);
        }
    }

    /// Finds out who this is, and what its session holds.
    fn greet(&mut self, connect: &Connect) {
        self.largest_answer = connect.maximum_packet_size.map_or(usize::MAX, |size| size as usize);
        let access = self.shared.access.borrow().clone();
        let Owner { user, key } = match access.admit(connect, self.certified.as_deref()) {
            Ok(owner) => owner,
            Err(close) => return self.give(Input::End(close)),
        };
        self.login = access.login;
        let owner = Owner { user, key };
        let scope = access::scope(&owner, self.peer.ip());
        let place = self.shared.registry.enter(scope);
        let assigned = connect.client_id.is_empty().then(|| format!("tidings-assigned-{:016x}", place.connection));
        let client_id = assigned.clone().unwrap_or_else(|| connect.client_id.clone());
        let session = sessions::key(&owner.key, &client_id);
        self.publisher = Publisher { user: owner.user, session: session.clone(), scope };
        let connection = place.connection;
        self.place = Some(Arc::new(Mutex::new(place)));
        let (shared, clean, lasts) = (Arc::clone(&self.shared), connect.clean, connect.session_expiry_s > 0);
        let assigned = assigned.filter(|_| connect.protocol == Protocol::V5);
        self.work = Some(Box::pin(async move {
            let Some(claim) = shared.registry.claim(&session, connection).await else {
                let message = "another connection has its client id and does not end";
                return Event::Greeted(Err(Close::new("client_id_in_use", code::BUSY, message)));
            };
            shared.wills.on_connect(&session, clean);
            let greeting = shared.sessions.greet(&session);
            match shared.sessions.open(&session, clean, lasts).await {
                Ok(admission) => Event::Greeted(Ok((claim, greeting, Admission { assigned, ..admission }))),
                Err(error) => Event::Greeted(Err(Close::new(error.code(), code::UNAVAILABLE, error.to_string()))),
            }
        }));
    }

    fn store(&mut self) {
        let Some(place) = self.place.clone() else { return };
        let (connection, progress) = {
            let place = place.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            (place.connection, Arc::clone(&place.progress))
        };
        let planned = self.shared.store.plan(self.machine.steps(), &self.publisher, connection);
        let (shared, recognised) = (Arc::clone(&self.shared), Arc::clone(&self.recognised));
        self.work = Some(Box::pin(async move {
            Event::Stored(shared.store.store(planned, &shared.registry, connection, &progress, &recognised).await)
        }));
    }

    async fn wait(&mut self, stopping: &mut watch::Receiver<bool>) -> Event {
        let chunk = self.room_to_read();
        self.was_paused |= chunk.is_none();
        if chunk.is_some() && std::mem::take(&mut self.was_paused) {
            self.machine.excuse(self.shared.clock.now());
            self.packet_since = self.packet_since.map(|_| tokio::time::Instant::now());
        }
        let now = self.shared.clock.now();
        // Whose packets are not read can't be blamed for silence; a first packet that does not come can.
        let deadline = self.machine.deadline().filter(|_| chunk.is_some() || self.claim.is_none());
        let slow = self.packet_since.filter(|_| chunk.is_some()).map(|since| since + PACKET_TIMEOUT);
        let tick = deadline.map(|at| tokio::time::Instant::now() + Duration::from_millis(at.since(now)));
        let deaf = self.deaf_since.map(|since| since + LAST_WORDS);
        let tick = [tick, slow, deaf].into_iter().flatten().min();
        let stall = self.stalled_since.map(|since| since + WRITE_TIMEOUT);
        let is_held = self.machine.is_held() && self.work.is_none();
        let Conversation { shared, reader, writer, arrived, outgoing, timers, work, budget, claim, is_told_to_stop, .. } = self;
        let is_writing = !outgoing.is_empty();
        tokio::select! {
            // Answers first: they are what clients wait for.
            biased;
            event = pending_or(work) => { *work = None; event }
            wrote = writer.write_buf(outgoing), if is_writing => Event::Written(wrote),
            event = pending_or(budget) => { *budget = None; event }
            () = evicted(claim.as_ref()) => Event::Evicted,
            _ = stopping.wait_for(|stopping| *stopping), if !*is_told_to_stop => { *is_told_to_stop = true; Event::Stopping }
            read = read(reader, arrived, chunk.unwrap_or(0)), if chunk.is_some() => Event::Read { asked: chunk.unwrap_or(0), read },
            () = until(timers, tick) => Event::Tick,
            () = until(timers, stall), if is_writing => Event::Stalled,
            () = room(&shared.store.log), if is_held => Event::Room,
        }
    }

    fn apply(&mut self, event: Event) {
        match event {
            Event::Read { read: Ok(0), .. } => self.is_gone = true,
            Event::Read { asked, read: Ok(count) } => {
                self.next_read = if count >= asked { asked * 2 } else { count }.clamp(READ_AT_LEAST, READ_AT_MOST);
            }
            Event::Written(Err(_)) => {
                self.outgoing.clear();
                self.stalled_since = None;
                self.deaf_since = Some(tokio::time::Instant::now());
            }
            Event::Read { read: Err(error), .. } => {
                self.is_gone = true;
                self.outgoing.clear();
                self.give(Input::End(Close::lost(format!("the connection was lost: {error}"))));
            }
            Event::Written(Ok(_)) => {
                self.stalled_since = (!self.outgoing.is_empty()).then(tokio::time::Instant::now);
            }
            Event::Stalled => {
                self.is_gone = true;
                self.outgoing.clear();
                let message = format!("it took nothing of its answers for {} s", WRITE_TIMEOUT.as_secs());
                self.give(Input::End(Close::new("never_reads", 0, message)));
            }
            Event::Budget(None) => self.no_room(),
            Event::Budget(permit) => self.lease.add(permit),
            Event::Greeted(Ok((claim, greeting, admission))) => self.greeted(claim, greeting, admission),
            Event::Greeted(Err(close)) => self.give(Input::End(close)),
            Event::Stored(result) => self.stored(result),
            Event::Room => self.give(Input::Retry),
            Event::Evicted => self.give(Input::End(if self.is_let_in() { Close::taken_over() } else { Close::let_in_no_more() })),
            Event::Stopping => self.give(Input::End(Close::stopping())),
            Event::Tick => self.tick(),
        }
    }

    fn greeted(&mut self, claim: Claim, greeting: Greeting, admission: Admission) {
        let is_let_in = self.is_let_in();
        match is_let_in {
            true => greeting.admitted(),
            false => drop(greeting),
        }
        // A session that was there before stays as it was: it is not this connection's to end.
        self.claim = Some(claim).filter(|_| is_let_in || !admission.session_present);
        self.give(match is_let_in {
            true => Input::Admitted(admission),
            false => Input::End(Close::let_in_no_more()),
        });
    }

    /// Whether what it had to say at its CONNECT is what it would have to say now.
    fn is_let_in(&self) -> bool {
        self.login == self.shared.access.borrow().login
    }

    fn tick(&mut self) {
        if self.deaf_since.is_some_and(|since| since.elapsed() >= LAST_WORDS) {
            self.is_gone = true;
            return self.give(Input::End(Close::lost("the connection was lost: it takes nothing any more")));
        }
        let is_slow = self.packet_since.is_some_and(|since| since.elapsed() >= PACKET_TIMEOUT);
        match is_slow {
            true => self.give(Input::End(Close::new("slow_packet", code::BUSY, "a packet was not whole in time"))),
            false => self.give(Input::Tick),
        }
    }

    fn stored(&mut self, result: Result<Committed<()>, CommitError>) {
        let proof = match result {
            Ok(proof) => proof,
            // With other lanes it is bound to them when it is tried again.
            Err(CommitError::Full(_) | CommitError::Overloaded | CommitError::LanesChanged(_)) => {
                self.shared.count_held();
                return self.give(Input::Full);
            }
            Err(error) => {
                // Nothing can be acknowledged any more; the client finds out and sends it again.
                return self.give(Input::Failed(Close::new("store_failed", code::UNAVAILABLE, error.to_string())));
            }
        };
        failpoint::reach(Point::BeforeListenerAck);
        self.give(Input::Stored);
        let mut later = Vec::new();
        while let Some(output) = self.machine.next_output() {
            match output {
                Output::Acknowledge(answers) => self.acknowledge(&answers, &proof),
                other => later.push(other),
            }
        }
        self.machine.put_back(later);
        if self.machine.received() > MAX_RECEIVED || self.shared.registry.received() > super::MAX_RECEIVED_IN_ALL {
            let message = "too many QoS 2 packets wait for their PUBREL";
            self.give(Input::End(Close::new("too_many_received", code::QUOTA, message)));
        }
    }

    fn acknowledge(&mut self, answers: &[Answer], proof: &Committed<()>) {
        for answer in answers {
            match *answer {
                Answer::Ack(ack) => self.write(|protocol, _, out| write::ack(protocol, proof, ack, out)),
                Answer::Refused(refused) => {
                    self.shared.count_refusal(refused.code);
                    self.write(|protocol, _, out| write::refused(protocol, refused, out));
                }
            }
        }
    }
}

async fn pending_or(work: &mut Option<Work>) -> Event {
    match work {
        Some(work) => work.await,
        None => std::future::pending().await,
    }
}

async fn evicted(claim: Option<&Claim>) {
    match claim {
        Some(claim) => claim.evict.notified().await,
        None => std::future::pending().await,
    }
}

async fn until(timers: &Timers, at: Option<tokio::time::Instant>) {
    match at {
        Some(at) => timers.lend(at.into_std()).await,
        None => std::future::pending().await,
    }
}

/// The store has room again, or it is worth another try.
async fn room(log: &LogHandle) {
    tokio::time::sleep(TRY_AGAIN).await;
    // An error means that the log is gone, which the next try will find out.
    let _ = log.progress().wait_for(|progress| progress.full.is_none()).await;
}

/// Time since the start, for machines that know no clock.
#[derive(Debug, Clone, Copy)]
pub struct Clock(Instant);

impl Clock {
    /// Starts now.
    pub fn start() -> Self {
        Clock(Instant::now())
    }

    /// Milliseconds since.
    pub fn now(self) -> Millis {
        Millis(u64::try_from(self.0.elapsed().as_millis()).unwrap_or(u64::MAX))
    }
}
