//! All of it together: three servers, a broker and its reader, and the instances; with a relay in each connection.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::mosquitto::{IN_ORDER, Mosquitto, PERSISTENT, free_port};
use crate::support::nats::Nats;
use crate::support::relay::{Passage, Relay};
use crate::support::subscriber::Subscriber;
use crate::support::tidings::{PIPELINES, SOON, Tidings, connection};
use crate::support::wait_until;
use crate::switch::Switch;
use crate::watch::{self, View};

/// Lanes of the connection.
pub const LANES: usize = 6;

/// Nothing listens there: who hears of a server from another one is not to reach it past its relay.
const NOWHERE: &str = "127.0.0.1:1";

/// So long nothing changes among servers that have settled.
const SETTLED: Duration = Duration::from_millis(2_500);

/// One scene at a time: each is a dozen processes, and what is measured in one would be another one's doing.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    // A test that failed has left nothing behind.
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The servers below the log, and the wires between them.
pub struct Servers {
    pub nodes: Vec<Nats>,
    /// Where each says how it is.
    monitors: Vec<SocketAddr>,
    /// From each, to each: none to itself.
    routes: Vec<Vec<Option<Relay>>>,
}

impl Servers {
    /// Three that are one cluster.
    pub fn start() -> Servers {
        let ports: Vec<[u16; 2]> = (0..3).map(|_| [free_port(), free_port()]).collect();
        let relay = |from: usize, to: usize| (from != to).then(|| Relay::start(local(ports[to][0])));
        let routes: Vec<Vec<Option<Relay>>> = (0..3).map(|from| (0..3).map(|to| relay(from, to)).collect()).collect();
        let start = |node: usize| {
            let others: Vec<String> = routes[node].iter().flatten().map(|relay| format!("nats://{}", relay.address)).collect();
            let (name, own) = (name_of(node), format!("nats://127.0.0.1:{}", ports[node][0]));
            let (monitor, others) = (ports[node][1].to_string(), others.join(","));
            let known = ["--no_advertise", "--cluster_advertise", NOWHERE];
            let cluster = ["--server_name", &name, "--cluster_name", "test", "--cluster", &own, "--routes", &others];
            Nats::start_one_of_several(&[["-m", &monitor].as_slice(), &cluster, &known].concat())
        };
        let nodes = (0..3).map(start).collect();
        Servers { nodes, monitors: ports.iter().map(|ports| local(ports[1])).collect(), routes }
    }

    /// Waits until they have agreed on their leaders, nobody is behind, and it has stayed so for a while: who comes back from a cut has counted elections
    /// alone meanwhile, and makes the others hold one more.
    pub fn wait_until_settled(&self) {
        let mut since = Instant::now();
        let mut before = None;
        wait_until("the servers have settled", || {
            let leaders: Option<Vec<_>> = (0..).zip(&self.monitors).map(|(node, monitor)| leaders(&name_of(node), *monitor)).collect();
            let now = leaders.filter(|leaders| leaders.len() == 3 && leaders.iter().all(|said| *said == leaders[0]));
            if now.is_none() || now != before {
                since = Instant::now();
            }
            before = now;
            since.elapsed() >= SETTLED
        });
    }

    /// What passes between this one and the other servers.
    fn set(&self, node: usize, passage: Passage) {
        let its = |from: usize, to: usize| from == node || to == node;
        let all = self.routes.iter().enumerate().flat_map(|(from, row)| row.iter().enumerate().map(move |(to, relay)| (from, to, relay)));
        all.filter(|(from, to, _)| its(*from, *to)).for_each(|(_, _, relay)| relay.iter().for_each(|relay| relay.set(passage)));
    }
}

/// Whom a server takes for the leaders of the cluster and of each stream; none as long as somebody is behind, or there is none.
fn leaders(name: &str, monitor: SocketAddr) -> Option<BTreeMap<String, String>> {
    let said = watch::ask(monitor, "/jsz?streams=true&accounts=true")?.json();
    let leader_of = |cluster: &Value| {
        // Under load one is always a few messages behind.
        let is_near = |replica: &Value| {
            let (silent_ns, lag) = (replica["active"].as_u64().unwrap_or(0), replica["lag"].as_u64().unwrap_or(0));
            replica["offline"] != true && silent_ns < 2_000_000_000 && lag < 100
        };
        let leader = cluster["leader"].as_str().filter(|leader| !leader.is_empty())?;
        // Only the leader knows.
        let all = leader != name || cluster["replicas"].as_array().is_none_or(|replicas| replicas.iter().all(is_near));
        all.then(|| leader.to_owned())
    };
    let mut leaders = BTreeMap::from([("cluster".to_owned(), leader_of(&said["meta_cluster"])?)]);
    for stream in said["account_details"][0]["stream_detail"].as_array().into_iter().flatten() {
        leaders.insert(stream["name"].as_str()?.to_owned(), leader_of(&stream["cluster"])?);
    }
    Some(leaders)
}

fn name_of(node: usize) -> String {
    format!("nats-{node}")
}

fn local(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

/// An instance, and its wires.
pub struct Instance {
    pub tidings: Tidings,
    /// One to each server below the log.
    to_log: Vec<Relay>,
    pub to_broker: Arc<Relay>,
}

impl Instance {
    /// One that has its configuration and does not run yet; `more` is further configuration.
    fn prepare(nodes: &[Nats], broker: &Switch, lines: &str, more: &str) -> Instance {
        let to_log: Vec<Relay> =
            nodes.iter().map(|node| Relay::start(node.address().trim_start_matches("nats://").parse().unwrap())).collect();
        let servers: Vec<String> = to_log.iter().map(|relay| format!("\"nats://{}\"", relay.address)).collect();
        let mut tidings = Tidings::prepare("");
        let to_broker = broker.line_for(&tidings);
        tidings.listen = local(free_port()).to_string();
        tidings.store_settings =
            format!("backend = \"jetstream\"\nservers = [{}]\nstream = \"reports\"\nreplicas = {}\n", servers.join(", "), nodes.len());
        let listener = format!("[listener]\nlisten = \"{}\"\nconnection = \"mqtt\"\n", local(free_port()));
        let lanes = format!("keepalive = 5\nworkers = {LANES}\n{lines}");
        tidings.configure(&(listener + &connection(broker.address.port(), &lanes) + SOON + PIPELINES + more));
        Instance { tidings, to_log, to_broker }
    }

    /// What passes between this instance and the log.
    pub fn set_log(&self, passage: Passage) {
        self.to_log.iter().for_each(|relay| relay.set(passage));
    }

    /// Starts it, and waits until it takes reports. The servers may have to find each other first.
    pub fn run(&mut self) {
        wait_until("the instance starts", || self.tidings.try_run());
        wait_until("the instance is ready", || watch::ask(self.tidings.address(), "/readyz").is_some_and(|reply| reply.status == 200));
    }

    /// What it says of the cluster; none if it says nothing within a second.
    pub fn view(&self) -> Option<View> {
        if !self.tidings.is_running() {
            return None;
        }
        View::of(self.tidings.address())
    }

    /// The same of one that runs and is well, which says it sooner or later.
    pub fn seen(&self) -> View {
        let mut view = None;
        wait_until("the instance says how it is", || {
            view = self.view();
            view.is_some()
        });
        view.unwrap()
    }
}

pub struct Scene {
    pub instances: Vec<Instance>,
    pub subscriber: Subscriber,
    pub mosquitto: Mosquitto,
    switch: Switch,
    pub servers: Servers,
    _alone: MutexGuard<'static, ()>,
}

impl Scene {
    /// So many instances over three servers, all of them with lanes.
    pub fn start(instances: usize) -> Scene {
        let _alone = alone();
        let (servers, mosquitto) = (Servers::start(), Mosquitto::start(&[PERSISTENT, IN_ORDER].concat()));
        let subscriber = Subscriber::start(mosquitto.port);
        let switch = Switch::start(local(mosquitto.port));
        let mut scene = Scene { instances: Vec::new(), subscriber, mosquitto, switch, servers, _alone };
        for _ in 0..instances {
            scene.add();
        }
        scene.wait_until_well();
        scene
    }

    /// Waits until servers and instances have settled.
    pub fn wait_until_well(&self) {
        self.servers.wait_until_settled();
        self.wait_for_shares();
    }

    /// One more instance, which has joined.
    pub fn add(&mut self) {
        let mut instance = Instance::prepare(&self.servers.nodes, &self.switch, "", "");
        instance.run();
        self.instances.push(instance);
    }

    /// Waits until every running instance has its share of the lanes, and every lane has an owner, as all of them see it.
    pub fn wait_for_shares(&self) {
        let mut seen = Vec::new();
        let is_so = || {
            seen = self.instances.iter().filter(|instance| instance.tidings.is_running()).map(Instance::view).collect();
            let Some(views) = seen.iter().cloned().collect::<Option<Vec<View>>>() else { return false };
            let running: BTreeSet<String> = views.iter().map(|view| view.me.clone()).collect();
            let has_share = |view: &View| {
                let shares: Vec<usize> = running.iter().map(|id| view.lanes_of(id).len()).collect();
                let (least, most) = (shares.iter().min().copied().unwrap_or(0), shares.iter().max().copied().unwrap_or(0));
                view.live == running && view.owners.len() == LANES && shares.iter().sum::<usize>() == LANES && most - least <= 1
            };
            views.iter().all(has_share)
        };
        wait_until("every instance has its share of the lanes", is_so);
    }

    /// What passes between a server and all others.
    pub fn set_server(&self, node: usize, passage: Passage) {
        self.servers.set(node, passage);
        self.instances.iter().for_each(|instance| instance.to_log[node].set(passage));
    }

    /// Where instances take reports; addresses stay the same.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.instances.iter().map(|instance| instance.tidings.address()).collect()
    }

    pub fn listeners(&self) -> Vec<SocketAddr> {
        self.instances.iter().map(|instance| instance.tidings.listener()).collect()
    }

    /// All that is running has nothing pending and its books balanced, and then ends with 0.
    pub fn wind_up(&mut self) {
        for instance in self.instances.iter().filter(|instance| instance.tidings.is_running()) {
            instance.tidings.wait_until_delivered();
            instance.tidings.assert_balanced();
        }
        for instance in self.instances.iter_mut().filter(|instance| instance.tidings.is_running()) {
            assert!(!instance.tidings.has_ended(), "an instance has ended by itself");
            assert_eq!(instance.tidings.stop(), Some(0));
        }
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        let Some(folder) = std::env::var_os("TIDINGS_CLUSTER_LOGS").map(PathBuf::from) else { return };
        let _ = fs::create_dir_all(&folder);
        for (number, instance) in self.instances.iter().enumerate() {
            let lines: Vec<String> = instance.tidings.logged("").iter().map(ToString::to_string).collect();
            let _ = fs::write(folder.join(format!("instance-{number}.log")), lines.join("\n"));
        }
        for (number, node) in self.servers.nodes.iter().enumerate() {
            let _ = fs::copy(node.log_file(), folder.join(format!("nats-{number}.log")));
        }
        let _ = fs::copy(self.mosquitto.folder().join("mosquitto.log"), folder.join("mosquitto.log"));
    }
}

/// Instances over one server and a broker of the test's own choice: for what does not depend on failures.
pub struct Small {
    pub instances: Vec<Instance>,
    _switch: Switch,
    pub node: Nats,
    _alone: MutexGuard<'static, ()>,
}

impl Small {
    pub fn start(instances: usize, broker: u16, lines: &str, more: &str) -> Small {
        let _alone = alone();
        let node = Nats::start();
        let (nodes, switch) = (std::slice::from_ref(&node), Switch::start(local(broker)));
        let mut instances: Vec<Instance> = (0..instances).map(|_| Instance::prepare(nodes, &switch, lines, more)).collect();
        instances.iter_mut().for_each(Instance::run);
        let small = Small { instances, _switch: switch, node, _alone };
        wait_until("every lane has an owner, and every instance a lane", || {
            small.instances.iter().all(|instance| {
                let Some(view) = instance.view() else { return false };
                let owners: BTreeSet<_> = view.owners.values().flatten().collect();
                view.owners.len() >= LANES && view.owners.values().all(Option::is_some) && owners.len() == small.instances.len()
            })
        });
        small
    }
}
