//! Capability sets: the defaults with what was added and dropped.

use wharf_runtime::spec::Capabilities;
use wharf_runtime::spec::capability;

use crate::error::RequestError;
use crate::spec::SecuritySpec;

/// What containerd gives by default, as everybody's images expect.
const DEFAULT: [&str; 14] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
];

/// The masks: what it may have, and what of that its program gets when it is not root.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sets {
    pub(crate) bounding: u64,
    pub(crate) ambient: u64,
}

/// The sets asked for, of which only those in `available` can be given.
pub(crate) fn sets(security: &SecuritySpec, available: u64) -> Result<Sets, RequestError> {
    if security.privileged {
        return Ok(Sets {
            bounding: available,
            ambient: 0,
        });
    }
    let asked = &security.capabilities;
    let mut bounding = DEFAULT
        .iter()
        .filter_map(|name| capability::bit(name))
        .fold(0, |a, b| a | b);
    if has_all(&asked.add) {
        bounding = available;
    }
    if has_all(&asked.drop) {
        bounding = 0;
    }
    bounding |= mask(&asked.add)?;
    bounding &= !mask(&asked.drop)?;
    let ambient = mask(&asked.add_ambient)?;
    // What is ambient must be permitted too.
    let bounding = (bounding | ambient) & available;
    Ok(Sets {
        bounding,
        ambient: ambient & bounding,
    })
}

/// The sets by name. Inheritable is empty but for what is ambient (CVE-2022-24769).
pub(crate) fn named(sets: Sets) -> Capabilities {
    let names = |mask| {
        capability::names(mask)
            .into_iter()
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    Capabilities {
        bounding: names(sets.bounding),
        effective: names(sets.bounding),
        permitted: names(sets.bounding),
        inheritable: names(sets.ambient),
        ambient: names(sets.ambient),
    }
}

fn has_all(names: &[String]) -> bool {
    names.iter().any(|name| name.eq_ignore_ascii_case("ALL"))
}

fn mask(names: &[String]) -> Result<u64, RequestError> {
    names
        .iter()
        .filter(|name| !name.eq_ignore_ascii_case("ALL"))
        .try_fold(0, |mask, name| {
            let upper = name.to_ascii_uppercase();
            let full = if upper.starts_with("CAP_") {
                upper
            } else {
                format!("CAP_{upper}")
            };
            let bit = capability::bit(&full).ok_or_else(|| RequestError::Invalid {
                field: "linux.security_context.capabilities",
                reason: format!("{name:?} is not a capability"),
            })?;
            Ok(mask | bit)
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::CapabilitySpec;

    fn of(add: &[&str], drop: &[&str], ambient: &[&str]) -> Result<Sets, RequestError> {
        let list = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect();
        let capabilities = CapabilitySpec {
            add: list(add),
            drop: list(drop),
            add_ambient: list(ambient),
        };
        sets(
            &SecuritySpec {
                capabilities,
                ..SecuritySpec::default()
            },
            capability::ALL,
        )
    }

    fn bit(name: &str) -> u64 {
        capability::bit(name).unwrap()
    }

    #[test]
    fn defaults_are_changed_by_name_in_any_spelling() {
        let default = of(&[], &[], &[]).unwrap().bounding;
        assert_eq!(default.count_ones(), 14);
        let more = of(&["net_admin", "CAP_SYS_TIME"], &["chown"], &[])
            .unwrap()
            .bounding;
        assert_eq!(
            more,
            (default | bit("CAP_NET_ADMIN") | bit("CAP_SYS_TIME")) & !bit("CAP_CHOWN")
        );
    }

    #[test]
    fn all_is_everything_or_nothing_and_single_names_count_on_top() {
        assert_eq!(of(&["ALL"], &[], &[]).unwrap().bounding, capability::ALL);
        assert_eq!(of(&[], &["all"], &[]).unwrap().bounding, 0);
        assert_eq!(
            of(&["KILL"], &["ALL"], &[]).unwrap().bounding,
            bit("CAP_KILL")
        );
        let but_one = of(&["ALL"], &["KILL"], &[]).unwrap().bounding;
        assert_eq!(but_one, capability::ALL & !bit("CAP_KILL"));
    }

    #[test]
    fn what_the_daemon_does_not_have_cannot_be_given() {
        let security = SecuritySpec {
            privileged: true,
            ..SecuritySpec::default()
        };
        let available = capability::ALL & !bit("CAP_SYS_RESOURCE");
        assert_eq!(sets(&security, available).unwrap().bounding, available);
    }

    #[test]
    fn ambient_capabilities_are_inheritable_and_permitted() {
        let sets = of(&[], &["ALL"], &["NET_BIND_SERVICE"]).unwrap();
        let named = named(sets);
        for set in [
            &named.ambient,
            &named.inheritable,
            &named.effective,
            &named.permitted,
        ] {
            assert_eq!(set, &["CAP_NET_BIND_SERVICE"]);
        }
        assert!(
            super::named(of(&[], &[], &[]).unwrap())
                .inheritable
                .is_empty()
        );
    }

    #[test]
    fn an_unknown_capability_is_named() {
        let e = of(&["FLY"], &[], &[]).unwrap_err();
        assert!(e.to_string().contains("\"FLY\""), "{e}");
    }
}
