//! What is read of a connection, and when: as much at a time as seems to come, as far as there is room.

use std::time::Duration;

use bytes::{BufMut, BytesMut};
use tokio::io::{AsyncReadExt, ReadHalf};

use super::{Conversation, Event, Stream, WRITE_AHEAD};
use crate::core::frame::Frame;
use crate::core::listener::{Close, Input, code};

/// For the room that it needs a packet waits so long: until those that have it and do not use it have been closed, and a few more times that.
const ROOM_TIMEOUT: Duration = Duration::from_secs(240);

/// One read takes so many bytes at most.
pub(super) const READ_AT_MOST: usize = 64 << 10;

/// And this where nothing is known of what comes. A read that is filled makes the next one twice as large: who sends much is read in few calls, and
/// who sends little needs little memory.
pub(super) const READ_AT_LEAST: usize = 4 << 10;

/// A buffer is given up when it is so many times as large as the next read.
const TOO_ROOMY: usize = 4;

impl Conversation {
    /// What has been taken of what arrived is told to whoever asks, and given back.
    pub(super) fn note_progress(&mut self) {
        if let Some(place) = &self.place {
            let mut place = place.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            place.progress.note(self.taken, self.taken - (self.machine.held() as u64).min(self.taken));
            place.remember(self.machine.received());
        }
        let held = self.arrived.len() + self.machine.held_bytes();
        let whole = held + self.missing();
        // Who has room for all of a packet keeps it, and who waits for that gives back what it does not use.
        self.lease.shrink_to(if self.lease.has(whole) { whole } else { held });
        if self.arrived.is_empty() {
            self.packet_since = None;
            if self.arrived.capacity() > READ_AT_MOST.min(self.next_read * TOO_ROOMY) {
                self.arrived = BytesMut::new();
            }
        } else if self.packet_since.is_none() {
            self.packet_since = Some(tokio::time::Instant::now());
        }
    }

    /// What a packet that has begun needs of the budget to become whole, beyond what has arrived of it. It is taken in one piece: with a part of it, many that
    /// have begun could each wait for what the others hold. Of who has not said yet who it is, nothing is kept: its time is short.
    fn missing(&self) -> usize {
        let begun = Frame::begin(&self.arrived, usize::MAX).ok().flatten();
        begun.filter(|_| self.claim.is_some()).map_or(0, |frame| frame.length.saturating_sub(self.arrived.len()))
    }

    /// How many bytes may be read now; none if nothing may.
    pub(super) fn room_to_read(&mut self) -> Option<usize> {
        if self.is_gone || !self.machine.wants_packets() || self.outgoing.len() >= WRITE_AHEAD || self.budget.is_some() {
            return None;
        }
        let missing = self.missing();
        // Of a packet that has begun no byte more than it needs: that much it has.
        let least = if missing > 0 { missing.min(READ_AT_MOST) } else { READ_AT_LEAST };
        let held = self.arrived.len() + self.machine.held_bytes();
        for chunk in [least.max(self.next_read), least] {
            if self.lease.covers(held + chunk.max(missing)) {
                return Some(chunk);
            }
        }
        let usage = held + least.max(missing);
        let waiting = self.lease.wait_for(usage, ROOM_TIMEOUT);
        self.budget = Some(Box::pin(async move { Event::Budget(waiting.await) }));
        None
    }

    /// There was no room for the rest of a packet in all that time. Unless everybody waits for the store, there are more beginnings of packets than there is room
    /// for, and none of them becomes whole before some are given up.
    pub(super) fn no_room(&mut self) {
        let is_full = self.shared.store.log.progress().borrow().full.is_some();
        if is_full || self.arrived.is_empty() {
            return;
        }
        let message =
            format!("there was no room for the rest of its packet within {} s: too many others have begun one", ROOM_TIMEOUT.as_secs());
        self.give(Input::End(Close::new("read_ahead_full", code::BUSY, message)));
    }
}

pub(super) async fn read(reader: &mut ReadHalf<Box<dyn Stream>>, arrived: &mut BytesMut, chunk: usize) -> std::io::Result<usize> {
    arrived.reserve(chunk);
    reader.read_buf(&mut (&mut *arrived).limit(chunk)).await
}
