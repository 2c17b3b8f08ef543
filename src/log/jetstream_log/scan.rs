//! Messages of the stream, in order → commits. Pure: whoever reads the same messages comes to the same commits.
//!
//! ```text
//!   message:   page 0 of 3 ─▶ page 1 of 3 ─▶ page 2 of 3      from one start, one after the other: a commit
//!              page 0 of 2 ─▶ page 0 of 1                      the first was overtaken: void, and the second is a commit
//!              page 1 of 2                                     what comes late of one that was overtaken: void
//! ```
//! A commit that is void was never acknowledged to whoever asked for it: its writer was refused one of its pages.

use bytes::Bytes;

use crate::core::types::Seq;
use crate::log::codec::{Header, Kind, PageError, parse};

/// Tells commits from what was overtaken.
pub(super) struct Scanner {
    tag: u64,
    /// The position after the last commit.
    next: Seq,
    /// The pages of a commit that is not whole yet, with its first message.
    pending: Vec<Bytes>,
    begun_at: u64,
    head: Option<Header>,
    /// The position after what is pending.
    reached: Seq,
}

/// One whole commit.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Commit {
    /// The message that it begins with; the others follow.
    pub(super) at: u64,
    /// Its pages.
    pub(super) pages: Vec<Bytes>,
}

impl Scanner {
    /// Begins where the event at `next` is expected.
    pub(super) fn new(tag: u64, next: Seq) -> Scanner {
        Scanner { tag, next, pending: Vec::new(), begun_at: 0, head: None, reached: next }
    }

    /// The position after the last commit.
    pub(super) fn next(&self) -> Seq {
        self.next
    }

    /// The message from which another scanner has to begin to come to the same commits, if this one has taken everything before `after`.
    pub(super) fn resume_at(&self, after: u64) -> u64 {
        if self.pending.is_empty() { after } else { self.begun_at }
    }

    /// One's own commit was stored, behind everything that was taken.
    pub(super) fn stored(&mut self, next: Seq) {
        self.forget();
        self.next = next;
    }

    /// Takes the message at `at`, and gives back the commit that it completes.
    ///
    /// # Errors
    /// What is wrong, if it can't be what was written.
    pub(super) fn take(&mut self, at: u64, bytes: Bytes) -> Result<Option<Commit>, String> {
        let header = match parse(self.tag, &bytes) {
            Ok(parsed) => parsed.header,
            Err(PageError::NotAPage) => {
                // Whoever may publish to the subject can do that. If it was a page once, the position after it shows that one is missing.
                tracing::warn!(message = at, "a message of the stream is not a page of this store, and is passed over");
                self.forget();
                return Ok(None);
            }
            Err(error) => return Err(format!("message {at}: {error}")),
        };
        if header.kind != Kind::Events {
            return Err(format!("message {at} holds no events"));
        }
        if header.page == 0 {
            self.forget();
            if header.first != self.next {
                return Err(format!("message {at} begins with event {}, and {} is missing", header.first, self.next));
            }
            self.begun_at = at;
        } else if !self.is_continued_by(&header, at) {
            self.forget();
            return Ok(None);
        }
        self.reached = if header.part + 1 == header.parts { header.last().next() } else { header.first };
        self.pending.push(bytes);
        self.head = Some(header);
        if header.page + 1 < header.pages {
            return Ok(None);
        }
        self.next = self.reached;
        let commit = Commit { at: self.begun_at, pages: std::mem::take(&mut self.pending) };
        self.forget();
        Ok(Some(commit))
    }

    fn is_continued_by(&self, header: &Header, at: u64) -> bool {
        self.head.is_some_and(|before| {
            (before.run, before.pages, before.page + 1) == (header.run, header.pages, header.page)
                && at == self.begun_at + u64::from(header.page)
                && header.first == self.reached
        })
    }

    fn forget(&mut self) {
        self.pending.clear();
        self.head = None;
        self.reached = self.next;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::types::SendNo;
    use crate::log::codec::{Encoder, Limits};
    use crate::log::samples::with_payload;

    /// The pages of a commit of `count` large events, so that there are as many pages.
    fn pages(run: u64, first: u64, count: u64) -> Vec<Bytes> {
        let mut encoder = Encoder::new(7, run, Limits::for_segment(8 << 20)).unwrap();
        let events: Vec<_> = (first..first + count).map(|n| with_payload(n, vec![n as u8; 40_000])).collect();
        let pages = encoder.events(Seq(first), &events, &|_| SendNo::default()).unwrap();
        assert_eq!(pages.len() as u64, count);
        pages.into_iter().map(|page| page.bytes.into()).collect()
    }

    /// What a scanner makes of the messages from 1 on: where commits begin, and how many pages they have.
    fn scanned(messages: &[Bytes]) -> (Vec<(u64, usize)>, Seq) {
        let mut scanner = Scanner::new(7, Seq(1));
        let mut commits = Vec::new();
        for (at, bytes) in (1..).zip(messages) {
            if let Some(commit) = scanner.take(at, bytes.clone()).unwrap() {
                commits.push((commit.at, commit.pages.len()));
            }
        }
        (commits, scanner.next())
    }

    #[test]
    fn a_commit_is_whole_or_void() {
        let (a, b) = (pages(1, 1, 3), pages(2, 1, 1));
        assert_eq!(scanned(&a), (vec![(1, 3)], Seq(4)));
        // Overtaken after two of three pages, and the last comes late.
        assert_eq!(scanned(&[a[0].clone(), a[1].clone(), b[0].clone(), a[2].clone()]), (vec![(3, 1)], Seq(2)));
        // Both are void: what comes late has torn the other.
        let c = pages(2, 1, 2);
        assert_eq!(scanned(&[a[0].clone(), c[0].clone(), a[2].clone(), c[1].clone()]), (vec![], Seq(1)));
        // And it goes on behind them.
        assert_eq!(scanned(&[a[0].clone(), c[0].clone(), c[1].clone(), pages(1, 3, 1)[0].clone()]), (vec![(2, 2), (4, 1)], Seq(4)));
    }

    #[test]
    fn what_one_start_tried_again_is_not_taken_for_the_rest_of_its_first_try() {
        let (first, second) = (pages(1, 1, 2), pages(1, 1, 2));
        assert_eq!(scanned(&[first[0].clone(), second[0].clone(), second[1].clone()]), (vec![(2, 2)], Seq(3)));
        assert_eq!(scanned(&[first[0].clone(), pages(2, 1, 1)[0].clone(), second[1].clone()]), (vec![(2, 1)], Seq(2)));
    }

    #[test]
    fn a_scanner_that_begins_where_another_stands_comes_to_the_same_commits() {
        let messages = pages(1, 1, 3);
        let mut before = Scanner::new(7, Seq(1));
        assert_eq!(before.resume_at(1), 1);
        before.take(1, messages[0].clone()).unwrap();
        before.take(2, messages[1].clone()).unwrap();
        assert_eq!(before.resume_at(3), 1, "what is pending has to be seen again");
        before.take(3, messages[2].clone()).unwrap();
        assert_eq!(before.resume_at(4), 4);
    }

    #[test]
    fn a_gap_is_seen_and_a_strangers_message_is_passed_over() {
        let mut scanner = Scanner::new(7, Seq(1));
        assert!(scanner.take(1, Bytes::from_static(b"hello")).unwrap().is_none());
        assert!(scanner.take(2, pages(1, 1, 1)[0].clone()).unwrap().is_some());
        assert!(scanner.take(3, pages(1, 3, 1)[0].clone()).unwrap_err().contains("begins with event 3, and 2 is missing"));
        let mut torn = pages(1, 2, 1)[0].to_vec();
        *torn.last_mut().unwrap() ^= 1;
        assert!(scanner.take(3, torn.into()).unwrap_err().contains("checksum"));
    }
}
