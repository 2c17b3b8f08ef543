//! The commands that work on a store: the real binary, on stores that real services wrote.
//!
//! | Module | Claims about |
//! |---|---|
//! | `backup` | backups of a running service, and what is restored from them |
//! | `fsck` | what is checked and repaired, and what the service makes of it |

#[path = "../support/mod.rs"]
mod support;

mod backup;
mod fsck;

use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;

/// What a command has said.
#[derive(Debug)]
struct Said {
    code: Option<i32>,
    out: String,
    err: String,
}

impl Said {
    fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

/// Runs the binary to its end.
fn tidings(arguments: &[&str]) -> Said {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidings"));
    for variable in ["TIDINGS_CONFIG", "TIDINGS_URL", "TIDINGS_TOKEN", "TIDINGS_LOG"] {
        command.env_remove(variable);
    }
    let output = command.args(arguments).stdin(Stdio::null()).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Said { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}
