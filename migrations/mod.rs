//! Migrations of the store. To be written.
