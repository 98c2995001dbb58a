//! The words of wharf: ids, digests, references, platforms, error kinds. No I/O.
//!
//! Small on purpose: touching this crate rebuilds everything.

pub mod kind; // what a caller can do about an error
pub mod id; // pods and containers
pub mod digest; // content: digests, diff IDs, chain IDs
pub mod platform; // which image of an index runs here
pub mod reference; // names of images

pub use digest::{ChainId, DiffId, Digest};
pub use id::{ContainerId, PodId};
pub use kind::{Kind, chain};
pub use platform::Platform;
pub use reference::Reference;
