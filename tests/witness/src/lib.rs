//! Placeholder until the witness is built.
