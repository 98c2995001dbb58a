//! Failures in the words of the protocol: step, object, errno, kind.

use std::io;

use rustix::io::Errno;
use wharf_plan::PROTOCOL;
use wharf_plan::message::{Failure, FailureKind};
use wharf_runtime::launch::StepError;

/// A step of the kernel's failed.
pub(crate) fn step(step: &str, object: &str, errno: i32) -> Failure {
    Failure {
        step: step.to_owned(),
        object: object.to_owned(),
        errno,
        kind: FailureKind::Step.into(),
    }
}

/// A step of the kernel's failed, for `map_err`.
pub(crate) fn errno<'a>(name: &'a str, object: &'a str) -> impl FnOnce(Errno) -> Failure + 'a {
    move |errno| step(name, object, errno.raw_os_error())
}

/// The same for an [`io::Error`].
pub(crate) fn io<'a>(name: &'a str, object: &'a str) -> impl FnOnce(io::Error) -> Failure + 'a {
    move |error| step(name, object, error.raw_os_error().unwrap_or(0))
}

/// What the launch of a process says, unchanged.
pub(crate) fn launch(error: &StepError) -> Failure {
    step(&error.step, &error.object, error.errno)
}

/// The message cannot be understood or breaks a limit.
pub(crate) fn invalid(request: &str, why: impl Into<String>) -> Failure {
    said(request, why, FailureKind::Invalid)
}

/// A request of a kind that came with a later release.
pub(crate) fn unknown(who: &str) -> Failure {
    let why = format!(
        "not supported by this {who} (wharf {}, protocol {PROTOCOL}): the daemon is newer",
        env!("CARGO_PKG_VERSION")
    );
    said("request", why, FailureKind::Unsupported)
}

/// What is asked for is not there.
pub(crate) fn not_found(request: &str, why: impl Into<String>) -> Failure {
    said(request, why, FailureKind::NotFound)
}

/// What is there is not in a state that allows it.
pub(crate) fn conflict(request: &str, why: impl Into<String>) -> Failure {
    said(request, why, FailureKind::Conflict)
}

fn said(request: &str, why: impl Into<String>, kind: FailureKind) -> Failure {
    Failure {
        step: request.to_owned(),
        object: why.into(),
        errno: 0,
        kind: kind.into(),
    }
}
