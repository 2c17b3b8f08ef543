//! Zuul's own files.
//!
//! It holds for both: every mistake has the file and a line that it has, and a message that a person can read; reading takes no more memory
//! than so many times the file, also of a bomb of aliases, merges or references; what is understood is what Tidings could have been told in
//! its own file. What they mean is held against Python's reader elsewhere (`src/config/zuul/tests`).

use std::fs;
use std::path::PathBuf;

use tempfile::TempDir;
use tidings::config::ConfigErrors;
use tidings::config::zuul::{read_conf, read_pipelines_of};

use crate::config::lines;
use crate::memory::bounded;
use crate::mutate::{Form, Mutator};
use crate::run::{Outcome, kind_of, run};

/// The file that each case is written to.
struct Scratch {
    _folder: TempDir,
    path: PathBuf,
}

impl Scratch {
    fn new(name: &str) -> Scratch {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        Scratch { _folder: folder, path }
    }
}

fn refused(errors: &ConfigErrors, scratch: &Scratch, bytes: &[u8]) -> Outcome {
    let text = String::from_utf8_lossy(bytes);
    // Python and YAML end lines at a lone `\r`, too.
    let most = lines(&text) + text.matches('\r').count();
    assert!(!errors.mistakes.is_empty());
    for mistake in &errors.mistakes {
        assert_eq!(mistake.file, scratch.path.display().to_string());
        match mistake.line {
            None if mistake.message.contains("more mistakes") => assert!(errors.mistakes.len() > 100),
            None => assert!(std::str::from_utf8(bytes).is_err() && mistake.message.contains("UTF-8"), "no line: {mistake}"),
            Some(line) => assert!((1..=most).contains(&line), "line {line} of {most}: {mistake}"),
        }
        assert!(!mistake.message.is_empty() && mistake.message.len() < 2_000 + 2 * bytes.len(), "{mistake}");
    }
    Outcome::refused(kind_of(&errors.mistakes[0].message))
}

#[test]
fn a_zuul_conf_is_understood_or_each_mistake_has_its_line() {
    const WORDS: &[&str] = &[
        "[connection mqtt]",
        "[connection \"a b\"]",
        "[DEFAULT]",
        "[connection ",
        "driver",
        "mqtt",
        "server",
        "port",
        "keepalive",
        "user",
        "password",
        "ca_certs",
        "certfile",
        "keyfile",
        "ciphers",
        "%(x)s",
        "%(port)s",
        "%(server)s",
        "%(ZUUL_HOST)s",
        "%(password)s",
        "%",
        "%%",
        "=",
        ":",
        "#",
        ";",
        "\n  ",
    ];
    let scratch = Scratch::new("zuul.conf");
    let environment = |name: &str| (name == "ZUUL_HOST").then(|| "from %(x)s".to_owned());
    run("zuul_ini", 2_500, vec![], &Mutator { form: Form::Lines, words: WORDS }, |bytes| {
        fs::write(&scratch.path, bytes).unwrap();
        // A value may become 128 KiB, whatever the file is.
        match bounded(bytes.len() + (16 << 10), 128, || read_conf(&scratch.path, &environment)) {
            Err(errors) => refused(&errors, &scratch, bytes),
            Ok(conf) => {
                conf.notes.iter().for_each(|note| assert!(!note.is_empty() && note.len() < 2_000 + 2 * bytes.len()));
                Outcome::accepted(format!("{} {} {}", conf.connections.len().min(3), conf.others.len().min(3), conf.notes.len().min(3)))
            }
        }
    });
}

#[test]
fn zuuls_pipelines_are_understood_or_each_mistake_has_its_line() {
    const WORDS: &[&str] = &[
        "pipeline",
        "name",
        "start",
        "success",
        "failure",
        "mqtt",
        "gerrit",
        "topic",
        "qos",
        "include-returned-data",
        "<<",
        "*a",
        "&a",
        "*b",
        "&b",
        "!encrypted/pkcs1-oaep",
        "!!str",
        "!!int",
        "!!null",
        "---",
        "...",
        "%YAML 1.1",
        "? ",
        "| ",
        "> ",
        "\"{tenant}/{branch}\"",
        "{tenant}",
        "yes",
        "0o7",
        "0x2",
        "2.0",
        "[*a, *b]",
        "<<: *a",
        "<<: [*a, *b]",
    ];
    let scratch = Scratch::new("pipelines.yaml");
    let (mqtt, others) = (["mqtt".to_owned()], ["gerrit".to_owned()]);
    run("zuul_yaml", 5_000, vec![], &Mutator { form: Form::Lines, words: WORDS }, |bytes| {
        fs::write(&scratch.path, bytes).unwrap();
        match bounded(bytes.len(), 400, || read_pipelines_of(std::slice::from_ref(&scratch.path), &mqtt, &others)) {
            Err(errors) => refused(&errors, &scratch, bytes),
            Ok((pipelines, notes)) => {
                notes.iter().for_each(|note| assert!(!note.is_empty() && note.len() < 2_000 + bytes.len()));
                let reporters: Vec<_> = pipelines.iter().flat_map(|pipeline| pipeline.reporters.values().flatten()).collect();
                assert!(reporters.iter().all(|reporter| reporter.connection.as_str() == "mqtt"));
                Outcome::accepted(format!("{} {} {}", pipelines.len().min(4), reporters.len().min(6), notes.len().min(2)))
            }
        }
    });
}
