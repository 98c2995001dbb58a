//! Images as clients see them: what a layer becomes on the disk, and what a pull leaves behind.
#![cfg(test)]
#![expect(
    clippy::disallowed_types,
    reason = "GNU tar is the oracle of the unpacker"
)]

mod raw; // tars with any field wrong on purpose
mod tree; // what lies on the disk, as text
mod reader; // the parser alone
mod unpack; // whiteouts, attributes, hostile names
mod oracle; // the same as GNU tar and as a model
mod pull; // whole pulls from a registry that misbehaves
mod check; // damage on the disk, found and repaired
