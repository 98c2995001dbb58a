//! Annotations of the document by which other tools know a container; the keys are containerd's, for
//! that is what they look for.

use std::collections::BTreeMap;

use crate::oci::Input;

/// All of them.
pub(crate) fn annotations(input: &Input<'_>) -> BTreeMap<String, String> {
    let pod = &input.pod.spec.metadata;
    let image = &input.spec.image;
    let image = match image.user_specified_image.is_empty() {
        true => &image.image,
        false => &image.user_specified_image,
    };
    [
        ("container-type", "container"),
        ("container-name", input.spec.metadata.name.as_str()),
        ("image-name", image.as_str()),
        ("sandbox-id", input.pod.id.as_str()),
        ("sandbox-name", pod.name.as_str()),
        ("sandbox-namespace", pod.namespace.as_str()),
        ("sandbox-uid", pod.uid.as_str()),
    ]
    .into_iter()
    .map(|(key, value)| (format!("io.kubernetes.cri.{key}"), value.to_owned()))
    .collect()
}
