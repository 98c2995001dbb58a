//! Checks that no compiler makes: who may use whom, in which order modules stand, how files open
//! and how long they are; then format and lints.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use wharf_testkit::cache;

use crate::args::Args;
use crate::cargo::{cargo, output, run as run_command, text};

/// Longest file, in lines before its `mod tests {`.
const FILE_LINES_MAX: usize = 600;

/// Not shipped: outside the layers, and nothing shipped may depend on them.
const NOT_SHIPPED: [&str; 2] = ["wharf-testkit", "xtask"];

/// Programs that live once per pod: no async runtime, no C library but the one they are linked to.
const SMALL: [&str; 2] = ["wharf-shim", "wharf-runtime"];

/// `cargo xtask tidy`; with `--quick` without format and lints, which need a build.
pub(crate) fn run(mut args: Args) -> Result<(), String> {
    let quick = args.flag("--quick");
    args.end()?;
    let mut found = Vec::new();
    let metadata = output(&mut cargo(&["metadata", "--format-version=1", "--no-deps"]))?;
    let metadata: Value = serde_json::from_str(&metadata).map_err(text)?;
    found.extend(layers(&metadata));
    for package in list(&metadata["packages"]) {
        let manifest = package["manifest_path"].as_str().unwrap_or_default();
        let src = Path::new(manifest).with_file_name("src");
        found.extend(package_files(&src));
    }
    for package in SMALL {
        let args = [
            "tree",
            "--package",
            package,
            "--edges",
            "normal",
            "--prefix",
            "none",
        ];
        found.extend(heavy(package, &output(&mut cargo(&args))?));
    }
    for breach in &found {
        eprintln!("tidy: {breach}");
    }
    let mut failed = !found.is_empty();
    let clippy = [
        "clippy",
        "--workspace",
        "--all-targets",
        "--quiet",
        "--",
        "-D",
        "warnings",
    ];
    let build = [&["fmt", "--all", "--check"][..], &clippy];
    for args in build.iter().filter(|_| !quick) {
        if let Err(e) = run_command(&mut cargo(args)) {
            eprintln!("tidy: {e}");
            failed = true;
        }
    }
    if failed {
        Err("tidy: see above".into())
    } else {
        Ok(())
    }
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn word(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// Each crate depends on crates of lower layers only (`workspace.metadata.layers.order`).
fn layers(metadata: &Value) -> Vec<String> {
    let mut height = BTreeMap::new();
    for (layer, crates) in list(&metadata["metadata"]["layers"]["order"]).enumerate() {
        height.extend(list(crates).map(|name| (word(name), layer)));
    }
    let mut found = Vec::new();
    for package in list(&metadata["packages"]) {
        let name = word(&package["name"]);
        if NOT_SHIPPED.contains(&name) {
            continue;
        }
        let Some(own) = height.get(name) else {
            found.push(format!("{name} is in no layer of the root Cargo.toml"));
            continue;
        };
        for dependency in list(&package["dependencies"]).filter(|d| d["kind"] != "dev") {
            let on = word(&dependency["name"]);
            let too_high = height.get(on).is_some_and(|h| h >= own);
            if too_high || NOT_SHIPPED.contains(&on) {
                found.push(format!(
                    "{name} depends on {on}, which is not in a lower layer"
                ));
            }
        }
    }
    found
}

/// What a small program must not contain, from the lines of `cargo tree`.
fn heavy(package: &str, tree: &str) -> Vec<String> {
    let names = tree.lines().filter_map(|l| l.split(' ').next());
    let bad = names.filter(|n| {
        let c_library = n.ends_with("-sys") && !["wharf-sys", "linux-raw-sys"].contains(n);
        c_library || ["tokio", "async-std", "smol", "hyper"].contains(n)
    });
    bad.map(|n| format!("{package} must not contain {n}; `cargo tree -p {package} -i {n}`"))
        .collect()
}

/// The checks on the source files of one package. Tests in files of their own (`tests.rs`,
/// `tests/…`) need a header only.
fn package_files(src: &Path) -> Vec<String> {
    let mut files = Vec::new();
    rust_files(src, &mut files);
    let mut found = Vec::new();
    for (path, text) in &files {
        found.extend(header(&shown(path), text));
    }
    files.retain(|(path, _)| !is_test(path.strip_prefix(src).unwrap_or(path)));
    for (path, text) in &files {
        found.extend(length(&shown(path), text));
    }
    for root in ["lib.rs", "main.rs"] {
        if let Ok(text) = fs::read_to_string(src.join(root)) {
            found.extend(order(&modules(&text), src, &files));
        }
    }
    found
}

fn is_test(path: &Path) -> bool {
    path.iter()
        .any(|part| part == "tests" || part == "tests.rs")
}

fn shown(path: &Path) -> String {
    path.strip_prefix(cache::workspace())
        .unwrap_or(path)
        .display()
        .to_string()
}

fn rust_files(dir: &Path, out: &mut Vec<(PathBuf, String)>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            rust_files(&path, out);
        } else if path.extension().is_some_and(|e| e == "rs")
            && let Ok(text) = fs::read_to_string(&path)
        {
            out.push((path, text));
        }
    }
}

fn header(name: &str, text: &str) -> Option<String> {
    let opens = text.starts_with("//! ");
    (!opens).then(|| format!("{name} does not open with a `//!` header that says its duty"))
}

fn length(name: &str, text: &str) -> Option<String> {
    let lines = before_tests(text).count();
    let limit = FILE_LINES_MAX;
    (lines > limit).then(|| format!("{name} has {lines} lines before its tests, more than {limit}"))
}

fn before_tests(text: &str) -> impl Iterator<Item = &str> {
    text.lines().take_while(|line| *line != "mod tests {")
}

/// The modules that a root file declares, in its order.
fn modules(root: &str) -> Vec<String> {
    let declared = |line: &str| {
        let line = line
            .trim_start_matches("pub(crate) ")
            .trim_start_matches("pub ");
        let name = line.strip_prefix("mod ")?.split(';').next()?;
        line.contains(';').then(|| name.trim().to_string())
    };
    before_tests(root).filter_map(declared).collect()
}

/// A module names only modules that the root declares above it.
fn order(modules: &[String], src: &Path, files: &[(PathBuf, String)]) -> Vec<String> {
    let mut found = Vec::new();
    for (path, text) in files {
        let inside = path.strip_prefix(src).unwrap_or(path);
        let top = inside
            .iter()
            .next()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let own = top.trim_end_matches(".rs");
        let Some(own_at) = modules.iter().position(|m| m == own) else {
            continue;
        };
        for named in named_modules(text) {
            if modules
                .iter()
                .position(|m| *m == named)
                .is_some_and(|at| at > own_at)
            {
                let name = shown(path);
                found.push(format!(
                    "{name} names `crate::{named}`, which is declared below `{own}`"
                ));
            }
        }
    }
    found
}

/// The first names behind `crate::` in code; comments and tests do not count.
fn named_modules(text: &str) -> Vec<String> {
    let code: Vec<&str> = before_tests(text)
        .map(|l| l.split("//").next().unwrap_or(l))
        .collect();
    let code = code.join("\n");
    let mut found = Vec::new();
    for (at, prefix) in code.match_indices("crate::") {
        if code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_') {
            continue;
        }
        let path = &code[at + prefix.len()..];
        match path.strip_prefix('{') {
            None => found.push(identifier(path)),
            Some(group) => found.extend(heads(group)),
        }
    }
    found.sort();
    found.dedup();
    found
}

fn identifier(text: &str) -> String {
    text.trim_start()
        .chars()
        .take_while(|c| c.is_alphanumeric() || *c == '_')
        .collect()
}

/// The first name of each item of the group `{a, b::{c, d}}` whose brace is already taken.
fn heads(group: &str) -> Vec<String> {
    let mut found = vec![identifier(group)];
    let mut depth = 0;
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => found.push(identifier(&group[at + 1..])),
            _ => {}
        }
    }
    found.retain(|name| !name.is_empty());
    found
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_crate_may_not_use_its_own_layer_or_a_higher_one_or_the_testkit() {
        let package = |name: &str, on: &[(&str, Value)]| {
            let on: Vec<Value> = on
                .iter()
                .map(|(n, k)| json!({ "name": n, "kind": k }))
                .collect();
            json!({ "name": name, "dependencies": on })
        };
        let metadata = json!({
            "metadata": { "layers": { "order": [["low", "beside"], ["high"]] } },
            "packages": [
                package("low", &[("beside", Value::Null), ("serde", Value::Null)]),
                package("beside", &[("high", json!("build")), ("wharf-testkit", json!("dev"))]),
                package("high", &[("low", Value::Null), ("wharf-testkit", Value::Null)]),
                package("stray", &[]),
            ],
        });
        let found = layers(&metadata);
        assert_eq!(found.len(), 4, "{found:?}");
        assert!(found[0].starts_with("low depends on beside"));
        assert!(found[1].starts_with("beside depends on high"));
        assert!(found[2].starts_with("high depends on wharf-testkit"));
        assert!(found[3].starts_with("stray is in no layer"));
    }

    #[test]
    fn a_module_may_not_name_one_that_is_declared_below_it() {
        let modules =
            modules("//! x\nmod fd; // low\npub(crate) mod pod;\npub mod top;\nmod tests {");
        assert_eq!(modules, ["fd", "pod", "top"]);
        let file = |path: &str, text: &str| (Path::new("/src").join(path), text.to_string());
        let files = [
            file("fd.rs", "use crate::{fd, pod::{a, b}};"),
            file(
                "pod/state.rs",
                "use crate::fd; // crate::top\nmy_crate::top::f();",
            ),
            file("top.rs", "use crate::pod;\nmod tests {\nuse crate::below;"),
        ];
        let found = order(&modules, Path::new("/src"), &files);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].contains("fd.rs names `crate::pod`"), "{found:?}");
    }

    #[test]
    fn a_file_opens_with_its_duty_and_is_short_before_its_tests() {
        let long = "//! d\n".to_string() + &"x\n".repeat(FILE_LINES_MAX);
        assert!(length("f", &long).is_some());
        let tests = "//! d\nmod tests {\n".to_string() + &"x\n".repeat(FILE_LINES_MAX);
        assert_eq!(length("f", &tests), None);
        assert!(header("f", "fn main() {}\n").is_some() && header("f", &long).is_none());
        assert!(is_test(Path::new("convert/tests.rs")) && !is_test(Path::new("suite.rs")));
    }

    #[test]
    fn an_async_runtime_or_a_c_library_in_the_shim_is_named() {
        let found = heavy(
            "wharf-shim",
            "wharf-shim v0.1.0\ntokio v1.0.0\nzstd-sys v2\nwharf-sys v0",
        );
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[0].contains("tokio") && found[1].contains("zstd-sys"));
    }
}
