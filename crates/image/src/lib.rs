//! From a reference to a verified, unpacked image: pull, list, remove.
//!
//! [`Images`] is the door. A pull resolves the name, chooses the platform, and streams every missing
//! layer through download, hashing, inflating and writing at once; nothing is visible before all of
//! it is verified and on the disk.

pub mod limits; // how much of anything may come from outside
pub mod tar; // entries of a tar stream
pub mod unpack; // entries into a directory in overlay form
pub mod inflate; // compressed to plain
mod document; // indexes, manifests, configurations
mod flight; // one work for many waiters
mod error; // why a pull failed
mod layer; // one layer through the pipeline
mod pull; // the story of a pull
mod images; // the list

pub use document::{DocumentError, ImageConfig, host_platform};
pub use error::PullError;
pub use images::{Image, Images, ImagesConfig};
pub use pull::PullRequest;
