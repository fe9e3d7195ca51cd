//! The `redirect` command.

fn main() {}
