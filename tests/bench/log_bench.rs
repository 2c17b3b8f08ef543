//! Measures the log against raw append + fdatasync of the same bytes.
//! `cargo run --release --example log_bench -- FOLDER [COMMITS]`

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tidings::core::event::{Accepted, Event, Properties, Source};
use tidings::core::types::{LaneKey, Millis, Qos, SendNo, Seq};
use tidings::log::sled_log::{Options, SledLog};

const BATCH: u64 = 30;

fn main() {
    tracing_subscriber::fmt().init();
    let folder = std::env::args().nth(1).expect("a folder to write to");
    let folder = Path::new(&folder);
    let commits = std::env::args().nth(2).map_or(4000, |number| number.parse().expect("a number of commits"));
    let batches: Vec<Vec<Event>> = (0..200).map(|batch| (0..BATCH).map(|n| report(batch * BATCH + n)).collect()).collect();
    let raw: Vec<Vec<u8>> = batches
        .iter()
        .map(|events| events.iter().fold(Vec::new(), |bytes, event| postcard::to_extend(event, bytes).expect("events encode")))
        .collect();
    let report_len = raw.iter().map(Vec::len).sum::<usize>() as u64 / (200 * BATCH);

    let mut file = File::create(folder.join("raw")).expect("the folder is writable");
    let control = timed(commits, |n| {
        file.write_all(&raw[(n % 200) as usize]).expect("the disk takes it");
        file.sync_data().expect("the disk takes it");
    });
    drop(file);
    std::fs::remove_file(folder.join("raw")).expect("it was just made");

    let store = folder.join("store");
    let mut log = SledLog::open(&store, Options::default()).expect("it opens").log;
    let mut rolls = Vec::new();
    let own = timed(commits, |n| {
        log.append(&batches[(n % 200) as usize], &|_| SendNo(0)).expect("it is stored");
        if log.is_generation_full() {
            let started = Instant::now();
            log.begin_generation(&[0; 100_000]).expect("it begins");
            rolls.push(started.elapsed());
        }
    });
    let space = log.space();
    println!("report {report_len} B; {commits} commits of {BATCH}");
    println!("raw  {}", line(&control, report_len));
    println!("log  {}", line(&own, report_len));
    println!("ratio {:.2}", own.iter().sum::<Duration>().as_secs_f64() / control.iter().sum::<Duration>().as_secs_f64());
    println!(
        "disk {:.1} MB of {:.1} MB raw; generations {:?}; rolls {rolls:?}",
        space.used as f64 / 1e6,
        (commits * BATCH * report_len) as f64 / 1e6,
        log.generations().iter().map(|generation| generation.bytes >> 20).collect::<Vec<_>>(),
    );
    println!("memory {}", memory());
    drop(log);
    let started = Instant::now();
    let log = SledLog::open(&store, Options::default()).expect("it opens").log;
    println!("open after drop without close {:?}", started.elapsed());
    let reader = log.reader();
    let (started, mut next) = (Instant::now(), Seq(1));
    while let Some(page) = reader.page(next).expect("it reads") {
        next = page.last().next();
    }
    println!("read all {:?} for {} reports; memory {}", started.elapsed(), next.0 - 1, memory());
    let started = Instant::now();
    drop(reader);
    log.close(&[0; 100_000]).expect("it closes");
    println!("close {:?}", started.elapsed());
    let started = Instant::now();
    let log = SledLog::open(&store, Options::default()).expect("it opens").log;
    println!("open after clean stop {:?}; memory {}", started.elapsed(), memory());
    drop(log);
}

fn timed(times: u64, mut work: impl FnMut(u64)) -> Vec<Duration> {
    (0..times)
        .map(|n| {
            let started = Instant::now();
            work(n);
            started.elapsed()
        })
        .collect()
}

fn line(times: &[Duration], report_len: u64) -> String {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    let total: f64 = times.iter().sum::<Duration>().as_secs_f64();
    let reports = times.len() as f64 * BATCH as f64;
    format!(
        "{:.0} reports/s, {:.1} MB/s, p50 {:?} p99 {:?} max {:?}",
        reports / total,
        reports * report_len as f64 / total / 1e6,
        sorted[sorted.len() / 2],
        sorted[sorted.len() * 99 / 100],
        sorted[sorted.len() - 1]
    )
}

fn memory() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    status.lines().filter(|line| line.starts_with("VmRSS") || line.starts_with("VmHWM")).collect::<Vec<_>>().join(" ").replace('\t', " ")
}

fn report(n: u64) -> Event {
    let id = |m: u64| format!("{:032x}", u128::from(n * 3 + m).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835));
    let build = |job: &str, m: u64| {
        let uuid = id(m);
        format!(
            "{{\"job_name\":\"acme-{job}\",\"voting\":true,\"uuid\":\"{uuid}\",\"start_time\":{},\"end_time\":{},\"execute_time\":{},\
             \"log_url\":\"https://logs.acme.example/{n}/gate/acme-{job}/{uuid}/\",\"web_url\":\"https://ci.acme.example/t/acme/build/{uuid}\",\
             \"result\":\"SUCCESS\",\"dependencies\":[],\"artifacts\":[{{\"name\":\"docs\",\"url\":\"https://logs.acme.example/{n}/docs/{uuid}.html\"}}]}}",
            1_767_225_600 + n,
            1_767_225_700 + n + m,
            1_767_225_601 + n,
        )
    };
    let payload = format!(
        "{{\"action\":\"success\",\"tenant\":\"acme\",\"zuul_ref\":\"Z{}\",\"pipeline\":\"gate\",\"project\":\"acme/project-{}\",\"branch\":\"master\",\
         \"change_url\":\"https://review.acme.example/{n}\",\"message\":\"Build succeeded (gate pipeline).\",\
         \"buildset\":{{\"uuid\":\"{}\",\"result\":\"SUCCESS\",\"builds\":[{},{},{}]}}}}",
        id(7),
        n % 40,
        id(8),
        build("unit", 0),
        build("lint", 1),
        build("integration-postgresql", 2)
    );
    Event::Accepted(Arc::new(Accepted {
        at: Millis(1_767_225_600_000 + n),
        source: Source::Http,
        user: "zuul".into(),
        tenant: "acme".into(),
        pipeline: "gate".into(),
        action: "success".into(),
        project: format!("acme/project-{}", n % 40),
        change: n.to_string(),
        lane: LaneKey { connection: "mq".into(), lane: (n % 4) as u32 },
        topic: format!("acme/gate/project-{}/master", n % 40),
        qos: Qos::ExactlyOnce,
        retain: false,
        expiry_s: None,
        properties: Properties::default(),
        payload: Bytes::from(payload),
        dedupe: None,
        replay_of: None,
    }))
}
