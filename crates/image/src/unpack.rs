//! From a tar stream to a directory in overlay form. Nothing is written outside that directory,
//! whatever the tar says: names are split into components, every component is opened beneath a
//! descriptor, and symbolic links are resolved here, never by the kernel.
//!
//! Spec: image-spec `layer.md`; kernel `Documentation/filesystems/overlayfs.rst` "whiteouts and
//! opaque directories". Where the specification is silent the result is containerd's.

mod error; // what can go wrong
mod path; // names as components
mod place; // directories of the layer, by descriptor
mod attributes; // owners, modes, times, extended attributes
mod writer; // entries into files

use std::io::BufRead;
use std::os::fd::BorrowedFd;

use wharf_store::{Contents, LayerFacts};

use crate::tar::Reader;

pub use error::UnpackError;

/// Writes the layer that `input` holds below `tree`, an empty directory, and reads `input` to its
/// end. What the layer itself replaces is moved to `discard`; what is there in the end is noted in
/// `contents`.
///
/// # Errors
///
/// The tar is malformed or hostile, a limit is reached, or the disk refuses. `tree` is to be thrown
/// away then.
pub fn unpack<R: BufRead>(
    input: R,
    tree: BorrowedFd<'_>,
    discard: BorrowedFd<'_>,
    contents: Contents,
) -> Result<LayerFacts, UnpackError> {
    let mut reader = Reader::new(input);
    let mut writer = writer::Writer::new(tree, discard, contents)?;
    while let Some(entry) = reader.next_entry()? {
        writer.entry(&entry, &mut reader)?;
    }
    reader.drain()?;
    writer.finish()
}
