//! The runc-compatible command.

fn main() {}
