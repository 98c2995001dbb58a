//! The bridge network that a benchmark gives to the pods of every contestant.

use std::time::Duration;

use serde_json::json;
use wharf_api::v1::StatusRequest;
use wharf_testkit::node::Node;
use wharf_testkit::wait;

use crate::cargo::text;

/// How long a daemon may take to see its configuration.
const SOON: Duration = Duration::from_secs(10);

/// Writes what the peer has by testkit, with a bridge and a subnet of its own, and waits until pods can be
/// attached to it.
pub(super) fn configure(node: &Node) -> Result<(), String> {
    // The peer has testkit's own.
    if !node.dir().join("cni").is_dir() {
        std::fs::create_dir_all(node.net_d()).map_err(text)?;
        let ipam = json!({
            "type": "host-local",
            "ranges": [[{ "subnet": "10.89.0.0/16" }]],
            "routes": [{ "dst": "0.0.0.0/0" }],
        });
        let list = json!({ "cniVersion": "1.0.0", "name": "bench", "plugins": [
            { "type": "bridge", "bridge": "wharfbench", "isGateway": true, "ipMasq": true,
              "promiscMode": true, "ipam": ipam },
            { "type": "portmap", "capabilities": { "portMappings": true } },
        ]});
        let path = node.net_d().join("10-bench.conflist");
        std::fs::write(path, list.to_string()).map_err(text)?;
    }
    let mut last = String::new();
    let ready = wait::until(SOON, || {
        let cri = node.cri();
        let status = cri.wait(cri.runtime().status(StatusRequest::default()));
        let conditions = status
            .map_err(std::io::Error::other)?
            .status
            .unwrap_or_default();
        let network = conditions
            .conditions
            .iter()
            .find(|c| c.r#type == "NetworkReady");
        last = network.map_or_else(String::new, |c| c.message.clone());
        Ok(network.is_some_and(|c| c.status))
    });
    match ready.map_err(text)? {
        true => Ok(()),
        false => Err(format!("the network is not ready: {last}")),
    }
}
