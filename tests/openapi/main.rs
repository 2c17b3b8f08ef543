//! `/openapi.json` is true: the document has what the service has, and the service does what the document says.
//!
//! | Module | Claims about |
//! |---|---|
//! | `document` | routes, methods and error codes, both ways; that it is OpenAPI |
//! | `answers` | what a running service answers to whatever the document allows and forbids, asked by schemathesis |
//! | `described` | the document as these tests read it |

#[path = "../support/mod.rs"]
mod support;

mod answers;
mod described;
mod document;
