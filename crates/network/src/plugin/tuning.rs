//! `tuning`: settings of an interface that another plugin made, and sysctls of its namespace.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use wharf_sys::netlink::{Batch, Link, LinkChange, Mac, change_link};

use super::config::{argument, decode, runtime};
use super::host::{Host, failed, link, netns_of, previous_of, send, socket_of};
use crate::builtin::{Attachment, Builtin, Invocation};
use crate::error::CniError;
use crate::result::CniResult;

const KNOWN: [&str; 7] = [
    "dataDir", "sysctl", "mac", "promisc", "mtu", "txQLen", "allmulti",
];

/// Which sysctls an administrator allows; without the file all of the namespace.
const ALLOWED: &str = "/etc/cni/tuning/allowlist.conf";

/// The plugin.
#[derive(Debug)]
pub(crate) struct Tuning(pub(crate) Arc<Host>);

/// What is set, and what was before.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct Settings {
    #[serde(skip_serializing_if = "String::is_empty")]
    mac: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    promisc: Option<bool>,
    #[serde(skip_serializing_if = "is_zero")]
    mtu: u32,
    #[serde(rename = "txQLen", skip_serializing_if = "Option::is_none")]
    queue: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    allmulti: Option<bool>,
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde calls it with a reference"
)]
fn is_zero(n: &u32) -> bool {
    *n == 0
}

#[derive(Debug, Deserialize)]
struct Config {
    #[serde(flatten)]
    settings: Settings,
    #[serde(default)]
    sysctl: BTreeMap<String, String>,
    #[serde(rename = "dataDir")]
    data_dir: Option<PathBuf>,
}

impl Config {
    fn of(plugin: &Map<String, Value>) -> Result<Self, CniError> {
        let mut config: Self = decode(plugin, &KNOWN)?;
        let settings = &mut config.settings;
        // Off is how interfaces are: there is nothing to set.
        settings.promisc = settings.promisc.filter(|on| *on);
        config
            .sysctl
            .keys()
            .try_for_each(|key| path(key, "eth0").map(drop))?;
        mac(&config.settings.mac)?;
        Ok(config)
    }

    fn of_call(call: &Invocation<'_>) -> Result<Self, CniError> {
        let mut config = Self::of(call.plugin)?;
        let settings = &mut config.settings;
        if let Some(wish) = call.arg("MAC").filter(|m| !m.is_empty()) {
            wish.clone_into(&mut settings.mac);
        }
        if let Some(wish) = runtime::<String>(call.runtime_config, "mac")?.filter(|m| !m.is_empty())
        {
            settings.mac = wish;
        }
        let more: Option<BTreeMap<String, String>> = argument(call.plugin, "sysctl")?;
        config.sysctl.extend(more.into_iter().flatten());
        if let Some(wish) = argument(call.plugin, "mac")? {
            settings.mac = wish;
        }
        if let Some(wish) = argument::<bool>(call.plugin, "promisc")? {
            settings.promisc = wish.then_some(true);
        }
        if let Some(wish) = argument(call.plugin, "mtu")? {
            settings.mtu = wish;
        }
        settings.allmulti = argument(call.plugin, "allmulti")?.or(settings.allmulti);
        settings.queue = argument(call.plugin, "txQLen")?.or(settings.queue);
        mac(&settings.mac)?;
        Ok(config)
    }
}

fn mac(text: &str) -> Result<Option<Mac>, CniError> {
    if text.is_empty() {
        return Ok(None);
    }
    let mac = text.parse();
    mac.map(Some)
        .map_err(|e| CniError::config("mac", format!("{text:?}: {e}")))
}

/// The name below /proc/sys of a sysctl as configurations write it, with dots, and `IFNAME` for the
/// interface. Only the network's: others are the whole node's.
fn path(key: &str, ifname: &str) -> Result<String, CniError> {
    let name = key.replace('.', "/").replacen("IFNAME", ifname, 1);
    let plain = name.split('/').all(|part| !part.is_empty() && part != "..");
    if !name.starts_with("net/") || !plain {
        let text = format!("{key:?} is no sysctl of a network namespace: net.…");
        return Err(CniError::config("sysctl", text));
    }
    Ok(name)
}

/// Whether the administrator allows these sysctls. The file has one pattern a line; those that are
/// plain names, with or without `^` and `$` around them, are understood here.
fn allowed(sysctls: &BTreeMap<String, String>) -> Result<(), CniError> {
    let text = match fs::read_to_string(ALLOWED) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other.map_err(|e| failed(ALLOWED, e))?,
    };
    let plain = |line: &str| {
        let line = line.trim().trim_start_matches('^').trim_end_matches('$');
        line.replace("\\.", ".")
    };
    let names: Vec<String> = text.lines().map(plain).collect();
    match sysctls.keys().find(|key| !names.contains(key)) {
        None => Ok(()),
        Some(key) => {
            let text = format!("{key} is not named in {ALLOWED} (patterns are not supported yet)");
            Err(CniError::config("sysctl", text))
        }
    }
}

fn change(settings: &Settings) -> Result<LinkChange<'static>, CniError> {
    Ok(LinkChange {
        mac: mac(&settings.mac)?,
        mtu: (settings.mtu != 0).then_some(settings.mtu),
        promiscuous: settings.promisc,
        all_multicast: settings.allmulti,
        queue_length: settings.queue,
        ..LinkChange::default()
    })
}

/// Of an interface, those settings that `wanted` is about.
fn current(link: &Link, wanted: &Settings) -> Settings {
    let own_mac = link.mac.map(|m| m.to_string()).unwrap_or_default();
    Settings {
        mac: if wanted.mac.is_empty() {
            String::new()
        } else {
            own_mac
        },
        promisc: wanted.promisc.map(|_| link.promiscuous),
        mtu: if wanted.mtu == 0 { 0 } else { link.mtu },
        queue: wanted.queue.map(|_| link.queue_length),
        allmulti: wanted.allmulti.map(|_| link.all_multicast),
    }
}

impl Tuning {
    /// Where the settings of before are kept.
    fn memory(&self, call: &Invocation<'_>, config: &Config) -> PathBuf {
        let base = config.data_dir.clone();
        let base = base.unwrap_or_else(|| self.0.memory.join("tuning"));
        let plain = |text: &str| text.replace('/', "_");
        base.join(format!(
            "{}_{}.json",
            plain(call.container_id),
            plain(call.ifname)
        ))
    }

    fn remember(
        &self,
        call: &Invocation<'_>,
        config: &Config,
        old: &Settings,
    ) -> Result<(), CniError> {
        let path = self.memory(call, config);
        let text = serde_json::to_vec(old).map_err(|e| failed(path.display(), e))?;
        let written = path.parent().map_or(Ok(()), fs::create_dir_all);
        written
            .and_then(|()| fs::write(&path, text))
            .map_err(|e| failed(path.display(), e))
    }
}

impl Builtin for Tuning {
    fn name(&self) -> &'static str {
        "tuning"
    }

    fn add(&self, call: &Invocation<'_>) -> Result<CniResult, CniError> {
        let config = Config::of_call(call)?;
        let mut result = previous_of(call, "tuning")?.clone();
        allowed(&config.sysctl)?;
        let netns = netns_of(call)?;
        for (key, value) in &config.sysctl {
            let name = path(key, call.ifname)?;
            let set = netns.inside.set_sysctl(&name, value);
            set.map_err(|e| failed(format!("sysctl {key}={value}"), e))?;
        }
        if config.settings == Settings::default() {
            return Ok(result);
        }
        let mut socket = socket_of(netns.route)?;
        let there = link(&mut socket, call.ifname)?;
        self.remember(call, &config, &current(&there, &config.settings))?;
        let mut batch = Batch::new();
        change_link(&mut batch, there.index, "", &change(&config.settings)?);
        send(
            &mut socket,
            &mut batch,
            format!("interface {} of the pod", call.ifname),
        )?;
        if !config.settings.mac.is_empty() {
            for interface in result
                .interfaces
                .iter_mut()
                .filter(|i| i.name == call.ifname)
            {
                interface.mac.clone_from(&config.settings.mac);
            }
        }
        Ok(result)
    }

    fn del(&self, call: &Invocation<'_>) -> Result<(), CniError> {
        let config = Config::of(call.plugin)?;
        let path = self.memory(call, &config);
        let text = match fs::read(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other.map_err(|e| failed(path.display(), e))?,
        };
        // An interface that goes back to the node is to be as it was.
        let old: Option<Settings> = serde_json::from_slice(&text).ok();
        if let (Some(netns), Some(old)) = (call.netns, old) {
            let mut batch = Batch::new();
            change_link(&mut batch, 0, call.ifname, &change(&old)?);
            match socket_of(netns.route)?.execute(&mut batch) {
                Err(e) if e.errno != rustix::io::Errno::NODEV => {
                    return Err(failed(format!("interface {} of the pod", call.ifname), e));
                }
                _restored => {}
            }
        }
        fs::remove_file(&path).map_err(|e| failed(path.display(), e))
    }

    fn check(&self, call: &Invocation<'_>) -> Result<(), CniError> {
        let config = Config::of_call(call)?;
        let netns = netns_of(call)?;
        for (key, value) in &config.sysctl {
            let name = path(key, call.ifname)?;
            let is = netns.inside.sysctl(&name).map_err(|e| failed(key, e))?;
            if is != *value {
                return Err(CniError::internal(format!(
                    "sysctl {key} is {is}, not {value}"
                )));
            }
        }
        let there = link(&mut socket_of(netns.route)?, call.ifname)?;
        let is = current(&there, &config.settings);
        let same_mac = mac(&is.mac)? == mac(&config.settings.mac)?;
        let wanted = Settings {
            mac: is.mac.clone(),
            ..config.settings
        };
        if is == wanted && same_mac {
            return Ok(());
        }
        Err(CniError::internal(format!(
            "interface {} of the pod was changed: it has {is:?}",
            call.ifname
        )))
    }

    fn status(&self, _network: &str, plugin: &Map<String, Value>) -> Result<(), CniError> {
        let config = Config::of(plugin)?;
        allowed(&config.sysctl)
    }

    fn gc(&self, _: &str, _: &Map<String, Value>, _: &[Attachment]) -> Result<(), CniError> {
        Ok(())
    }
}
