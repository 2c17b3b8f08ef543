//! What Tidings is installed with: the Debian package, and the Dockerfile.
//!
//! | Module | Claims about |
//! |---|---|
//! | `package` | what is in the package; that it installs, runs, is upgraded, removed and purged |
//! | `dockerfile` | that the Dockerfile names what there is |
//! | `machine` | a copy of this machine that is thrown away |

mod dockerfile;
mod machine;
mod package;
