//! A thread that makes the pages of one commit durable, while those of the next are made.
//!
//! ```text
//!   begin(pages) ─▶ write: sled, flush, fdatasync ─▶ done() ─▶ finish() ─▶ the pages, or why not
//! ```
//! It decides nothing: what is durable is witnessed, shown to readers and answered by whoever calls `finish`.

use std::fs::File;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use super::reader::{Generation, State, read};
use crate::log::codec::StoredPage;

/// The way to the thread, which is started when it is needed first, and ends with this.
#[derive(Default)]
pub(super) struct Writer(Option<Ends>);

struct Ends {
    jobs: SyncSender<Job>,
    outcomes: Receiver<Result<Vec<StoredPage>, String>>,
}

struct Job {
    generation: Arc<Generation>,
    pages: Vec<StoredPage>,
    file: Arc<File>,
    done: Box<dyn FnOnce() + Send>,
}

impl Writer {
    /// Hands pages over. Nothing else may be under way.
    pub(super) fn begin(
        &mut self,
        generation: &Arc<Generation>,
        pages: Vec<StoredPage>,
        file: &Arc<File>,
        done: Box<dyn FnOnce() + Send>,
    ) -> Result<(), String> {
        let ends = match &mut self.0 {
            Some(ends) => ends,
            none => none.insert(start().map_err(|error| format!("starting a thread: {error}"))?),
        };
        let job = Job { generation: Arc::clone(generation), pages, file: Arc::clone(file), done };
        ends.jobs.send(job).map_err(|_| gone())
    }

    /// Waits until what was handed over is durable.
    pub(super) fn finish(&mut self) -> Result<Vec<StoredPage>, String> {
        let ends = self.0.as_ref().ok_or_else(gone)?;
        ends.outcomes.recv().map_err(|_| gone())?
    }
}

fn gone() -> String {
    "the thread that writes has ended".into()
}

fn start() -> std::io::Result<Ends> {
    let (jobs, inbox) = sync_channel::<Job>(1);
    let (outbox, outcomes) = sync_channel(1);
    std::thread::Builder::new().name("writer".into()).spawn(move || {
        for Job { generation, pages, file, done } in inbox {
            let written = write(&generation, &pages, &file);
            // Before anybody is told: who closes the store next must not meet these here.
            drop((generation, file));
            let is_over = outbox.send(written.map(|()| pages)).is_err();
            done();
            if is_over {
                return;
            }
        }
    })?;
    Ok(Ends { jobs, outcomes })
}

/// Makes pages durable in a generation.
pub(super) fn write(generation: &Generation, pages: &[StoredPage], file: &File) -> Result<(), String> {
    match &*read(&generation.state) {
        State::Active(database) => database.commit(pages, file),
        _ => Err("the generation is not open".into()),
    }
}
