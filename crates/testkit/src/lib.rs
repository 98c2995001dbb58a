//! For tests: a node of its own, a registry that can misbehave, images made on the spot.
