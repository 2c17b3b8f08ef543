//! The moments at which the power is cut.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::Chance;
use crate::support::tidings::Tidings;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// Some time.
    Any,
    /// The folder of a new generation has just appeared: its first commit, its checkpoint, the witness that names it.
    GenerationBegins,
    /// A generation is being sealed, or has just been.
    GenerationIsSealed,
    /// It was told to stop: the closing checkpoint, the last seal, the clean witness.
    Stop,
    /// It starts after another cut.
    Start,
    /// A backup is made to the same disk.
    Backup,
}

/// Each in turn; a random one most often.
pub const MOMENTS: [Moment; 8] = [
    Moment::Any,
    Moment::GenerationBegins,
    Moment::Any,
    Moment::Stop,
    Moment::GenerationIsSealed,
    Moment::Start,
    Moment::Any,
    Moment::Backup,
];

/// How long a generation is waited for: it comes when enough was reported.
const AT_MOST: Duration = Duration::from_secs(4);

/// The names in the store, and how many generations of it are sealed.
fn seen(store: &Path) -> (usize, usize) {
    let names = || fs::read_dir(store).into_iter().flatten().flatten().filter(|entry| entry.file_name().as_encoded_bytes()[0] == b'g');
    let is_sealed = |folder: &Path| folder.join("seal").exists() || folder.join("seal.tmp").exists();
    // Of the highest name: deletion makes them fewer.
    let newest = names().filter_map(|entry| entry.file_name().to_str()?[1..].parse::<usize>().ok()).max().unwrap_or(0);
    (newest, names().filter(|entry| is_sealed(&entry.path())).count())
}

impl Moment {
    /// Waits for it; the backup that is being made then, if one is.
    pub fn await_it(self, tidings: &Tidings, store: &Path, backup: &Path, chance: &mut Chance) -> Option<Child> {
        let changes = |what: fn((usize, usize)) -> usize| {
            let (began, before) = (Instant::now(), what(seen(store)));
            while what(seen(store)) == before && began.elapsed() < AT_MOST {
                std::thread::sleep(Duration::from_micros(300));
            }
        };
        chance.wait_ms(100, 400);
        match self {
            Moment::Any | Moment::Start => {}
            Moment::GenerationBegins => {
                changes(|(newest, _)| newest);
                chance.wait_us(0, 15_000);
            }
            Moment::GenerationIsSealed => {
                changes(|(_, sealed)| sealed);
                chance.wait_us(0, 5_000);
            }
            Moment::Stop => {
                tidings.terminate();
                chance.wait_us(0, 120_000);
            }
            Moment::Backup => {
                let mut command = Command::new(env!("CARGO_BIN_EXE_tidings"));
                command.arg("backup").arg(backup).args(["--url", &format!("http://{}", tidings.address())]).env_remove("TIDINGS_TOKEN");
                let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
                chance.wait_ms(0, 400);
                return Some(child);
            }
        }
        None
    }
}
