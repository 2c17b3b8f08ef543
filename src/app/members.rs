//! One instance among several over a shared log: it is heard of, takes lanes, and gives them up.
//!
//! ```text
//!   beat ──▶ signs of life ──▶ leases ──▶ what is to be done ─▶ log: joined, taken, left ──▶ fold: whose is which lane
//!   (task)   (beside the log)  (core)                                                          │
//!                 control, every [`LOOK`]:  runs what is its own, ends what is not  ◀──────────┘
//! ```
//! Who owns a lane is said by the log alone, and what runs here is made to agree with it at every look: so an append whose answer was lost, a takeover
//! by another, and a lane that has ended by itself need nothing of their own. An instance that is not heard of any more (its sign of life could not be written for a lease)
//! ends its lanes at once, though nothing that they could still do would harm: the broker would be torn between it and its successor.
//!
//! The look never waits long: where the log does not answer, this one is left out.
//!
//! What one instance does for all is done by the leader ([`Owners::leader`]): replays, the retention of dead letters, and, in the committer, that of
//! the log. What an operator asks for is done by the instance that is asked; where that concerns lanes of others, it takes them over first.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, timeout};

use super::StartError;
use super::control::{self, Control};
use super::lanes::{self, Newest, Role};
use crate::admin::cluster::Cluster;
use crate::core::event::{Event, LanePurpose};
use crate::core::lease::{Leases, Step};
use crate::core::outbox::Owners;
use crate::core::types::{ConnectionName, InstanceId, LaneKey, Millis};
use crate::ingest::lanes::LaneSpan;
use crate::log::Peers;
use crate::log::committer::{CommitError, LogHandle, now};

/// So often is looked what has changed: with a lease, a renewal and a connect it stays below five seconds until a lane is owned again.
pub(super) const LOOK: Duration = Duration::from_millis(250);

/// The log has so long to answer. What it is asked for is wanted again at the next look.
const ANSWER: Duration = Duration::from_millis(500);

/// And so long to take in what is to be said. It may still do so later, which the next look finds.
const SAID: Duration = Duration::from_secs(2);

/// So often an operator's takeover of lanes is tried.
const TRIES: u32 = 5;

/// An instance that shares a log. Clones are the same.
#[derive(Clone)]
pub(super) struct Member {
    /// Who it is.
    pub(super) me: InstanceId,
    /// What people call it.
    pub(super) name: String,
    peers: Arc<dyn Peers>,
    leases: Arc<Mutex<Leases>>,
    /// Its own steady clock begins here.
    started: Instant,
    /// Whether it does what is done once for all.
    leads: Arc<watch::Sender<bool>>,
    /// Whether the others hear of it.
    kept: Arc<watch::Sender<bool>>,
    /// What it knows, for whoever shows it.
    shown: Arc<watch::Sender<Option<Cluster>>>,
}

/// What is known of a connection.
struct Known {
    newest: Option<LaneSpan>,
    roles: Vec<Role>,
}

/// What the log says.
struct View {
    owners: Owners,
    connections: BTreeMap<ConnectionName, Known>,
}

impl Member {
    /// An instance that has not joined yet.
    pub(super) fn new(me: InstanceId, name: String, peers: Arc<dyn Peers>) -> Member {
        let leases = Arc::new(Mutex::new(Leases::new(me)));
        let (leads, kept) = (Arc::new(watch::channel(false).0), Arc::new(watch::channel(false).0));
        let shown = Arc::new(watch::channel(None).0);
        Member { me, name, peers, leases, started: Instant::now(), leads, kept, shown }
    }

    fn clock(&self) -> Millis {
        Millis(u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX))
    }

    fn leases(&self) -> MutexGuard<'_, Leases> {
        // It is changed by calls that don't panic.
        self.leases.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it does what is done once for all; changes as others come and go.
    pub(super) fn leads(&self) -> watch::Receiver<bool> {
        self.leads.subscribe()
    }

    /// Whether the others hear of it; what it runs ends when this turns false.
    pub(super) fn kept(&self) -> watch::Receiver<bool> {
        self.kept.subscribe()
    }

    /// Says when the others do not hear of it any more, whatever else is being waited for, until it is dropped.
    pub(super) async fn look_at_lease(self) {
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            look.tick().await;
            let is_kept = self.leases().is_kept(self.clock());
            if self.kept.send_if_modified(|kept| std::mem::replace(kept, is_kept) != is_kept) && !is_kept {
                tracing::warn!(
                    "this instance was not heard of for a lease: it stood still, or the store's servers do not answer; its lanes stop, and others take them"
                );
            }
        }
    }

    /// What it knows of the others; changes as it hears of them.
    pub(super) fn shown(&self) -> watch::Receiver<Option<Cluster>> {
        self.shown.subscribe()
    }

    fn show(&self, owners: Option<&Owners>) {
        let leases = self.leases();
        let mut known =
            Cluster { instance: self.me, name: self.name.clone(), heard: BTreeMap::new(), is_kept: leases.is_kept(self.clock()) };
        self.shown.send_if_modified(|shown| {
            known.heard = match owners {
                Some(owners) => owners.members().map(|instance| (instance, leases.is_live(instance))).collect(),
                None => shown.take().map(|shown| shown.heard).unwrap_or_default(),
            };
            let known = Some(known);
            let is_new = *shown != known;
            *shown = known;
            is_new
        });
    }

    /// Is heard of, and hears of others, until it is dropped.
    pub(super) async fn beat(self, log: LogHandle) {
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            look.tick().await;
            let (begun, member) = (self.clock(), self.clone());
            let heard = tokio::task::spawn_blocking(move || member.speak_and_listen(begun)).await;
            let owners = match timeout(ANSWER, log.ask(|outbox| outbox.owners().clone())).await {
                Ok(Ok(owners)) => Some(owners.into_inner()),
                _ => None,
            };
            if let (Ok(Some(beats)), Some(owners)) = (heard, &owners) {
                self.leases().look(self.clock(), &beats, owners);
            }
            self.show(owners.as_ref());
        }
    }

    /// Writes its sign of life if it is time, and reads those of all. Blocks.
    fn speak_and_listen(&self, now: Millis) -> Option<BTreeMap<InstanceId, u64>> {
        let renewal = self.leases().renewal(now);
        if let Some(beat) = renewal {
            match self.peers.put_beat(self.me, beat) {
                Ok(()) => self.leases().renewed(),
                Err(error) => tracing::debug!(%error, "the sign of life of this instance may not have been written"),
            }
        }
        self.peers.beats().inspect_err(|error| tracing::debug!(%error, "the signs of life of other instances can't be read")).ok()
    }

    /// It goes, and what it owned is free at once.
    pub(super) async fn leave(&self, log: &LogHandle) {
        let left = Event::InstanceLeft { instance: self.me, by: self.me, at: now() };
        match timeout(SAID, log.record(vec![left])).await {
            // Declared left by others already.
            Ok(Ok(_) | Err(CommitError::ChangedMeanwhile(_) | CommitError::NotOwner(_))) => {}
            Ok(Err(error)) => {
                tracing::warn!(%error, "the log does not say that this instance has left; the others find out within seconds")
            }
            Err(_) => tracing::warn!(
                "the log does not answer, so it does not say that this instance has left; the others find out within seconds"
            ),
        }
        self.forget(self.me).await;
    }

    async fn forget(&self, instance: InstanceId) {
        let peers = Arc::clone(&self.peers);
        let _ = tokio::task::spawn_blocking(move || peers.forget_beat(instance)).await;
    }
}

impl Control {
    /// Makes what runs here agree with what the log says, and says in the log what is to change.
    pub(super) async fn look_after_lanes(&mut self) {
        let Some(member) = self.member.clone() else { return };
        if !*member.kept().borrow() {
            member.leads.send_if_modified(std::mem::take);
            return;
        }
        let Some(view) = self.view().await else { return };
        self.follow_lane_sets(&view).await;
        self.agree(&member, &view).await;
        if self.take_and_give(&member, &view).await
            && let Some(view) = self.view().await
        {
            self.agree(&member, &view).await;
        }
    }

    async fn view(&self) -> Option<View> {
        let names: Vec<ConnectionName> = self.config.connections.iter().map(|connection| connection.name.clone()).collect();
        let asked = self.log.ask(move |outbox| {
            let is_replaying = !outbox.replays().is_empty();
            let known = |name: &ConnectionName| {
                let connection = outbox.connections().get(name)?;
                let newest = connection.newest_set(LanePurpose::Fresh);
                let newest = newest.and_then(|set| Some(LaneSpan { first: set.first, count: NonZeroU32::new(set.count)? }));
                let roles = newest.map(|newest| lanes::roles(connection, newest, None, is_replaying)).unwrap_or_default();
                Some(Known { newest, roles })
            };
            let connections = names.iter().filter_map(|name| Some((name.clone(), known(name)?))).collect();
            View { owners: outbox.owners().clone(), connections }
        });
        Some(timeout(ANSWER, asked).await.ok()?.ok()?.into_inner())
    }

    /// Another instance may have made other sets of lanes: reports are bound to the newest one by all.
    async fn follow_lane_sets(&mut self, view: &View) {
        let bound = self.routing.current().await.lanes.clone();
        let is_new = |(name, known): (&ConnectionName, &Known)| known.newest.is_some() && bound.span(name) != known.newest;
        if !view.connections.iter().any(is_new) {
            return;
        }
        let newest: Vec<Newest> = view
            .connections
            .iter()
            .filter_map(|(name, known)| Some(Newest { connection: name.clone(), span: known.newest?, replaced: None }))
            .collect();
        let routing = control::routing(&self.config, &newest);
        if timeout(ANSWER, self.routing.replace(routing)).await.is_ok() {
            tracing::info!("another instance has changed how many lanes a connection has; this one follows");
            self.notices.send_replace(control::notice_to(&self.config, &newest));
        }
    }

    /// Runs what is this instance's, and ends what is not.
    async fn agree(&mut self, member: &Member, view: &View) {
        member.leads.send_if_modified(|leads| {
            let now_leads = view.owners.leader() == Some(member.me);
            std::mem::replace(leads, now_leads) != now_leads
        });
        for lane in self.pools.keys() {
            if view.owners.of(&lane).instance != Some(member.me) {
                tracing::info!(%lane, "the lane is another instance's");
                self.pools.cut(&lane).await;
            }
        }
        for (name, known) in &view.connections {
            let Some(connection) = self.config.connections.iter().find(|connection| connection.name == *name) else { continue };
            for role in &known.roles {
                let key = LaneKey { connection: name.clone(), lane: role.number };
                let owner = view.owners.of(&key);
                if owner.instance != Some(member.me) {
                    continue;
                }
                match self.pools.at_work(&key) {
                    // It was another's in between, and what it knows of the lane is out of date.
                    Some((term, _)) if term != owner.term => self.pools.cut(&key).await,
                    Some((_, is_retired)) if is_retired == role.is_retired => {}
                    // What comes to an older set is delivered by one that ends when it is empty.
                    Some(_) => self.pools.let_finish(&key),
                    None if self.leaving.contains(&key) => {}
                    None => self.pools.add(lanes::in_role(*role, connection, &self.config.retry, &self.log), owner.term),
                }
            }
        }
    }

    /// Says what the leases come to. True if this instance has got something.
    async fn take_and_give(&mut self, member: &Member, view: &View) -> bool {
        let lanes: Vec<LaneKey> = view
            .connections
            .iter()
            .flat_map(|(name, known)| known.roles.iter().map(|role| LaneKey { connection: name.clone(), lane: role.number }))
            .collect();
        let steps = member.leases().steps(member.clock(), &view.owners, lanes.iter());
        self.leaving.retain(|lane| view.owners.of(lane).instance == Some(member.me));
        // What a reload has taken out here another instance may still have.
        let is_configured = |lane: &LaneKey| self.config.connections.iter().any(|connection| connection.name == lane.connection);
        self.leaving.extend(view.owners.lanes_of(member.me).filter(|lane| !is_configured(lane)).cloned());
        let mut events = Vec::new();
        let mut gone = Vec::new();
        let at = now();
        for step in steps {
            match step {
                Step::Join => events.push(Event::InstanceJoined { instance: member.me, name: member.name.clone(), at }),
                Step::DeclareLeft(instance) => {
                    let name = view.owners.member(instance).map(|known| known.name.as_str()).unwrap_or_default();
                    tracing::warn!(%instance, name, "an instance was not heard of for a lease; its lanes go to others");
                    events.push(Event::InstanceLeft { instance, by: member.me, at });
                    gone.push(instance);
                }
                Step::Take { lane, term } => events.push(Event::LaneTaken { lane, instance: member.me, term, at }),
                Step::GiveUp { lane, .. } => {
                    self.leaving.insert(lane);
                }
            }
        }
        for lane in self.leaving.clone() {
            if self.pools.at_work(&lane).is_some() {
                self.pools.let_finish(&lane);
                continue;
            }
            let term = view.owners.of(&lane).term;
            events.push(Event::LaneLeft { lane, instance: member.me, term, at });
        }
        let is_something = !events.is_empty();
        self.say(events).await;
        for instance in gone {
            member.forget(instance).await;
        }
        is_something
    }

    /// Appends each by itself: of two instances that say the same at once one is refused, and that is all right.
    async fn say(&self, events: Vec<Event>) {
        let mut under_way = Vec::new();
        for event in events {
            match timeout(SAID, self.log.submit(vec![event])).await {
                Ok(Ok(ticket)) => under_way.push(ticket),
                Ok(Err(_)) | Err(_) => break,
            }
        }
        let all = async {
            for ticket in &mut under_way {
                if let Err(error) = ticket.answer().await {
                    tracing::debug!(%error, "another instance was first, or the log does not answer");
                }
            }
        };
        // Found at the next look, if it comes later.
        let _ = timeout(SAID, all).await;
    }

    /// Takes over the lanes of these connections that are others', because what an operator wants is said by their owner only.
    pub(super) async fn take_over(&mut self, connections: &[ConnectionName]) -> Result<(), StartError> {
        let Some(member) = self.member.clone() else { return Ok(()) };
        let mut tries = 0;
        loop {
            let (me, asked) = (member.me, connections.to_vec());
            let known = self.log.ask_in_order(move |outbox| {
                let owners = outbox.owners();
                let concerned = outbox.lanes().filter(|(lane, _)| asked.contains(&lane.connection));
                let concerned = concerned.filter(|(lane, known)| known.pending() > 0 || outbox.takes_new(lane));
                let others = concerned.map(|(lane, _)| lane).filter(|lane| owners.of(lane).instance != Some(me));
                let others: Vec<(LaneKey, u64)> = others.map(|lane| (lane.clone(), owners.of(&lane).term + 1)).collect();
                (owners.is_member(me), others)
            });
            let (is_member, others) = known.await?.into_inner();
            if others.is_empty() {
                return Ok(());
            }
            let at = now();
            let joined = (!is_member).then(|| Event::InstanceJoined { instance: me, name: member.name.clone(), at });
            let taken = others.into_iter().map(|(lane, term)| Event::LaneTaken { lane, instance: me, term, at });
            tries += 1;
            match self.log.record(joined.into_iter().chain(taken).collect()).await {
                Ok(_) => return Ok(()),
                Err(CommitError::ChangedMeanwhile(_)) if tries < TRIES => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}
