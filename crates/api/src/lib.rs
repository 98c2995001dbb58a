//! CRI v1: our .proto text and the code generated from it.
