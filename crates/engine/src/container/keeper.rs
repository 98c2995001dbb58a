//! The one writer of a container's record.

use std::sync::Arc;

use tokio::sync::Mutex;

use crate::record::ContainerRecord;
use crate::world::{StepFailure, World};

/// Writes a container's record: one write at a time, each upon what the last one wrote. Steps that run
/// beside each other say what they change, not what they believe the rest to be.
#[derive(Debug, Clone)]
pub(crate) struct Keeper(Arc<Mutex<Option<Arc<ContainerRecord>>>>);

impl Keeper {
    /// For a container whose record is on the disk as `written`.
    pub(crate) fn new(written: Arc<ContainerRecord>) -> Self {
        Self(Arc::new(Mutex::new(Some(written))))
    }

    /// Changes the record on the disk; after [`Keeper::end`] nothing is written.
    pub(crate) async fn write(
        &self,
        world: &dyn World,
        change: impl FnOnce(&mut ContainerRecord),
    ) -> Result<(), StepFailure> {
        let mut written = self.0.lock().await;
        let Some(mut next) = written.clone() else {
            return Ok(());
        };
        change(Arc::make_mut(&mut next));
        world.save_container(next.clone()).await?;
        *written = Some(next);
        Ok(())
    }

    /// Lets the last write end: a record that is removed after this does not come back.
    pub(crate) async fn end(&self) {
        *self.0.lock().await = None;
    }
}
