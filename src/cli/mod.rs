//! The commands, one file each. They are thin: they call the library, or a running service.

pub mod check;
