//! `redirect` on a router in a lab (`examples/lab`), with real sessions through a real
//! recorder. Needs root; without it, each test says that it was skipped.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stderr,
    reason = "a test fails by panicking"
)]

mod cases;
mod check;
mod equivalence;
mod lab;
mod snapshot;
