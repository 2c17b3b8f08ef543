//! The Debian package: made of the build that is tested, looked at, and installed on a copy of this machine.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::machine::Machine;

/// Nothing that works takes so long.
const PATIENCE: Duration = Duration::from_secs(60);

/// As in README.
const REPORT: &str =
    r#"{"action":"success","tenant":"acme","pipeline":"check","project":"p","branch":"master","change":"3","patchset":"1"}"#;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Made once for all tests of this binary.
fn package() -> &'static Path {
    static MADE: OnceLock<(TempDir, PathBuf)> = OnceLock::new();
    let make = || {
        let folder = tempfile::tempdir().unwrap();
        let made = Command::new(root().join("ops/package")).arg("--dev").arg(folder.path()).output().unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let found = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().path()).next().expect("there is a package");
        (folder, found)
    };
    &MADE.get_or_init(make).1
}

fn dpkg_deb(words: &[&str]) -> String {
    let shown = Command::new("dpkg-deb").arg(words[0]).arg(package()).args(&words[1..]).output().unwrap();
    assert!(shown.status.success(), "{shown:?}");
    String::from_utf8(shown.stdout).unwrap()
}

/// Waits for something in the machine.
fn wait_for(machine: &mut Machine, what: &str, command: &str) {
    let until = Instant::now() + PATIENCE;
    while !machine.can(command) {
        assert!(Instant::now() < until, "{what} did not come about: {}", machine.says("cat /var/tmp/log 2>/dev/null || true"));
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Starts what the installed unit starts, as whom it says.
fn start(machine: &mut Machine) {
    let unit = machine.says("cat /usr/lib/systemd/system/tidings.service");
    let setting = |name: &str| unit.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_else(|| panic!("the unit has no {name}"));
    let (command, user) = (setting("ExecStart="), setting("User="));
    assert!(!unit.contains("DynamicUser"), "systemd would move the store elsewhere");
    machine.says(&format!("setpriv --reuid={user} --regid={user} --clear-groups {command} >/var/tmp/log 2>&1 &\necho $! >/var/tmp/pid"));
    wait_for(machine, "the service", "tidings health --ready");
}

fn stop(machine: &mut Machine) {
    machine.says("kill -TERM $(cat /var/tmp/pid)");
    wait_for(machine, "the end of the service", "! kill -0 $(cat /var/tmp/pid)");
}

#[test]
fn the_package_has_all_that_belongs_to_it_and_nothing_of_a_developer() {
    let listed = dpkg_deb(&["--contents"]);
    let files: Vec<(&str, &str)> = listed
        .lines()
        .map(|line| (line.split_whitespace().next().unwrap(), line.split(" ./").nth(1).unwrap()))
        .filter(|(mode, _)| !mode.starts_with('d'))
        .collect();
    let has = |mode: &str, name: &str| assert!(files.contains(&(mode, name)), "{mode} {name} is missing: {files:#?}");
    has("-rwxr-xr-x", "usr/bin/tidings");
    for file in [
        "etc/tidings/tidings.toml",
        "usr/lib/systemd/system/tidings.service",
        "usr/lib/systemd/system/tidings.socket",
        "usr/share/man/man1/tidings.1.gz",
        "usr/share/man/man1/tidings-serve.1.gz",
        "usr/share/bash-completion/completions/tidings",
        "usr/share/zsh/vendor-completions/_tidings",
        "usr/share/fish/vendor_completions.d/tidings.fish",
        "usr/share/doc/tidings/copyright",
        "usr/share/doc/tidings/changelog.Debian.gz",
        "usr/share/doc/tidings/ops/runbook.md",
    ] {
        has("-rw-r--r--", file);
    }
    let places = ["usr/bin/", "etc/tidings/", "usr/lib/systemd/system/", "usr/share/"];
    assert!(files.iter().all(|(_, name)| places.iter().any(|place| name.starts_with(place))), "{files:#?}");
    assert!(listed.lines().all(|line| line.split_whitespace().nth(1) == Some("0/0")), "all of it is root's: {listed}");
    assert_eq!(dpkg_deb(&["--info", "conffiles"]), "/etc/tidings/tidings.toml\n");
    let field = |name: &str| dpkg_deb(&["--field", name]).trim().to_owned();
    assert_eq!(field("Version"), format!("{}-1", env!("CARGO_PKG_VERSION")));
    let depends = field("Depends");
    for needed in ["adduser", "libc6 (>= ", "libssl3"] {
        assert!(depends.contains(needed), "{needed}: {depends}");
    }
}

#[test]
fn it_is_installed_and_runs_as_it_is_and_a_purge_leaves_nothing() {
    let Some(mut machine) = Machine::with(package()) else { return };
    assert!(
        !machine.can("command -v tidings || getent passwd tidings || test -e /etc/tidings -o -e /var/lib/tidings"),
        "it is here already"
    );
    machine.says("dpkg -i /package.deb");
    assert_eq!(machine.says("tidings --version"), format!("tidings {}", env!("CARGO_PKG_VERSION")));
    for page in ["tidings", "tidings-serve", "tidings-dead-requeue"] {
        let path = machine.says(&format!("man -w {page}"));
        let read = machine.says(&format!("lexgrog {path}"));
        assert!(read.contains(&format!("\"{page} - ")), "apropos finds it by: {read}");
    }
    machine.says("bash -n /usr/share/bash-completion/completions/tidings");
    machine.says("test -L /etc/systemd/system/multi-user.target.wants/tidings.service");
    assert!(!machine.can("test -e /etc/systemd/system/sockets.target.wants/tidings.socket"), "it is for those who have a listener");

    // The configuration that comes with it is good as it is, and listens on this machine only.
    start(&mut machine);
    assert_eq!(machine.says("stat -c '%U %G %a' /var/lib/tidings"), "tidings tidings 700");
    assert!(machine.says("ss -Hltn || true").lines().all(|line| line.is_empty() || line.contains("127.0.0.1:8470")));
    let answer = machine.says(&format!("echo '{REPORT}' | tidings report -"));
    assert!(answer.contains("acme/zuul/check/p/master/3"), "{answer}");
    let status = machine.says("tidings status");
    assert!(status.starts_with("NOT FLOWING"), "there is no broker on this machine: {status}");

    // An upgrade keeps what was configured, and what is stored.
    stop(&mut machine);
    machine.says(
        "echo '# mine' >>/etc/tidings/tidings.toml && dpkg -i /package.deb && tail -n 1 /etc/tidings/tidings.toml | grep -x '# mine'",
    );
    start(&mut machine);
    assert_eq!(machine.says("tidings list --json | grep -c '\"state\":\"pending\"'"), "1");
    stop(&mut machine);

    let removed = machine.says("dpkg --remove tidings");
    assert!(removed.contains("the store stays in /var/lib/tidings"), "{removed}");
    machine.says("test ! -e /usr/bin/tidings && test -e /etc/tidings/tidings.toml && test -n \"$(ls /var/lib/tidings)\"");
    let purged = machine.says("dpkg --purge tidings");
    assert!(purged.contains("deleting the store /var/lib/tidings"), "{purged}");
    // What is new above the machine, deletions (which are devices) apart.
    let left = machine.says("find /mnt -name '*tidings*' ! -type c ! -path '/mnt/var/cache/man/*'");
    assert_eq!(left, "");
    machine.says("getent passwd tidings");
}

#[test]
fn the_service_is_started_at_installation_restarted_at_an_upgrade_and_stopped_at_removal() {
    let Some(mut machine) = Machine::with(package()) else { return };
    // No systemd runs here: this writes down what it would be told, and says that the unit is enabled, and active from its start on.
    let pretend = r#"#!/bin/sh
echo "$*" >>/var/tmp/told
case "$*" in
*is-enabled*) echo enabled ;;
*is-active*) test -e /var/tmp/active ;;
*start*) touch /var/tmp/active ;;
esac
"#;
    machine.says("mkdir -p /run/systemd/system && rm -f /usr/sbin/policy-rc.d && rm -f /bin/systemctl /usr/bin/systemctl");
    machine.says(&format!("cat >/usr/bin/systemctl <<'END'\n{pretend}END\nchmod 755 /usr/bin/systemctl"));
    let told = |machine: &mut Machine, command: &str| {
        machine.says(&format!("rm -f /var/tmp/told; {command}"));
        let told = machine.says("cat /var/tmp/told || true");
        let acts =
            told.lines().filter(|line| line.contains("tidings")).filter(|line| !line.contains("is-enabled") && !line.contains("show"));
        acts.map(str::to_owned).collect::<Vec<_>>()
    };
    let installed = told(&mut machine, "dpkg -i /package.deb");
    assert!(installed.iter().any(|act| act.ends_with("start tidings.service")), "{installed:?}");
    let upgraded = told(&mut machine, "dpkg -i /package.deb");
    assert!(upgraded.iter().any(|act| act.ends_with("restart tidings.service")), "{upgraded:?}");
    assert!(!upgraded.iter().any(|act| act.contains("stop")), "it goes on until the new one is there: {upgraded:?}");
    let removed = told(&mut machine, "dpkg --remove tidings");
    assert!(removed.iter().any(|act| act.contains("stop") && act.contains("tidings.service")), "{removed:?}");
}
