//! Filters of lists: parts are joined with AND, an empty part lets everything pass.

use std::collections::{BTreeMap, HashMap};

/// What has this id or this unique beginning of one; nothing when several begin like that.
pub(crate) fn by_id<'a, T>(
    id: &str,
    all: impl Iterator<Item = &'a T>,
    of: impl Fn(&T) -> &str,
) -> Vec<&'a T> {
    let mut found: Vec<&T> = all.filter(|one| of(one).starts_with(id)).collect();
    if let Some(exact) = found.iter().find(|one| of(one) == id) {
        return vec![exact];
    }
    if !id.is_empty() && found.len() > 1 {
        found.clear();
    }
    found
}

/// Whether every selected label is there with exactly that value.
pub(crate) fn has_labels(
    selector: &HashMap<String, String>,
    labels: &BTreeMap<String, String>,
) -> bool {
    selector
        .iter()
        .all(|(key, value)| labels.get(key) == Some(value))
}
