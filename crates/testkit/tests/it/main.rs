//! The testkit's own promises: its registry serves and misbehaves as told, its images are sound.

mod node;
mod registry;
mod samples;
