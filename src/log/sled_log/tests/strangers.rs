//! Stores of newer releases, of other processes, copies, and folders that are none.

use super::*;

#[test]
fn a_newer_store_is_refused_with_both_versions() {
    let sample = Sample::killed();
    let identity = sample.path().join("identity");
    let text = fs::read_to_string(&identity).unwrap().replace("format 2\n", "format 9\nsomething new\n");
    fs::write(&identity, text).unwrap();
    let before = content(sample.path());
    let error = SledLog::open(sample.path(), SMALL).map(|_| ()).unwrap_err();
    assert!(matches!(error, OpenError::Newer { found: 9, known: 2, .. }), "{error}");
    assert!(before == content(sample.path()), "nothing is changed");
}

#[test]
fn a_folder_with_something_else_in_it_is_no_store() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("letters.txt"), "dear").unwrap();
    let error = SledLog::open(folder.path(), SMALL).map(|_| ()).unwrap_err();
    assert!(matches!(error, OpenError::NotAStore { .. }), "{error}");
    assert!(error.to_string().contains("letters.txt"), "{error}");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing is left behind");
}

#[test]
fn a_folder_that_is_almost_named_like_a_generation_is_none_and_left_alone() {
    for name in ["g00000000000000000000", "g+0000000000000000001", "g0000000000000000001", "g99999999999999999999"] {
        let sample = Sample::closed();
        let folder = sample.path().join(name);
        fs::create_dir(&folder).unwrap();
        let before = all(&*sample.opens().log, 1);
        assert!(folder.is_dir(), "{name}");
        assert!(!before.is_empty());
    }
}

#[test]
fn a_store_in_use_names_its_holder() {
    let folder = tempfile::tempdir().unwrap();
    let _opened = open(folder.path());
    let error = SledLog::open(folder.path(), SMALL).map(|_| ()).unwrap_err();
    assert!(error.to_string().contains(&format!("(pid {})", std::process::id())), "{error}");
}

#[test]
fn a_copied_folder_is_seen_until_it_is_adopted() {
    let sample = Sample::closed();
    for _ in 0..2 {
        let opened = sample.opens();
        assert!(opened.is_copy);
        opened.log.close(b"c").unwrap();
    }
    let mut opened = sample.opens();
    opened.log.adopt_copy().unwrap();
    drop(opened);
    assert!(!sample.opens().is_copy);
    // A folder that is moved, not copied, is still the same store.
    let parent = tempfile::tempdir_in(sample.path().parent().unwrap()).unwrap();
    let elsewhere = parent.path().join("elsewhere");
    fs::rename(sample.path(), &elsewhere).unwrap();
    assert!(!open(&elsewhere).is_copy);
}

#[test]
fn a_new_store_can_be_entered_by_its_owner_only() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path().join("deep/store");
    drop(SledLog::open(&store, Options::default()).unwrap());
    assert_eq!(std::fs::metadata(&store).unwrap().permissions().mode() & 0o777, 0o700);
}
