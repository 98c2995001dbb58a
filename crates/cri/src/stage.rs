//! What a request is waiting for, told to a client whose deadline passed.
//!
//! The deadline layer puts a [`Stage`] into the request; the handler leaves in it how to find out.

use std::fmt;
use std::sync::{Arc, OnceLock};

type Describe = Box<dyn Fn() -> Option<String> + Send + Sync>;

/// Shared between the layer and one request's handler.
#[derive(Clone, Default)]
pub(crate) struct Stage(Arc<OnceLock<Describe>>);

impl Stage {
    /// The stage that belongs to `request`; one that nobody reads when no layer put it there.
    pub(crate) fn of<T>(request: &tonic::Request<T>) -> Self {
        request.extensions().get().cloned().unwrap_or_default()
    }

    /// Says how to find out what the request is waiting for. Counts once.
    pub(crate) fn tell(&self, describe: impl Fn() -> Option<String> + Send + Sync + 'static) {
        drop(self.0.set(Box::new(describe)));
    }

    /// What it is waiting for now, if that is known.
    pub(crate) fn now(&self) -> Option<String> {
        self.0.get().and_then(|describe| describe())
    }
}

impl fmt::Debug for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Stage").field(&self.now()).finish()
    }
}
