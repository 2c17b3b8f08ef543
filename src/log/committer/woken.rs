//! Whoever waits for a commit is woken from within the runtime, all in one go.
//!
//! ```text
//!   commit ─▶ its answers, in one piece ─▶ a task of the runtime ─▶ each waiter's own task, one after the other
//! ```
//! To wake a task from a thread that is not the runtime's takes a lock and, as a rule, a system call that wakes one of its threads, for each waiter anew.
//! Within the runtime it takes neither. Where only a few wait, or nobody takes the pieces away in time, they are answered directly: that is one hop less.

use tokio::runtime::Handle;
use tokio::sync::mpsc;

use super::handle::Reply;
use super::{Appended, Committed};

/// Fewer are answered directly.
const MANY: usize = 4;

/// So many commits' answers wait to be taken away at most. The runtime is far behind then.
const COMMITS: usize = 16;

/// A waiter, and what has become durable of what it handed in.
type Answer = (Reply, Appended);

/// The way to those who wait.
#[derive(Default)]
pub(super) struct Waiters(Option<mpsc::Sender<Vec<Answer>>>);

impl Waiters {
    /// Has a task of this runtime wake them. It ends with this.
    pub(super) fn within(runtime: &Handle) -> Waiters {
        let (pieces, mut taken) = mpsc::channel(COMMITS);
        runtime.spawn(async move {
            while let Some(piece) = taken.recv().await {
                tell(piece);
            }
        });
        Waiters(Some(pieces))
    }

    /// Tells them, or has them told, that it is durable. To be called when it is.
    pub(super) fn answer(&self, answers: Vec<Answer>) {
        match &self.0 {
            Some(pieces) if answers.len() >= MANY => {
                if let Err(error) = pieces.try_send(answers) {
                    tell(error.into_inner());
                }
            }
            _ => tell(answers),
        }
    }
}

fn tell(answers: Vec<Answer>) {
    for (reply, appended) in answers {
        // A producer that went away needs no answer.
        let _ = reply.send(Ok(Committed(appended)));
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;
    use crate::core::types::Seq;
    use crate::log::committer::CommitError;

    type Waiting = oneshot::Receiver<Result<Committed<Appended>, CommitError>>;

    /// So many waiters, each with an answer of its own.
    fn waiters(count: u64) -> (Vec<Answer>, Vec<Waiting>) {
        let one = |number: u64| {
            let (reply, waiting) = oneshot::channel();
            let appended = Appended::New { first: Seq(number), last: Seq(number), resent: Vec::new() };
            ((reply, appended), waiting)
        };
        (0..count).map(one).unzip()
    }

    fn are_told(waiting: &mut [Waiting]) -> bool {
        waiting.iter_mut().all(|waiting| matches!(waiting.try_recv(), Ok(Ok(_))))
    }

    #[tokio::test]
    async fn each_waiter_is_given_its_own_answer() {
        let all = Waiters::within(&Handle::current());
        let (answers, waiting) = waiters(100);
        all.answer(answers);
        for (number, waiting) in (0..).zip(waiting) {
            let Appended::New { first, .. } = waiting.await.unwrap().unwrap().into_inner() else { panic!("it is new") };
            assert_eq!(first, Seq(number));
        }
    }

    #[tokio::test]
    async fn where_nobody_takes_the_answers_away_they_are_given_directly() {
        let all = Waiters::within(&Handle::current());
        // Nothing here lets the task run.
        let mut behind: Vec<Waiting> = Vec::new();
        for _ in 0..COMMITS {
            let (answers, mut waiting) = waiters(MANY as u64);
            all.answer(answers);
            assert!(!are_told(&mut waiting));
            behind.extend(waiting);
        }
        let (answers, mut waiting) = waiters(MANY as u64);
        all.answer(answers);
        assert!(are_told(&mut waiting));
        for waiting in behind {
            waiting.await.unwrap().unwrap();
        }
    }

    #[test]
    fn a_few_and_those_of_a_runtime_that_is_gone_are_answered_directly() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let all = Waiters::within(runtime.handle());
        let (answers, mut waiting) = waiters(MANY as u64 - 1);
        all.answer(answers);
        assert!(are_told(&mut waiting));
        drop(runtime);
        let (answers, mut waiting) = waiters(100);
        all.answer(answers);
        assert!(are_told(&mut waiting));
    }
}
