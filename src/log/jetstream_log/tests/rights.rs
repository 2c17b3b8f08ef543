//! What the servers let Tidings do: with the rights that `ops/nats.conf` grants, nothing is missing.

use std::sync::atomic::AtomicU32;

use super::several::wait_until;
use super::*;
use crate::core::types::InstanceId;

/// The rights as they stand there, for those who take the marks of comments away, with another password.
fn granted() -> String {
    let conf = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/ops/nats.conf")).unwrap();
    let lines = conf.lines().skip_while(|line| *line != "#authorization {");
    let block: Vec<&str> = lines.filter_map(|line| line.strip_prefix('#')).collect();
    let (before, after) = block.join("\n").split_once("\"$2a$11$…\"").map(|(before, after)| (before.to_owned(), after.to_owned())).unwrap();
    format!("{before}\"secret\"{after}\n")
}

#[test]
fn with_the_rights_of_the_documents_instances_hear_of_each_other_and_of_what_is_appended() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("nats.conf");
    std::fs::write(&file, granted()).unwrap();
    let server = Nats::start_with(&["-c", file.to_str().unwrap()]);
    let login = Login::User { user: "tidings".into(), password: "secret".into() };
    let options = Options { login, stream: "tidings".into(), ..on(&server.address()) };
    let (mut a, mut b) = (opened(&options).log, opened(&options).log);
    let heard: Arc<AtomicU32> = Arc::default();
    let count = Arc::clone(&heard);
    b.peers().unwrap().on_growth(Box::new(move || _ = count.fetch_add(1, Ordering::Relaxed)));
    // Listening begins a moment later.
    let mut next = 1;
    wait_until("the other one hears of it", || {
        a.append(&reports(next..=next), &sends).unwrap();
        next += 1;
        heard.load(Ordering::Relaxed) > 0
    });
    a.peers().unwrap().put_beat(InstanceId(1), 1).unwrap();
    assert_eq!(b.peers().unwrap().beats().unwrap().len(), 1);
    b.catch_up().unwrap();
    b.begin_generation(b"so far").unwrap();
    b.drop_oldest_generation().unwrap();
    assert_eq!(b.append(&reports(next..=next), &sends).unwrap(), Seq(next));
}
