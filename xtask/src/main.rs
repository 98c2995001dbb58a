//! Every task of a developer: set-up, demo, tests, checks, conformance, benchmarks.

fn main() {}
