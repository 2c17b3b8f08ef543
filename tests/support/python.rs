//! Virtual environments with pinned packages, made once below `target/` and kept.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;

/// Zuul with its own driver; it brings paho 1.6.
pub const ZUUL: (&str, &str) = ("zuul", "zuul==14.3.0 paho-mqtt==1.6.1");

/// The paho of today.
pub const PAHO_2: (&str, &str) = ("paho-2", "paho-mqtt==2.1.0");

/// paho 1.6 alone, with which most of what is out there was written.
pub const PAHO_1: (&str, &str) = ("paho-1", "paho-mqtt==1.6.1");

/// What asks a service for everything that its OpenAPI document promises, and what knows whether that is a document.
pub const OPENAPI: (&str, &str) =
    ("openapi", "schemathesis==4.32.5 hypothesis==6.170.17 jsonschema-rs==0.60.3 openapi-spec-validator==0.9.0");

/// The interpreter of an environment; makes it if it is not there.
pub fn python((name, packages): (&str, &str)) -> PathBuf {
    /// Tests of one binary run side by side.
    static MAKING: Mutex<()> = Mutex::new(());
    let _one = MAKING.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/python").join(name);
    let (interpreter, done) = (folder.join("bin/python"), folder.join("installed"));
    if fs::read_to_string(&done).is_ok_and(|installed| installed == packages) && interpreter.exists() {
        return interpreter;
    }
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).unwrap();
    let made = Command::new("python3").args(["-m", "venv"]).arg(&folder).stdout(Stdio::null()).output();
    let is_made = made.as_ref().is_ok_and(|made| made.status.success());
    assert!(is_made, "these tests need Python's venv: install Debian's packages `python3` and `python3-venv` ({made:?})");
    let mut pip = Command::new(&interpreter);
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--prefer-binary"]).args(packages.split(' '));
    let installed = pip.output().unwrap();
    assert!(installed.status.success(), "pip could not install {packages}: {}", String::from_utf8_lossy(&installed.stderr));
    fs::write(&done, packages).unwrap();
    interpreter
}
