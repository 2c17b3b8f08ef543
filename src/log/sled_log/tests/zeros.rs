//! Zeros ahead of what is appended: they cover nothing, and no start minds how many there are.

use super::*;

/// Commits of every size, many of which begin or end where zeros do.
fn commits(log: &mut dyn EventLog, count: u64, mut after_each: impl FnMut(&mut dyn EventLog, u64)) -> Vec<Event> {
    let mut noise = vec![0; 64 << 10];
    getrandom::fill(&mut noise).unwrap();
    let mut written = Vec::new();
    for commit in 0..count {
        let first = log.next_seq().0;
        let sizes = [700, 1, 3_000, 40, 9_000, 300, 20_000, 100].into_iter().cycle().skip(commit as usize);
        let events: Vec<Event> =
            (first..first + 1 + commit % 4).zip(sizes).map(|(n, len)| with_payload(n, noise[..len].to_vec())).collect();
        log.append(&events, &next_send).unwrap();
        written.extend(events);
        after_each(log, commit);
    }
    written
}

fn with_a_large_generation(store: &Path) -> Opened {
    SledLog::open(store, Options { generation_size: 8 << 20, ..SMALL }).unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn commits_go_over_zeros_and_all_is_there_after_a_kill_at_any_of_them() {
    let store = tempfile::tempdir().unwrap();
    let mut log = with_a_large_generation(store.path()).log;
    let db = store.path().join(open::folder_name(Seq(1))).join("db");
    let (mut len, mut within) = (0, 0);
    let mut killed = Vec::new();
    let written = commits(&mut *log, 300, |log, commit| {
        let before = std::mem::replace(&mut len, fs::metadata(&db).unwrap().len());
        within += u64::from(before == len);
        if commit % 7 == 0 {
            let copy = tempfile::tempdir().unwrap();
            copy_folder(store.path(), copy.path());
            killed.push((copy, log.next_seq().0 - 1));
        }
    });
    assert_eq!(all(&*log, 1), written);
    for (copy, last) in killed {
        let opened = with_a_large_generation(copy.path());
        assert_eq!(opened.log.next_seq().0 - 1, last);
        assert!(all(&*opened.log, 1)[..] == written[..last as usize], "all but what came after event {last}");
    }
    // Elsewhere none are written.
    if zeros::Zeros::of(store.path(), SMALL.segment_size).step().is_some() {
        assert!(within > 50, "of 300 commits, {within} left the length of the file as it was");
    }
}

#[test]
fn a_start_minds_neither_missing_zeros_nor_more_of_them() {
    let sample = Sample::killed();
    let folder = sample.folder(2);
    let kept = tempfile::tempdir().unwrap();
    copy_folder(sample.path(), kept.path());
    let found = scan(&folder, sample.tag()).unwrap();
    let end = found.events.values().map(|place| place.offset + place.header.page_len() as u64).max().unwrap();
    let segment = SMALL.segment_size as u64;
    // A power cut may leave a length without what was written there, or what was written without the length.
    for len in [end, end + 1, end + 4_096, segment - 1, segment, segment + 1, 2 * segment - 1, 2 * segment, 5 * segment + 77] {
        fs::remove_dir_all(sample.path()).unwrap();
        copy_folder(kept.path(), sample.path());
        File::options().write(true).open(folder.join("db")).unwrap().set_len(len).unwrap();
        let mut log = sample.opens().log;
        log.append(&reports(sample.last + 1..=sample.last + 30), &next_send).unwrap();
        log.close(b"closed").unwrap();
        let opened = open(sample.path());
        assert_eq!((opened.last_stop, all(&*opened.log, 1)), (LastStop::Clean, reports(1..=sample.last + 30)), "a file of {len} bytes");
    }
}

#[test]
fn zeros_never_reach_into_a_segment_that_was_not_begun() {
    let store = tempfile::tempdir().unwrap();
    let mut log = with_a_large_generation(store.path()).log;
    let db = store.path().join(open::folder_name(Seq(1))).join("db");
    commits(&mut *log, 200, |_, commit| {
        let file = fs::read(&db).unwrap();
        let last = file.len().saturating_sub(1) / SMALL.segment_size * SMALL.segment_size;
        assert!(file[last..].iter().any(|byte| *byte != 0), "commit {commit}: a segment of zeros in {} bytes", file.len());
    });
}
