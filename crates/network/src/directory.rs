//! The directory of configurations: which network is the default one, and what is wrong with the rest.
//!
//! Files are read in the order of their names; the first that can be read is the default network. One
//! that could be read before and cannot now (it is being written) keeps its last good form.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Map, Value};

use crate::config::{self, Network, Problem};
use crate::limits::{CONFIG_FILE_MAX, CONFIG_FILES_MAX, PLUGINS_MAX};

/// Endings of the files that are configurations.
const ENDINGS: [&str; 3] = ["conf", "conflist", "json"];

/// What a look at the directory found.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Found {
    /// The default network.
    pub network: Option<Arc<Network>>,
    /// Files that cannot be used, and why.
    pub problems: Vec<Problem>,
}

/// A directory of configurations, and what its files said when they last could be read.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
    good: BTreeMap<PathBuf, Arc<Network>>,
}

impl Directory {
    /// The directory at `path`; it need not be there.
    pub fn new(path: PathBuf) -> Self {
        Self {
            path,
            good: BTreeMap::new(),
        }
    }

    /// Looks at every file. Blocks.
    pub fn look(&mut self) -> Found {
        let files = match list(&self.path, &ENDINGS) {
            Ok(files) => files,
            Err(problem) => {
                self.good.clear();
                return Found {
                    network: None,
                    problems: problem.into_iter().collect(),
                };
            }
        };
        self.good.retain(|file, _| files.contains(file));
        let mut found = Found::default();
        for file in files {
            match self.read(&file) {
                Ok(network) => {
                    let network = match self.good.get(&file) {
                        Some(same) if **same == network => same.clone(),
                        _ => Arc::new(network),
                    };
                    self.good.insert(file, network.clone());
                    found.network.get_or_insert(network);
                }
                Err(mut problem) => {
                    if let Some(last) = self.good.get(&file) {
                        problem.reason.push_str("; its last good form is used");
                        found.network.get_or_insert(last.clone());
                    }
                    found.problems.push(problem);
                }
            }
        }
        found
    }

    fn read(&self, file: &Path) -> Result<Network, Problem> {
        config::parse(file, &bytes(file)?, |name| self.beside(name))
    }

    /// The plugins of the directory that is named like the network.
    fn beside(&self, name: &str) -> Result<Vec<Map<String, Value>>, Problem> {
        let files = match list(&self.path.join(name), &["conf"]) {
            Ok(files) => files,
            Err(None) => return Ok(Vec::new()),
            Err(Some(problem)) => return Err(problem),
        };
        // One more than may be is enough to be refused.
        let files = files.iter().take(PLUGINS_MAX + 1);
        files
            .map(|file| config::parse_plugin(file, &bytes(file)?))
            .collect()
    }
}

fn problem(file: &Path, reason: String) -> Problem {
    Problem {
        file: file.to_owned(),
        plugin: None,
        field: String::new(),
        reason,
    }
}

/// Files with one of these endings, by name; `Err(None)` when there is no such directory.
fn list(dir: &Path, endings: &[&str]) -> Result<Vec<PathBuf>, Option<Problem>> {
    use std::io::ErrorKind::{NotADirectory, NotFound};
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if matches!(e.kind(), NotFound | NotADirectory) => return Err(None),
        Err(e) => return Err(Some(problem(dir, format!("cannot be listed: {e}")))),
    };
    let mut files: Vec<PathBuf> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| {
            let ending = path.extension().and_then(|e| e.to_str());
            ending.is_some_and(|e| endings.contains(&e)) && !path.is_dir()
        })
        .collect();
    files.sort();
    if files.len() > CONFIG_FILES_MAX {
        let reason = format!("has more than {CONFIG_FILES_MAX} configurations");
        return Err(Some(problem(dir, reason)));
    }
    Ok(files)
}

fn bytes(file: &Path) -> Result<Vec<u8>, Problem> {
    let unreadable = |e: std::io::Error| problem(file, format!("cannot be read: {e}"));
    // A pipe would be waited for.
    if !std::fs::metadata(file).map_err(unreadable)?.is_file() {
        return Err(problem(file, "is not a file".to_owned()));
    }
    let mut bytes = Vec::new();
    let opened = std::fs::File::open(file).map_err(unreadable)?;
    let limit = CONFIG_FILE_MAX + 1;
    opened
        .take(limit)
        .read_to_end(&mut bytes)
        .map_err(unreadable)?;
    if u64::try_from(bytes.len()).is_ok_and(|n| n >= limit) {
        let reason = format!("is over the limit of {CONFIG_FILE_MAX} bytes");
        return Err(problem(file, reason));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn conf(name: &str) -> String {
        format!(r#"{{"name": "{name}", "plugins": [{{"type": "bridge"}}]}}"#)
    }

    fn name(found: &Found) -> Option<&str> {
        found.network.as_ref().map(|n| n.name.as_str())
    }

    #[test]
    fn the_first_good_file_by_name_is_the_default_network() {
        let dir = tempfile::tempdir().unwrap();
        let write = |file: &str, text: &str| fs::write(dir.path().join(file), text).unwrap();
        let mut directory = Directory::new(dir.path().to_owned());
        assert_eq!(name(&directory.look()), None);
        write("30-c.json", &conf("c"));
        write("20-b.conflist", &conf("b"));
        write("10-a.conflist.tmp", &conf("a"));
        write("05-broken.conflist", "{");
        fs::create_dir(dir.path().join("00-dir.conf")).unwrap();
        let found = directory.look();
        assert_eq!(name(&found), Some("b"));
        let [problem] = &found.problems[..] else {
            panic!("{found:?}")
        };
        assert!(
            problem.to_string().contains("05-broken.conflist"),
            "{problem}"
        );
        fs::remove_dir_all(dir.path()).unwrap();
        assert_eq!(directory.look(), Found::default());
    }

    #[test]
    fn a_file_that_is_being_written_keeps_its_last_good_form() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("10-a.conflist");
        let mut directory = Directory::new(dir.path().to_owned());
        fs::write(&file, conf("a")).unwrap();
        fs::write(dir.path().join("20-b.conflist"), conf("b")).unwrap();
        directory.look();
        fs::write(&file, &conf("a")[..20]).unwrap();
        let found = directory.look();
        assert_eq!(name(&found), Some("a"));
        assert!(
            found.problems[0].to_string().contains("last good form"),
            "{found:?}"
        );
        fs::remove_file(&file).unwrap();
        assert_eq!(name(&directory.look()), Some("b"));
    }

    #[test]
    fn too_large_files_and_too_many_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let mut directory = Directory::new(dir.path().to_owned());
        let large = fs::File::create(dir.path().join("1.conf")).unwrap();
        large.set_len(CONFIG_FILE_MAX + 1).unwrap();
        assert!(directory.look().problems[0].to_string().contains("limit"));
        for n in 0..CONFIG_FILES_MAX {
            fs::write(dir.path().join(format!("2-{n}.conf")), "{}").unwrap();
        }
        assert!(
            directory.look().problems[0]
                .to_string()
                .contains("more than")
        );
    }
}
