//! containerd as a peer: its configuration and its command, everything in one directory.

use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;

use crate::cache;
use crate::place::Place;
use crate::samples;

/// The cgroup in which containerd puts pods that name no parent.
pub(crate) const CGROUP: &str = "k8s.io";

/// The handlers whose runtime is installed.
pub fn handlers() -> Vec<&'static str> {
    ["runc", "crun"]
        .into_iter()
        .filter(|h| cache::find_program(h).is_some())
        .collect()
}

/// What is missing to run containerd as a peer; `None` where all is there.
pub fn missing() -> Option<&'static str> {
    let needed = ["containerd", "containerd-shim-runc-v2", "runc"];
    needed
        .into_iter()
        .find(|p| cache::find_program(p).is_none())
}

pub(crate) fn command(place: &Place, dir: &Path) -> io::Result<Command> {
    let program = cache::find_program("containerd")
        .ok_or_else(|| io::Error::other("no containerd in $RIG/bin or PATH"))?;
    let own = program
        .parent()
        .unwrap_or(Path::new("/usr/bin"))
        .as_os_str()
        .to_owned();
    let mut path = own;
    path.push(":");
    path.push(std::env::var_os("PATH").unwrap_or_default());
    let mut command = place.command(program);
    command
        .arg("-c")
        .arg(dir.join("config.toml"))
        .env("PATH", path);
    Ok(command)
}

/// The folder of the CNI plugins: `cni` beside containerd, or Debian's.
fn cni_plugins() -> Option<PathBuf> {
    let beside = cache::find_program("containerd")?.with_file_name("cni");
    [beside, "/usr/lib/cni".into()]
        .into_iter()
        .find(|d| d.join("bridge").is_file())
}

/// A pod network for containerd: pods can reach each other and the ports of the place.
pub(crate) fn network(dir: &Path) -> io::Result<()> {
    if cni_plugins().is_none() {
        return Ok(());
    }
    let ipam = json!({
        "type": "host-local",
        "ranges": [[{ "subnet": "10.88.0.0/16" }]],
        "routes": [{ "dst": "0.0.0.0/0" }],
        "dataDir": dir.join("ipam"),
    });
    let list = json!({ "cniVersion": "1.0.0", "name": "testkit", "plugins": [
        { "type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": true,
          "promiscMode": true, "ipam": ipam },
        { "type": "portmap", "capabilities": { "portMappings": true } },
    ]});
    std::fs::create_dir_all(dir.join("cni"))?;
    std::fs::write(dir.join("cni/10-testkit.conflist"), list.to_string())
}

pub(crate) fn config(dir: &Path) -> String {
    let at = dir.display();
    let sandbox = samples::SANDBOX_IMAGE;
    let plugins = cni_plugins().unwrap_or_else(|| dir.join("cni"));
    let plugins = plugins.display();
    let mut text = format!(
        r#"version = 3
root = "{at}/root"
state = "{at}/state"

[grpc]
  address = "{at}/cri.sock"

[plugins."io.containerd.cri.v1.images"]
  snapshotter = "overlayfs"
  pinned_images = {{ sandbox = "{sandbox}" }}
  registry = {{ config_path = "{at}/certs.d" }}

[plugins."io.containerd.transfer.v1.local"]
  config_path = "{at}/certs.d"

[plugins."io.containerd.nri.v1.nri"]
  disable = true

[plugins."io.containerd.cri.v1.runtime"]
  restrict_oom_score_adj = true
  cni = {{ bin_dirs = ["{plugins}"], conf_dir = "{at}/cni" }}

[plugins."io.containerd.cri.v1.runtime".containerd]
  default_runtime_name = "runc"
"#
    );
    for handler in handlers() {
        let Some(program) = cache::find_program(handler) else {
            continue;
        };
        let table =
            format!(r#"plugins."io.containerd.cri.v1.runtime".containerd.runtimes.{handler}"#);
        let _into_a_string = write!(
            text,
            "\n[{table}]\n  runtime_type = \"io.containerd.runc.v2\"\n\
             \n[{table}.options]\n  BinaryName = \"{}\"\n  SystemdCgroup = false\n",
            program.display()
        );
    }
    text
}
