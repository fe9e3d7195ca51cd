//! `redirect` sends selected sessions that cross a Linux router to a
//! session-recording appliance, and proves that it did.
//!
//! A plan is data; every command is one planner and one interpreter:
//!
//! ```text
//! policy ──┐
//!          ├─ plan ──┬─ perform      (kernel)   apply, teardown, rollback, repair
//! observed ┘         ├─ shell script (render)   --dry-run
//!                    ├─ differences  (render)   diff, status
//!                    └─ JSON         (render)   --format json
//! ```
//!
//! [`policy`] is what is wanted, [`observation`] what is there, [`plan`] the
//! changes from one to the other, [`nft`] the packet rules
//! as the kernel holds them, [`kernel`] the thin code that acts, [`journal`] what
//! survives a crash, [`commands`] one file a command.

pub mod archive;
pub mod check;
pub mod cli;
pub mod commands;
pub mod engine;
pub mod failure;
pub mod init;
pub mod iptables;
pub mod journal;
pub mod kernel;
pub mod net;
pub mod nft;
pub mod observation;
pub mod plan;
pub mod policy;
pub mod render;
pub mod rules;
pub mod shell;
pub mod terminal;
#[cfg(test)]
mod test_support;
