//! What needs the insides of this module; what users see is tested in `tests/zuul`.

mod against_python;
