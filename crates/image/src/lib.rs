//! From a reference to a verified, unpacked image: pull, list, remove.
