//! Which seccomp and AppArmor profile: the new fields, or the deprecated strings where they are absent.
//! Confinement that is asked for and cannot be had is refused, unless the kernel has no such thing and what
//! was asked for is what the runtime thinks best.

use std::path::PathBuf;

use crate::error::RequestError;
use crate::spec::{ProfileSpec, SecuritySpec, SelinuxSpec};

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

/// The AppArmor profile to run under; empty for none. There is no default one yet.
pub(crate) fn apparmor(security: &SecuritySpec, available: bool) -> Result<String, RequestError> {
    const DEFAULT: &str = "runtime/default";
    let name = match &security.apparmor {
        Some(ProfileSpec::RuntimeDefault) => DEFAULT,
        Some(ProfileSpec::Unconfined) => "unconfined",
        Some(ProfileSpec::Localhost(name)) => name.as_str(),
        None => security.apparmor_profile.as_str(),
    };
    match name {
        "" | "unconfined" => return Ok(String::new()),
        // The default does not confine the privileged, nor where there is no AppArmor, as in containerd.
        DEFAULT if security.privileged || !available => return Ok(String::new()),
        DEFAULT => {
            let text = "the default AppArmor profile is not supported yet: ask for Unconfined, or for \
                        a Localhost profile that the node has loaded";
            return Err(RequestError::Unsupported(text.to_owned()));
        }
        _ => {}
    }
    let name = name.strip_prefix("localhost/").unwrap_or(name);
    if !available {
        return Err(RequestError::Unsupported(format!(
            "AppArmor profile {name:?} was asked for, but this kernel runs without AppArmor"
        )));
    }
    Ok(name.to_owned())
}

/// SELinux labels cannot be given yet; where there is no SELinux they mean nothing, as in containerd.
pub(crate) fn refuse_labels(
    labels: Option<&SelinuxSpec>,
    available: bool,
) -> Result<(), RequestError> {
    match labels {
        Some(labels) if available => Err(RequestError::Unsupported(format!(
            "SELinux label {}:{}:{}:{}: labels are not supported yet, and this kernel runs with SELinux: \
             leave selinux_options away",
            labels.user, labels.role, labels.kind, labels.level
        ))),
        _ => Ok(()),
    }
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
        let privileged = SecuritySpec {
            privileged: true,
            ..asked("localhost/mine")
        };
        assert_eq!(apparmor(&privileged, true).unwrap(), "mine");
    }

    #[test]
    fn the_default_apparmor_profile_is_refused_only_where_it_would_confine() {
        let new = SecuritySpec {
            apparmor: Some(ProfileSpec::RuntimeDefault),
            ..SecuritySpec::default()
        };
        let old = SecuritySpec {
            apparmor_profile: "runtime/default".to_owned(),
            ..SecuritySpec::default()
        };
        for asked in [new, old] {
            let e = apparmor(&asked, true).unwrap_err();
            assert!(matches!(e, RequestError::Unsupported(_)), "{e}");
            assert_eq!(apparmor(&asked, false).unwrap(), "");
            let privileged = SecuritySpec {
                privileged: true,
                ..asked
            };
            assert_eq!(apparmor(&privileged, true).unwrap(), "");
        }
        assert_eq!(apparmor(&SecuritySpec::default(), true).unwrap(), "");
    }

    #[test]
    fn labels_are_refused_only_where_they_would_confine() {
        let labels = SelinuxSpec {
            kind: "container_t".to_owned(),
            ..SelinuxSpec::default()
        };
        let e = refuse_labels(Some(&labels), true).unwrap_err();
        assert!(e.to_string().contains("container_t"), "{e}");
        refuse_labels(Some(&labels), false).unwrap();
        refuse_labels(None, true).unwrap();
    }
}
