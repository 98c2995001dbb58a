//! A network's configuration: one file with a chain of plugins. Source: CNI 1.1, section 1.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::limits::PLUGINS_MAX;
use crate::version::CniVersion;

/// A network: a chain of plugins.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Network {
    /// Its name.
    pub name: String,
    /// The version in which its plugins are spoken to.
    pub version: CniVersion,
    /// All versions that its file allows and that are known here, oldest first.
    pub versions: Vec<CniVersion>,
    /// CHECK is never called.
    pub disable_check: bool,
    /// GC is never called: others use the network too.
    pub disable_gc: bool,
    /// Its plugins, in the order of ADD.
    pub plugins: Vec<PluginConf>,
    /// Where it was read.
    pub file: PathBuf,
}

/// One plugin of a chain.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PluginConf {
    /// Its `type`.
    pub kind: String,
    /// Its object as it was written.
    pub object: Map<String, Value>,
    /// It runs in-process; settled when the network is taken into use.
    pub builtin: bool,
}

impl PluginConf {
    /// Whether the plugin wants to be told of `capability`.
    pub fn wants(&self, capability: &str) -> bool {
        let declared = self.object.get("capabilities");
        declared.and_then(|c| c.get(capability)) == Some(&Value::Bool(true))
    }

    /// The plugin that gives this one addresses.
    pub(crate) fn addresses_by(&self) -> Option<&str> {
        let name = self.object.get("ipam")?.get("type")?.as_str();
        name.filter(|name| !name.is_empty())
    }
}

/// How an error begins that is about a file; of our own network there is none.
pub(crate) fn place(file: &Path) -> String {
    match file.as_os_str().is_empty() {
        true => String::new(),
        false => format!("{}: ", file.display()),
    }
}

/// What is wrong with a configuration, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The file.
    pub file: PathBuf,
    /// The plugin, by its place (from 1) and `type`, when it is one's.
    pub plugin: Option<(usize, String)>,
    /// The field; empty when it is the whole file.
    pub field: String,
    /// What is wrong with it.
    pub reason: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.file.display())?;
        if let Some((place, kind)) = &self.plugin {
            write!(f, "plugin {place} ({kind:?}): ")?;
        }
        if !self.field.is_empty() {
            write!(f, "{}: ", self.field)?;
        }
        f.write_str(&self.reason)
    }
}

impl std::error::Error for Problem {}

/// Reads the configuration that `file` holds. `beside` gives the objects of the directory named like the
/// network beside the file, if there is one: they follow the file's own.
///
/// # Errors
///
/// The field that is wrong, and why.
pub fn parse(
    file: &Path,
    bytes: &[u8],
    beside: impl FnOnce(&str) -> Result<Vec<Map<String, Value>>, Problem>,
) -> Result<Network, Problem> {
    let at = At(file);
    let value = serde_json::from_slice(bytes);
    let Value::Object(object) = value.map_err(|e| at.problem("", format!("is not JSON: {e}")))?
    else {
        return Err(at.problem("", "is not an object"));
    };
    let versions = at.versions(&object)?;
    let name = at.name(&object)?;
    let (disable_check, disable_gc, objects);
    if object.contains_key("plugins") {
        disable_check = at.flag(&object, "disableCheck")?;
        disable_gc = at.flag(&object, "disableGC")?;
        let mut list = at.plugins(&object)?;
        if !at.flag(&object, "loadOnlyInlinedPlugins")? {
            list.extend(beside(&name)?);
        }
        objects = list;
    } else {
        (disable_check, disable_gc) = (false, false);
        objects = vec![object];
    }
    if objects.is_empty() {
        return Err(at.problem("plugins", "is empty: name at least one plugin"));
    }
    if objects.len() > PLUGINS_MAX {
        let reason = format!(
            "has {} plugins, at most {PLUGINS_MAX} are run",
            objects.len()
        );
        return Err(at.problem("plugins", reason));
    }
    let plugins = objects.into_iter().enumerate();
    Ok(Network {
        name,
        version: versions.last().copied().unwrap_or(CniVersion::V0_1_0),
        versions,
        disable_check,
        disable_gc,
        plugins: plugins
            .map(|(n, object)| at.plugin(n + 1, object))
            .collect::<Result<_, _>>()?,
        file: file.to_owned(),
    })
}

/// One plugin's object in a file of its own.
///
/// # Errors
///
/// It is not an object with a `type`.
pub fn parse_plugin(file: &Path, bytes: &[u8]) -> Result<Map<String, Value>, Problem> {
    let at = At(file);
    match serde_json::from_slice(bytes) {
        Ok(Value::Object(object)) => at.plugin(1, object).map(|plugin| plugin.object),
        Ok(_) => Err(at.problem("", "is not an object")),
        Err(e) => Err(at.problem("", format!("is not JSON: {e}"))),
    }
}

struct At<'a>(&'a Path);

impl At<'_> {
    fn problem(&self, field: &str, reason: impl Into<String>) -> Problem {
        Problem {
            file: self.0.to_owned(),
            plugin: None,
            field: field.to_owned(),
            reason: reason.into(),
        }
    }

    /// The versions that are allowed and known, oldest first; never none.
    fn versions(&self, object: &Map<String, Value>) -> Result<Vec<CniVersion>, Problem> {
        const ONE: &str = "cniVersion";
        const MANY: &str = "cniVersions";
        let mut texts = Vec::new();
        match object.get(ONE) {
            None => {}
            Some(Value::String(text)) if text.is_empty() => {}
            Some(Value::String(text)) => texts.push(text.as_str()),
            Some(_) => return Err(self.problem(ONE, "is not a string")),
        }
        match object.get(MANY) {
            None => {}
            Some(Value::Array(list)) => {
                for value in list {
                    let text = value.as_str();
                    texts.push(text.ok_or_else(|| self.problem(MANY, "is not a list of strings"))?);
                }
            }
            Some(_) => return Err(self.problem(MANY, "is not a list of strings")),
        }
        if texts.is_empty() {
            return Ok(vec![CniVersion::V0_1_0]);
        }
        let mut known: Vec<CniVersion> = texts.iter().filter_map(|t| t.parse().ok()).collect();
        known.sort_unstable();
        known.dedup();
        if known.is_empty() {
            let refused = texts[0].parse::<CniVersion>();
            let why = refused.err().map(|e| e.to_string()).unwrap_or_default();
            return Err(self.problem(ONE, why));
        }
        Ok(known)
    }

    fn name(&self, object: &Map<String, Value>) -> Result<String, Problem> {
        const FIELD: &str = "name";
        let name = match object.get(FIELD) {
            None => return Err(self.problem(FIELD, "is missing: give the network a name")),
            Some(Value::String(name)) => name,
            Some(_) => return Err(self.problem(FIELD, "is not a string")),
        };
        let mut letters = name.chars();
        let starts = letters.next().is_some_and(|c| c.is_ascii_alphanumeric());
        // It becomes a file name with many plugins.
        if !starts || !letters.all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c)) {
            let reason = format!(
                "{name:?} must begin with a letter or digit and have only letters, digits, _ . and -"
            );
            return Err(self.problem(FIELD, reason));
        }
        Ok(name.clone())
    }

    /// A boolean, which some write as a string.
    fn flag(&self, object: &Map<String, Value>, field: &str) -> Result<bool, Problem> {
        match object.get(field) {
            None => Ok(false),
            Some(Value::Bool(value)) => Ok(*value),
            Some(Value::String(text)) if text.eq_ignore_ascii_case("true") => Ok(true),
            Some(Value::String(text)) if text.eq_ignore_ascii_case("false") => Ok(false),
            Some(_) => Err(self.problem(field, "is neither true nor false")),
        }
    }

    fn plugins(&self, object: &Map<String, Value>) -> Result<Vec<Map<String, Value>>, Problem> {
        const FIELD: &str = "plugins";
        let Some(Value::Array(list)) = object.get(FIELD) else {
            return Err(self.problem(FIELD, "is not a list"));
        };
        let objects = list.iter().enumerate().map(|(n, value)| {
            let object = value.as_object().cloned();
            object.ok_or_else(|| self.problem(FIELD, format!("item {} is not an object", n + 1)))
        });
        objects.collect()
    }

    fn plugin(&self, place: usize, object: Map<String, Value>) -> Result<PluginConf, Problem> {
        let wrong = |kind: &str, field: &str, reason: String| Problem {
            plugin: Some((place, kind.to_owned())),
            ..self.problem(field, reason)
        };
        let kind = match object.get("type") {
            Some(Value::String(kind)) if !kind.is_empty() => kind.clone(),
            Some(Value::String(_)) | None => {
                let reason = "is missing: name the plugin".to_owned();
                return Err(wrong("", "type", reason));
            }
            Some(_) => return Err(wrong("", "type", "is not a string".to_owned())),
        };
        if kind.contains(['/', '\0']) || kind == "." || kind == ".." {
            let reason = "must be the name of a program, without a path".to_owned();
            return Err(wrong(&kind, "type", reason));
        }
        match object.get("capabilities") {
            None | Some(Value::Null) => {}
            Some(Value::Object(map)) if map.values().all(Value::is_boolean) => {}
            Some(_) => {
                let reason = "is not an object of true and false".to_owned();
                return Err(wrong(&kind, "capabilities", reason));
            }
        }
        Ok(PluginConf {
            kind,
            object,
            builtin: false,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Network, Problem> {
        parse(Path::new("/d/x.conflist"), text.as_bytes(), |_| {
            Ok(Vec::new())
        })
    }

    #[test]
    fn a_list_is_read_with_everything_it_says() {
        let text = r#"{"cniVersion": "0.3.1", "cniVersions": ["1.0.0", "9.9.9", "0.4.0"], "name": "k8s",
            "disableCheck": "true", "disableGC": true, "plugins": [
              {"type": "bridge", "bridge": "cni0", "ipam": {"type": "host-local"}},
              {"type": "portmap", "capabilities": {"portMappings": true, "dns": false}}]}"#;
        let network = read(text).unwrap();
        assert_eq!(network.name, "k8s");
        assert_eq!(network.version, CniVersion::V1_0_0);
        assert_eq!(network.versions.len(), 3);
        assert!(network.disable_check && network.disable_gc);
        assert_eq!(network.plugins[0].object["bridge"], "cni0");
        assert!(network.plugins[1].wants("portMappings") && !network.plugins[1].wants("dns"));
    }

    #[test]
    fn a_single_plugin_is_a_network_too() {
        let network = read(r#"{"name": "n", "type": "bridge"}"#).unwrap();
        assert_eq!(network.version, CniVersion::V0_1_0);
        assert_eq!(network.plugins[0].kind, "bridge");
    }

    #[test]
    fn plugins_of_the_directory_beside_follow_unless_refused() {
        let beside = |name: &str| {
            assert_eq!(name, "n");
            Ok(vec![serde_json::from_str(r#"{"type": "tuning"}"#).unwrap()])
        };
        let file = Path::new("/d/x.conflist");
        let kinds = |text: &str| {
            let network = parse(file, text.as_bytes(), beside).unwrap();
            network
                .plugins
                .into_iter()
                .map(|p| p.kind)
                .collect::<Vec<_>>()
        };
        let (open, closed) = (
            r#"{"name": "n", "plugins": [{"type": "bridge"}]}"#,
            r#"{"name": "n", "loadOnlyInlinedPlugins": true, "plugins": [{"type": "bridge"}]}"#,
        );
        assert_eq!(kinds(open), ["bridge", "tuning"]);
        assert_eq!(kinds(closed), ["bridge"]);
        assert_eq!(kinds(r#"{"name": "n", "plugins": []}"#), ["tuning"]);
    }

    #[test]
    fn what_is_wrong_is_named_with_file_plugin_and_field() {
        for (text, words) in [
            ("{", &["x.conflist", "is not JSON"][..]),
            ("[]", &["is not an object"]),
            (r#"{"name": "n"}"#, &["plugin 1", "type", "is missing"]),
            (r#"{"plugins": []}"#, &["name", "is missing"]),
            (r#"{"name": "a/b", "plugins": []}"#, &["name", "\"a/b\""]),
            (r#"{"name": ".x", "plugins": []}"#, &["name", "\".x\""]),
            (
                r#"{"name": "n", "plugins": {}}"#,
                &["plugins", "is not a list"],
            ),
            (r#"{"name": "n", "plugins": []}"#, &["plugins", "is empty"]),
            (r#"{"name": "n", "plugins": [3]}"#, &["plugins", "item 1"]),
            (
                r#"{"name": "n", "plugins": [{"type": "a"}, {}]}"#,
                &["plugin 2", "type"],
            ),
            (
                r#"{"name": "n", "plugins": [{"type": "../a"}]}"#,
                &["plugin 1 (\"../a\")", "type"],
            ),
            (
                r#"{"name": "n", "plugins": [{"type": "a", "capabilities": {"dns": 1}}]}"#,
                &["plugin 1 (\"a\")", "capabilities"],
            ),
            (
                r#"{"name": "n", "cniVersion": "2.0.0", "plugins": []}"#,
                &["cniVersion", "2.0.0", "1.1.0"],
            ),
            (
                r#"{"name": "n", "cniVersions": "1.0.0", "plugins": []}"#,
                &["cniVersions"],
            ),
            (
                r#"{"name": "n", "disableGC": 1, "plugins": []}"#,
                &["disableGC"],
            ),
        ] {
            let problem = read(text).expect_err(text).to_string();
            for word in words {
                assert!(problem.contains(word), "{word} in {problem}");
            }
        }
    }
}
