//! Containers: their life as a value, and what their pod's driver holds of them.

pub(crate) mod state; // the life of a container, as a value
pub(crate) mod keeper; // the one writer of its record
pub(crate) mod slot; // state, wishes, and who waits for what
