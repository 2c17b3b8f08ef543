//! The proof that something is durable. Only the committer makes one.

/// What it holds is durable.
#[derive(Debug)]
pub struct Committed<T>(pub(super) T);

impl<T> Committed<T> {
    /// What is durable.
    pub fn get(&self) -> &T {
        &self.0
    }

    /// What is durable, without the proof.
    pub fn into_inner(self) -> T {
        self.0
    }

    /// Something that follows from it, with the same proof.
    pub fn map<U>(self, f: impl FnOnce(T) -> U) -> Committed<U> {
        Committed(f(self.0))
    }

    /// A part of it, with the same proof.
    pub fn map_ref<U>(&self, f: impl FnOnce(&T) -> U) -> Committed<U> {
        Committed(f(&self.0))
    }
}
