//! Reading a config.json, with errors that name the field.

use std::io::Read as _;
use std::path::Path;

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{Spec, SpecError};

/// The longest document that is read: the plan made from it must fit into one message.
pub const CONFIG_MAX: u64 = 8 * 1024 * 1024;

/// Reads the config.json at `path`.
///
/// # Errors
/// The file cannot be read, is too long, is not JSON, or a field has the wrong type; not whether
/// its values make sense: that is [`super::check`].
pub fn load(path: &Path) -> Result<Spec, SpecError> {
    let read = |source| SpecError::Read {
        path: path.to_owned(),
        source,
    };
    let file = std::fs::File::open(path).map_err(read)?;
    let mut bytes = Vec::new();
    file.take(CONFIG_MAX + 1)
        .read_to_end(&mut bytes)
        .map_err(read)?;
    if u64::try_from(bytes.len()).is_ok_and(|n| n > CONFIG_MAX) {
        return Err(SpecError::TooLong {
            path: path.to_owned(),
        });
    }
    parse(&bytes)
}

/// Parses a document (a [`Spec`], or the `process` document that exec takes).
///
/// # Errors
/// As of [`load`].
pub fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, SpecError> {
    let mut value: Value = serde_json::from_slice(bytes).map_err(|source| SpecError::Json {
        field: ".".to_owned(),
        source,
    })?;
    drop_nulls(&mut value);
    serde_path_to_error::deserialize(value).map_err(|error| SpecError::Json {
        field: error.path().to_string(),
        source: error.into_inner(),
    })
}

/// Go writes `null` for an empty list or map: the same as an absent field. serde_json's limit of
/// depth bounds the recursion.
fn drop_nulls(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|_, field| !field.is_null());
            fields.values_mut().for_each(drop_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(drop_nulls),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_type_is_said_with_its_field() {
        let error = parse::<Spec>(br#"{"process":{"user":{"uid":-3}}}"#).unwrap_err();
        assert_eq!(error.to_string(), "config.json: process.user.uid");
        let error = parse::<Spec>(br#"{"linux":{"namespaces":[{"type":"pid"},{"type":"moon"}]}}"#)
            .unwrap_err();
        assert_eq!(error.to_string(), "config.json: linux.namespaces[1].type");
    }

    #[test]
    fn null_is_absent_and_unknown_fields_are_ignored() {
        let spec: Spec = parse(
            br#"{"ociVersion":"1.2.0","mounts":null,"future":{"a":1},"process":{"args":["a"],"env":null,"cwd":"/"}}"#,
        )
        .unwrap();
        assert_eq!(spec.process.unwrap().args, ["a"]);
        assert!(spec.mounts.is_empty());
    }

    #[test]
    fn what_is_written_is_read_back() {
        let text = r#"{"ociVersion":"1.2.0","process":{"user":{"uid":1,"gid":2},"args":["sh"],"cwd":"/"},"linux":{"resources":{"memory":{"disableOOMKiller":true}},"namespaces":[{"type":"network","path":"/run/netns/x"}]}}"#;
        let spec: Spec = parse(text.as_bytes()).unwrap();
        assert_eq!(serde_json::to_string(&spec).unwrap(), text);
    }
}
