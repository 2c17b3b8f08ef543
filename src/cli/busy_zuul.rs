//! What a busy Zuul has to report of: places, jobs, and chance. The demo and the bench make their reports of these.

/// Tenant, project and branch of what is tested.
pub const PLACES: [(&str, &str, &str); 8] = [
    ("acme", "web/shop", "main"),
    ("acme", "web/search", "main"),
    ("acme", "infra/deploy", "stable/2.4"),
    ("robotics", "arm-firmware", "main"),
    ("robotics", "arm-firmware", "release-7"),
    ("robotics", "planner", "main"),
    ("openstack.org", "sf-jobs", "master"),
    ("openstack.org", "nova", "master"),
];

/// The jobs that run.
pub const JOBS: [&str; 10] = [
    "linters",
    "unit-tests-python312",
    "unit-tests-python313",
    "functional-debian-13",
    "functional-ubuntu-noble",
    "build-container-image",
    "upgrade-from-previous-release",
    "docs-preview",
    "performance-nightly",
    "integration-postgresql",
];

/// SplitMix64: small, and the same everywhere.
pub struct Dice(pub u64);

impl Dice {
    /// Any number.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// A number below the bound.
    pub fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound as u64).expect("a remainder of a usize is one")
    }

    /// An id as Zuul has them.
    pub fn uuid(&mut self) -> String {
        format!("{:016x}{:016x}", self.next(), self.next())
    }
}
