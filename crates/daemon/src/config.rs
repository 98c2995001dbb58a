//! The configuration file: TOML, every key optional, unknown keys are errors.
//!
//! The struct's defaults are the documented defaults; `wharf config default` prints them.

use std::io;
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;

/// Read when the command line names no other; it need not be there.
pub(crate) const DEFAULT_PATH: &str = "/etc/wharf/config.toml";
/// A configuration is a page of text, in bytes.
const FILE_MAX: u64 = 1 << 20;
/// `sun_path` of unix(7) without its final zero, and without the suffix that binding adds for a moment.
const SOCKET_PATH_MAX: usize = 107 - crate::socket::SUFFIX.len();
/// `state` leads every pod's socket: `/pods/<64>/shim.sock` has to fit behind it (unix(7)).
const STATE_PATH_MAX: usize = 107 - "/pods/".len() - 64 - "/shim.sock".len();

/// Why a configuration is refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum ConfigError {
    /// The file named on the command line is missing, or any file cannot be read.
    #[error("read configuration {path}")]
    Read { path: PathBuf, source: io::Error },
    /// Larger than any configuration.
    #[error("configuration {path} is {size} bytes long, at most {FILE_MAX} are read")]
    TooLong { path: PathBuf, size: u64 },
    /// Not TOML, an unknown key or a value of the wrong type. The source shows the line.
    #[error("configuration {path}")]
    Syntax {
        path: PathBuf,
        source: Box<toml::de::Error>,
    },
    /// A value that cannot work.
    #[error("configuration key {key}: {value:?} {why}")]
    Value {
        key: &'static str,
        value: String,
        why: &'static str,
    },
}

/// All of it.
#[derive(Debug, Clone, Deserialize, Serialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Config {
    /// What survives a reboot.
    pub(crate) root: PathBuf,
    /// What ends with the boot.
    pub(crate) state: PathBuf,
    pub(crate) cgroup: Cgroup,
    pub(crate) cri: Cri,
    pub(crate) cni: Cni,
    pub(crate) registry: Registry,
    pub(crate) shim: Shim,
    pub(crate) log: Log,
}

/// `[cgroup]`
#[derive(Debug, Clone, Deserialize, Serialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Cgroup {
    /// Our sub-cgroup in every hierarchy, relative to its top.
    pub(crate) parent: PathBuf,
    pub(crate) driver: Driver,
}

/// Who makes cgroups.
#[derive(Debug, Clone, Copy, Deserialize, Serialize, PartialEq)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Driver {
    Cgroupfs,
    Systemd,
}

/// `[cri]`
#[derive(Debug, Clone, Deserialize, Serialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Cri {
    pub(crate) socket: PathBuf,
    pub(crate) network: Network,
    /// Without a configuration in `cni.config_dir`, pods get a network of our own.
    pub(crate) default_network: bool,
}

/// `[cni]`
#[derive(Debug, Clone, Deserialize, Serialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Cni {
    /// Where network add-ons put their configurations.
    pub(crate) config_dir: PathBuf,
    /// Where their programs are.
    pub(crate) bin_dirs: Vec<PathBuf>,
    /// Where the pods' network namespaces are bound for other programs.
    pub(crate) netns_dir: PathBuf,
    /// Plugins that are built in run in-process; else all are programs.
    pub(crate) builtin: bool,
    /// How long a network that was ready stays so when its configuration goes or its plugins say no.
    pub(crate) grace_seconds: u64,
}

/// Where pods get their network from.
#[derive(Debug, Clone, Copy, Deserialize, Serialize, PartialEq)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Network {
    /// CNI plugins.
    Cni,
    /// Loopback only.
    None,
}

/// `[registry]`
#[derive(Debug, Clone, Deserialize, Serialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Registry {
    /// Directory of `<host>/hosts.toml`.
    pub(crate) certs_d: PathBuf,
}

/// `[shim]`
#[derive(Debug, Clone, Default, Deserialize, Serialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Shim {
    /// The program; beside our own when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) path: Option<PathBuf>,
}

/// `[log]`
#[derive(Debug, Clone, Deserialize, Serialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Log {
    /// A level, or directives as `tracing_subscriber::EnvFilter` reads them.
    pub(crate) level: String,
    pub(crate) format: Format,
}

/// How a line of the log looks.
#[derive(Debug, Clone, Copy, Deserialize, Serialize, PartialEq)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Format {
    Text,
    /// One object a line, except on a terminal.
    Json,
}

impl Log {
    /// What it lets through; `more` is added to a plain level.
    pub(crate) fn filter(&self, more: &str) -> Result<EnvFilter, ParseError> {
        if self.level.contains([',', '=']) {
            return EnvFilter::builder().parse(&self.level);
        }
        EnvFilter::builder().parse(format!("{}{more}", self.level))
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            root: "/var/lib/wharf".into(),
            state: "/run/wharf".into(),
            cgroup: Cgroup::default(),
            cri: Cri::default(),
            cni: Cni::default(),
            registry: Registry::default(),
            shim: Shim::default(),
            log: Log::default(),
        }
    }
}

impl Default for Cgroup {
    fn default() -> Self {
        Self {
            parent: "wharf".into(),
            driver: Driver::Cgroupfs,
        }
    }
}

impl Default for Cri {
    fn default() -> Self {
        Self {
            socket: "/run/wharf/wharf.sock".into(),
            network: Network::Cni,
            default_network: false,
        }
    }
}

impl Default for Cni {
    fn default() -> Self {
        Self {
            config_dir: "/etc/cni/net.d".into(),
            bin_dirs: vec!["/opt/cni/bin".into(), "/usr/lib/cni".into()],
            netns_dir: "/run/netns".into(),
            builtin: true,
            grace_seconds: 30,
        }
    }
}

impl Default for Registry {
    fn default() -> Self {
        Self {
            certs_d: "/etc/wharf/certs.d".into(),
        }
    }
}

impl Default for Log {
    fn default() -> Self {
        Self {
            level: "info".to_owned(),
            format: Format::Text,
        }
    }
}

impl Config {
    /// The file at `path`, or the default one, which may be missing.
    pub(crate) fn load(path: Option<&Path>) -> Result<Self, ConfigError> {
        let file = path.unwrap_or(Path::new(DEFAULT_PATH));
        let read = |source| ConfigError::Read {
            path: file.to_owned(),
            source,
        };
        match std::fs::metadata(file) {
            Ok(meta) if meta.len() > FILE_MAX => {
                return Err(ConfigError::TooLong {
                    path: file.to_owned(),
                    size: meta.len(),
                });
            }
            Ok(_) => {}
            Err(e) if path.is_none() && e.kind() == io::ErrorKind::NotFound => {
                return Ok(Self::default());
            }
            Err(e) => return Err(read(e)),
        }
        let text = std::fs::read_to_string(file).map_err(read)?;
        Self::parse(file, &text)
    }

    fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        toml::from_str(text).map_err(|source| ConfigError::Syntax {
            path: path.to_owned(),
            source: Box::new(source),
        })
    }

    /// Refuses what cannot work, before anything is made.
    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        for (key, path, max) in [
            ("root", &self.root, usize::MAX),
            ("state", &self.state, STATE_PATH_MAX),
            ("cri.socket", &self.cri.socket, SOCKET_PATH_MAX),
            ("registry.certs_d", &self.registry.certs_d, usize::MAX),
            ("cni.config_dir", &self.cni.config_dir, usize::MAX),
            ("cni.netns_dir", &self.cni.netns_dir, usize::MAX),
        ] {
            absolute(key, path, max)?;
        }
        for dir in &self.cni.bin_dirs {
            absolute("cni.bin_dirs", dir, usize::MAX)?;
        }
        if let Some(shim) = &self.shim.path {
            absolute("shim.path", shim, usize::MAX)?;
        }
        if self.root.starts_with(&self.state) || self.state.starts_with(&self.root) {
            return Err(bad(
                "state",
                &self.state,
                "and root must not contain each other",
            ));
        }
        let parent = &self.cgroup.parent;
        let mut parts = parent.components();
        if parent.as_os_str().is_empty() || !parts.all(|p| matches!(p, Component::Normal(_))) {
            let why = "must be a relative path without . or .., such as wharf";
            return Err(bad("cgroup.parent", parent, why));
        }
        if self.cgroup.driver == Driver::Systemd {
            let why = "is not supported yet: use cgroupfs";
            return Err(bad("cgroup.driver", Path::new("systemd"), why));
        }
        if self.log.filter("").is_err() {
            let why = "is not a level (error, warn, info, debug, trace) nor a list of directives";
            return Err(bad("log.level", Path::new(&self.log.level), why));
        }
        Ok(())
    }

    /// As TOML, with every key that is set.
    ///
    /// # Errors
    ///
    /// A path is not UTF-8, which came from the command line then.
    pub(crate) fn to_text(&self) -> Result<String, toml::ser::Error> {
        toml::to_string(self)
    }
}

fn bad(key: &'static str, value: &Path, why: &'static str) -> ConfigError {
    ConfigError::Value {
        key,
        value: value.to_string_lossy().into_owned(),
        why,
    }
}

fn absolute(key: &'static str, path: &Path, max: usize) -> Result<(), ConfigError> {
    let dotted = path.components().any(|p| p == Component::ParentDir);
    if !path.is_absolute() || dotted || path == Path::new("/") {
        let why = "must be an absolute path below / without ..";
        return Err(bad(key, path, why));
    }
    if path.as_os_str().len() > max {
        let why = "is too long: the path of a unix socket has 107 bytes";
        return Err(bad(key, path, why));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> String {
        let error = Config::parse(Path::new("/etc/x.toml"), text)
            .and_then(|c| c.check())
            .expect_err(text);
        wharf_types::chain(&error)
    }

    #[test]
    fn the_printed_defaults_are_the_defaults() {
        let default = Config::default();
        default.check().unwrap();
        let read = Config::parse(Path::new("x"), &default.to_text().unwrap()).unwrap();
        assert_eq!(read, default);
        let shim = Config {
            shim: Shim {
                path: Some("/opt/a \"b\"".into()),
            },
            ..default
        };
        assert_eq!(
            Config::parse(Path::new("x"), &shim.to_text().unwrap()).unwrap(),
            shim
        );
    }

    #[test]
    fn one_key_changes_one_thing() {
        let config = Config::parse(Path::new("x"), "[cri]\nnetwork = \"none\"\n").unwrap();
        assert_eq!(config.cri.network, Network::None);
        assert_eq!(config.cri.socket, Config::default().cri.socket);
    }

    #[test]
    fn an_unknown_key_is_named_with_file_and_line() {
        let error = refused("root = \"/a\"\n[cri]\nsokcet = \"/b\"\n");
        for part in ["/etc/x.toml", "line 3", "`sokcet`", "`socket`"] {
            assert!(error.contains(part), "{part} in {error}");
        }
    }

    #[test]
    fn values_that_cannot_work_are_refused_by_key() {
        for (text, key) in [
            ("root = \"a\"", "root"),
            ("state = \"/\"", "state"),
            ("state = \"/a/../b\"", "state"),
            ("root = \"/a\"\nstate = \"/a/b\"", "state"),
            ("[cgroup]\nparent = \"/a\"", "cgroup.parent"),
            ("[cgroup]\nparent = \"../a\"", "cgroup.parent"),
            ("[cgroup]\nparent = \"\"", "cgroup.parent"),
            ("[cgroup]\ndriver = \"systemd\"", "cgroup.driver"),
            ("[shim]\npath = \"wharf-shim\"", "shim.path"),
            ("[log]\nlevel = \"a=b=c\"", "log.level"),
        ] {
            assert!(refused(text).contains(key), "{}", refused(text));
        }
        let long = format!("[cri]\nsocket = \"/{}\"", "a".repeat(107));
        assert!(refused(&long).contains("cri.socket"));
        let wrong = refused("[cri]\nnetwork = \"bridge\"");
        assert!(wrong.contains("`cni`") && wrong.contains("line 2"));
    }

    #[test]
    fn only_the_default_file_may_be_missing() {
        let dir = std::env::temp_dir();
        let missing = dir.join("wharf-no-such-config.toml");
        let error = Config::load(Some(&missing)).unwrap_err();
        assert!(error.to_string().contains("wharf-no-such-config.toml"));
    }
}
