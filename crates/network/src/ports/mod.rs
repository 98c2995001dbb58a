//! Ports of the node that lead to pods.

/// Ports that are held.
#[derive(Debug, Default)]
pub struct Ports {}
