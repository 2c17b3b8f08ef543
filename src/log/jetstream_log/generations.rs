//! Generations that events speak of: every instance notes them for its readers, and the leader keeps them in the bucket for whoever starts.
//!
//! `state` names where each generation begins. What several instances say of it is put together: a generation that any of them knows is there, and what
//! any of them has dropped is gone. So it may be said late, twice, and by one that does not lead any more.

use std::time::Duration;

use tokio::time::sleep;

use super::bucket::{Bucket, Mark, Part, State};
use super::members::signs;
use super::{AppendError, EventLog, JetStreamLog, Kind};
use crate::core::types::Seq;

/// It is done again later rather than waited for any longer: reports wait meanwhile.
const KEEPING: Duration = Duration::from_secs(10);

/// By then whoever stops in order has named its last checkpoint: longer than [`CLOSING`](super::CLOSING).
const NAMED: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 15 });

impl JetStreamLog {
    pub(super) fn note_begun(&mut self, first: Seq) -> Result<(), AppendError> {
        let parts = self.shared.parts();
        if first <= parts[0].first || parts.iter().any(|part| part.first == first) {
            return Ok(());
        }
        let message = match first == self.next_seq() {
            true => self.scanner.resume_at(self.end + 1),
            false => self.shared.message_of(first).map_err(|error| self.fail(format!("looking for event {first}: {error}")))?,
        };
        self.shared.divide(Part { first, message, newest: None, bytes: 0 });
        Ok(())
    }

    pub(super) fn keep(&mut self, checkpoint: Option<&[u8]>) -> Result<bool, AppendError> {
        let put = checkpoint.map(|checkpoint| self.new_checkpoint(Kind::Checkpoint, checkpoint)).transpose()?;
        let size = put.as_ref().map(|(_, parts)| parts.iter().map(|part| part.len() as u64).sum());
        let (bucket, pages, known) = (self.bucket.clone(), self.pages.clone(), self.shared.parts());
        let kept = self.bridge.wait(KEEPING, async move {
            let mark = match put {
                Some((mark, parts)) => {
                    bucket.put_checkpoint(&mark.id, parts).await?;
                    Some(mark)
                }
                None => None,
            };
            let state = bucket.change_and_clear(mark.as_ref(), |state| state.put_together(&known, mark.as_ref()), KEEPING).await?;
            pages.purge_before(state.generations[0].message).await?;
            Ok::<_, String>(state)
        });
        match kept.unwrap_or_else(|| Err("the servers did not answer".into())) {
            Ok(state) => {
                self.opening = size.unwrap_or(self.opening);
                self.shared.set_parts(state.generations);
                self.clear_checkpoints();
                Ok(true)
            }
            Err(what) => {
                // The next one has another name, and this one is to go, unless it was named after all.
                self.has_cleared = false;
                tracing::warn!(store = self.store, "generations could not be written to the bucket: {what}; it is tried again");
                Ok(false)
            }
        }
    }

    /// Has checkpoints deleted that nobody names, once it leads, and after one of its own could not be named. Nobody waits for it.
    fn clear_checkpoints(&mut self) {
        if std::mem::replace(&mut self.has_cleared, true) {
            return;
        }
        let (bucket, run, put) = (self.bucket.clone(), self.run, self.checkpoints);
        self.bridge.spawn(async move {
            if let Err(what) = clear_checkpoints(&bucket, run, put).await {
                tracing::debug!("what is left of checkpoints stays for now: {what}");
            }
        });
    }
}

/// Deletes the parts of checkpoints that `state` does not name, and never will: of starts that are over, and those that start `run` has put, which are so many.
async fn clear_checkpoints(bucket: &Bucket, run: u64, put: u64) -> Result<(), String> {
    let keys = bucket.keys("checkpoint.").await?;
    sleep(NAMED).await;
    let starts: Option<Vec<u64>> = signs(bucket).await?.values().map(|sign| sign.start).collect();
    let (Some(starts), Some(state)) = (starts, bucket.read::<State>("state").await?) else { return Ok(()) };
    for key in keys {
        let Some((id, start, number)) = id_of(&key) else { continue };
        let is_over = if start == run { number <= put } else { !starts.contains(&start) };
        if is_over && state.value.checkpoints.iter().all(|mark| mark.id != id) {
            bucket.forget(&key).await?;
        }
    }
    Ok(())
}

/// Of a part's key: the checkpoint, the start that has put it, and which one of that.
fn id_of(key: &str) -> Option<(&str, u64, u64)> {
    let id = key.split('.').nth(1)?;
    let (start, number) = id.split_once('-')?;
    Some((id, start.parse().ok()?, number.parse().ok()?))
}

impl State {
    /// Takes in what an instance knows of generations, and a checkpoint.
    fn put_together(&mut self, known: &[Part], mark: Option<&Mark>) {
        let oldest = self.generations[0].first.max(known[0].first);
        for part in known {
            match self.generations.iter_mut().find(|kept| kept.first == part.first) {
                Some(kept) => {
                    kept.newest = kept.newest.max(part.newest);
                    kept.bytes = kept.bytes.max(part.bytes);
                }
                None => self.generations.push(*part),
            }
        }
        self.generations.sort_by_key(|part| part.first);
        // One that has fallen behind far knows nothing of what is oldest now.
        if self.generations.iter().any(|part| part.first == oldest) {
            self.generations.retain(|part| part.first >= oldest);
        }
        if let Some(mark) = mark.filter(|mark| mark.next >= oldest && self.checkpoints.iter().all(|kept| kept.id != mark.id)) {
            self.mark(mark.clone());
        }
        // A checkpoint is of no use without what comes after it; without any the store can't be opened.
        if self.checkpoints.iter().any(|mark| mark.next >= oldest) {
            self.checkpoints.retain(|mark| mark.next >= oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::types::Millis;

    fn part(first: u64, newest: u64) -> Part {
        Part { first: Seq(first), message: first, newest: Some(Millis(newest)), bytes: newest }
    }

    fn firsts(state: &State) -> Vec<u64> {
        state.generations.iter().map(|part| part.first.0).collect()
    }

    #[test]
    fn a_state_that_names_no_generation_is_refused_when_it_is_read() {
        let stored = serde_json::to_string(&State::fresh()).unwrap();
        assert_eq!(serde_json::from_str::<State>(&stored).unwrap(), State::fresh());
        let mut state: serde_json::Value = serde_json::from_str(&stored).unwrap();
        state["generations"] = serde_json::json!([]);
        assert!(serde_json::from_value::<State>(state).unwrap_err().to_string().contains("it names no generation"));
    }

    #[test]
    fn what_instances_say_is_put_together_and_what_is_dropped_stays_so() {
        let mut state = State::fresh();
        let mark = |next: u64| Mark { next: Seq(next), message: next, id: next.to_string(), parts: 1 };
        state.put_together(&[part(1, 5), part(10, 0)], Some(&mark(10)));
        // Who led before has not begun the second one there, and knows more of the first.
        state.put_together(&[part(1, 9)], None);
        assert_eq!((firsts(&state), state.generations[0].newest), (vec![1, 10], Some(Millis(9))));
        state.put_together(&[part(10, 20), part(30, 0)], Some(&mark(30)));
        assert_eq!(firsts(&state), [10, 30]);
        state.put_together(&[part(1, 9), part(10, 3)], None);
        assert_eq!(firsts(&state), [10, 30], "one that is late brings nothing back");
        assert_eq!(state.checkpoints.iter().map(|mark| mark.next.0).collect::<Vec<_>>(), [10, 30]);
        state.put_together(&[part(30, 40)], Some(&mark(35)));
        assert_eq!(state.checkpoints.iter().map(|mark| mark.next.0).collect::<Vec<_>>(), [30, 35]);
    }
}
