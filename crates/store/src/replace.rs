//! A damaged layer makes room for a whole one. Containers that run keep what they have mounted: the
//! old tree stays, aside, until the last of their snapshots is removed.
//!
//! ```text
//! ingest/<n>  ─► retired/<m>            the new tree; without users it is nothing, and a start sweeps it
//! layers/<hex>/users                    who shows the old one
//! layers/<hex> ◄─► retired/<m>          exchanged at once: a crash leaves the old one or the new one
//! ```

use crate::error::StoreError;
use crate::layout::{Layout, USERS};
use crate::record::{LayerKey, SIDECAR_MAX, decode, encode};
use crate::state::{Inner, State};

use serde::{Deserialize, Serialize};

/// Who shows a layer that was replaced.
#[derive(Debug, Serialize, Deserialize)]
struct Users {
    snapshots: Vec<String>,
    /// Mounts end with the boot.
    boot: String,
}

impl Inner {
    /// Puts what lies at `ingest/<name>` in the place of a damaged layer. The caller holds `writer`.
    pub(crate) fn replace_layer(&self, name: &str, key: &LayerKey) -> Result<(), StoreError> {
        let layout = &self.layout;
        let snapshots = self.users_of(key);
        let layer = key.name();
        if layout.layers.is_missing(&layer) {
            layout.ingest.rename(name, &layout.layers, &layer)?;
        } else {
            if !snapshots.is_empty() {
                let (snapshots, boot) = (snapshots.clone(), self.boot.clone());
                let users = encode(&Users { snapshots, boot })?;
                layout.layers.write(&format!("{layer}/{USERS}"), &users)?;
            }
            let aside = layout.fresh(&layout.retired);
            layout.ingest.rename(name, &layout.retired, &aside)?;
            if let Err(error) = layout.layers.exchange(&layer, &layout.retired, &aside) {
                // The new tree is without users: the next start sweeps it at the latest.
                layout.discard(&layout.retired, &aside)?;
                return Err(error);
            }
            self.state().retired.insert(aside, snapshots);
        }
        self.state().damaged.remove(key);
        tracing::info!(layer, "a damaged layer was replaced");
        Ok(())
    }

    /// Snapshots of this boot that show a layer, or are about to.
    fn users_of(&self, key: &LayerKey) -> Vec<String> {
        let state = self.state();
        let users = state
            .snapshots
            .values()
            .filter(|entry| entry.record.boot == self.boot && entry.record.stack.contains(key));
        let users = users.map(|entry| entry.record.key.clone());
        // What cannot be read may show anything.
        users.chain(state.unread.keys().cloned()).collect()
    }

    /// Moves replaced layers that nobody shows any more to the trash.
    pub(crate) fn collect_retired(&self) -> Result<(), StoreError> {
        let unused: Vec<String> = {
            let mut state = self.state();
            let State {
                retired,
                snapshots,
                unread,
                ..
            } = &mut *state;
            for users in retired.values_mut() {
                users.retain(|key| snapshots.contains_key(key) || unread.contains_key(key));
            }
            let unused = retired.iter().filter(|(_, users)| users.is_empty());
            unused.map(|(name, _)| name.clone()).collect()
        };
        for name in unused {
            self.layout.discard(&self.layout.retired, &name)?;
            self.state().retired.remove(&name);
        }
        Ok(())
    }
}

/// The replaced layers of an earlier daemon. What nobody of this boot shows goes to the trash.
pub(crate) fn recover(layout: &Layout, state: &mut State, boot: &str) -> Result<(), StoreError> {
    for name in layout.retired.names()? {
        let read = layout
            .retired
            .read(&format!("{name}/{USERS}"), SIDECAR_MAX)
            .and_then(|bytes| decode::<Users>(&name, &bytes));
        match read {
            Ok(users) if users.boot == boot => {
                state.retired.insert(name, users.snapshots);
            }
            // Of an earlier boot, or a new tree that did not come to its place.
            _ => layout.discard(&layout.retired, &name)?,
        }
    }
    Ok(())
}
