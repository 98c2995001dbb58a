//! Shims of other releases: a pod's shim lives as long as the pod, the daemon is replaced above it.

use wharf_plan::message::Welcome;
use wharf_plan::{PROTOCOL, PROTOCOL_OLDEST};

use super::link::LinkError;

/// The protocol that this daemon announces. Tests may play another release.
pub(crate) fn protocol() -> u32 {
    wharf_sys::fault::number("WHARF_FAULT_PROTOCOL", PROTOCOL)
}

/// The oldest protocol that this daemon understands.
fn oldest() -> u32 {
    wharf_sys::fault::number("WHARF_FAULT_PROTOCOL_OLDEST", PROTOCOL_OLDEST)
}

/// Which release a shim is of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Release {
    /// The protocol that it announces.
    protocol: u32,
    /// The version of its program.
    version: String,
}

impl Release {
    /// Of the shim that said this.
    pub(crate) fn of(welcome: &Welcome) -> Self {
        Self {
            protocol: welcome.protocol,
            version: welcome.version.clone(),
        }
    }

    /// The protocol for new processes: the newest that both sides know.
    ///
    /// # Errors
    ///
    /// The shim is too old to be asked for more than to stop.
    pub(crate) fn common(&self) -> Result<u32, LinkError> {
        if self.protocol < oldest() {
            return Err(LinkError::TooOld {
                version: self.version.clone(),
                theirs: self.protocol,
                oldest: oldest(),
            });
        }
        Ok(self.protocol.min(protocol()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wharf_types::Kind;

    fn release(protocol: u32) -> Release {
        Release {
            protocol,
            version: "0.0.9".to_owned(),
        }
    }

    #[test]
    fn neighbours_speak_the_older_protocol_and_what_is_too_old_is_named_with_the_remedy() {
        assert_eq!(release(PROTOCOL).common().unwrap(), PROTOCOL);
        assert_eq!(release(PROTOCOL + 1).common().unwrap(), PROTOCOL);
        let refused = release(PROTOCOL_OLDEST - 1).common().unwrap_err();
        assert_eq!(refused.kind(), Kind::Unsupported);
        let text = refused.to_string();
        for word in ["0.0.9", "protocol 0", "remove the pod"] {
            assert!(text.contains(word), "{text}");
        }
    }
}
