//! Compiled system call filters, kept: compiling is pure, and most containers ask for the same.

use std::collections::HashMap;
use std::io::Read as _;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use wharf_runtime::seccomp::{self, Architecture, Program};
use wharf_runtime::spec::Seccomp;
use wharf_types::Digest;

use crate::error::RequestError;
use crate::limits::{SECCOMP_CACHE_MAX, SECCOMP_FILE_MAX};
use crate::oci::profiles::SeccompChoice;

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Key {
    Default { bounding: u64 },
    File(Digest),
}

/// Compiled filters by what they were compiled from.
#[derive(Debug)]
pub(crate) struct Filters {
    kernel: (u32, u32),
    kept: Mutex<HashMap<Key, Arc<Program>>>,
}

impl Filters {
    /// For this kernel; none kept yet.
    pub(crate) fn new(kernel: (u32, u32)) -> Self {
        Self {
            kernel,
            kept: Mutex::default(),
        }
    }

    /// The filter asked for; `None` for none. May read a file.
    pub(crate) fn get(
        &self,
        choice: &SeccompChoice,
        bounding: u64,
    ) -> Result<Option<Arc<Program>>, RequestError> {
        match choice {
            SeccompChoice::Unconfined => Ok(None),
            SeccompChoice::Default => {
                let architecture = Architecture::native().ok_or_else(|| {
                    let arch = std::env::consts::ARCH;
                    RequestError::Unsupported(format!("seccomp on {arch} is not supported yet"))
                })?;
                let profile = || {
                    Ok(seccomp::default_profile(
                        bounding,
                        architecture,
                        self.kernel,
                    ))
                };
                self.compiled(Key::Default { bounding }, profile).map(Some)
            }
            SeccompChoice::File(path) => {
                let bytes = read(path)?;
                let parse = || {
                    serde_json::from_slice::<Seccomp>(&bytes)
                        .map_err(|e| invalid(path, &format!("is no seccomp profile: {e}")))
                };
                self.compiled(Key::File(Digest::of(&bytes)), parse)
                    .map(Some)
            }
        }
    }

    fn compiled(
        &self,
        key: Key,
        profile: impl FnOnce() -> Result<Seccomp, RequestError>,
    ) -> Result<Arc<Program>, RequestError> {
        let kept = || self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(program) = kept().get(&key) {
            return Ok(program.clone());
        }
        let program = seccomp::compile(&profile()?).map_err(|e| RequestError::Invalid {
            field: "linux.security_context.seccomp",
            reason: e.to_string(),
        })?;
        let program = Arc::new(program);
        let mut kept = kept();
        if kept.len() >= SECCOMP_CACHE_MAX {
            // So many different profiles are not in use at the same time.
            kept.clear();
        }
        kept.insert(key, program.clone());
        Ok(program)
    }
}

fn invalid(path: &Path, problem: &str) -> RequestError {
    RequestError::Invalid {
        field: "linux.security_context.seccomp",
        reason: format!("{} {problem}", path.display()),
    }
}

fn read(path: &Path) -> Result<Vec<u8>, RequestError> {
    let file =
        std::fs::File::open(path).map_err(|e| invalid(path, &format!("cannot be read: {e}")))?;
    let mut bytes = Vec::new();
    file.take(SECCOMP_FILE_MAX + 1)
        .read_to_end(&mut bytes)
        .map_err(|e| invalid(path, &format!("cannot be read: {e}")))?;
    if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > SECCOMP_FILE_MAX {
        return Err(invalid(
            path,
            &format!("is over the limit of {SECCOMP_FILE_MAX} bytes"),
        ));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use wharf_types::Kind;

    #[test]
    fn the_default_filter_is_compiled_once_for_the_same_capabilities() {
        let filters = Filters::new((6, 18));
        let get = |bounding| {
            filters
                .get(&SeccompChoice::Default, bounding)
                .unwrap()
                .unwrap()
        };
        assert!(Arc::ptr_eq(&get(1), &get(1)));
        assert!(!Arc::ptr_eq(&get(1), &get(1 << 21)));
        assert!(
            filters
                .get(&SeccompChoice::Unconfined, 0)
                .unwrap()
                .is_none()
        );
    }

    #[test]
    fn a_file_that_is_no_profile_is_named() {
        let filters = Filters::new((6, 18));
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("p.json");
        for content in [
            None,
            Some("nonsense"),
            Some("{\"defaultAction\": \"SCMP_ACT_FLY\"}"),
        ] {
            if let Some(content) = content {
                std::fs::write(&path, content).unwrap();
            }
            let e = filters
                .get(&SeccompChoice::File(path.clone()), 0)
                .unwrap_err();
            assert_eq!(e.kind(), Kind::Invalid, "{e}");
        }
        std::fs::write(&path, "{\"defaultAction\": \"SCMP_ACT_ALLOW\"}").unwrap();
        assert!(
            filters
                .get(&SeccompChoice::File(path), 0)
                .unwrap()
                .is_some()
        );
    }
}
