//! What the runtime says of itself: versions, readiness, features.

use std::collections::HashMap;

use serde_json::Value;
use wharf_api::v1;
use wharf_engine::NetworkState;

/// The API's version, also in the services' names.
const API_VERSION: &str = "v1";
/// What kubelet expects in the first field, and never reads (CRI `VersionResponse`).
const KUBELET_API_VERSION: &str = "0.1.0";
/// The name that `kubectl get nodes -o wide` shows before the version.
const NAME: &str = "wharf";

/// What only the daemon knows of its node.
#[derive(Debug, Clone)]
pub struct NodeFacts {
    /// Version of the daemon.
    pub version: &'static str,
    /// The configuration for `Status` with `verbose`; `stateDir` is what critest looks for.
    pub config: Value,
}

impl NodeFacts {
    pub(crate) fn version(&self) -> v1::VersionResponse {
        v1::VersionResponse {
            version: KUBELET_API_VERSION.to_owned(),
            runtime_name: NAME.to_owned(),
            runtime_version: self.version.to_owned(),
            runtime_api_version: API_VERSION.to_owned(),
        }
    }

    /// `state` is that of the pods' network, if they get one.
    pub(crate) fn status(&self, state: Option<&NetworkState>, verbose: bool) -> v1::StatusResponse {
        let (ready, reason, message) = match state.map(|s| &s.ready) {
            None | Some(Ok(())) => (true, "", String::new()),
            Some(Err(why)) => (false, "NetworkPluginNotReady", why.clone()),
        };
        let network = condition("NetworkReady", ready, reason, message);
        // A door that answers has an engine that recovered.
        let runtime = condition("RuntimeReady", true, "", String::new());
        let info = if verbose {
            let mut info = crate::info::map("config", &self.config);
            info.extend(state.map(crate::info::network).unwrap_or_default());
            info
        } else {
            HashMap::new()
        };
        v1::StatusResponse {
            status: Some(v1::RuntimeStatus {
                conditions: vec![runtime, network],
            }),
            info,
            runtime_handlers: vec![v1::RuntimeHandler {
                name: String::new(),
                features: Some(v1::RuntimeHandlerFeatures {
                    recursive_read_only_mounts: true,
                    user_namespaces: false,
                }),
            }],
            features: Some(v1::RuntimeFeatures {
                supplemental_groups_policy: true,
                user_namespaces_host_network: false,
                mount_options: true,
            }),
        }
    }
}

fn condition(kind: &str, status: bool, reason: &str, message: String) -> v1::RuntimeCondition {
    v1::RuntimeCondition {
        r#type: kind.to_owned(),
        status,
        reason: reason.to_owned(),
        message,
    }
}

/// kubelet asks once and has to use the same driver.
pub(crate) fn runtime_config() -> v1::RuntimeConfigResponse {
    v1::RuntimeConfigResponse {
        linux: Some(v1::LinuxRuntimeConfiguration {
            cgroup_driver: v1::CgroupDriver::Cgroupfs.into(),
        }),
    }
}
