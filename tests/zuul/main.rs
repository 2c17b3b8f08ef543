//! Zuul's own files, as they are: read by the real binary or the library, and delivered by.
//!
//! | Module | Claims about |
//! |---|---|
//! | `conf` | `zuul.conf`: connections, what is ignored, what is a mistake |
//! | `pipelines` | Zuul's YAML: reporters, what is passed over, what is a mistake |
//! | `init` | `tidings init` |
//! | `end_to_end` | the seed's examples, from Zuul's files to a subscriber |

#[path = "../support/certificates.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod certificates;
#[path = "../support/mod.rs"]
mod support;

mod conf;
mod end_to_end;
mod init;
mod pipelines;

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};

use tempfile::TempDir;
use tidings::config::{self, Config};
use tidings::core::report::Report;

/// Zuul's files, and a `tidings.toml` that names them.
struct Files(TempDir);

impl Files {
    fn new() -> Files {
        Files(tempfile::tempdir().unwrap())
    }

    /// With a `zuul.conf`.
    fn conf(text: &str) -> Files {
        let files = Files::new();
        files.write("zuul.conf", text);
        files
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }

    /// Loads a `tidings.toml` in which `@` stands for the folder. Mistakes are printed with the folder taken out again.
    fn try_load(&self, toml: &str) -> Result<Config, String> {
        self.write("tidings.toml", &toml.replace('@', &self.folder()));
        config::load(&self.path("tidings.toml")).map_err(|errors| self.without_folder(&errors.to_string()))
    }

    fn load(&self, toml: &str) -> Config {
        self.try_load(toml).unwrap_or_else(|mistakes| panic!("{mistakes}"))
    }

    /// What is wrong, one a line.
    fn mistakes(&self, toml: &str) -> Vec<String> {
        self.try_load(toml).map(|config| config.notes).expect_err("there is a mistake").lines().map(str::to_owned).collect()
    }

    /// What was noted while reading.
    fn notes(&self, toml: &str) -> Vec<String> {
        self.load(toml).notes.iter().map(|note| self.without_folder(note)).collect()
    }

    /// Runs the binary in the folder.
    fn tidings(&self, arguments: &[&str], environment: &[(&str, &str)]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tidings"));
        command.args(arguments).current_dir(self.0.path()).env_remove("TIDINGS_CONFIG").env_remove("TIDINGS_LOG");
        command.envs(environment.iter().copied()).output().unwrap()
    }

    fn folder(&self) -> String {
        self.0.path().display().to_string()
    }

    fn without_folder(&self, text: &str) -> String {
        text.replace(&format!("{}/", self.folder()), "")
    }
}

/// The only section of a `tidings.toml` that leaves it all to Zuul's files.
const CONF: &str = "[zuul]\nconf = '@/zuul.conf'\n";

/// (connection, topic, qos, whether returned data stays) of each delivery that a report makes.
fn ways(config: &Config, tenant: &str, pipeline: &str, action: &str) -> Vec<(String, String, u8, bool)> {
    let text = format!(r#"{{"action":"{action}","tenant":"{tenant}","pipeline":"{pipeline}","project":"widgets"}}"#);
    let routed = config.routes.route(&Report::parse(text.into()).unwrap()).unwrap();
    routed
        .into_iter()
        .map(|way| (way.connection.to_string(), way.topic.into_string(), way.qos.level(), way.include_returned_data))
        .collect()
}
