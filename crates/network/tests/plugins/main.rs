//! The built-in plugins in a network namespace that plays the host, beside the reference plugins
//! given the same configuration, and with real traffic.
#![cfg(test)]
#![expect(clippy::disallowed_types, reason = "tests start programs")]

mod scene; // a host, its pods, calls of plugins

mod bridge; // pods on a bridge
mod measure; // how long it takes
mod ports; // ports of the host that lead to pods
mod settings; // tuning, bandwidth, firewall
mod reference; // the same result as the reference plugins
mod named; // networks that people make
mod dns; // names, asked from inside
mod rules; // the tables of rules, and who else changes them
