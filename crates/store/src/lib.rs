//! Everything that lies on disk: blobs, layers, snapshots, records, leases, collection.
//!
//! One directory, one daemon (a lock file sees to it). The record is the commit point: data reaches
//! the disk, then its final name, then the database; a crash in between leaves nothing visible, and
//! what it leaves invisible goes to the trash at the next start. The database is never the only
//! truth: sidecars beside layers and images are enough to make it anew.
//!
//! Manifests and configurations are kept byte for byte. Compressed layers are not kept: they are
//! streamed into their trees, and the space of a second copy is saved.

mod error; // what can go wrong
mod layout; // names of files; the lock
mod tree; // measuring and removing directory trees
mod trash; // deletion in the background
mod overlay; // mounts
mod contents; // what a layer must hold
mod record; // what is remembered
mod compare; // what it does hold
mod fix; // corrections that only a stack knows
mod database; // durable records
mod state; // maps and locks
mod replace; // damaged layers make room for whole ones
mod layer; // layers on their way in; leases
mod image; // images, names, collection
mod check; // looking for damage
mod snapshot; // writable layers; space
mod open; // start and recovery

pub use check::{Checked, Damage};
pub use contents::{Access, Contents, ContentsRef, Extents, LayerPath};
pub use error::{StoreError, is_full, is_short, remedy};
pub use image::ImageCommit;
pub use layer::{Ingest, Lease, Sealed};
pub use record::{
    BlobRef, CORRECTION_BYTES_MAX, ImageRecord, LayerFacts, LayerKind, LayerRecord, Name,
    NameRecord,
};
pub use snapshot::Snapshot;
pub use state::{Durability, Store};
pub use tree::Usage;
