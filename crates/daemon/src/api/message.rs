//! What is asked and answered below `/wharf/`, as JSON.

use serde::{Deserialize, Serialize};
use wharf_image::Image;
use wharf_store::Checked;

/// Where images are checked.
pub(crate) const CHECK_PATH: &str = "/wharf/images/check";

/// Which images are to be read from the disk and compared with what came; none: all.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct CheckRequest {
    #[serde(default)]
    pub(crate) names: Vec<String>,
}

/// What was found.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct CheckAnswer {
    pub(crate) images: Vec<CheckedImage>,
    /// Names that stand for nothing.
    pub(crate) unknown: Vec<String>,
}

/// What was found of one image.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct CheckedImage {
    pub(crate) id: String,
    pub(crate) names: Vec<String>,
    pub(crate) damage: Vec<Damage>,
    /// Layers about which nothing can be said.
    pub(crate) unlisted: Vec<String>,
}

/// One thing that is not as it came.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Damage {
    pub(crate) part: String,
    pub(crate) path: String,
    pub(crate) what: String,
}

/// Why there is no answer.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Failure {
    pub(crate) message: String,
}

impl CheckedImage {
    /// With the names that the image has, unless it was removed meanwhile.
    pub(crate) fn new(checked: &Checked, image: Option<&Image>) -> Self {
        let mut names: Vec<_> = image
            .into_iter()
            .flat_map(|image| image.repo_tags.iter().chain(&image.repo_digests))
            .cloned()
            .collect();
        names.dedup();
        let damage = checked.damage.iter().map(|found| Damage {
            part: found.part.clone(),
            path: found.path.clone(),
            what: found.what.clone(),
        });
        Self {
            id: checked.id.to_string(),
            names,
            damage: damage.collect(),
            unlisted: checked.unlisted.iter().map(ToString::to_string).collect(),
        }
    }
}
