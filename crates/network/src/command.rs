//! Our binary as a CNI plugin: other plugins (flannel, multus) delegate by exec. Source: CNI 1.1,
//! section 2.
//!
//! Only for a process of its own: it enters the pod's namespace.

use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use crate::builtin::{Attachment, Builtin, Invocation, Netns};
use crate::chain::{Deadlines, Runner};
use crate::convert;
use crate::error::{CONFIG, CniError, DECODE, ENVIRONMENT, IO, VERSION};
use crate::inside::ByThread;
use crate::limits::CONFIG_FILE_MAX;
use crate::plugin::Plugins;
use crate::result::CniResult;
use crate::version::CniVersion;

/// Acts as the plugin called `name`. `env` gives environment variables. Gives what belongs on standard
/// output, and whether it is a success.
pub fn act(
    name: &str,
    plugins: &Plugins,
    env: &dyn Fn(&str) -> Option<String>,
    stdin: &mut dyn Read,
) -> (String, bool) {
    let mut version = CniVersion::V1_1_0;
    match answer(name, plugins, env, stdin, &mut version) {
        Ok(text) => (text, true),
        Err(error) => {
            let mut value = json!(error);
            value["cniVersion"] = version.as_str().into();
            (value.to_string(), false)
        }
    }
}

fn answer(
    name: &str,
    plugins: &Plugins,
    env: &dyn Fn(&str) -> Option<String>,
    stdin: &mut dyn Read,
    version: &mut CniVersion,
) -> Result<String, CniError> {
    let command = needed(env, "CNI_COMMAND")?;
    if command == "VERSION" {
        let all: Vec<_> = CniVersion::ALL.iter().map(|v| v.as_str()).collect();
        return Ok(json!({"cniVersion": "1.1.0", "supportedVersions": all}).to_string());
    }
    let builtin = plugins
        .get(name)
        .ok_or_else(|| CniError::internal(format!("{name:?} is not a plugin that is built in")))?;
    let request = Request::read(env, plugins, stdin)?;
    *version = request.version;
    let done = match command.as_str() {
        "ADD" => {
            let result = request.with(true, |call| builtin.add(call))?;
            return Ok(convert::write(&result, request.version).to_string());
        }
        "DEL" => request.with(false, |call| builtin.del(call)),
        "CHECK" => request.with(true, |call| builtin.check(call)),
        "STATUS" => builtin.status(&request.network, &request.plugin),
        "GC" => request.collect(builtin),
        other => Err(CniError::new(
            ENVIRONMENT,
            format!("CNI_COMMAND {other:?} is not known"),
        )),
    };
    done.map(|()| String::new())
}

/// What was asked, read and checked.
struct Request {
    network: String,
    version: CniVersion,
    plugin: Map<String, Value>,
    prev_result: Option<CniResult>,
    runtime_config: Map<String, Value>,
    container_id: Option<String>,
    ifname: Option<String>,
    netns: Option<PathBuf>,
    args: Vec<(String, String)>,
    runner: Runner,
}

impl Request {
    fn read(
        env: &dyn Fn(&str) -> Option<String>,
        plugins: &Plugins,
        stdin: &mut dyn Read,
    ) -> Result<Self, CniError> {
        let mut bytes = Vec::new();
        stdin
            .take(CONFIG_FILE_MAX)
            .read_to_end(&mut bytes)
            .map_err(|e| CniError::new(IO, format!("standard input: {e}")))?;
        let plugin: Map<String, Value> = serde_json::from_slice(&bytes).map_err(|e| {
            CniError::new(DECODE, format!("the configuration is not an object: {e}"))
        })?;
        let text = |key: &str| plugin.get(key).and_then(Value::as_str).unwrap_or("");
        let version = match text("cniVersion") {
            "" => CniVersion::V0_1_0,
            text => text
                .parse()
                .map_err(|e| CniError::new(VERSION, format!("incompatible CNI versions: {e}")))?,
        };
        let network = text("name").to_owned();
        if network.is_empty() {
            return Err(CniError::new(
                CONFIG,
                "name: is missing: give the network a name",
            ));
        }
        let prev = plugin.get("prevResult").filter(|v| !v.is_null()).cloned();
        let config = plugin.get("runtimeConfig").and_then(Value::as_object);
        let set = |key| env(key).filter(|text| !text.is_empty());
        let path = set("CNI_PATH").unwrap_or_default();
        Ok(Self {
            network,
            version,
            prev_result: prev.map(|v| convert::read(version, v)).transpose()?,
            runtime_config: config.cloned().unwrap_or_default(),
            container_id: set("CNI_CONTAINERID"),
            ifname: set("CNI_IFNAME"),
            netns: set("CNI_NETNS").map(PathBuf::from),
            args: arguments(&set("CNI_ARGS").unwrap_or_default()),
            runner: Runner {
                plugins: plugins.clone(),
                bin_dirs: path
                    .split(':')
                    .filter(|d| !d.is_empty())
                    .map(PathBuf::from)
                    .collect(),
                open_files: None,
                deadlines: Deadlines::default(),
            },
            plugin,
        })
    }

    /// Calls `work`. Without a namespace only where it need not be there any more.
    fn with<T>(
        &self,
        inside: bool,
        work: impl FnOnce(&Invocation<'_>) -> Result<T, CniError>,
    ) -> Result<T, CniError> {
        let missing = |key: &str| CniError::new(ENVIRONMENT, format!("{key} is missing"));
        let container_id = self.container_id.as_deref();
        let call = Invocation {
            network: &self.network,
            version: self.version,
            plugin: &self.plugin,
            prev_result: self.prev_result.as_ref(),
            runtime_config: &self.runtime_config,
            container_id: container_id.ok_or_else(|| missing("CNI_CONTAINERID"))?,
            ifname: self
                .ifname
                .as_deref()
                .ok_or_else(|| missing("CNI_IFNAME"))?,
            netns: None,
            args: &self.args,
            delegate: &self.runner,
        };
        let Some(path) = &self.netns else {
            return match inside {
                true => Err(missing("CNI_NETNS")),
                false => work(&call),
            };
        };
        let opened = File::open(path).and_then(|fd| {
            let route = ByThread { netns: fd.as_fd() }.route_socket()?;
            Ok((fd, route))
        });
        let (fd, route) = match opened {
            Ok(opened) => opened,
            // It is gone.
            Err(_) if !inside => return work(&call),
            Err(e) => {
                let text = format!("the network namespace {}: {e}", path.display());
                return Err(CniError::new(IO, text));
            }
        };
        let by_thread = ByThread { netns: fd.as_fd() };
        work(&Invocation {
            netns: Some(Netns {
                path: path as &Path,
                fd: fd.as_fd(),
                route: route.as_fd(),
                inside: &by_thread,
            }),
            ..call
        })
    }

    fn collect(&self, builtin: &dyn Builtin) -> Result<(), CniError> {
        const KEY: &str = "cni.dev/valid-attachments";
        let list = self.plugin.get(KEY).and_then(Value::as_array);
        // Nothing said is not the same as nothing valid.
        let list = list.ok_or_else(|| CniError::config(KEY, "is missing"))?;
        let attachment = |value: &Value| {
            let text = |key: &str| value.get(key)?.as_str().map(str::to_owned);
            Some(Attachment {
                container_id: text("containerID")?,
                ifname: text("ifname")?,
            })
        };
        let valid: Option<Vec<_>> = list.iter().map(attachment).collect();
        let wrong = || CniError::config(KEY, "is not a list of containerID and ifname");
        builtin.gc(&self.network, &self.plugin, &valid.ok_or_else(wrong)?)
    }
}

fn needed(env: &dyn Fn(&str) -> Option<String>, key: &str) -> Result<String, CniError> {
    env(key)
        .filter(|text| !text.is_empty())
        .ok_or_else(|| CniError::new(ENVIRONMENT, format!("{key} is missing")))
}

/// `K=V;K=V`.
fn arguments(text: &str) -> Vec<(String, String)> {
    let parts = text.split(';').filter_map(|part| part.split_once('='));
    parts.map(|(k, v)| (k.to_owned(), v.to_owned())).collect()
}
