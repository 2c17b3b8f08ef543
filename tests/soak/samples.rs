//! What the process and its store take, over time.

use std::fmt;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

const MIB: f64 = (1 << 20) as f64;

/// One look.
#[derive(Debug, Clone, Copy)]
pub struct Sample {
    pub memory: u64,
    pub descriptors: u64,
    pub threads: u64,
    pub disk: u64,
}

/// What may be more in the last third than in the middle one: by what it is multiplied, and what is added. Memory has the allocator's pools and the
/// backlog of the outages that happen to be there; disk has whole generations, of 2 MiB here.
const FLAT: [(&str, f64, f64); 4] =
    [("memory", 1.10, 8.0 * MIB), ("descriptors", 1.0, 4.0), ("threads", 1.0, 2.0), ("disk", 1.10, 8.0 * MIB)];

/// What a short run may take at most. Measured: 80 MiB in a debug build.
const CEILINGS: [(&str, f64); 4] = [("memory", 400.0 * MIB), ("descriptors", 200.0), ("threads", 200.0), ("disk", 48.0 * MIB)];

impl Sample {
    pub fn of(pid: u32, store: &Path) -> Sample {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let of = |name: &str| -> u64 {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_else(|| panic!("{name} in {status}"));
            line.split_whitespace().next().unwrap().parse().unwrap()
        };
        let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count() as u64;
        Sample { memory: of("VmRSS:") << 10, descriptors, threads: of("Threads:"), disk: blocks(store) }
    }

    fn values(self) -> [f64; 4] {
        [self.memory, self.descriptors, self.threads, self.disk].map(|value| value as f64)
    }
}

impl fmt::Display for Sample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [memory, _, _, disk] = self.values();
        write!(
            f,
            "{:.1} MiB of memory, {} descriptors, {} threads, {:.1} MiB on disk",
            memory / MIB,
            self.descriptors,
            self.threads,
            disk / MIB
        )
    }
}

/// What a folder takes on disk, in bytes. Files may go while it is looked at.
fn blocks(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .map(|entry| match entry.metadata() {
            Ok(meta) if meta.is_dir() => blocks(&entry.path()),
            Ok(meta) => meta.blocks() * 512,
            Err(_) => 0,
        })
        .sum()
}

/// All of them.
pub struct Samples {
    taken: Vec<Sample>,
    csv: Option<File>,
}

impl Samples {
    /// Written to a file as they are taken, too, if there is one.
    pub fn to(csv: Option<PathBuf>) -> Samples {
        let csv = csv.map(|path| File::create(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display())));
        Samples { taken: Vec::new(), csv }
    }

    /// Forgets what was taken; the file begins anew.
    pub fn clear(&mut self) {
        self.taken.clear();
        if let Some(csv) = &mut self.csv {
            csv.set_len(0).unwrap();
            std::io::Seek::rewind(csv).unwrap();
            writeln!(csv, "seconds,backlog_deliveries,memory_bytes,descriptors,threads,disk_bytes").unwrap();
        }
    }

    pub fn take(&mut self, seconds: f64, backlog: u64, pid: u32, store: &Path) {
        let sample = Sample::of(pid, store);
        self.taken.push(sample);
        if let Some(csv) = &mut self.csv {
            let Sample { memory, descriptors, threads, disk } = sample;
            writeln!(csv, "{seconds:.1},{backlog},{memory},{descriptors},{threads},{disk}").unwrap();
        }
    }

    /// The median of one of the thirds.
    fn median(&self, third: usize, value: usize) -> f64 {
        let count = self.taken.len();
        let mut values: Vec<f64> =
            self.taken[count * third / 3..count * (third + 1) / 3].iter().map(|sample| sample.values()[value]).collect();
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).copied().unwrap_or(0.0)
    }

    /// Medians of the thirds, and the highest of all.
    pub fn table(&self) -> String {
        let mut text =
            format!("{} samples\n{:12} {:>10} {:>10} {:>10} {:>10}\n", self.taken.len(), "", "first", "middle", "last", "highest");
        for (at, (name, ..)) in FLAT.iter().enumerate() {
            let unit = if ["memory", "disk"].contains(name) { MIB } else { 1.0 };
            let highest = self.taken.iter().map(|sample| sample.values()[at]).fold(0.0, f64::max);
            let [first, middle, last, highest] =
                [self.median(0, at), self.median(1, at), self.median(2, at), highest].map(|value| value / unit);
            let name = if unit > 1.0 { format!("{name} MiB") } else { (*name).to_owned() };
            text += &format!("{name:12} {first:>10.1} {middle:>10.1} {last:>10.1} {highest:>10.1}\n");
        }
        text
    }

    pub fn assert_flat(&self) {
        let grown = FLAT.iter().enumerate().filter_map(|(at, (name, times, more))| {
            let (middle, last) = (self.median(1, at), self.median(2, at));
            (last > middle * times + more)
                .then(|| format!("{name} has grown from {middle} to {last}; {times} times and {more} more are allowed"))
        });
        let grown: Vec<String> = grown.collect();
        assert!(grown.is_empty(), "{}", grown.join("\n"));
    }

    pub fn assert_below_ceilings(&self) {
        for (at, (name, ceiling)) in CEILINGS.iter().enumerate() {
            let highest = self.taken.iter().map(|sample| sample.values()[at]).fold(0.0, f64::max);
            assert!(highest > 0.0 && highest < *ceiling, "{name}: {highest}, and {ceiling} is allowed");
        }
    }
}
