//! Real cgroups of this machine, below `wharf-test-…` in each hierarchy; and the values of v2
//! controllers, which it may not have, on a fake tree.
#![cfg(test)]
#![expect(
    clippy::disallowed_types,
    reason = "starts processes to put into cgroups"
)]

mod fake;
mod real;
