//! A copy of this machine that is thrown away: what is written to it goes into memory, it has a network of its own (so the usual ports are free), and
//! whatever runs in it ends with it, also where a test fails.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use tempfile::TempDir;

/// Everything below / as it is here, with a layer above it that is in memory. Then a shell, which does as it is told.
const SETUP: &str = r#"
set -e
PATH=$PATH:/usr/sbin:/sbin
mount -t tmpfs none "$1"
mkdir "$1/above" "$1/work" "$1/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$1/above,workdir=$1/work" "$1/root"
mount -t proc proc "$1/root/proc"
mount --rbind /dev "$1/root/dev"
mount --bind "$1/above" "$1/root/mnt"
cp "$2" "$1/root/package.deb"
# Images for containers leave documents out.
rm -f "$1"/root/etc/dpkg/dpkg.cfg.d/*
# The index of all manual pages would be made anew each time.
rm -f "$1/root/var/lib/man-db/auto-update"
ip link set lo up
exec chroot "$1/root" env -i LC_ALL=C DEBIAN_FRONTEND=noninteractive PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin sh
"#;

/// What no command prints.
const END: &str = "== this was the last line, and the exit code is";

pub struct Machine {
    running: Child,
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
    _place: TempDir,
}

impl Machine {
    /// With this package in `/package.deb`, not installed yet. None where that can't be done and need not be.
    pub fn with(package: &Path) -> Option<Machine> {
        let place = tempfile::tempdir().unwrap();
        let mut command = Command::new("unshare");
        command.args(["--mount", "--net", "--pid", "--ipc", "--uts", "--fork", "--kill-child", "--propagation", "private"]);
        command.args(["sh", "-c", SETUP, "sh"]).arg(place.path()).arg(package);
        let mut running = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("util-linux has unshare");
        let (stdin, stdout) = (running.stdin.take(), BufReader::new(running.stdout.take().unwrap()));
        let mut machine = Machine { running, stdin, stdout, _place: place };
        if machine.run("true").is_none() {
            let how =
                "run this as root where file systems can be mounted (it takes mount, unshare and ip), or with TIDINGS_WITHOUT_INSTALL=1";
            assert!(std::env::var_os("TIDINGS_WITHOUT_INSTALL").is_some(), "the package can't be installed here: {how}");
            eprintln!("PASSED OVER: the package was not installed (TIDINGS_WITHOUT_INSTALL)");
            return None;
        }
        Some(machine)
    }

    /// Runs a command: its exit code and what it said; none if there is no machine.
    fn run(&mut self, command: &str) -> Option<(i32, String)> {
        writeln!(self.stdin.as_mut()?, "{{\n{command}\n}} 2>&1 </dev/null\ncode=$?\necho\necho '{END}' $code").ok()?;
        let mut said = String::new();
        loop {
            let mut line = String::new();
            if self.stdout.read_line(&mut line).ok()? == 0 {
                return None;
            }
            match line.strip_prefix(END) {
                Some(code) => return Some((code.trim().parse().unwrap(), said.trim().to_owned())),
                None => said += &line,
            }
        }
    }

    /// Whether a command succeeds.
    pub fn can(&mut self, command: &str) -> bool {
        self.run(command).expect("the machine is there").0 == 0
    }

    /// What a command says that has to succeed.
    pub fn says(&mut self, command: &str) -> String {
        let (code, said) = self.run(command).expect("the machine is there");
        assert_eq!(code, 0, "{command}: {said}");
        said
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // The shell is the first process of the machine, and takes all others along.
        drop(self.stdin.take());
        let _ = self.running.wait();
    }
}
