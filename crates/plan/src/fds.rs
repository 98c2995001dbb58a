//! Descriptors by name: which of those beside a message is which.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

/// Descriptors that came, or will go, with a message; names may repeat and keep their order.
#[derive(Debug, Default)]
pub struct Fds(Vec<(String, OwnedFd)>);

impl Fds {
    /// None yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds `fd` under `name`.
    pub fn push(&mut self, name: &str, fd: OwnedFd) {
        self.0.push((name.to_owned(), fd));
    }

    /// Takes the first descriptor called `name`.
    pub fn take(&mut self, name: &str) -> Option<OwnedFd> {
        let at = self.0.iter().position(|(n, _)| n == name)?;
        Some(self.0.remove(at).1)
    }

    /// Takes all descriptors called `name`, in order.
    pub fn take_all(&mut self, name: &str) -> Vec<OwnedFd> {
        let mut taken = Vec::new();
        while let Some(fd) = self.take(name) {
            taken.push(fd);
        }
        taken
    }

    /// The first descriptor called `name`.
    pub fn get(&self, name: &str) -> Option<BorrowedFd<'_>> {
        self.0
            .iter()
            .find(|(n, _)| n == name)
            .map(|(_, fd)| fd.as_fd())
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn names(&self) -> Vec<String> {
        self.0.iter().map(|(name, _)| name.clone()).collect()
    }

    pub(crate) fn borrowed(&self) -> Vec<BorrowedFd<'_>> {
        self.0.iter().map(|(_, fd)| fd.as_fd()).collect()
    }

    pub(crate) fn from_parts(names: Vec<String>, fds: Vec<OwnedFd>) -> Option<Self> {
        (names.len() == fds.len()).then(|| Self(names.into_iter().zip(fds).collect()))
    }
}
