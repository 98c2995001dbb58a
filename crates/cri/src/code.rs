//! One table: what a caller can do about an error, as a gRPC code.

use std::error::Error;

use tonic::{Code, Status};
use wharf_types::{Kind, chain};

/// How kubelet recognises a registry that does not answer (k8s.io/cri-api/pkg/errors).
const REGISTRY_UNAVAILABLE: &str = "RegistryUnavailable";

/// The longest text of an answer, in bytes. It travels in an HTTP/2 header, up to three times as long
/// when it is not ASCII, and peers take 16 KiB of headers (h2's default). Clients choose what we quote.
const TEXT_MAX: usize = 4096;

/// The code that stands for `kind`.
pub fn code(kind: Kind) -> Code {
    match kind {
        Kind::Invalid => Code::InvalidArgument,
        Kind::NotFound => Code::NotFound,
        Kind::AlreadyExists => Code::AlreadyExists,
        Kind::Conflict => Code::FailedPrecondition,
        Kind::Denied => Code::PermissionDenied,
        Kind::Exhausted => Code::ResourceExhausted,
        Kind::Unavailable => Code::Unavailable,
        Kind::Timeout => Code::DeadlineExceeded,
        Kind::Cancelled => Code::Cancelled,
        Kind::Corrupt => Code::DataLoss,
        Kind::Unsupported => Code::Unimplemented,
        // `Kind` may grow: what we do not know is ours.
        _ => Code::Internal,
    }
}

/// An error with its causes as an answer.
pub(crate) fn status(kind: Kind, error: &dyn Error) -> Status {
    Status::new(code(kind), bounded(chain(error)))
}

/// `text`, cut where it would be too long for an answer.
pub(crate) fn bounded(mut text: String) -> String {
    if text.len() > TEXT_MAX {
        text.truncate(text.floor_char_boundary(TEXT_MAX));
        text.push('…');
    }
    text
}

/// A failed pull. kubelet reads the reason from the beginning of the text, and only under UNKNOWN
/// (k8s.io/cri-client strips that code, kubelet's image manager compares the rest).
pub(crate) fn pull_status(kind: Kind, error: &dyn Error) -> Status {
    match kind {
        Kind::Unavailable => {
            let text = format!("{REGISTRY_UNAVAILABLE}: {}", chain(error));
            Status::unknown(bounded(text))
        }
        other => status(other, error),
    }
}

/// An RPC that is not built yet. Clients fall back or skip, as they do with older runtimes.
pub(crate) fn not_built(what: &str) -> Status {
    Status::unimplemented(format!("{what}: not supported yet by wharf"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_the_code_that_clients_act_on() {
        for (kind, expected) in [
            (Kind::Invalid, Code::InvalidArgument),
            (Kind::NotFound, Code::NotFound),
            (Kind::AlreadyExists, Code::AlreadyExists),
            (Kind::Conflict, Code::FailedPrecondition),
            (Kind::Denied, Code::PermissionDenied),
            (Kind::Exhausted, Code::ResourceExhausted),
            (Kind::Unavailable, Code::Unavailable),
            (Kind::Timeout, Code::DeadlineExceeded),
            (Kind::Cancelled, Code::Cancelled),
            (Kind::Corrupt, Code::DataLoss),
            (Kind::Unsupported, Code::Unimplemented),
            (Kind::Internal, Code::Internal),
        ] {
            assert_eq!(code(kind), expected, "{kind:?}");
        }
    }

    #[test]
    fn a_text_that_no_header_could_hold_is_cut() {
        assert_eq!(bounded("short".to_owned()), "short");
        let cut = bounded("é".repeat(TEXT_MAX));
        assert!(cut.len() <= TEXT_MAX + 3 && cut.ends_with("é…"));
    }

    #[test]
    fn kubelet_recognises_a_registry_that_does_not_answer() {
        let refused = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
        let status = pull_status(Kind::Unavailable, &refused);
        assert_eq!(status.code(), Code::Unknown);
        assert!(status.message().starts_with("RegistryUnavailable: "));
        let denied = pull_status(Kind::Denied, &refused);
        assert_eq!(denied.code(), Code::PermissionDenied);
    }
}
