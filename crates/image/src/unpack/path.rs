//! Names of entries as components.

use crate::limits::{COMPONENT_MAX, DEPTH_MAX, PATH_MAX};
use crate::unpack::error::{UnpackError, show};

/// The components of an entry's name, cleaned: no empty ones, no `.`, no `..`. A leading slash means
/// the layer's root.
///
/// # Errors
///
/// The name leads out of the layer, or is beyond a limit.
pub(crate) fn components(path: &[u8]) -> Result<Vec<&[u8]>, UnpackError> {
    let wrong = |why| UnpackError::Name {
        path: show(path),
        why,
    };
    if path.len() > PATH_MAX {
        return Err(wrong("the name is longer than 32 KiB"));
    }
    if path.contains(&0) {
        return Err(wrong("the name contains NUL"));
    }
    let mut components = Vec::new();
    for component in path.split(|b| *b == b'/') {
        match component {
            b"" | b"." => {}
            b".." => {
                components
                    .pop()
                    .ok_or(wrong("the name leads out of the layer"))?;
            }
            name if name.len() > COMPONENT_MAX => {
                return Err(wrong("a part of the name is longer than 255 bytes"));
            }
            name => components.push(name),
        }
    }
    if components.len() > DEPTH_MAX {
        return Err(wrong("the name has more than 2000 parts"));
    }
    Ok(components)
}

/// `parent/name`, without slash at the root.
pub(crate) fn join(parent: &[u8], name: &[u8]) -> Vec<u8> {
    if parent.is_empty() {
        name.to_vec()
    } else {
        [parent, b"/", name].concat()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_leads_out_is_refused_and_the_rest_is_cleaned() {
        let clean = |p: &str| components(p.as_bytes()).map(|c| c.join(&b'/'));
        assert_eq!(clean("./usr//bin/./x/").unwrap(), b"usr/bin/x");
        assert_eq!(clean("/etc/passwd").unwrap(), b"etc/passwd");
        assert_eq!(clean("a/../b").unwrap(), b"b");
        assert_eq!(clean("./").unwrap(), b"");
        for bad in ["..", "a/../../b", "/../x"] {
            assert!(clean(bad).is_err(), "{bad}");
        }
        clean(&"x".repeat(256)).unwrap_err();
        clean(&"x".repeat(255)).unwrap();
        clean(&"a/".repeat(2001)).unwrap_err();
    }

    proptest! {
        #[test]
        fn no_component_can_leave_its_directory(path in proptest::collection::vec(any::<u8>(), 0..60)) {
            for component in components(&path).unwrap_or_default() {
                prop_assert!(!matches!(component, b"" | b"." | b".."));
                prop_assert!(!component.contains(&b'/') && !component.contains(&0));
            }
        }
    }
}
