//! The wharf binary: configuration, wiring, sockets, signals, readiness.

fn main() {}
