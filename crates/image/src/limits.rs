//! The named limits of everything that comes from outside.

/// Bytes of a manifest or index.
pub const MANIFEST_MAX: u64 = 8 << 20;
/// Bytes of a configuration.
pub const CONFIG_MAX: u64 = 16 << 20;
/// Entries of one list of a configuration: environment, arguments, labels, ports, volumes.
pub const CONFIG_LIST_MAX: usize = 4096;
/// Bytes of one such list.
pub const CONFIG_LIST_BYTES_MAX: usize = 2 << 20;
/// Bytes of one of its other texts: user, working directory, stop signal.
pub const CONFIG_TEXT_MAX: usize = 4096;
/// Layers of an image: what the kernel can stack.
pub const LAYERS_MAX: usize = 500;
/// Entries of an index.
pub const INDEX_ENTRIES_MAX: usize = 1024;
/// Indexes within indexes.
pub const INDEX_DEPTH_MAX: usize = 3;
/// Registries that may have all their layers in flight at once: none can keep the others waiting.
pub const REGISTRY_SHARES: usize = 4;
/// Bytes of one layer, unpacked.
pub const LAYER_MAX: u64 = 64 << 30;
/// Output may be this many times the input…
pub const RATIO_MAX: u64 = 200;
/// …once this much was put out.
pub const RATIO_AFTER: u64 = 64 << 20;
/// zstd windows up to 2^27 bytes, 128 MiB.
pub const ZSTD_WINDOW_LOG_MAX: u32 = 27;
/// Entries of a layer.
pub const ENTRIES_MAX: u64 = 10_000_000;
/// Memory for the directories of a layer, which are remembered until its end: some 300,000 with
/// names of common length.
pub const DIRECTORY_BYTES_MAX: usize = 64 << 20;
/// Directories of a layer whose attributes other layers decide.
pub const CORRECTIONS_MAX: usize = 100_000;
/// Bytes of their names, which live as long as the layer.
pub const CORRECTION_BYTES_MAX: usize = 4 << 20;
/// Bytes of a path.
pub const PATH_MAX: usize = 32 << 10;
/// Bytes of one component of a path: the kernel's limit.
pub const COMPONENT_MAX: usize = 255;
/// Components of a path.
pub const DEPTH_MAX: usize = 2_000;
/// Bytes of a link's target: the kernel's limit.
pub const LINK_MAX: usize = 4_095;
/// Symbolic links followed for one path: as the kernel.
pub const SYMLINKS_MAX: usize = 40;
/// Bytes of one block of PAX records, or of a GNU long name.
pub const PAX_MAX: u64 = 1 << 20;
/// Extended attributes of an entry.
pub const XATTRS_MAX: usize = 256;
/// Bytes of an extended attribute's value: the kernel's limit.
pub const XATTR_VALUE_MAX: usize = 64 << 10;
/// Data pieces of a sparse file.
pub const SPARSE_MAX: usize = 65_536;
