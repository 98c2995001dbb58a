//! Messages to the engine's words and back; every wrong field is named.

pub(crate) mod field; // what is wrong with a request
pub(crate) mod filter; // ids by prefix, labels
pub(crate) mod signal; // CRI's signals and the kernel's
pub(crate) mod resources; // limits
pub(crate) mod namespace; // namespaces, profiles, labels, groups
pub(crate) mod pod; // RunPodSandbox, pod status, pod lists
pub(crate) mod container; // CreateContainer, ExecSync
pub(crate) mod status; // container status, container lists
pub(crate) mod stats; // statistics
pub(crate) mod metrics; // metrics by cAdvisor's names
pub(crate) mod image; // credentials, images

#[cfg(test)]
mod tests;
