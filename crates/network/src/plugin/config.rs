//! Reads a plugin's object: every field is known or refused by its name.

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::error::CniError;

/// What every plugin's object may have: the specification's keys.
const EVERYONES: [&str; 9] = [
    "cniVersion",
    "name",
    "type",
    "capabilities",
    "ipam",
    "dns",
    "args",
    "prevResult",
    "runtimeConfig",
];

/// The object as a value of `T`; beside the specification's keys it may have `known` ones.
pub(crate) fn decode<T: DeserializeOwned>(
    plugin: &Map<String, Value>,
    known: &[&str],
) -> Result<T, CniError> {
    for key in plugin.keys() {
        let everyones = EVERYONES.contains(&key.as_str()) || key.starts_with("cni.dev/");
        if !everyones && !known.contains(&key.as_str()) {
            return Err(CniError::unsupported(
                key,
                format!("the built-in plugin does not know this field; it knows {known:?}"),
            ));
        }
    }
    value(Value::Object(plugin.clone()), "")
}

/// A value as a `T`; `place` goes before the name of a field that is wrong.
pub(crate) fn value<T: DeserializeOwned>(mut value: Value, place: &str) -> Result<T, CniError> {
    strip_nulls(&mut value);
    serde_path_to_error::deserialize(value).map_err(|e| {
        let path = e.path().to_string();
        let field = match (place, path.as_str()) {
            (place, ".") => place.to_owned(),
            ("", path) => path.to_owned(),
            (place, path) => format!("{place}.{path}"),
        };
        CniError::config(&field, e.inner())
    })
}

/// A field that is null is as good as absent: so it is for plugins in Go.
fn strip_nulls(value: &mut Value) {
    match value {
        Value::Object(all) => {
            all.retain(|_key, value| !value.is_null());
            all.values_mut().for_each(strip_nulls);
        }
        Value::Array(all) => all.iter_mut().for_each(strip_nulls),
        _ => {}
    }
}

/// A key of `runtimeConfig`, if the runtime gave it.
pub(crate) fn runtime<T: DeserializeOwned>(
    config: &Map<String, Value>,
    key: &str,
) -> Result<Option<T>, CniError> {
    match config.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(given) => value(given.clone(), &format!("runtimeConfig.{key}")).map(Some),
    }
}

/// A key of `args.cni`, if the configuration has it.
pub(crate) fn argument<T: DeserializeOwned>(
    plugin: &Map<String, Value>,
    key: &str,
) -> Result<Option<T>, CniError> {
    match plugin
        .get("args")
        .and_then(|a| a.get("cni"))
        .and_then(|c| c.get(key))
    {
        None | Some(Value::Null) => Ok(None),
        Some(given) => value(given.clone(), &format!("args.cni.{key}")).map(Some),
    }
}
