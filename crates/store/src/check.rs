//! Looking for damage: every document by its digest, every layer by the list of its contents.
//!
//! A layer that is not what it must be is marked, in memory and by a file beside its tree. It is used as
//! it is until a pull of an image that has it brings it again.

use std::collections::HashMap;
use std::os::fd::AsFd as _;

use rustix::fs;
use wharf_types::{ChainId, DiffId, Digest, Kind};

use crate::compare::{Difference, compare};
use crate::contents::{ContentsRef, LIST_MAX, Model, crc};
use crate::error::StoreError;
use crate::layout::{CONTENTS, DAMAGED, TREE, io};
use crate::record::{ImageRecord, LayerKey};
use crate::state::{Store, lock};

/// Something that is not what it must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// Which part of the image: `layer sha256:…`, `document sha256:…`.
    pub part: String,
    /// The path within the layer; empty where the whole part is concerned.
    pub path: String,
    /// What is wrong with it.
    pub what: String,
}

/// What a look at one image found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checked {
    /// The image.
    pub id: Digest,
    /// Everything that is wrong, at most about a hundred paths a layer.
    pub damage: Vec<Damage>,
    /// Layers of which no list was made when they came: nothing can be said about them.
    pub unlisted: Vec<DiffId>,
}

/// What is known of a layer after a look.
#[derive(Debug, Clone)]
enum Verdict {
    Whole,
    Unlisted,
    Damaged(Vec<Difference>),
}

impl Store {
    /// Reads everything of these images from the disk and says what is not as it came. Damaged layers
    /// are replaced by the next pull; containers that use them go on with what they have. Images that
    /// are not there are left out. Blocks for as long as reading takes; pulls and removals go on.
    pub fn check(&self, images: &[Digest]) -> Vec<Checked> {
        let mut known = HashMap::new();
        let records: Vec<_> = images
            .iter()
            .filter_map(|id| self.image(id).map(|(record, _)| record))
            .collect();
        records
            .iter()
            .map(|record| self.check_one(record, &mut known))
            .collect()
    }

    fn check_one(&self, record: &ImageRecord, known: &mut HashMap<LayerKey, Verdict>) -> Checked {
        let mut checked = Checked {
            id: record.id,
            damage: Vec::new(),
            unlisted: Vec::new(),
        };
        for blob in &record.blobs {
            if let Err(error) = self.blob(&blob.digest) {
                checked.damage.push(Damage {
                    part: format!("document {}", blob.digest),
                    path: String::new(),
                    what: wharf_types::chain(&error),
                });
            }
        }
        // What is removed meanwhile stays until it was looked at.
        let lease = self.lease();
        let layers = record.layers.iter().map(|id| LayerKey::Diff(*id));
        let fix = ChainId::of(&record.layers).map(LayerKey::Fix);
        for key in layers.chain(fix) {
            let verdict = known
                .entry(key)
                .or_insert_with(|| self.check_layer(&lease, key));
            match (verdict, key) {
                (Verdict::Whole, _) => {}
                (Verdict::Unlisted, LayerKey::Diff(id)) => checked.unlisted.push(id),
                (Verdict::Unlisted, LayerKey::Fix(_)) => {}
                (Verdict::Damaged(differences), key) => {
                    let part = match key {
                        LayerKey::Diff(id) => format!("layer {id}"),
                        LayerKey::Fix(id) => format!("corrections of layers {}", id.0),
                    };
                    checked
                        .damage
                        .extend(differences.iter().map(|found| Damage {
                            part: part.clone(),
                            path: String::from_utf8_lossy(&found.path).into_owned(),
                            what: found.what.clone(),
                        }));
                }
            }
        }
        drop(lease);
        checked
    }

    fn check_layer(&self, lease: &crate::layer::Lease, key: LayerKey) -> Verdict {
        let record = {
            let mut state = self.0.state();
            state.leases.entry(lease.id).or_default().insert(key);
            state.layers.get(&key).cloned()
        };
        let Some(record) = record else {
            return match key {
                // Most stacks need none.
                LayerKey::Fix(_) => Verdict::Whole,
                LayerKey::Diff(_) => Verdict::Damaged(whole_part("is not in the store".to_owned())),
            };
        };
        let Some(contents) = record.facts.contents else {
            return Verdict::Unlisted;
        };
        let (opened, differences, short) = match self.differences(key, contents) {
            Ok((inode, (differences, short))) => (Some(inode), differences, short),
            Err(Unread { what, short }) => (None, whole_part(what), short),
        };
        // Told, but not remembered: the next look may find it whole.
        if !short {
            self.judge(key, opened, &differences);
        }
        if differences.is_empty() {
            Verdict::Whole
        } else {
            Verdict::Damaged(differences)
        }
    }

    /// The inode of the tree, what is wrong in it, and whether the machine was short of something.
    fn differences(
        &self,
        key: LayerKey,
        contents: ContentsRef,
    ) -> Result<(u64, (Vec<Difference>, bool)), Unread> {
        let room = &self.0.layout.layers;
        let unreadable = |error: StoreError| Unread {
            what: wharf_types::chain(&error),
            short: error.kind() == Kind::Exhausted,
        };
        let damaged = |what: String| Unread { what, short: false };
        let tree = room
            .open_dir(&format!("{key}/{TREE}"))
            .map_err(unreadable)?;
        let stat = fs::fstat(&tree).map_err(io("look at", &room.path(&key.name())));
        let inode = stat.map_err(unreadable)?.st_ino;
        let list = room
            .read(&format!("{key}/{CONTENTS}"), LIST_MAX)
            .map_err(unreadable)?;
        let length = u64::try_from(list.len()).unwrap_or(u64::MAX);
        if (length, crc(0, &list)) != (contents.bytes, contents.crc) {
            return Err(damaged("the list of its contents is damaged".to_owned()));
        }
        let model = Model::read(&list)
            .map_err(|why| damaged(format!("the list of its contents cannot be read: {why}")))?;
        Ok((inode, compare(tree.as_fd(), &model)))
    }

    /// Remembers what was found, unless the layer was replaced meanwhile.
    fn judge(&self, key: LayerKey, opened: Option<u64>, differences: &[Difference]) {
        let inner = &*self.0;
        let room = &inner.layout.layers;
        let _guard = lock(&inner.writer);
        let there = room
            .open_dir(&format!("{key}/{TREE}"))
            .ok()
            .and_then(|tree| fs::fstat(tree).ok());
        if opened.is_some() && there.map(|stat| stat.st_ino) != opened {
            return;
        }
        let mark = format!("{key}/{DAMAGED}");
        let Some(first) = differences.first() else {
            if inner.state().damaged.remove(&key)
                && let Err(error) = room.unlink(&mark)
            {
                let error = wharf_types::chain(&error);
                tracing::warn!(layer = %key, error, "found whole, but still marked as damaged");
            }
            return;
        };
        let path = String::from_utf8_lossy(&first.path);
        tracing::warn!(layer = %key, %path, what = first.what, "a layer is damaged: pull its image again");
        if inner.state().layers.contains_key(&key) {
            inner.state().damaged.insert(key);
        }
        if let Err(error) = room.write(&mark, first.what.as_bytes()) {
            let error = wharf_types::chain(&error);
            tracing::warn!(layer = %key, error, "the mark is lost with this daemon");
        }
    }
}

/// Nothing of a layer could be compared.
struct Unread {
    what: String,
    /// The machine's fault, such as want of descriptors, not the layer's.
    short: bool,
}

fn whole_part(what: String) -> Vec<Difference> {
    let path = Vec::new();
    vec![Difference { path, what }]
}
