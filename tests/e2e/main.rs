//! `redirect` on a router in a lab (`examples/lab`), with real sessions through a real
//! recorder. Needs root; without it, each test says that it was skipped.

mod cases;
mod equivalence;
mod lab;
mod snapshot;
