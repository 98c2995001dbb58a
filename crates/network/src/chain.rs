//! A chain of plugins, run: ADD in order, DEL in reverse with the final result, CHECK, STATUS, GC.
//! Every plugin is ours or an executable; whoever calls it cannot tell. Everything here blocks.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Map, Value};
use wharf_types::Kind;

use crate::builtin::{Attachment, Delegate, Invocation, Netns};
use crate::config::{Network, PluginConf};
use crate::convert;
use crate::error::{CniError, DECODE, INTERNAL, TRY_AGAIN, UNKNOWN_CONTAINER, UNSUPPORTED_FIELD};
use crate::exec::{self, Ended, How, Run, RunError};
use crate::limits::{ADD_DEADLINE, CHECK_DEADLINE, DEL_DEADLINE, STATUS_DEADLINE};
use crate::plugin::Plugins;
use crate::result::CniResult;
use crate::version::CniVersion;

/// A plugin of a chain failed. The plugin's own words are the source.
#[derive(Debug, Clone, thiserror::Error)]
#[error("plugin {plugin:?} of network {network:?} failed at {verb}")]
pub struct ChainError {
    /// The network.
    pub network: String,
    /// The plugin.
    pub plugin: String,
    /// `ADD`, `DEL`, `CHECK`, `STATUS`, `GC`.
    pub verb: &'static str,
    /// What the plugin said.
    #[source]
    pub source: CniError,
}

impl ChainError {
    /// The class of the failure.
    pub fn kind(&self) -> Kind {
        self.source.kind()
    }
}

/// What is attached: a container and its interface.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    /// The container.
    pub container_id: &'a str,
    /// Its interface.
    pub ifname: &'a str,
    /// Its namespace; `None` when it is gone.
    pub netns: Option<Netns<'a>>,
    /// `CNI_ARGS`.
    pub args: &'a [(String, String)],
    /// What the runtime says of it, by capability; each plugin gets what it asks for.
    pub capabilities: &'a Map<String, Value>,
}

/// Runs plugins.
#[derive(Debug, Clone)]
pub struct Runner {
    /// Those that run in-process.
    pub plugins: Plugins,
    /// Where executables are: `CNI_PATH`.
    pub bin_dirs: Vec<PathBuf>,
    /// Soft limit of open files of executables; ours when absent.
    pub open_files: Option<u64>,
}

/// A plugin that is nowhere is told from one that failed.
enum Failed {
    Missing(CniError),
    Said(CniError),
}

impl From<Failed> for CniError {
    fn from(failed: Failed) -> Self {
        match failed {
            Failed::Missing(e) | Failed::Said(e) => e,
        }
    }
}

/// What the environment of an executable says.
struct Verb<'a> {
    command: &'static str,
    deadline: Duration,
    container_id: &'a str,
    ifname: &'a str,
    netns: &'a Path,
    args: &'a [(String, String)],
}

impl Runner {
    /// ADD of the whole chain. `done` is told after each plugin what is there now.
    ///
    /// # Errors
    ///
    /// The plugin that failed; the chain must be taken down by [`Runner::del`].
    pub fn add(
        &self,
        network: &Network,
        subject: &Subject<'_>,
        done: &mut dyn FnMut(&PluginConf, &CniResult) -> Result<(), CniError>,
    ) -> Result<CniResult, ChainError> {
        let mut result: Option<CniResult> = None;
        for plugin in &network.plugins {
            let failed = at(network, plugin, "ADD");
            let config = wanted(plugin, subject);
            let call = self.call(network, plugin, subject, &config, result.as_ref());
            let next = match self.builtin(plugin) {
                Some(builtin) => builtin.add(&call),
                None => self.exec_add(&plugin.kind, &call),
            };
            let next = next.and_then(|next| done(plugin, &next).map(|()| next));
            result = Some(next.map_err(failed)?);
        }
        Ok(result.unwrap_or_default())
    }

    /// DEL of the whole chain, last plugin first. Every plugin is run, whatever the others say. An
    /// executable that is not there any more is an error, unless `forgiving`.
    ///
    /// # Errors
    ///
    /// The first that failed.
    pub fn del(
        &self,
        network: &Network,
        subject: &Subject<'_>,
        result: Option<&CniResult>,
        forgiving: bool,
    ) -> Result<(), ChainError> {
        let mut first = Ok(());
        for plugin in network.plugins.iter().rev() {
            let config = wanted(plugin, subject);
            let call = self.call(network, plugin, subject, &config, result);
            let done = match self.builtin(plugin) {
                Some(builtin) => builtin.del(&call),
                None => match self.exec_del(&plugin.kind, &call) {
                    Err(Failed::Missing(error)) if forgiving => {
                        tracing::warn!(network = network.name, plugin = plugin.kind, %error,
                            "DEL is left out: nothing of the pod is left");
                        Ok(())
                    }
                    // The container is unknown: there is nothing to take down.
                    Err(Failed::Said(e)) if e.code == UNKNOWN_CONTAINER => Ok(()),
                    done => done.map_err(CniError::from),
                },
            };
            if let Err(error) = done.map_err(at(network, plugin, "DEL")) {
                tracing::warn!(container = subject.container_id,
                    error = %wharf_types::chain(&error), "a plugin's DEL failed");
                first = first.and(Err(error));
            }
        }
        first
    }

    /// CHECK of the whole chain; nothing for a network that has none.
    ///
    /// # Errors
    ///
    /// The first plugin that misses something.
    pub fn check(
        &self,
        network: &Network,
        subject: &Subject<'_>,
        result: &CniResult,
    ) -> Result<(), ChainError> {
        if network.disable_check || network.version < CniVersion::V0_4_0 {
            return Ok(());
        }
        for plugin in &network.plugins {
            let config = wanted(plugin, subject);
            let call = self.call(network, plugin, subject, &config, Some(result));
            let done = match self.builtin(plugin) {
                Some(builtin) => builtin.check(&call),
                None => self.exec_check(&plugin.kind, &call),
            };
            done.map_err(at(network, plugin, "CHECK"))?;
        }
        Ok(())
    }

    /// Whether pods can be attached: every plugin is there, and says so (from version 1.1 on).
    ///
    /// # Errors
    ///
    /// The first plugin that cannot.
    pub fn status(&self, network: &Network) -> Result<(), ChainError> {
        for plugin in &network.plugins {
            let done = match self.builtin(plugin) {
                Some(builtin) => builtin.status(&network.name, &plugin.object),
                None => self.exec_status(network, plugin),
            };
            done.map_err(at(network, plugin, "STATUS"))?;
        }
        Ok(())
    }

    fn exec_status(&self, network: &Network, plugin: &PluginConf) -> Result<(), CniError> {
        if network.version < CniVersion::V1_1_0 {
            self.path(&plugin.kind)?;
            return Ok(());
        }
        let conf = request(network, &plugin.object, None, &Map::new());
        let verb = Verb::of_network("STATUS", STATUS_DEADLINE);
        self.exec(&plugin.kind, &verb, &conf)?;
        Ok(())
    }

    /// GC of the whole chain: what belongs to none of the `valid` attachments is taken down. Every plugin
    /// is run, whatever the others say.
    ///
    /// # Errors
    ///
    /// The first that failed.
    pub fn gc(&self, network: &Network, valid: &[Attachment]) -> Result<(), ChainError> {
        let mut first = Ok(());
        if network.disable_gc {
            return first;
        }
        for plugin in &network.plugins {
            let done = match self.builtin(plugin) {
                Some(builtin) => builtin.gc(&network.name, &plugin.object, valid),
                None if network.version < CniVersion::V1_1_0 => Ok(()),
                None => {
                    let mut conf = request(network, &plugin.object, None, &Map::new());
                    name_valid(&mut conf, valid);
                    let verb = Verb::of_network("GC", CHECK_DEADLINE);
                    self.exec(&plugin.kind, &verb, &conf)
                        .map(drop)
                        .map_err(CniError::from)
                }
            };
            first = first.and(done.map_err(at(network, plugin, "GC")));
        }
        first
    }

    /// Plugins that cannot be asked have no say.
    fn settle_version(&self, network: &Network) -> CniVersion {
        if network.versions.len() < 2 {
            return network.version;
        }
        let mut common = network.versions.clone();
        for plugin in &network.plugins {
            if self.builtin(plugin).is_some() {
                continue;
            }
            match self.versions(&plugin.kind, network.version) {
                Ok(spoken) => common.retain(|v| spoken.iter().any(|s| s == v.as_str())),
                Err(error) => tracing::warn!(plugin = plugin.kind, %error, "VERSION failed"),
            }
        }
        common.last().copied().unwrap_or(network.version)
    }

    /// What an executable says to VERSION.
    fn versions(&self, name: &str, version: CniVersion) -> Result<Vec<String>, CniError> {
        let conf = Map::from_iter([("cniVersion".to_owned(), version.as_str().into())]);
        let said = self.exec(name, &Verb::of_network("VERSION", STATUS_DEADLINE), &conf)?;
        let value: Value =
            serde_json::from_slice(&said).map_err(|e| undecodable(name, &e, &said))?;
        let list = value.get("supportedVersions").and_then(Value::as_array);
        let texts = list.into_iter().flatten().filter_map(Value::as_str);
        Ok(texts.map(str::to_owned).collect())
    }

    /// Settles what the configuration leaves open: which of its plugins run in-process (those that are
    /// built in, and know every field or have no executable that might know more), and the version: the
    /// newest that the network allows and all plugins speak.
    pub fn settle(&self, network: &Network) -> Network {
        let mut network = network.clone();
        for plugin in &mut network.plugins {
            let builtin = self.plugins.get(&plugin.kind);
            plugin.builtin = builtin.is_some_and(|builtin| {
                let said = builtin.status(&network.name, &plugin.object);
                let knows = said.err().is_none_or(|e| e.code != UNSUPPORTED_FIELD);
                knows || exec::find(&self.bin_dirs, &plugin.kind).is_none()
            });
        }
        network.version = self.settle_version(&network);
        network
    }

    fn builtin(&self, plugin: &PluginConf) -> Option<&dyn crate::Builtin> {
        let builtin = plugin.builtin.then(|| self.plugins.get(&plugin.kind));
        builtin.flatten()
    }

    fn call<'a>(
        &'a self,
        network: &'a Network,
        plugin: &'a PluginConf,
        subject: &Subject<'a>,
        config: &'a Map<String, Value>,
        prev_result: Option<&'a CniResult>,
    ) -> Invocation<'a> {
        Invocation {
            network: &network.name,
            version: network.version,
            plugin: &plugin.object,
            prev_result,
            runtime_config: config,
            container_id: subject.container_id,
            ifname: subject.ifname,
            netns: subject.netns,
            args: subject.args,
            delegate: self,
        }
    }

    fn exec_add(&self, name: &str, call: &Invocation<'_>) -> Result<CniResult, CniError> {
        let conf = call_request(call, call.prev_result);
        let said = self.exec(name, &Verb::of_call("ADD", ADD_DEADLINE, call), &conf)?;
        let value = serde_json::from_slice(&said).map_err(|e| undecodable(name, &e, &said))?;
        convert::read(call.version, value)
    }

    fn exec_del(&self, name: &str, call: &Invocation<'_>) -> Result<(), Failed> {
        // As the specification has it from 0.4.0 on.
        let prev = call
            .prev_result
            .filter(|_| call.version >= CniVersion::V0_4_0);
        let conf = call_request(call, prev);
        let verb = Verb::of_call("DEL", DEL_DEADLINE, call);
        self.exec(name, &verb, &conf).map(drop)
    }

    fn exec_check(&self, name: &str, call: &Invocation<'_>) -> Result<(), CniError> {
        let conf = call_request(call, call.prev_result);
        self.exec(name, &Verb::of_call("CHECK", CHECK_DEADLINE, call), &conf)?;
        Ok(())
    }

    fn path(&self, name: &str) -> Result<PathBuf, Failed> {
        let missing = || {
            let dirs: Vec<_> = self.bin_dirs.iter().map(|d| d.to_string_lossy()).collect();
            let text = format!(
                "the plugin is neither built in nor an executable in {} (CNI_PATH): install it there, or \
                 correct the \"type\"",
                dirs.join(":")
            );
            Failed::Missing(CniError::new(INTERNAL, text))
        };
        // It becomes part of a path, and comes from a configuration.
        if name.is_empty() || name.contains(['/', '\0']) || name == ".." || name == "." {
            return Err(missing());
        }
        exec::find(&self.bin_dirs, name).ok_or_else(missing)
    }

    /// Runs an executable; gives what it wrote.
    fn exec(
        &self,
        name: &str,
        verb: &Verb<'_>,
        conf: &Map<String, Value>,
    ) -> Result<Vec<u8>, Failed> {
        let program = self.path(name)?;
        let dirs: Vec<_> = self.bin_dirs.iter().map(|d| d.to_string_lossy()).collect();
        let args: Vec<_> = verb.args.iter().map(|(k, v)| format!("{k}={v}")).collect();
        let env = [
            ("CNI_COMMAND", verb.command.to_owned()),
            ("CNI_CONTAINERID", verb.container_id.to_owned()),
            ("CNI_NETNS", verb.netns.to_string_lossy().into_owned()),
            ("CNI_IFNAME", verb.ifname.to_owned()),
            ("CNI_ARGS", args.join(";")),
            ("CNI_PATH", dirs.join(":")),
        ];
        let stdin = serde_json::to_vec(conf)
            .map_err(|e| Failed::Said(CniError::new(DECODE, e.to_string())))?;
        let ended = exec::run(&Run {
            program: &program,
            args: &[name],
            env: &env,
            stdin: &stdin,
            deadline: verb.deadline,
            open_files: self.open_files,
        });
        let place = format!("{name:?} ({})", program.display());
        match ended {
            Ok(ended) => said(&place, verb.command, ended).map_err(Failed::Said),
            Err(e) => {
                let code = match e {
                    RunError::Deadline(_) => TRY_AGAIN,
                    RunError::Start(_) | RunError::TooMuch | RunError::Io(_) => INTERNAL,
                };
                Err(Failed::Said(CniError::new(code, format!("{place} {e}"))))
            }
        }
    }
}

/// What an ended executable said: its output, or its error.
fn said(place: &str, command: &str, ended: Ended) -> Result<Vec<u8>, CniError> {
    if !ended.stderr.is_empty() {
        tracing::info!(
            plugin = place,
            command,
            stderr = ended.stderr,
            "a plugin wrote"
        );
    }
    if ended.how == How::Code(0) {
        return Ok(ended.stdout);
    }
    // An error object has a code; anything else is not one.
    let error = serde_json::from_slice::<Value>(&ended.stdout).ok();
    let error = error.filter(|e| e.get("code").is_some() || e.get("msg").is_some());
    if let Some(error) = error.and_then(|e| serde_json::from_value(e).ok()) {
        return Err(error);
    }
    let text = format!("{place} {} and wrote no error object", ended.how);
    let heard = match (beginning(&ended.stdout), ended.stderr) {
        (out, err) if out.is_empty() => err,
        (out, err) if err.is_empty() => out,
        (out, err) => format!("{out}; {err}"),
    };
    Err(CniError::internal(text).details(heard))
}

/// The beginning of what was written, on one line.
fn beginning(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let words: String = text.trim().chars().take(200).collect();
    words.replace(['\n', '\r'], " ")
}

fn undecodable(name: &str, e: &serde_json::Error, said: &[u8]) -> CniError {
    let text = format!("{name:?} did not write a result: {e}");
    CniError::new(DECODE, text).details(beginning(said))
}

fn at(
    network: &Network,
    plugin: &PluginConf,
    verb: &'static str,
) -> impl FnOnce(CniError) -> ChainError + use<> {
    let (network, plugin) = (network.name.clone(), plugin.kind.clone());
    move |source| ChainError {
        network,
        plugin,
        verb,
        source,
    }
}

/// What the runtime knows and the plugin wants to know.
fn wanted(plugin: &PluginConf, subject: &Subject<'_>) -> Map<String, Value> {
    let known = subject.capabilities.iter();
    let wanted = known.filter(|(capability, _)| plugin.wants(capability));
    wanted.map(|(k, v)| (k.clone(), v.clone())).collect()
}

/// What a plugin reads from its standard input.
fn request(
    network: &Network,
    plugin: &Map<String, Value>,
    prev: Option<&CniResult>,
    config: &Map<String, Value>,
) -> Map<String, Value> {
    prepared(&network.name, network.version, plugin, prev, config)
}

fn call_request(call: &Invocation<'_>, prev: Option<&CniResult>) -> Map<String, Value> {
    let (name, config) = (call.network, call.runtime_config);
    prepared(name, call.version, call.plugin, prev, config)
}

fn prepared(
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
fn name_valid(conf: &mut Map<String, Value>, valid: &[Attachment]) {
    let list: Value = valid
        .iter()
        .map(|a| serde_json::json!({"containerID": a.container_id, "ifname": a.ifname}))
        .collect();
    conf.insert("cni.dev/attachments".to_owned(), list.clone());
    conf.insert("cni.dev/valid-attachments".to_owned(), list);
}

impl<'a> Verb<'a> {
    fn of_call(command: &'static str, deadline: Duration, call: &Invocation<'a>) -> Self {
        Self {
            command,
            deadline,
            container_id: call.container_id,
            ifname: call.ifname,
            netns: call.netns.map_or(Path::new(""), |n| n.path),
            args: call.args,
        }
    }

    fn of_network(command: &'static str, deadline: Duration) -> Self {
        Self {
            command,
            deadline,
            container_id: "",
            ifname: "",
            netns: Path::new(""),
            args: &[],
        }
    }
}

impl Delegate for Runner {
    fn add(&self, name: &str, call: &Invocation<'_>) -> Result<CniResult, CniError> {
        match self.plugins.get(name) {
            Some(builtin) => builtin.add(call),
            None => self.exec_add(name, call),
        }
    }

    fn del(&self, name: &str, call: &Invocation<'_>) -> Result<(), CniError> {
        match self.plugins.get(name) {
            Some(builtin) => builtin.del(call),
            None => Ok(self.exec_del(name, call)?),
        }
    }

    fn check(&self, name: &str, call: &Invocation<'_>) -> Result<(), CniError> {
        match self.plugins.get(name) {
            Some(builtin) => builtin.check(call),
            None => self.exec_check(name, call),
        }
    }

    fn status(
        &self,
        name: &str,
        network: &str,
        plugin: &Map<String, Value>,
    ) -> Result<(), CniError> {
        match self.plugins.get(name) {
            Some(builtin) => builtin.status(network, plugin),
            // Which version it speaks is not known here; that it is there is.
            None => Ok(self.path(name).map(drop)?),
        }
    }

    fn gc(
        &self,
        name: &str,
        network: &str,
        plugin: &Map<String, Value>,
        valid: &[Attachment],
    ) -> Result<(), CniError> {
        match self.plugins.get(name) {
            Some(builtin) => builtin.gc(network, plugin, valid),
            None => {
                let mut conf = prepared(network, CniVersion::V1_1_0, plugin, None, &Map::new());
                name_valid(&mut conf, valid);
                self.exec(name, &Verb::of_network("GC", CHECK_DEADLINE), &conf)?;
                Ok(())
            }
        }
    }
}
