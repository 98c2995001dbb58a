//! Which seccomp and AppArmor profile: the new fields, or the deprecated strings where they are absent.

use std::path::PathBuf;

use crate::error::RequestError;
use crate::spec::{ProfileSpec, SecuritySpec};

/// The system call filter asked for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum SeccompChoice {
    /// None.
    Unconfined,
    /// The default one, for the container's capabilities.
    Default,
    /// The one in this file.
    File(PathBuf),
}

/// The system call filter asked for. Nothing said is unconfined: kubelet says `RuntimeDefault` when it
/// means it.
pub(crate) fn seccomp(security: &SecuritySpec) -> Result<SeccompChoice, RequestError> {
    if security.privileged {
        return Ok(SeccompChoice::Unconfined);
    }
    let (field, path) = match &security.seccomp {
        Some(ProfileSpec::RuntimeDefault) => return Ok(SeccompChoice::Default),
        Some(ProfileSpec::Unconfined) => return Ok(SeccompChoice::Unconfined),
        Some(ProfileSpec::Localhost(path)) => ("linux.security_context.seccomp", path.as_str()),
        None => match security.seccomp_profile_path.as_str() {
            "" | "unconfined" => return Ok(SeccompChoice::Unconfined),
            "runtime/default" | "docker/default" => return Ok(SeccompChoice::Default),
            path => ("linux.security_context.seccomp_profile_path", path),
        },
    };
    let given = path.strip_prefix("localhost/").unwrap_or(path);
    let file = PathBuf::from(given);
    if !file.is_absolute() || given == path && field.ends_with("_path") {
        let reason = format!(
            "{path:?} is no profile: unconfined, runtime/default or localhost/<absolute path> are"
        );
        return Err(RequestError::Invalid { field, reason });
    }
    Ok(SeccompChoice::File(file))
}

/// The AppArmor profile to run under; empty for none.
pub(crate) fn apparmor(security: &SecuritySpec, available: bool) -> Result<String, RequestError> {
    if security.privileged {
        return Ok(String::new());
    }
    let name = match &security.apparmor {
        Some(ProfileSpec::RuntimeDefault | ProfileSpec::Unconfined) => return Ok(String::new()),
        Some(ProfileSpec::Localhost(name)) => name.as_str(),
        None => match security.apparmor_profile.as_str() {
            "" | "unconfined" | "runtime/default" => return Ok(String::new()),
            name => name,
        },
    };
    let name = name.strip_prefix("localhost/").unwrap_or(name);
    if !available {
        return Err(RequestError::Unsupported(format!(
            "AppArmor profile {name:?} was asked for, but this kernel runs without AppArmor"
        )));
    }
    Ok(name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(seccomp: Option<ProfileSpec>, path: &str) -> SecuritySpec {
        let seccomp_profile_path = path.to_owned();
        SecuritySpec {
            seccomp,
            seccomp_profile_path,
            ..SecuritySpec::default()
        }
    }

    #[test]
    fn the_deprecated_string_counts_only_without_the_new_field() {
        use SeccompChoice::{Default, File, Unconfined};
        let file = |p: &str| File(PathBuf::from(p));
        let cases = [
            (with(None, ""), Unconfined),
            (with(None, "unconfined"), Unconfined),
            (with(None, "runtime/default"), Default),
            (with(None, "docker/default"), Default),
            (with(None, "localhost//p/x.json"), file("/p/x.json")),
            (
                with(Some(ProfileSpec::RuntimeDefault), "unconfined"),
                Default,
            ),
            (
                with(Some(ProfileSpec::Unconfined), "runtime/default"),
                Unconfined,
            ),
            (
                with(Some(ProfileSpec::Localhost("/p".to_owned())), ""),
                file("/p"),
            ),
            (
                with(Some(ProfileSpec::Localhost("localhost//p".to_owned())), ""),
                file("/p"),
            ),
        ];
        for (security, choice) in cases {
            assert_eq!(seccomp(&security).unwrap(), choice, "{security:?}");
        }
        let privileged = SecuritySpec {
            privileged: true,
            ..with(None, "runtime/default")
        };
        assert_eq!(seccomp(&privileged).unwrap(), Unconfined);
    }

    #[test]
    fn a_word_that_is_no_profile_is_refused() {
        for bad in ["nonsense", "/p/x.json", "localhost/relative"] {
            assert!(seccomp(&with(None, bad)).is_err(), "{bad}");
        }
        let relative = with(Some(ProfileSpec::Localhost("relative".to_owned())), "");
        seccomp(&relative).unwrap_err();
    }

    #[test]
    fn an_apparmor_profile_is_refused_only_where_it_would_be_missed() {
        let asked = |name: &str| SecuritySpec {
            apparmor_profile: name.to_owned(),
            ..SecuritySpec::default()
        };
        for harmless in ["", "unconfined", "runtime/default"] {
            assert_eq!(apparmor(&asked(harmless), false).unwrap(), "");
        }
        let e = apparmor(&asked("localhost/mine"), false).unwrap_err();
        assert!(e.to_string().contains("\"mine\""), "{e}");
        assert_eq!(apparmor(&asked("localhost/mine"), true).unwrap(), "mine");
    }
}
