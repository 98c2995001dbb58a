//! What a plugin reads from its standard input. Source: CNI 1.1, section 3, "Deriving request configuration".

use serde_json::{Map, Value};

use crate::builtin::{Attachment, Invocation};
use crate::config::Network;
use crate::convert;
use crate::result::CniResult;
use crate::version::CniVersion;

/// What a plugin reads from its standard input.
pub(crate) fn request(
    network: &Network,
    plugin: &Map<String, Value>,
    prev: Option<&CniResult>,
    config: &Map<String, Value>,
) -> Map<String, Value> {
    prepared(&network.name, network.version, plugin, prev, config)
}

/// The same for a call.
pub(crate) fn call_request(call: &Invocation<'_>, prev: Option<&CniResult>) -> Map<String, Value> {
    let (name, config) = (call.network, call.runtime_config);
    prepared(name, call.version, call.plugin, prev, config)
}

/// The plugin's object with what every call adds to it.
pub(crate) fn prepared(
    network: &str,
    version: CniVersion,
    plugin: &Map<String, Value>,
    prev: Option<&CniResult>,
    config: &Map<String, Value>,
) -> Map<String, Value> {
    let mut conf = plugin.clone();
    conf.retain(|key, _| key != "capabilities" && !key.starts_with("cni.dev/"));
    let mut put = |key: &str, value: Value| drop(conf.insert(key.to_owned(), value));
    put("cniVersion", version.as_str().into());
    put("name", network.into());
    if let Some(prev) = prev {
        put("prevResult", convert::write(prev, version));
    }
    if !config.is_empty() {
        put("runtimeConfig", Value::Object(config.clone()));
    }
    conf
}

/// The attachments that GC must not touch; also under the key that plugins read before 1.1 was final.
pub(crate) fn name_valid(conf: &mut Map<String, Value>, valid: &[Attachment]) {
    let list: Value = valid
        .iter()
        .map(|a| serde_json::json!({"containerID": a.container_id, "ifname": a.ifname}))
        .collect();
    conf.insert("cni.dev/attachments".to_owned(), list.clone());
    conf.insert("cni.dev/valid-attachments".to_owned(), list);
}
