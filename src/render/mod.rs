//! Renderings of a plan: for people who type commands, for people who read, for machines.

pub mod difference;
pub mod json;
pub mod shell;
pub mod status;
