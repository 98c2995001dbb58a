//! The log: one JSON object or text line per entry, with logrus's keys, which containerd reads
//! (`level`, `msg`, `time`; it shows the last entry of level error).

use std::fs::File;
use std::io::Write as _;

use super::args::{Format, Options};
use super::clock;
use super::failure::Failure;

/// Where the command writes what happens.
#[derive(Debug)]
pub(crate) struct Log {
    /// stderr when there is none.
    file: Option<File>,
    format: Format,
}

impl Log {
    /// Text on stderr.
    pub(crate) fn to_stderr() -> Self {
        Self {
            file: None,
            format: Format::Text,
        }
    }

    /// As the options say; the file is appended to.
    pub(crate) fn open(options: &Options) -> Result<Self, Failure> {
        let file = match &options.log {
            None => None,
            Some(path) => {
                let file = File::options().append(true).create(true).open(path);
                let named = |e| Failure::io(format!("open log {}", path.display()), e);
                Some(file.map_err(named)?)
            }
        };
        let format = options.log_format;
        Ok(Self { file, format })
    }

    /// A failed command: in the log and, when that is a file, on stderr too.
    pub(crate) fn error(&self, failure: &Failure) {
        self.entry("error", &failure.to_string());
        if self.file.is_some() {
            // Nobody is left to be told when stderr is gone.
            writeln!(std::io::stderr(), "error: {failure}").ok();
        }
    }

    /// Something a person should know.
    pub(crate) fn warn(&self, text: &str) {
        self.entry("warning", text);
    }

    fn entry(&self, level: &str, text: &str) {
        let time = clock::now();
        let line = match self.format {
            Format::Json => {
                let entry = serde_json::json!({"level": level, "msg": text, "time": time});
                format!("{entry}\n")
            }
            Format::Text => format!("time={time:?} level={level} msg={text:?}\n"),
        };
        // One write: entries of several processes do not mix. A full disk is no reason to fail.
        match &self.file {
            Some(file) => (&*file).write_all(line.as_bytes()).ok(),
            None => std::io::stderr().write_all(line.as_bytes()).ok(),
        };
    }
}
