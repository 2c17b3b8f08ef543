//! Version 1: the first format.

/// The number of this version.
pub const VERSION: u32 = 1;
