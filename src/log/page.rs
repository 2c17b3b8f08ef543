//! Pages as readers see them: decoded, as they are stored, or by what they say about themselves.

use std::borrow::Cow;
use std::sync::Arc;

use super::codec::{self, RawPage};
use crate::core::content::Content;
use crate::core::event::Event;
use crate::core::types::{LaneKey, SendNo, Seq};

/// One page of the log, decoded.
#[derive(Debug, PartialEq, Eq)]
pub struct Page {
    /// The position of the first event.
    pub first: Seq,
    /// The events, in order, without gaps.
    pub events: Vec<Event>,
    /// For each lane that has a send in this page: its next send number before the page.
    pub sends: Vec<(LaneKey, SendNo)>,
}

impl Page {
    /// The position of the last event.
    pub fn last(&self) -> Seq {
        Seq(self.first.0 + self.events.len() as u64 - 1)
    }

    /// The event at `seq`, if it is in this page.
    pub fn get(&self, seq: Seq) -> Option<&Event> {
        self.events.get(usize::try_from(seq.0.checked_sub(self.first.0)?).ok()?)
    }
}

/// One page of the log, in whichever form there is of it.
#[derive(Debug, Clone)]
pub enum AnyPage {
    /// Decoded: it was committed just now, or somebody has looked for something in it.
    Decoded(Arc<Page>),
    /// As it is stored.
    Raw(Arc<RawPage>),
}

/// What of an event is seen without decoding it.
#[derive(Debug)]
pub enum Seen<'a> {
    /// An `Accepted`, and its lane.
    Accepted(&'a LaneKey),
    /// Anything else.
    Other(&'a Event),
}

impl AnyPage {
    /// The position of the first event.
    pub fn first(&self) -> Seq {
        match self {
            AnyPage::Decoded(page) => page.first,
            AnyPage::Raw(page) => page.first,
        }
    }

    /// The position of the last event.
    pub fn last(&self) -> Seq {
        match self {
            AnyPage::Decoded(page) => page.last(),
            AnyPage::Raw(page) => Seq(page.first.0 + page.count() as u64 - 1),
        }
    }

    /// For each lane that has a send in this page: its next send number before the page.
    pub fn sends(&self) -> &[(LaneKey, SendNo)] {
        match self {
            AnyPage::Decoded(page) => &page.sends,
            AnyPage::Raw(page) => &page.sends,
        }
    }

    /// The event at `seq`, if it is in this page.
    pub fn see(&self, seq: Seq) -> Option<Seen<'_>> {
        match self {
            AnyPage::Decoded(page) => page.get(seq).map(|event| match event {
                Event::Accepted(accepted) => Seen::Accepted(&accepted.lane),
                other => Seen::Other(other),
            }),
            AnyPage::Raw(page) => page.see(seq),
        }
    }

    /// What the delivery is sent with that is accepted at `seq`, or was carried forward to there.
    pub fn content(&self, seq: Seq) -> Option<Content<'_>> {
        match self {
            AnyPage::Decoded(page) => match page.get(seq)? {
                Event::Accepted(accepted) => Some(Content::from(accepted.as_ref())),
                Event::Carried(carried) => Some(Content::from(&carried.accepted)),
                _ => None,
            },
            AnyPage::Raw(page) => page.content(seq).or_else(|| match page.see(seq)? {
                Seen::Other(Event::Carried(carried)) => Some(Content::from(&carried.accepted)),
                _ => None,
            }),
        }
    }

    /// The topic of the delivery that is accepted at `seq`, or was carried forward to there.
    pub fn topic(&self, seq: Seq) -> Option<Arc<str>> {
        match self {
            AnyPage::Raw(page) => page.topic(seq).cloned(),
            AnyPage::Decoded(_) => None,
        }
        .or_else(|| self.content(seq).map(|content| Arc::from(content.topic)))
    }

    /// The event at `seq`, if it is in this page and can be decoded.
    pub fn get(&self, seq: Seq) -> Option<Cow<'_, Event>> {
        match self {
            AnyPage::Decoded(page) => page.get(seq).map(Cow::Borrowed),
            AnyPage::Raw(page) => page.decode(seq).map(Cow::Owned),
        }
    }
}

/// What a page says about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Glimpse {
    /// The position of its first event.
    pub first: Seq,
    /// The position of its last event.
    pub last: Seq,
    /// What its events are about.
    pub index: codec::Index,
}
