//! Migrations of the store: ordered steps on one number line. How to add one: `migrations/README.md`.
//!
//! The version of a store is the line `format` of its file `identity`. A step takes a store from one version to the next:
//!
//! ```text
//!   prepare (can it be done? changes nothing) ─▶ run ─▶ validate ─▶ the version is recorded
//!                                                 ▲___ a kill in between: the step runs again, from its beginning
//! ```

pub mod v0001;
pub mod v0002;

use std::path::Path;

/// The version that this release reads and writes.
pub const CURRENT: u32 = v0002::VERSION;

/// Every step, in order.
pub const STEPS: &[&dyn Step] = &[&v0002::SeveralTrees];

/// Takes a store from one version to the next.
pub trait Step: Sync {
    /// The version that it makes out of the one before.
    fn to(&self) -> u32;

    /// What it does, in one sentence, for the plan that an operator sees.
    fn title(&self) -> &'static str;

    /// Checks that the step can be done (space, access), and changes nothing.
    ///
    /// # Errors
    /// Why it can't be done.
    fn prepare(&self, store: &Path) -> Result<(), String>;

    /// Does it. After a kill it is called again on whatever it left, and must come to the same end.
    ///
    /// # Errors
    /// What failed.
    fn run(&self, store: &Path) -> Result<(), String>;

    /// Proves that nothing is missing, before the new version is recorded.
    ///
    /// # Errors
    /// What is wrong.
    fn validate(&self, store: &Path) -> Result<(), String>;
}

/// What has to be done to a store.
pub enum Plan<'a> {
    /// Nothing.
    Current,
    /// These steps, in order.
    Steps(Vec<&'a dyn Step>),
    /// A newer release wrote it; it is refused.
    Newer,
    /// No release ever wrote this version.
    Unknown,
}

/// What has to be done to a store of version `found`, where `known` is the newest that can be read.
pub fn plan<'a>(steps: &[&'a dyn Step], found: u32, known: u32) -> Plan<'a> {
    if found > known {
        return Plan::Newer;
    }
    if found == known {
        return Plan::Current;
    }
    let needed: Vec<&dyn Step> = steps.iter().copied().filter(|step| step.to() > found).collect();
    if needed.first().is_some_and(|step| step.to() == found + 1) { Plan::Steps(needed) } else { Plan::Unknown }
}

/// Does the steps; `record` makes the store's new version durable after each.
///
/// # Errors
/// The step, and what failed. The store has the version that was recorded last, and the rest can be done later.
pub fn run(store: &Path, steps: &[&dyn Step], record: impl Fn(u32) -> Result<(), String>) -> Result<(), String> {
    for step in steps {
        let named = |what| format!("migration to format {} ({}): {what}", step.to(), step.title());
        step.prepare(store).map_err(named)?;
        step.run(store).map_err(named)?;
        step.validate(store).map_err(named)?;
        record(step.to()).map_err(named)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
