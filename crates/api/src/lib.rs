//! CRI v1: our .proto text and the code generated from it.
//!
//! Messages, client and server of `runtime.v1.RuntimeService` and `runtime.v1.ImageService`, the newest API
//! (k8s.io/cri-api 0.37). Debug output of a message never shows credentials or values of environment variables.

/// The protobuf package `runtime.v1`.
#[allow(clippy::all, clippy::pedantic, rustdoc::all, reason = "generated code")]
pub mod v1 {
    tonic::include_proto!("runtime.v1");
}

use std::fmt;

/// The largest message that wharf and its clients accept, in bytes. kubelet's own limit is 16 MiB
/// (k8s.io/cri-client); ExecSync may answer with two streams of 16 MiB each.
pub const MESSAGE_MAX: usize = 64 << 20;

impl fmt::Debug for v1::AuthConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AuthConfig")
            .field("server_address", &self.server_address)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for v1::KeyValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyValue")
            .field("key", &self.key)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::v1;
    use prost::Message as _;

    #[test]
    fn debug_output_hides_credentials_and_the_environment() {
        let pull = v1::PullImageRequest {
            auth: Some(v1::AuthConfig {
                username: "u-sekrit".to_owned(),
                password: "p-sekrit".to_owned(),
                auth: "a-sekrit".to_owned(),
                server_address: "registry.test".to_owned(),
                identity_token: "i-sekrit".to_owned(),
                registry_token: "r-sekrit".to_owned(),
            }),
            ..Default::default()
        };
        let shown = format!("{pull:?}");
        assert!(!shown.contains("sekrit") && shown.contains("registry.test"));
        let config = v1::ContainerConfig {
            envs: vec![v1::KeyValue {
                key: "TOKEN".to_owned(),
                value: b"sekrit".to_vec(),
            }],
            ..Default::default()
        };
        let shown = format!("{config:?}");
        assert!(shown.contains("TOKEN") && !shown.contains("sekrit") && !shown.contains("115"));
    }

    /// Encoded by hand from the field numbers of cri-api: what another implementation sends is understood.
    #[test]
    fn the_numbers_on_the_wire_are_those_of_the_api() {
        let user = v1::ContainerConfig::decode(
            // metadata#1 {name#1 "c", attempt#2 7}, stop_signal#18 = 23
            &[0x0a, 5, 0x0a, 1, b'c', 0x10, 7, 0x90, 0x01, 23][..],
        )
        .unwrap();
        assert_eq!(user.metadata.unwrap().attempt, 7);
        assert_eq!(user.stop_signal, v1::Signal::Sigterm as i32);
        let security = v1::LinuxContainerSecurityContext {
            run_as_group: Some(v1::Int64Value { value: 1 }),
            supplemental_groups_policy: v1::SupplementalGroupsPolicy::Strict.into(),
            ..Default::default()
        };
        assert_eq!(security.encode_to_vec(), [0x62, 2, 0x08, 1, 0x88, 0x01, 1]);
        assert_eq!(v1::Signal::Sigrtmax as i32, 65);
        assert_eq!(
            v1::security_profile::ProfileType::Localhost as i32,
            2,
            "0 is RuntimeDefault: an absent message means unconfined"
        );
    }
}
