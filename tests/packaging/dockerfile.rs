//! The Dockerfile, without Docker: what it names is there, and what it runs is understood.

use std::fs;
use std::path::{Path, PathBuf};

use clap::Parser;
use tidings::cli::Arguments;
use tidings::config;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Instruction and argument of each line, those that go on in the next ones put together.
fn instructions() -> Vec<(String, String)> {
    let text = fs::read_to_string(root().join("ops/Dockerfile")).unwrap();
    let code: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
    let joined = code.join("\n").replace("\\\n", " ");
    let lines = joined.lines().filter(|line| !line.trim().is_empty());
    lines
        .map(|line| line.split_once(' ').expect("an instruction has an argument"))
        .map(|(name, rest)| (name.to_owned(), rest.to_owned()))
        .collect()
}

/// The arguments of all instructions of that name.
fn all(name: &str) -> Vec<String> {
    instructions().into_iter().filter(|(instruction, _)| instruction == name).map(|(_, argument)| argument).collect()
}

/// `["tidings", "health"]`, as words.
fn words(list: &str) -> Vec<String> {
    serde_json::from_str(list).unwrap_or_else(|error| panic!("{list}: {error}"))
}

#[test]
fn what_it_copies_is_there_and_is_all_that_the_build_reads() {
    let copied: Vec<PathBuf> = all("COPY")
        .iter()
        .filter(|copy| !copy.starts_with("--from="))
        .flat_map(|copy| copy.split_whitespace().rev().skip(1).map(PathBuf::from).collect::<Vec<_>>())
        .collect();
    for path in &copied {
        assert!(root().join(path).exists(), "{} is not there", path.display());
    }
    let is_copied = |path: &Path| copied.iter().any(|copied| path.starts_with(copied));
    // Targets that the manifest names by path, and files that sources include from elsewhere.
    let manifest = fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let targets = manifest.split("\npath = \"").skip(1).map(|rest| PathBuf::from(rest.split('"').next().unwrap()));
    for target in targets.chain([PathBuf::from("src/main.rs"), PathBuf::from("migrations/mod.rs")]) {
        assert!(is_copied(&target), "{} is not copied", target.display());
    }
    for source in sources(&root().join("src")).into_iter().chain(sources(&root().join("migrations"))) {
        let text = fs::read_to_string(&source).unwrap();
        let code = text.split("#[cfg(test)]").next().unwrap();
        for included in code.split("include_str!(\"").skip(1).chain(code.split("include_bytes!(\"").skip(1)) {
            let included = source.parent().unwrap().join(included.split('"').next().unwrap()).canonicalize().unwrap();
            assert!(is_copied(included.strip_prefix(root().canonicalize().unwrap()).unwrap()), "{} is not copied", included.display());
        }
    }
    let ignored = fs::read_to_string(root().join(".dockerignore")).unwrap();
    assert!(
        ignored.lines().filter_map(|line| line.strip_prefix('/')).all(|path| !is_copied(Path::new(path))),
        "copied and ignored: {ignored}"
    );
}

fn sources(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries
        .flat_map(|path| if path.is_dir() { sources(&path) } else { vec![path] })
        .filter(|path| path.extension().is_some_and(|extension| extension == "rs"))
        .collect()
}

#[test]
fn what_it_runs_is_understood_and_the_configuration_in_it_is_good() {
    let serve = [words(&all("ENTRYPOINT")[0]), words(&all("CMD")[0])].concat();
    Arguments::try_parse_from(serve).unwrap();
    let health = all("HEALTHCHECK");
    Arguments::try_parse_from(words(health[0].split_once("CMD ").unwrap().1)).unwrap();
    let copied = all("COPY").into_iter().find(|copy| copy.ends_with("/etc/tidings/tidings.toml")).expect("there is a configuration");
    let config = config::load(&root().join(copied.split_whitespace().next().unwrap())).unwrap();
    // What it says of volumes and ports is what the configuration says.
    assert_eq!(all("VOLUME"), [config.store.path.display().to_string()]);
    assert_eq!(all("EXPOSE"), [config.http.listen.port().to_string()]);
}

#[test]
fn it_does_not_run_as_root_and_builds_with_a_compiler_that_is_new_enough() {
    assert!(all("USER").last().unwrap().split(':').all(|number| number.parse::<u32>().unwrap() > 0));
    let image = &all("FROM")[0];
    let minor =
        |text: &str| text.split('.').nth(1).and_then(|minor| minor.split(|c: char| !c.is_ascii_digit()).next()?.parse::<u32>().ok());
    assert!(minor(image.split_once(':').unwrap().1) >= minor(env!("CARGO_PKG_RUST_VERSION")), "{image}");
    let stages = all("FROM");
    assert!(stages.iter().all(|stage| stage.contains("bookworm")), "one libc and one OpenSSL for both: {stages:?}");
}
