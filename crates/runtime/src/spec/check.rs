//! Whether the values of a config.json make sense, before anything is made from it.

use super::{Process, Spec, SpecError, capability};

/// The most entries of one list in a document (mounts, arguments, rules…).
pub const ENTRIES_MAX: usize = 65536;

fn invalid(field: impl Into<String>, problem: impl Into<String>) -> SpecError {
    SpecError::Invalid {
        field: field.into(),
        problem: problem.into(),
    }
}

/// Checks a whole document.
///
/// # Errors
/// [`SpecError::Invalid`] with the first field that is not allowed.
pub fn check(spec: &Spec) -> Result<(), SpecError> {
    check_version(&spec.oci_version)?;
    let Some(root) = &spec.root else {
        return Err(invalid("root", "is missing"));
    };
    if root.path.is_empty() {
        return Err(invalid("root.path", "is empty"));
    }
    text("root.path", &root.path)?;
    let Some(process) = &spec.process else {
        return Err(invalid("process", "is missing"));
    };
    check_process(process)?;
    text("hostname", &spec.hostname)?;
    text("domainname", &spec.domainname)?;
    check_mounts(spec)?;
    check_linux(spec)
}

/// Versions are `1.x.y`, with or without a suffix.
fn check_version(version: &str) -> Result<(), SpecError> {
    let field = "ociVersion";
    if version.is_empty() {
        return Err(invalid(field, "is missing"));
    }
    let core = version.split(['-', '+']).next().unwrap_or_default();
    let parts: Vec<_> = core.split('.').map(str::parse::<u32>).collect();
    match parts.as_slice() {
        [Ok(1), Ok(_), Ok(_)] => Ok(()),
        [Ok(_), Ok(_), Ok(_)] => Err(invalid(
            field,
            format!("{version} is not supported, versions 1.x are"),
        )),
        _ => Err(invalid(
            field,
            format!("{version:?} is not a version such as 1.3.0"),
        )),
    }
}

/// Checks what is executed: the init's, or an exec's document.
///
/// # Errors
/// [`SpecError::Invalid`] with the first field that is not allowed.
pub fn check_process(process: &Process) -> Result<(), SpecError> {
    let first = process.args.first();
    if first.is_none_or(String::is_empty) {
        return Err(invalid(
            "process.args",
            "must name the program to be executed",
        ));
    }
    entries("process.args", process.args.len())?;
    entries("process.env", process.env.len())?;
    for arg in &process.args {
        text("process.args", arg)?;
    }
    for variable in &process.env {
        text("process.env", variable)?;
        if variable.find('=').is_none_or(|at| at == 0) {
            return Err(invalid(
                "process.env",
                format!("{variable:?} is not NAME=value"),
            ));
        }
    }
    absolute("process.cwd", &process.cwd)?;
    if process.user.umask.is_some_and(|mask| mask > 0o777) {
        return Err(invalid("process.user.umask", "must be at most 0777"));
    }
    if let Some(score) = process.oom_score_adj
        && !(-1000..=1000).contains(&score)
    {
        return Err(invalid(
            "process.oomScoreAdj",
            format!("{score} is not between -1000 and 1000"),
        ));
    }
    if let Some(sets) = &process.capabilities {
        for (name, set) in [
            ("bounding", &sets.bounding),
            ("effective", &sets.effective),
            ("inheritable", &sets.inheritable),
            ("permitted", &sets.permitted),
            ("ambient", &sets.ambient),
        ] {
            if let Some(unknown) = set.iter().find(|cap| capability::bit(cap).is_none()) {
                return Err(invalid(
                    format!("process.capabilities.{name}"),
                    format!("unknown capability {unknown:?}"),
                ));
            }
        }
    }
    Ok(())
}

fn check_mounts(spec: &Spec) -> Result<(), SpecError> {
    entries("mounts", spec.mounts.len())?;
    for (index, mount) in spec.mounts.iter().enumerate() {
        let field = |name: &str| format!("mounts[{index}].{name}");
        if mount.destination.is_empty() {
            return Err(invalid(field("destination"), "is empty"));
        }
        text(&field("destination"), &mount.destination)?;
        text(&field("source"), &mount.source)?;
        text(&field("type"), &mount.kind)?;
        for option in &mount.options {
            text(&field("options"), option)?;
        }
    }
    Ok(())
}

fn check_linux(spec: &Spec) -> Result<(), SpecError> {
    let Some(linux) = &spec.linux else {
        return Err(invalid("linux", "is missing"));
    };
    let mut seen = Vec::new();
    for entry in &linux.namespaces {
        if seen.contains(&entry.kind) {
            return Err(invalid(
                "linux.namespaces",
                format!("{} is listed twice", entry.kind.name()),
            ));
        }
        seen.push(entry.kind);
        if !entry.path.is_empty() {
            absolute("linux.namespaces.path", &entry.path)?;
        }
    }
    for (field, paths) in [
        ("linux.maskedPaths", &linux.masked_paths),
        ("linux.readonlyPaths", &linux.readonly_paths),
    ] {
        entries(field, paths.len())?;
        for path in paths {
            absolute(field, path)?;
        }
    }
    entries("linux.devices", linux.devices.len())?;
    for device in &linux.devices {
        absolute("linux.devices.path", &device.path)?;
    }
    text("linux.cgroupsPath", &linux.cgroups_path)
}

fn entries(field: &str, count: usize) -> Result<(), SpecError> {
    if count > ENTRIES_MAX {
        return Err(invalid(field, format!("more than {ENTRIES_MAX} entries")));
    }
    Ok(())
}

/// The kernel's strings end at a NUL byte: one inside would silently cut the rest.
fn text(field: &str, value: &str) -> Result<(), SpecError> {
    if value.contains('\0') {
        return Err(invalid(field, "contains a NUL byte"));
    }
    Ok(())
}

fn absolute(field: &str, path: &str) -> Result<(), SpecError> {
    text(field, path)?;
    if !path.starts_with('/') {
        return Err(invalid(field, format!("{path:?} is not an absolute path")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::load::parse;

    fn spec(change: impl FnOnce(&mut serde_json::Value)) -> Spec {
        let mut value = serde_json::json!({
            "ociVersion": "1.3.0",
            "root": {"path": "rootfs"},
            "process": {"args": ["sh"], "cwd": "/", "env": ["A=b"]},
            "linux": {"namespaces": [{"type": "mount"}]},
        });
        change(&mut value);
        parse(value.to_string().as_bytes()).unwrap()
    }

    #[test]
    fn a_plain_document_is_accepted() {
        check(&spec(|_| {})).unwrap();
        check(&spec(|v| v["ociVersion"] = "1.2.1-dev".into())).unwrap();
    }

    type Change = fn(&mut serde_json::Value);

    #[test]
    fn every_refusal_names_its_field() {
        let cases: [(Change, &str); 10] = [
            (|v| v["ociVersion"] = "99.9.9".into(), "ociVersion"),
            (|v| v["root"] = serde_json::Value::Null, "root"),
            (
                |v| v["process"]["args"] = serde_json::json!([]),
                "process.args",
            ),
            (|v| v["process"]["cwd"] = "tmp".into(), "process.cwd"),
            (
                |v| v["process"]["env"] = serde_json::json!(["=x"]),
                "process.env",
            ),
            (
                |v| v["process"]["args"] = serde_json::json!(["a\u{0}b"]),
                "process.args",
            ),
            (
                |v| v["process"]["capabilities"] = serde_json::json!({"ambient": ["CAP_FLY"]}),
                "process.capabilities.ambient",
            ),
            (
                |v| v["linux"]["namespaces"] = serde_json::json!([{"type":"pid"},{"type":"pid"}]),
                "linux.namespaces",
            ),
            (
                |v| v["linux"]["maskedPaths"] = serde_json::json!(["proc/kcore"]),
                "linux.maskedPaths",
            ),
            (
                |v| v["mounts"] = serde_json::json!([{"destination": ""}]),
                "mounts[0].destination",
            ),
        ];
        for (change, expected) in cases {
            let SpecError::Invalid { field, .. } = check(&spec(change)).unwrap_err() else {
                panic!("not an Invalid");
            };
            assert_eq!(field, expected);
        }
    }
}
