//! A chain of plugins, run: ADD in order, DEL in reverse with the final result, CHECK, STATUS, GC.
//! Every plugin is ours or an executable; whoever calls it cannot tell. Everything here blocks.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Map, Value};
use wharf_types::Kind;

use crate::builtin::{Attachment, Delegate, Invocation, Netns};
use crate::config::{Network, PluginConf, place};
use crate::convert;
use crate::error::{CniError, DECODE, INTERNAL, TRY_AGAIN, UNKNOWN_CONTAINER, UNSUPPORTED_FIELD};
use crate::exec::{self, Ended, How, Run, RunError};
use crate::limits::{ADD_DEADLINE, CHECK_DEADLINE, DEL_DEADLINE, STATUS_DEADLINE};
use crate::plugin::Plugins;
use crate::request::{call_request, name_valid, prepared, request};
use crate::result::CniResult;
use crate::version::CniVersion;

/// A plugin of a chain failed. The plugin's own words are the source.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{}plugin {plugin:?} of network {network:?} failed at {verb}", place(.file))]
pub struct ChainError {
    /// Where the network was read; empty for our own.
    pub file: PathBuf,
    /// The network.
    pub network: String,
    /// The plugin.
    pub plugin: String,
    /// `ADD`, `DEL`, `CHECK`, `STATUS`, `GC`.
    pub verb: &'static str,
    /// What the plugin said.
    #[source]
    pub source: Box<CniError>,
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
    /// How long executables may take.
    pub deadlines: Deadlines,
}

/// How long one executable may take.
#[derive(Debug, Clone, Copy)]
pub struct Deadlines {
    /// For ADD.
    pub add: Duration,
    /// For DEL.
    pub del: Duration,
    /// For CHECK and GC.
    pub check: Duration,
    /// For STATUS and VERSION.
    pub status: Duration,
}

impl Default for Deadlines {
    fn default() -> Self {
        Self {
            add: ADD_DEADLINE,
            del: DEL_DEADLINE,
            check: CHECK_DEADLINE,
            status: STATUS_DEADLINE,
        }
    }
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
                Some(builtin) => builtin
                    .status(&network.name, &plugin.object)
                    .and_then(|()| self.addresses_status(network, plugin)),
                None => self.exec_status(network, &plugin.kind, plugin),
            };
            done.map_err(at(network, plugin, "STATUS"))?;
        }
        Ok(())
    }

    /// Whoever gives a built-in plugin its addresses has a part of its object, and a say.
    fn addresses_status(&self, network: &Network, plugin: &PluginConf) -> Result<(), CniError> {
        let Some(name) = plugin.addresses_by() else {
            return Ok(());
        };
        match self.plugins.get(name) {
            Some(builtin) => builtin.status(&network.name, &plugin.object),
            None => self.exec_status(network, name, plugin),
        }
    }

    fn exec_status(
        &self,
        network: &Network,
        name: &str,
        plugin: &PluginConf,
    ) -> Result<(), CniError> {
        if network.version < CniVersion::V1_1_0 {
            self.path(name)?;
            return Ok(());
        }
        let conf = request(network, &plugin.object, None, &Map::new());
        let verb = Verb::of_network("STATUS", self.deadlines.status);
        self.exec(name, &verb, &conf)?;
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
                    let verb = Verb::of_network("GC", self.deadlines.check);
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
        let said = self.exec(
            name,
            &Verb::of_network("VERSION", self.deadlines.status),
            &conf,
        )?;
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
                let own = plugin
                    .addresses_by()
                    .and_then(|name| self.plugins.get(name));
                let said = said.and_then(|()| {
                    own.map_or(Ok(()), |own| own.status(&network.name, &plugin.object))
                });
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
        let said = self.exec(name, &Verb::of_call("ADD", self.deadlines.add, call), &conf)?;
        let value = serde_json::from_slice(&said).map_err(|e| undecodable(name, &e, &said))?;
        convert::read(call.version, value)
    }

    fn exec_del(&self, name: &str, call: &Invocation<'_>) -> Result<(), Failed> {
        // As the specification has it from 0.4.0 on.
        let prev = call
            .prev_result
            .filter(|_| call.version >= CniVersion::V0_4_0);
        let conf = call_request(call, prev);
        let verb = Verb::of_call("DEL", self.deadlines.del, call);
        self.exec(name, &verb, &conf).map(drop)
    }

    fn exec_check(&self, name: &str, call: &Invocation<'_>) -> Result<(), CniError> {
        let conf = call_request(call, call.prev_result);
        self.exec(
            name,
            &Verb::of_call("CHECK", self.deadlines.check, call),
            &conf,
        )?;
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
    let (file, network) = (network.file.clone(), network.name.clone());
    let plugin = plugin.kind.clone();
    move |source| ChainError {
        file,
        network,
        plugin,
        verb,
        source: Box::new(source),
    }
}

/// What the runtime knows and the plugin wants to know.
fn wanted(plugin: &PluginConf, subject: &Subject<'_>) -> Map<String, Value> {
    let known = subject.capabilities.iter();
    let wanted = known.filter(|(capability, _)| plugin.wants(capability));
    wanted.map(|(k, v)| (k.clone(), v.clone())).collect()
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
                self.exec(name, &Verb::of_network("GC", self.deadlines.check), &conf)?;
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    use serde_json::json;

    /// Fake plugins, and what they were told.
    struct Rig {
        dir: tempfile::TempDir,
        runner: Runner,
    }

    /// Writes down how it was called and what it read.
    const NOTE: &str = "cat > $NOTES/$CNI_COMMAND.$NAME.in
echo \"$CNI_COMMAND $NAME $CNI_CONTAINERID $CNI_IFNAME [$CNI_NETNS] $CNI_ARGS $CNI_PATH\" >> $NOTES/calls
";

    impl Rig {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let runner = Runner {
                plugins: Plugins::default(),
                bin_dirs: vec![dir.path().join("missing"), dir.path().to_owned()],
                open_files: Some(1024),
                deadlines: Deadlines::default(),
            };
            Self { dir, runner }
        }

        fn plugin(&self, name: &str, script: &str) {
            let path = self.dir.path().join(name);
            let notes = self.dir.path().display();
            let text = format!("#!/bin/sh\nNAME={name}\nNOTES={notes}\n{script}\n");
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        }

        fn calls(&self) -> Vec<String> {
            let calls = fs::read_to_string(self.dir.path().join("calls")).unwrap_or_default();
            calls.lines().map(str::to_owned).collect()
        }

        fn read(&self, command: &str, name: &str) -> Value {
            let path = self.dir.path().join(format!("{command}.{name}.in"));
            serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
        }

        fn add(&self, network: &Network) -> Result<CniResult, ChainError> {
            self.runner.add(network, &pod(), &mut |_, _| Ok(()))
        }
    }

    fn network(version: &str, kinds: &[&str]) -> Network {
        let plugins: Vec<Value> = kinds
            .iter()
            .map(|kind| {
                json!({"type": kind, "mine": kind, "capabilities": {"dns": true},
                               "cni.dev/x": 1})
            })
            .collect();
        let text = json!({"cniVersion": version, "name": "net", "plugins": plugins}).to_string();
        let file = Path::new("/d/net.conflist");
        crate::config::parse(file, text.as_bytes(), |_| Ok(Vec::new())).unwrap()
    }

    fn pod() -> Subject<'static> {
        use std::sync::LazyLock;
        static ARGS: LazyLock<Vec<(String, String)>> = LazyLock::new(|| {
            vec![
                ("A".to_owned(), "1".to_owned()),
                ("B".to_owned(), "2".to_owned()),
            ]
        });
        static KNOWN: LazyLock<Map<String, Value>> = LazyLock::new(|| {
            let known = json!({"dns": {"servers": ["10.0.0.1"]}, "bandwidth": {}});
            known.as_object().unwrap().clone()
        });
        Subject {
            container_id: "pod1",
            ifname: "eth0",
            netns: None,
            args: &ARGS,
            capabilities: &KNOWN,
        }
    }

    /// Gives the address with this last octet.
    fn gives(octet: u8) -> String {
        format!(
            "{NOTE}[ $CNI_COMMAND != ADD ] || echo '{{\"cniVersion\":\"0.3.1\",\"ips\":[{{\"version\":\"4\",\
             \"address\":\"10.0.0.{octet}/24\"}}]}}'"
        )
    }

    #[test]
    fn a_chain_is_added_in_order_and_taken_down_in_reverse_with_the_final_result() {
        let rig = Rig::new();
        rig.plugin("one", &gives(1));
        rig.plugin("two", &gives(2));
        let network = network("0.4.0", &["one", "two"]);
        let result = rig.add(&network).unwrap();
        assert_eq!(result.ips[0].address.to_string(), "10.0.0.2/24");
        rig.runner.check(&network, &pod(), &result).unwrap();
        rig.runner
            .del(&network, &pod(), Some(&result), false)
            .unwrap();
        let verbs: Vec<_> = rig.calls().iter().map(|c| c[..7].to_owned()).collect();
        assert_eq!(
            verbs,
            [
                "ADD one", "ADD two", "CHECK o", "CHECK t", "DEL two", "DEL one"
            ]
        );
        let dirs = format!("{0}/missing:{0}", rig.dir.path().display());
        assert_eq!(
            rig.calls()[0],
            format!("ADD one pod1 eth0 [] A=1;B=2 {dirs}")
        );
        assert_eq!(
            rig.read("ADD", "one"),
            json!({
                "cniVersion": "0.4.0", "name": "net", "type": "one", "mine": "one",
                "runtimeConfig": {"dns": {"servers": ["10.0.0.1"]}},
            })
        );
        let prev = |command: &str, name: &str| rig.read(command, name)["prevResult"].clone();
        assert_eq!(prev("ADD", "two")["ips"][0]["address"], "10.0.0.1/24");
        assert_eq!(prev("ADD", "two")["cniVersion"], "0.4.0");
        for (command, name) in [("DEL", "one"), ("DEL", "two"), ("CHECK", "one")] {
            assert_eq!(
                prev(command, name)["ips"][0]["address"],
                "10.0.0.2/24",
                "{command} {name}"
            );
        }
    }

    #[test]
    fn a_wrong_subnet_is_found_before_a_pod_needs_it_and_named_with_file_and_plugin() {
        let mut rig = Rig::new();
        rig.runner.plugins = Plugins::new(&crate::plugin::PluginsConfig {
            root: rig.dir.path().to_owned(),
            state: rig.dir.path().to_owned(),
        });
        let status = |subnet: &str| {
            let text = json!({"cniVersion": "1.1.0", "name": "net", "type": "bridge",
                "ipam": {"type": "host-local", "subnet": subnet}});
            let text = text.to_string();
            let file = Path::new("/d/net.conf");
            let parsed = crate::config::parse(file, text.as_bytes(), |_| Ok(Vec::new()));
            rig.runner.status(&rig.runner.settle(&parsed.unwrap()))
        };
        status("10.0.0.0/24").unwrap();
        let text = wharf_types::chain(&status("10.0.0.0/99").unwrap_err());
        for word in ["/d/net.conf", "bridge", "subnet", "10.0.0.0/99"] {
            assert!(text.contains(word), "{word} in {text}");
        }
    }

    #[test]
    fn older_versions_are_not_asked_what_they_do_not_know() {
        let rig = Rig::new();
        rig.plugin("one", &gives(1));
        let old = network("0.3.1", &["one"]);
        let result = rig.add(&old).unwrap();
        rig.runner.check(&old, &pod(), &result).unwrap();
        rig.runner.status(&old).unwrap();
        rig.runner.gc(&old, &[]).unwrap();
        rig.runner.del(&old, &pod(), Some(&result), false).unwrap();
        assert_eq!(rig.calls().len(), 2, "{:?}", rig.calls());
        assert_eq!(rig.read("DEL", "one")["prevResult"], Value::Null);
    }

    #[test]
    fn garbage_is_collected_with_the_valid_attachments_and_not_where_it_is_switched_off() {
        let rig = Rig::new();
        rig.plugin("one", &gives(1));
        let mut network = network("1.1.0", &["one"]);
        let valid = [Attachment {
            container_id: "a".to_owned(),
            ifname: "eth0".to_owned(),
        }];
        rig.runner.status(&network).unwrap();
        rig.runner.gc(&network, &valid).unwrap();
        let list = json!([{"containerID": "a", "ifname": "eth0"}]);
        assert_eq!(rig.read("GC", "one")["cni.dev/valid-attachments"], list);
        network.disable_gc = true;
        rig.runner.gc(&network, &valid).unwrap();
        assert_eq!(rig.calls().len(), 2, "STATUS and one GC");
    }

    #[test]
    fn the_newest_version_that_all_plugins_speak_is_used() {
        let rig = Rig::new();
        let speaks = |list: &str| {
            format!("echo '{{\"cniVersion\":\"1.0.0\",\"supportedVersions\":{list}}}'")
        };
        rig.plugin("old", &speaks("[\"0.3.1\",\"0.4.0\"]"));
        rig.plugin("new", &speaks("[\"0.4.0\",\"1.0.0\",\"1.1.0\"]"));
        let mut network = network("1.1.0", &["old", "new"]);
        network.versions = vec![CniVersion::V0_3_1, CniVersion::V0_4_0, CniVersion::V1_1_0];
        assert_eq!(rig.runner.settle(&network).version, CniVersion::V0_4_0);
        network.versions = vec![CniVersion::V1_1_0];
        assert_eq!(
            rig.runner.settle(&network).version,
            CniVersion::V1_1_0,
            "nothing to choose"
        );
    }

    #[test]
    fn whatever_a_plugin_does_is_told_by_its_name() {
        let rig = Rig::new();
        let cases = [
            (
                "error-object",
                "echo '{\"code\":7,\"msg\":\"bad subnet\",\"details\":\"10.0.0.0/99\"}'; exit 1",
                &["bad subnet", "10.0.0.0/99", "code 7"][..],
            ),
            (
                "no-object",
                "echo oops; echo why >&2; exit 3",
                &["exit code 3", "oops", "why"],
            ),
            ("silent", "exit 9", &["exit code 9", "no error object"]),
            ("signal", "kill -9 $$", &["signal 9"]),
            (
                "garbage",
                "echo 'not json'",
                &["did not write a result", "not json"],
            ),
            ("empty", "true", &["did not write a result"]),
            ("wrong-result", "echo '{\"ips\":3}'", &["result"]),
            (
                "wrong-version",
                "echo '{\"cniVersion\":\"9.0.0\"}'",
                &["9.0.0"],
            ),
            (
                "much",
                "head -c 10000000 /dev/zero",
                &["more than 1048576 bytes"],
            ),
            ("much-and-on", "cat /dev/zero", &["more than 1048576 bytes"]),
            ("deaf", "exec <&-; exit 4", &["exit code 4"]),
            ("bad-interpreter", "", &["cannot be started"]),
        ];
        for (name, script, words) in cases {
            rig.plugin(name, script);
            if name == "bad-interpreter" {
                fs::write(rig.dir.path().join(name), "#!/no/such/shell\n").unwrap();
            }
            let e = rig.add(&network("1.0.0", &[name])).expect_err(name);
            let text = wharf_types::chain(&e);
            for word in [name, "\"net\"", "ADD"].iter().chain(words) {
                assert!(text.contains(word), "{name}: {word} in {text}");
            }
        }
        let e = rig.add(&network("1.0.0", &["vanished"])).unwrap_err();
        let text = wharf_types::chain(&e);
        for word in [
            "\"vanished\"",
            "CNI_PATH",
            &rig.dir.path().display().to_string(),
        ] {
            assert!(text.contains(word), "{word} in {text}");
        }
    }

    #[test]
    fn a_plugin_that_writes_much_to_stderr_still_works() {
        let rig = Rig::new();
        rig.plugin(
            "loud",
            &format!("head -c 1000000 /dev/zero >&2\n{}", gives(3)),
        );
        rig.add(&network("1.0.0", &["loud"])).unwrap();
    }

    #[test]
    fn a_hung_plugin_is_killed_with_everything_it_started_and_named() {
        let mut rig = Rig::new();
        rig.runner.deadlines.add = Duration::from_millis(300);
        rig.plugin(
            "hangs",
            "echo $$ > $NOTES/pid; sleep 1000 & echo $! > $NOTES/child; wait",
        );
        let text = wharf_types::chain(&rig.add(&network("1.0.0", &["hangs"])).unwrap_err());
        assert!(text.contains("hangs") && text.contains("300ms"), "{text}");
        for name in ["pid", "child"] {
            let pid = fs::read_to_string(rig.dir.path().join(name)).unwrap();
            let stat = format!("/proc/{}/stat", pid.trim());
            let gone = || {
                let stat = fs::read_to_string(&stat).unwrap_or_default();
                // Its parent is gone, so whoever adopted it reaps it when it likes.
                Ok(stat.is_empty() || stat.contains(") Z "))
            };
            assert!(
                wharf_testkit::wait::until(Duration::from_secs(10), gone).unwrap(),
                "{name}"
            );
        }
    }

    #[test]
    fn a_plugin_that_leaves_a_child_with_its_output_is_not_waited_for() {
        let rig = Rig::new();
        rig.plugin(
            "leaves",
            &format!("sleep 1000 & echo $! > $NOTES/child\n{}", gives(4)),
        );
        rig.add(&network("1.0.0", &["leaves"])).unwrap();
        let pid = fs::read_to_string(rig.dir.path().join("child")).unwrap();
        let pid = Pid::from_raw(pid.trim().parse().unwrap()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    }

    use rustix::process::Pid;

    #[test]
    fn every_plugin_is_taken_down_whatever_the_others_say() {
        let rig = Rig::new();
        rig.plugin("one", &gives(1));
        rig.plugin(
            "two",
            &format!("{NOTE}echo '{{\"code\":100,\"msg\":\"no\"}}'; exit 1"),
        );
        rig.plugin(
            "gone",
            &format!("{NOTE}echo '{{\"code\":3,\"msg\":\"unknown\"}}'; exit 1"),
        );
        let e = rig.runner.del(
            &network("1.0.0", &["one", "two", "gone"]),
            &pod(),
            None,
            false,
        );
        assert_eq!(e.unwrap_err().plugin, "two");
        assert_eq!(rig.calls().len(), 3);
        let missing = network("1.0.0", &["one", "vanished"]);
        rig.runner.del(&missing, &pod(), None, false).unwrap_err();
        rig.runner.del(&missing, &pod(), None, true).unwrap();
    }
}
