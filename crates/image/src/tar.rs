//! A pull parser for tar streams: ustar, GNU and PAX. It does no I/O but reading its input, and knows
//! nothing of file systems.
//!
//! Sources: POSIX.1-2024 `pax`; GNU tar manual, "Basic Tar Format", "Storing Sparse Files". Where
//! they leave room, it reads as Go's archive/tar does, because that is what every registry is fed by.

pub mod header; // one 512-byte block
pub mod pax; // extended records
pub mod sparse; // maps of files with holes
pub mod reader; // entries and their data

pub use reader::{Entry, EntryKind, Piece, Reader, TarError, Time};
