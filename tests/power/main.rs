//! The promise under power cuts: the store on a disk of its own of which the power is cut while reports come in over HTTP and MQTT, and
//! the books kept outside. How a cut is made, and what it can't show, stands in `support::image`.
//!
//! ```text
//!   producers ─ the same Idempotency-Key until 202 ─▶ Tidings ──▶ mosquitto, which keeps its power ──▶ subscriber
//!   publisher ─ again with DUP until acknowledged  ─▶    │
//!                                                   store on ext4 ╳ cut ─▶ mounted again ─▶ start: never refused, nothing answered is missing
//! ```
//! Each cut proves itself: a file that was written beside the store and not synced must be gone now and then, and one that was synced must
//! be there always. The first commit without `fdatasync` turns these tests red within a few rounds.
//!
//! They need root, loop devices and ext4, and fail without; `TIDINGS_WITHOUT_LOOP=1` passes them over where there are none.
//!
//! | Environment | |
//! |---|---|
//! | `TIDINGS_POWER_CUTS` | cuts under load; 32 if not set. A third as many meet the creation of a store, an eighth a broker that is new afterwards |
//! | `TIDINGS_POWER_SEED` | what chance decides; the time if not set, and printed |

#[path = "../support/mod.rs"]
mod support;

mod load;
mod moment;

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use load::{Load, noise};
use moment::{MOMENTS, Moment};
use support::image::Image;
use support::ledger::{Arrival, Ledger, report};
use support::mosquitto::{Mosquitto, PERSISTENT, WITH_PACKETS};
use support::subscriber::Subscriber;
use support::tidings::{PIPELINES, SOON, Tidings, connection};
use support::{wait_until, wait_within};

/// Nothing here takes so long, on a busy machine either.
const LONG: Duration = Duration::from_secs(180);

/// Small, so that a generation is full after 6 MiB.
const DISK_MIB: u64 = 96;

/// Large enough that the log writes ahead, as it does where there is plenty of space. The image takes no more than what is written.
const LARGE_DISK_MIB: u64 = 1_536;

/// What ext4 does otherwise hides a missing sync now and then: it writes a file's data before it renames it over another one, and data before
/// the transaction that makes it longer.
const OPTIONS: [&str; 4] = ["", "noauto_da_alloc", "noauto_da_alloc,data=writeback", "nodelalloc,noauto_da_alloc,data=writeback"];

fn from_environment(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |value| value.parse().unwrap_or_else(|_| panic!("{name} is not a number: {value}")))
}

fn cuts() -> u64 {
    from_environment("TIDINGS_POWER_CUTS", 32)
}

/// Chance that can be repeated, as far as the machine allows (xorshift).
pub struct Chance(u64);

impl Chance {
    fn new() -> Chance {
        let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos();
        let seed = from_environment("TIDINGS_POWER_SEED", u64::try_from(time & 0xffff_ffff).unwrap());
        println!("TIDINGS_POWER_SEED={seed}");
        Chance(seed | 1 << 40)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }

    fn wait_us(&mut self, from: u64, to: u64) {
        std::thread::sleep(Duration::from_micros(from + self.below(to - from)));
    }

    fn wait_ms(&mut self, from: u64, to: u64) {
        self.wait_us(from * 1_000, to * 1_000);
    }
}

/// A machine of which the power can be cut: the service, and its disk.
struct Machine {
    tidings: Tidings,
    disk: Image,
    mount: PathBuf,
    store: PathBuf,
    cuts: u64,
    /// How long a start took that was not cut.
    start_takes: Duration,
    /// Files that were not synced, and did not survive.
    unsynced_lost: u64,
}

impl Machine {
    /// The store is to be two folders below the disk's root, so that their names have to survive, too.
    fn new(config: &str) -> Option<Machine> {
        Machine::with_disk(DISK_MIB, config)
    }

    /// On a disk of so many MiB. The store is as small on each.
    fn with_disk(mib: u64, config: &str) -> Option<Machine> {
        let tidings = Tidings::prepare("");
        let mount = tidings.folder().join("disk");
        let disk = Image::mount(&mount, mib, &[])?;
        let machine =
            Machine { tidings, disk, store: mount.join("var/store"), mount, cuts: 0, start_takes: Duration::ZERO, unsynced_lost: 0 };
        machine.configure(config);
        Some(machine)
    }

    fn configure(&self, config: &str) {
        let store =
            format!("[store]\npath = \"{}\"\nmax_size = \"{DISK_MIB}MiB\"\n[http]\nlisten = \"127.0.0.1:0\"\n", self.store.display());
        fs::write(self.tidings.config_file(), store + config).unwrap();
    }

    /// What an application that relies on its luck would write, and what one that does not.
    fn write_beside(&self) -> [PathBuf; 2] {
        let [synced, unsynced] = ["synced", "unsynced"].map(|name| self.mount.join(format!("{name}-{}", self.cuts)));
        let write = |path: &Path| {
            File::create(path).and_then(|mut file| file.write_all(noise(self.cuts, 100_000).as_bytes()).map(|()| file)).unwrap()
        };
        write(&synced).sync_all().unwrap();
        File::open(&self.mount).unwrap().sync_all().unwrap();
        write(&unsynced);
        [synced, unsynced]
    }

    /// Cuts the power as `when` returns, and mounts the disk again as it holds it.
    ///
    /// What `when` has started besides goes with it; whether that was done by then.
    fn cut(&mut self, chance: &mut Chance, when: impl FnOnce(&mut Tidings, &mut Chance) -> Option<Child>) -> Option<bool> {
        let plug = self.disk.plug();
        let [synced, unsynced] = self.write_beside();
        let beside = when(&mut self.tidings, chance);
        plug.pull();
        let is_done = beside.map(|mut child| {
            let _ = child.kill();
            child.wait().unwrap().success()
        });
        self.power_is_gone(chance, [&synced, &unsynced]);
        is_done
    }

    /// Starts the service, and cuts the power while it starts, or a little later.
    fn cut_a_start(&mut self, chance: &mut Chance) {
        let plug = self.disk.plug();
        let after = self.start_takes * u32::try_from(chance.below(120)).unwrap() / 100;
        let [synced, unsynced] = self.write_beside();
        let cutting = std::thread::spawn(move || {
            std::thread::sleep(after);
            plug.pull();
        });
        let _ = self.tidings.try_run();
        cutting.join().unwrap();
        self.power_is_gone(chance, [&synced, &unsynced]);
    }

    fn power_is_gone(&mut self, chance: &mut Chance, [synced, unsynced]: [&Path; 2]) {
        if self.tidings.is_running() {
            self.tidings.kill();
        }
        self.disk.mount_again(OPTIONS[chance.below(OPTIONS.len() as u64) as usize]);
        let written = noise(self.cuts, 100_000).into_bytes();
        assert!(fs::read(synced).is_ok_and(|found| found == written), "the disk keeps what was synced");
        self.unsynced_lost += u64::from(!fs::read(unsynced).is_ok_and(|found| found == written));
        self.cuts += 1;
        let _ = [synced, unsynced].map(fs::remove_file);
    }

    /// As after every cut: it starts, and everything that was answered is in its books.
    fn start(&mut self, what: &str, answered: u64) {
        let began = Instant::now();
        self.tidings.run();
        self.start_takes = began.elapsed();
        let created = self.tidings.total("created");
        assert!(created >= answered, "{what}: {answered} deliveries were answered, and {created} are in the books");
        self.tidings.assert_balanced();
    }

    /// That these tests see something: what nobody syncs is lost.
    fn assert_that_cuts_cost_something(&self) {
        println!("{} cuts; {} of the files that nobody had synced were lost", self.cuts, self.unsynced_lost);
        assert!(self.unsynced_lost > 0, "no cut has cost anything: these tests are blind");
    }
}

fn config(port: u16) -> String {
    let listener = "[listener]\nlisten = \"127.0.0.1:0\"\nconnection = \"mqtt\"\n";
    listener.to_owned() + &connection(port, "") + SOON + PIPELINES
}

/// The power is cut at every moment in turn while reports flow, the broker keeping its power all the time.
#[test]
fn power_cuts_under_load_lose_nothing_that_was_answered_repeat_no_qos_2_and_refuse_no_start() {
    cuts_under_load(DISK_MIB, cuts());
}

/// The same where zeros stand ahead of what is written.
#[test]
fn power_cuts_under_load_on_a_large_disk_lose_nothing_either() {
    cuts_under_load(LARGE_DISK_MIB, cuts().div_ceil(2));
}

fn cuts_under_load(disk_mib: u64, cuts: u64) {
    let mut chance = Chance::new();
    let mosquitto = Mosquitto::start(PERSISTENT);
    let subscriber = Subscriber::start(mosquitto.port);
    let Some(mut machine) = Machine::with_disk(disk_mib, &config(mosquitto.port)) else { return };
    let backup = machine.mount.join("backup");
    machine.start("the first start", 0);
    let load = Load::default();
    load.while_there_is(|| {
        for round in 0..cuts {
            let moment = MOMENTS[round as usize % MOMENTS.len()];
            load.is_up(&machine.tidings);
            let store = machine.store.clone();
            let is_backed_up = machine.cut(&mut chance, |tidings, chance| moment.await_it(tidings, &store, &backup, chance));
            // Whatever was answered, up to the very moment of the cut.
            load.is_down();
            let answered = load.answered();
            let what = format!("cut {round}, {moment:?}");
            if moment == Moment::Start {
                machine.cut_a_start(&mut chance);
            }
            machine.start(&what, answered);
            println!("{what}: {answered} answered, {} arrived", subscriber.count());
            if let Some(is_done) = is_backed_up {
                look_at_the_backup(&backup, is_done);
            }
        }
        load.is_up(&machine.tidings);
    });
    machine.tidings.wait_until_delivered_within(LONG);
    wait_within(LONG, "everything answered arrives", || load.missing(&subscriber.arrivals()) == 0);
    load.assert_kept(&subscriber.arrivals(), true);
    load.assert_booked(&machine.tidings);
    machine.tidings.assert_balanced();
    machine.assert_that_cuts_cost_something();
}

/// One that was said to be made is whole after the cut; of any other it is seen that it is none, or it is whole, too.
fn look_at_the_backup(backup: &Path, is_done: bool) {
    if !backup.exists() {
        assert!(!is_done, "a backup was said to be made, and is gone");
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let mut restore = Command::new(env!("CARGO_BIN_EXE_tidings"));
    restore.arg("restore").arg(backup).arg("--store").arg(scratch.path().join("restored"));
    let said = restore.stdin(Stdio::null()).output().unwrap();
    let text = String::from_utf8_lossy(&said.stderr);
    println!("  a backup that was {}done: {:?} {text}", if is_done { "" } else { "not " }, said.status.code());
    let is_refused = !is_done && text.contains("is no backup that was finished");
    assert!(said.status.success() || said.status.code() == Some(1) && is_refused, "{said:?}");
    fs::remove_dir_all(backup).unwrap();
}

/// A broker that has lost its power, too, and its memory: what it had taken has arrived, and everything else is delivered to its successor.
#[test]
fn power_cuts_with_a_broker_that_is_new_afterwards_lose_nothing_that_was_answered() {
    let mut chance = Chance::new();
    let logged = [PERSISTENT, WITH_PACKETS].concat();
    let first = Mosquitto::start(&logged);
    let port = first.port;
    let mut broker = Some((Subscriber::start(port), first));
    let Some(mut machine) = Machine::new(&config(port)) else { return };
    machine.start("the first start", 0);
    let (load, mut arrivals): (Load, Vec<Arrival>) = (Load::default(), Vec::new());
    load.while_there_is(|| {
        for round in 0..cuts().div_ceil(8) {
            load.is_up(&machine.tidings);
            machine.cut(&mut chance, |_, chance| {
                chance.wait_ms(200, 700);
                None
            });
            load.is_down();
            // What a broker has acknowledged is its own to keep.
            let (subscriber, old) = broker.take().expect("there is one");
            wait_until("the broker has passed on what it took", || subscriber.count() >= old.taken().len());
            arrivals.extend(subscriber.arrivals());
            drop((subscriber, old));
            let mut new = Mosquitto::prepare_at(port, &logged);
            new.run();
            broker = Some((Subscriber::start(port), new));
            machine.start(&format!("cut {round}"), load.answered());
        }
        load.is_up(&machine.tidings);
    });
    machine.tidings.wait_until_delivered_within(LONG);
    let (subscriber, _broker) = broker.expect("there is one");
    let all = || [&arrivals[..], &subscriber.arrivals()].concat();
    wait_within(LONG, "everything answered arrives", || load.missing(&all()) == 0);
    load.assert_kept(&all(), false);
    load.assert_booked(&machine.tidings);
    machine.tidings.assert_balanced();
    machine.assert_that_cuts_cost_something();
}

/// The power is cut while a store is made, or soon after its first answers.
#[test]
fn power_cuts_while_a_store_is_created_lose_nothing_that_was_answered_and_refuse_no_start() {
    let mut chance = Chance::new();
    // Nobody listens there: everything waits.
    let Some(mut machine) = Machine::new(&config(1)) else { return };
    let mut start_takes = Duration::ZERO;
    for round in 0..cuts().div_ceil(3) {
        machine.store = machine.mount.join(format!("var-{round}/lib/store"));
        machine.configure(&config(1));
        let mut ledger = Ledger::default();
        if round % 2 == 1 {
            machine.cut_a_start(&mut chance);
        } else {
            machine.cut(&mut chance, |tidings, chance| {
                let began = Instant::now();
                assert!(tidings.try_run());
                start_takes = began.elapsed();
                for number in 0..1 + chance.below(6) {
                    ledger.post_raw(&tidings.client(), &report("success", "p", number));
                }
                None
            });
        }
        machine.start_takes = start_takes;
        let is_there = machine.store.join("identity").exists();
        machine.start(&format!("cut {round}"), ledger.accepted.len() as u64);
        println!("cut {round}: {} answered; {}", ledger.accepted.len(), if is_there { "there is a store" } else { "there is none" });
        assert_eq!(machine.tidings.total("pending"), machine.tidings.total("created"));
        machine.tidings.kill();
        fs::remove_dir_all(machine.store.parent().unwrap()).unwrap();
    }
    machine.assert_that_cuts_cost_something();
}
