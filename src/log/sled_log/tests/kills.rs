//! A kill at every step, as the files that it leaves: the next start makes sense of them by itself.

use super::*;

#[test]
fn a_creation_that_was_killed_begins_anew() {
    let full = tempfile::tempdir().unwrap();
    drop(open(full.path()));
    let first = open::folder_name(Seq(1));
    for left in [&["lock"][..], &["lock", &first], &["lock", &first, "witness"], &["lock", &first, "witness", "identity.tmp"]] {
        let store = tempfile::tempdir().unwrap();
        for name in left {
            match *name {
                "identity.tmp" => fs::write(store.path().join(name), "tidings").unwrap(),
                name if name == first => copy_folder(&full.path().join(name), &store.path().join(name)),
                name => drop(fs::copy(full.path().join(name), store.path().join(name)).unwrap()),
            }
        }
        let mut opened = open(store.path());
        assert_eq!(opened.last_stop, LastStop::Fresh);
        assert_eq!(opened.log.append(&reports(1..=3), &next_send).unwrap(), Seq(3));
    }
}

#[test]
fn a_generation_that_was_being_made_is_made_again() {
    let sample = Sample::killed();
    let next = Seq(sample.last + 1);
    let left = sample.path().join(open::folder_name(next));
    // Nothing in it yet.
    fs::create_dir(&left).unwrap();
    drop(sample.opens());
    assert!(!left.exists());
    // An empty database, then half a checkpoint, then a whole one that the witness did not name yet.
    let tag = sample.tag();
    let pages = Encoder::new(tag, 9, Limits::for_segment(SMALL.segment_size))
        .unwrap()
        .checkpoint(Kind::OpeningCheckpoint, next, &[1; 9000])
        .unwrap();
    for written in [0, 2, pages.len()] {
        drop(Active::create(sample.path(), next, SMALL.segment_size, &SMALL, &pages[..written]).unwrap());
        let mut opened = sample.opens();
        assert!(!left.exists());
        opened.log.begin_generation(b"again").unwrap();
        assert!(left.exists());
        opened.log.begin_generation(b"again").unwrap();
        drop(opened);
        let opened = sample.opens();
        assert_eq!(opened.checkpoint.unwrap().bytes, b"again");
        drop(opened.log);
        // Back to before.
        return_to_before(&sample, &left);
    }
}

/// Makes the witness name the third generation again, and takes the fourth away.
fn return_to_before(sample: &Sample, left: &Path) {
    let (mut witness, mut testimony) = Witness::open(sample.path(), sample.tag()).unwrap().unwrap();
    testimony.generation = sample.firsts[2];
    witness.write(&testimony).unwrap();
    fs::remove_dir_all(left).unwrap();
}

#[test]
fn a_generation_that_was_not_sealed_yet_is_sealed_at_the_next_start() {
    let sample = Sample::killed();
    let before = content(&sample.folder(1));
    fs::remove_file(sample.folder(1).join("seal")).unwrap();
    fs::write(sample.folder(1).join("seal.tmp"), "half").unwrap();
    drop(sample.opens());
    assert!(before == content(&sample.folder(1)), "the same seal again");
    // Not sealed, and damaged.
    fs::remove_file(sample.folder(1).join("seal")).unwrap();
    fs::write(sample.folder(1).join("db"), []).unwrap();
    sample.is_refused(&format!("events {} to {} are not in it", sample.firsts[1], sample.firsts[2].0 - 1));
}

#[test]
fn what_a_killed_deletion_left_is_deleted() {
    let sample = Sample::killed();
    let kept = tempfile::tempdir().unwrap();
    copy_folder(&sample.folder(0), kept.path());
    let mut log = sample.opens().log;
    log.drop_oldest_generation().unwrap();
    drop(log);
    assert!(!sample.folder(0).exists());
    // The witness was written, and nothing else done; or the folder was moved and half deleted.
    copy_folder(kept.path(), &sample.folder(0));
    let trash = sample.path().join("trash-g00000000000000000001");
    fs::create_dir(&trash).unwrap();
    fs::write(trash.join("conf"), "half").unwrap();
    let opened = open(sample.path());
    assert_eq!(all(&*opened.log, sample.firsts[1].0), reports(sample.firsts[1].0..=sample.last));
    assert_eq!(opened.log.reader().page(Seq(1)), Err(ReadError::Gone(Seq(1))));
    assert!(!sample.folder(0).exists() && !trash.exists());
}

#[test]
fn a_seal_of_a_stop_that_was_not_finished_counts_for_nothing() {
    let sample = Sample::closed();
    // The witness is not clean yet: closing was killed right before it.
    let (mut witness, mut testimony) = Witness::open(sample.path(), sample.tag()).unwrap().unwrap();
    testimony.clean = false;
    witness.write(&testimony).unwrap();
    let opened = sample.opens();
    assert_eq!((opened.last_stop, opened.checkpoint.unwrap().bytes), (LastStop::Unclean, b"closed".to_vec()));
    drop(opened.log);
    assert!(!sample.folder(2).join("seal").exists());
}

#[test]
fn a_commit_of_which_a_kill_left_a_part_is_taken_out() {
    let sample = Sample::killed();
    let (tag, next) = (sample.tag(), sample.last + 1);
    // Of several parts, which nothing overwrites when the position is used again.
    let torn = [with_payload(1, vec![1; 9000])];
    for written in [1, 2] {
        let run = Witness::open(sample.path(), tag).unwrap().unwrap().1.run;
        let mut encoder = Encoder::new(tag, run, Limits::for_segment(SMALL.segment_size)).unwrap();
        let pages = encoder.events(Seq(next), &torn, &next_send).unwrap();
        assert!(pages.len() > 2);
        let database = Database::open(&sample.folder(2), SMALL.segment_size, 1 << 20).unwrap();
        database.commit(&pages[..written], &File::open(sample.folder(2).join("db")).unwrap()).unwrap();
        drop(database);
        let opened = sample.opens();
        assert_eq!(opened.log.next_seq(), Seq(next));
        drop(opened);
    }
    // The positions are used again, and the stale pages in the file deceive nobody: not after a kill, not when sealed.
    let mut log = sample.opens().log;
    log.append(&reports(next..=next + 30), &next_send).unwrap();
    drop(log);
    let sample = Sample { last: next + 30, ..sample };
    let mut log = sample.opens().log;
    log.begin_generation(b"c").unwrap();
    drop(log);
    sample.opens();
}

#[test]
fn a_whole_commit_that_was_not_witnessed_stays() {
    let sample = Sample::killed();
    let (mut witness, mut testimony) = Witness::open(sample.path(), sample.tag()).unwrap().unwrap();
    testimony.last = Seq(testimony.last.0 - 10);
    witness.write(&testimony).unwrap();
    sample.opens();
}

#[test]
fn an_accepted_event_that_sled_does_not_show_is_never_passed_over() {
    let sample = Sample::killed();
    let tag = sample.tag();
    let database = Database::open(&sample.folder(2), SMALL.segment_size, 1 << 20).unwrap();
    let last_page = *scan(&sample.folder(2), tag).unwrap().events.keys().next_back().unwrap();
    let key = PageKey { first: last_page.0, kind: Kind::Events, run: 0, part: last_page.1 };
    database.remove(&[key.to_bytes()[..].into()], &File::open(sample.folder(2).join("db")).unwrap()).unwrap();
    drop(database);
    let error = SledLog::open(sample.path(), SMALL).map(|_| ()).unwrap_err();
    assert!(error.to_string().contains("were accepted"), "{error}");
}
