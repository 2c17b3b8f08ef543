//! Whatever is missing or changed: refused by name, and not a byte is touched.

use super::*;

#[test]
fn a_page_that_is_gone_from_the_newest_generation_is_refused_by_name() {
    let sample = Sample::killed();
    let (first, tag) = (sample.firsts[2], sample.tag());
    let db = sample.folder(2).join("db");
    // Every copy of the page is hit.
    let bytes = fs::read(&db).unwrap();
    let target = scan(&sample.folder(2), tag).unwrap().events[&(Seq(first.0 + 10), 0)];
    let start = target.offset as usize;
    let page = &bytes[start..start + target.header.page_len()];
    for copy in memchr::memmem::find_iter(&bytes, page) {
        flip(&db, copy as u64 + 80);
    }
    let missing = format!("generation {}: events {} to ", open::folder_name(first), first.0 + 10);
    sample.is_refused(&missing);
}

#[test]
fn a_newest_file_that_was_cut_off_is_refused() {
    for clean in [false, true] {
        let sample = Sample::make(clean);
        let db = sample.folder(2).join("db");
        for len in [0, 4096, 40_000] {
            fs::OpenOptions::new().write(true).open(&db).unwrap().set_len(len).unwrap();
            sample.is_refused(&open::folder_name(sample.firsts[2]));
        }
        fs::remove_file(&db).unwrap();
        sample.is_refused("`db`");
    }
}

#[test]
fn after_a_clean_stop_any_flipped_bit_is_refused() {
    let sample = Sample::closed();
    for file in ["db", "conf"] {
        let path = sample.folder(2).join(file);
        let len = fs::metadata(&path).unwrap().len();
        for step in 0..12 {
            let offset = step * (len / 12);
            flip(&path, offset);
            sample.is_refused(&format!("its file `{file}` has been changed"));
            flip(&path, offset);
        }
    }
    sample.opens();
}

#[test]
fn a_generation_that_is_missing_is_named() {
    for (generation, what) in [(0, "its folder is missing"), (1, "are missing: no generation begins with"), (2, "its folder is missing")] {
        let sample = Sample::killed();
        fs::remove_dir_all(sample.folder(generation)).unwrap();
        sample.is_refused(what);
    }
}

#[test]
fn a_sealed_generation_that_was_cut_off_is_refused() {
    let sample = Sample::killed();
    let db = sample.folder(0).join("db");
    let len = fs::metadata(&db).unwrap().len();
    fs::OpenOptions::new().write(true).open(&db).unwrap().set_len(len - 1).unwrap();
    sample.is_refused("its file `db` has");
}

#[test]
fn a_flipped_bit_in_a_sealed_generation_is_found_when_it_is_read() {
    let sample = Sample::killed();
    let tag = sample.tag();
    let place = scan(&sample.folder(0), tag).unwrap().events[&(Seq(1), 0)];
    for copy in 0..place.header.page_len() as u64 {
        if copy % 97 == 0 {
            let bytes = fs::read(sample.folder(0).join("db")).unwrap();
            let page = bytes[place.offset as usize..place.offset as usize + place.header.page_len()].to_vec();
            let copies: Vec<u64> = memchr::memmem::find_iter(&bytes, &page).map(|at| at as u64 + copy).collect();
            copies.iter().for_each(|&at| flip(&sample.folder(0).join("db"), at));
            let opened = open(sample.path());
            let found = opened.log.reader().page(Seq(1));
            assert!(matches!(found, Err(ReadError::Damaged { seq: Seq(1), .. })), "{found:?}");
            drop(opened);
            copies.iter().for_each(|&at| flip(&sample.folder(0).join("db"), at));
        }
    }
    sample.opens();
}

#[test]
fn a_witness_that_is_garbage_or_missing_is_refused() {
    let sample = Sample::killed();
    let witness = sample.path().join("witness");
    fs::write(&witness, [0x5a; 8192]).unwrap();
    sample.is_refused("the file `witness`");
    fs::remove_file(&witness).unwrap();
    sample.is_refused("the file `witness`");
}

#[test]
fn an_identity_that_was_changed_or_is_missing_is_refused() {
    let sample = Sample::killed();
    let identity = sample.path().join("identity");
    flip(&identity, 40);
    sample.is_refused("the file `identity` is not what was written");
    fs::remove_file(&identity).unwrap();
    sample.is_refused("its file `identity` is missing");
}

#[test]
fn a_generation_that_the_witness_does_not_know_but_holds_events_is_refused() {
    let sample = Sample::killed();
    copy_folder(&sample.folder(2), &sample.path().join(open::folder_name(Seq(sample.last + 100))));
    sample.is_refused("the witness does not know it");
}
