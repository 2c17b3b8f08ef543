//! Who looks from outside: what an instance says of the cluster, and how long lanes went without an owner, and without delivering.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{JoinHandle, sleep, spawn};
use std::time::{Duration, Instant};

use crate::load::Load;
use crate::scene::{LANES, Scene};
use crate::support::tidings::Reply;

/// An instance that does not answer in this time does not answer.
const ANSWERS_WITHIN: Duration = Duration::from_secs(1);

/// Between two looks.
const LOOK: Duration = Duration::from_millis(20);

/// Nothing takes so long; what does will not come.
const GIVEN_UP: Duration = Duration::from_secs(60);

/// Asks an instance; none if there is no answer soon.
pub fn ask(address: SocketAddr, path: &str) -> Option<Reply> {
    let agent =
        ureq::Agent::config_builder().http_status_as_error(false).proxy(None).timeout_global(Some(ANSWERS_WITHIN)).build().new_agent();
    let mut response = agent.get(format!("http://{address}{path}")).call().ok()?;
    let text = response.body_mut().read_to_string().ok()?;
    Some(Reply { status: response.status().as_u16(), text })
}

/// The cluster, as one instance sees it.
#[derive(Debug, Clone)]
pub struct View {
    /// The instance that says so.
    pub me: String,
    pub leader: Option<String>,
    /// Those that are heard of.
    pub live: BTreeSet<String>,
    /// By lane.
    pub owners: BTreeMap<String, Option<String>>,
}

impl View {
    pub fn of(address: SocketAddr) -> Option<View> {
        let status = ask(address, "/v1/status")?.json();
        let cluster = status.get("cluster")?;
        let text = |value: &serde_json::Value| value.as_str().map(str::to_owned);
        let live = cluster["instances"].as_array()?.iter().filter(|instance| instance["is_live"] == true);
        let owners = cluster["lanes"].as_array()?.iter().map(|lane| Some((text(&lane["lane"])?, text(&lane["owner"]))));
        Some(View {
            me: text(&cluster["instance"])?,
            leader: text(&cluster["leader"]),
            live: live.filter_map(|instance| text(&instance["id"])).collect(),
            owners: owners.collect::<Option<_>>()?,
        })
    }

    /// The lanes of an instance.
    pub fn lanes_of(&self, id: &str) -> Vec<&String> {
        self.owners.iter().filter(|(_, owner)| owner.as_deref() == Some(id)).map(|(lane, _)| lane).collect()
    }
}

/// How long it took, from the trouble on.
#[derive(Debug, Clone, Copy)]
pub struct Recovery {
    /// Until every lane was owned by one that is well.
    pub owned: Duration,
    /// Until every lane had delivered a report that was posted after the trouble began.
    pub delivering: Duration,
    /// So much of that is the machine's, which was busy with other things.
    pub stall: Duration,
}

/// What is not waiting for a lease (3 s), for its renewal (1 s) and for the next look (250 ms), but work, on a machine that has nothing else to do.
const WORK: Duration = Duration::from_millis(750);

/// How much longer work takes than it would on an idle machine: a thread that works a little all the time, and is told by the system how long it ran
/// and how long it waited for its turn.
pub struct Slowness {
    is_over: Arc<AtomicBool>,
    measuring: JoinHandle<f64>,
}

impl Slowness {
    pub fn start() -> Slowness {
        let is_over = Arc::new(AtomicBool::new(false));
        let stop = Arc::clone(&is_over);
        let measuring = spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                let began = Instant::now();
                while began.elapsed() < Duration::from_millis(4) {
                    std::hint::spin_loop();
                }
                sleep(Duration::from_millis(40));
            }
            let times = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
            let times: Vec<f64> = times.split_whitespace().filter_map(|time| time.parse().ok()).collect();
            match times[..] {
                [ran, waited, ..] if ran > 0.0 => (ran + waited) / ran,
                _ => 1.0,
            }
        });
        Slowness { is_over, measuring }
    }

    /// At least 1.
    fn end(self) -> f64 {
        self.is_over.store(true, Ordering::Relaxed);
        self.measuring.join().unwrap()
    }

    /// How much longer the machine has made what was watched.
    pub fn stall(self) -> Duration {
        WORK.mul_f64(self.end() - 1.0)
    }
}

/// Watches until all is well again, as far as those can tell that are well.
pub fn recovery(scene: &Scene, load: &Load, began: Instant, well: &[usize]) -> Recovery {
    let mut owned = None;
    let mut delivering = BTreeSet::new();
    let (mut stall, slowness) = (Duration::ZERO, Slowness::start());
    let mut seen = load.first_seen();
    let (mut turn, mut all_deliver) = (0, None);
    // Those do not change while they run.
    let ids = || well.iter().map(|number| scene.instances[*number].view().map(|view| view.me)).collect::<Option<BTreeSet<String>>>();
    let mut well_ids = None;
    while owned.is_none() || all_deliver.is_none() {
        if began.elapsed() > GIVEN_UP {
            let said =
                scene.instances.iter().map(|instance| instance.tidings.is_running().then(|| ask(instance.tidings.address(), "/v1/status")));
            let said: Vec<String> = said.map(|reply| reply.flatten().map_or("nothing".to_owned(), |reply| reply.text)).collect();
            panic!("not well again: owned {owned:?}, delivering {delivering:?} of {LANES} lanes; they say\n{}", said.join("\n"));
        }
        well_ids = well_ids.or_else(ids);
        if let Some(ids) = well_ids.as_ref().filter(|_| owned.is_none()) {
            turn += 1;
            let view = scene.instances[well[turn % well.len()]].view();
            let is_owned = |view: &View| {
                view.owners.len() == LANES && view.owners.values().flatten().filter(|owner| ids.contains(*owner)).count() == LANES
            };
            owned = view.filter(is_owned).map(|_| began.elapsed());
        }
        for arrival in scene.subscriber.arrivals_behind(seen) {
            seen += 1;
            if let Some(lane) = load.lane_if_posted_after(&arrival, began)
                && delivering.insert(lane)
            {
                println!("    lane {lane} delivers after {:.1} s", began.elapsed().as_secs_f64());
            }
        }
        all_deliver = all_deliver.or_else(|| (delivering.len() == LANES).then(|| began.elapsed()));
        let slept = Instant::now();
        sleep(LOOK);
        stall += slept.elapsed().saturating_sub(LOOK);
    }
    stall += slowness.stall();
    Recovery { owned: owned.unwrap_or_default(), delivering: all_deliver.unwrap_or_default(), stall }
}
