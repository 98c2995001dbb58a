//! The command line: flags anywhere, before and after the verb and the id, as `--flag VALUE`,
//! `--flag=VALUE`, with one dash or two.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;

use super::failure::Failure;

/// What `--help` says.
pub(crate) const HELP: &str = "\
wharf-runtime: an OCI runtime

usage: wharf-runtime [flags] VERB [flags] ID

  create   make a container: its program waits for start
  start    let it execute its program
  run      create, start, wait for the end, delete
  state    print its state as JSON
  kill     send it a signal (default TERM); --all: to all its processes
  delete   remove a stopped container; --force: kill it first

  --root DIR             where states are kept (default /run/wharf-runtime)
  --log FILE             log file (default stderr)
  --log-format FORMAT    text (default) or json
  --bundle, -b DIR       directory with config.json (default .)
  --pid-file FILE        the init's process id is written here
  --console-socket PATH  unix socket that gets the terminal
  --preserve-fds N       the program inherits this many descriptors beside stdio
  --no-new-keyring       the program keeps the caller's session keyring
  --detach, -d           run: do not wait
  --keep                 run: do not delete
";

/// Verbs of runc that are known, but not there yet.
const LATER: [&str; 11] = [
    "checkpoint",
    "events",
    "exec",
    "features",
    "list",
    "pause",
    "ps",
    "restore",
    "resume",
    "spec",
    "update",
];

/// Flags that take a value, by their long name.
const WITH_VALUE: [&str; 10] = [
    "root",
    "log",
    "log-format",
    "criu",
    "bundle",
    "pid-file",
    "console-socket",
    "pidfd-socket",
    "preserve-fds",
    "signal",
];

/// Flags that take none (`--flag=false` switches off).
const SWITCHES: [&str; 12] = [
    "debug",
    "systemd-cgroup",
    "rootless",
    "no-pivot",
    "no-new-keyring",
    "no-subreaper",
    "detach",
    "keep",
    "all",
    "force",
    "help",
    "version",
];

/// Default of `--root`.
const ROOT: &str = "/run/wharf-runtime";

/// Form of log entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    Text,
    Json,
}

/// A parsed command line.
#[derive(Debug)]
pub(crate) struct Options {
    pub(crate) root: PathBuf,
    pub(crate) log: Option<PathBuf>,
    pub(crate) log_format: Format,
    pub(crate) verb: Verb,
}

/// What is to be done.
#[derive(Debug)]
pub(crate) enum Verb {
    Help,
    Version,
    Create(New),
    Run(New),
    Start { id: String },
    State { id: String },
    Kill { id: String, signal: i32, all: bool },
    Delete { id: String, force: bool },
}

/// A container to be made.
#[derive(Debug)]
pub(crate) struct New {
    pub(crate) id: String,
    pub(crate) bundle: PathBuf,
    pub(crate) pid_file: Option<PathBuf>,
    pub(crate) console_socket: Option<PathBuf>,
    pub(crate) pidfd_socket: Option<PathBuf>,
    pub(crate) preserve_fds: u32,
    pub(crate) no_new_keyring: bool,
    pub(crate) detach: bool,
    pub(crate) keep: bool,
}

/// Flags and other words, sorted.
#[derive(Debug, Default)]
struct Words {
    values: BTreeMap<&'static str, OsString>,
    switches: BTreeMap<&'static str, bool>,
    others: Vec<String>,
}

/// Parses the words after the program's name.
pub(crate) fn parse(words: impl Iterator<Item = OsString>) -> Result<Options, Failure> {
    let mut words = sort(words)?;
    if words.is("systemd-cgroup") {
        return Err(Failure::new(
            "--systemd-cgroup is not supported yet: leave it out (in containerd: SystemdCgroup = false)",
        ));
    }
    if words.is("no-pivot") {
        return Err(Failure::new("--no-pivot is not supported yet"));
    }
    let log_format = match words.values.remove("log-format") {
        None => Format::Text,
        Some(word) if word == "text" => Format::Text,
        Some(word) if word == "json" => Format::Json,
        Some(word) => {
            let word = word.display();
            return Err(Failure::new(format!(
                "unknown log-format {word:?}: text or json"
            )));
        }
    };
    Ok(Options {
        root: words.path("root").unwrap_or_else(|| ROOT.into()),
        log: words
            .path("log")
            .filter(|path| !path.as_os_str().is_empty()),
        log_format,
        verb: words.verb()?,
    })
}

fn sort(mut from: impl Iterator<Item = OsString>) -> Result<Words, Failure> {
    let mut words = Words::default();
    while let Some(word) = from.next() {
        let text = word.to_string_lossy().into_owned();
        if text == "--" {
            let rest = from.map(|w| w.to_string_lossy().into_owned());
            words.others.extend(rest);
            break;
        }
        // A negative signal number does not exist, so every word with a dash is a flag.
        let flag = text.strip_prefix("--").or_else(|| text.strip_prefix('-'));
        let Some(flag) = flag.filter(|flag| !flag.is_empty()) else {
            words.others.push(text);
            continue;
        };
        let (name, value) = match flag.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (flag, None),
        };
        let name = long(name, &words);
        if let Some(known) = SWITCHES.iter().find(|s| **s == name) {
            let on = !matches!(value, Some("false" | "0" | "f" | "F" | "FALSE" | "False"));
            words.switches.insert(known, on);
        } else if let Some(known) = WITH_VALUE.iter().find(|s| **s == name) {
            let missing = || Failure::new(format!("flag --{name} needs a value"));
            let value = value.map(OsString::from).or_else(|| from.next());
            words.values.insert(known, value.ok_or_else(missing)?);
        } else {
            return Err(Failure::new(format!("unknown flag {text:?} (see --help)")));
        }
    }
    Ok(words)
}

/// The long name of a flag of one letter.
fn long<'a>(name: &'a str, words: &Words) -> &'a str {
    match name {
        "b" => "bundle",
        "d" => "detach",
        "a" => "all",
        "f" => "force",
        "h" => "help",
        // Before a verb only.
        "v" if words.others.is_empty() => "version",
        other => other,
    }
}

impl Words {
    fn is(&self, switch: &str) -> bool {
        self.switches.get(switch).copied().unwrap_or(false)
    }

    fn path(&mut self, flag: &str) -> Option<PathBuf> {
        self.values.remove(flag).map(PathBuf::from)
    }

    fn verb(mut self) -> Result<Verb, Failure> {
        if self.is("version") {
            return Ok(Verb::Version);
        }
        if self.is("help") || self.others.is_empty() {
            return Ok(Verb::Help);
        }
        let verb = self.others.remove(0);
        if LATER.contains(&verb.as_str()) {
            return Err(Failure::new(format!("{verb} is not supported yet")));
        }
        match verb.as_str() {
            "help" => Ok(Verb::Help),
            "create" => self.new_container().map(Verb::Create),
            "run" => self.new_container().map(Verb::Run),
            "start" => Ok(Verb::Start {
                id: self.only_id()?,
            }),
            "state" => Ok(Verb::State {
                id: self.only_id()?,
            }),
            "delete" => {
                let force = self.is("force");
                let id = self.only_id()?;
                Ok(Verb::Delete { id, force })
            }
            "kill" => {
                let all = self.is("all");
                let word = (self.others.len() > 1).then(|| self.others.remove(1));
                let flag = self.values.remove("signal");
                let flag = flag.map(|w| w.to_string_lossy().into_owned());
                let signal = word.or(flag).unwrap_or_else(|| "TERM".to_owned());
                let unknown = || Failure::new(format!("unknown signal {signal:?}"));
                let signal = signal_number(&signal).ok_or_else(unknown)?;
                let id = self.only_id()?;
                Ok(Verb::Kill { id, signal, all })
            }
            _ => Err(Failure::new(format!("unknown verb {verb:?} (see --help)"))),
        }
    }

    fn new_container(mut self) -> Result<New, Failure> {
        let preserve_fds = match self.values.remove("preserve-fds") {
            None => 0,
            Some(word) => {
                let number = word.to_str().and_then(|w| w.parse().ok());
                let wrong = || Failure::new("--preserve-fds needs a number");
                number.ok_or_else(wrong)?
            }
        };
        Ok(New {
            bundle: self.path("bundle").unwrap_or_else(|| ".".into()),
            pid_file: self.path("pid-file"),
            console_socket: self.path("console-socket"),
            pidfd_socket: self.path("pidfd-socket"),
            preserve_fds,
            no_new_keyring: self.is("no-new-keyring"),
            detach: self.is("detach"),
            keep: self.is("keep"),
            id: self.only_id()?,
        })
    }

    /// The one word that is left: a container's id.
    fn only_id(&mut self) -> Result<String, Failure> {
        if self.others.len() != 1 {
            return Err(Failure::new(
                "exactly one container id is needed (see --help)",
            ));
        }
        let id = self.others.remove(0);
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b"_+-.".contains(&b);
        if id.is_empty() || id == "." || id == ".." || !id.bytes().all(allowed) || id.len() > 1024 {
            return Err(Failure::new(format!(
                "invalid container id format {id:?}: letters, digits and _+-. are allowed"
            )));
        }
        Ok(id)
    }
}

/// Names of the signals 1 to 31.
const SIGNALS: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2",
    "PIPE", "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG",
    "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
];

/// A number, or a name with or without `SIG`, in any case. 0 asks only whether it is there.
fn signal_number(word: &str) -> Option<i32> {
    if let Ok(number) = word.parse() {
        return (0..=64).contains(&number).then_some(number);
    }
    let upper = word.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let offset = |rest: &str, sign: char| rest.strip_prefix(sign)?.parse::<i32>().ok();
    if let Some(rest) = name.strip_prefix("RTMIN") {
        let number = 34
            + if rest.is_empty() {
                0
            } else {
                offset(rest, '+')?
            };
        return (34..=64).contains(&number).then_some(number);
    }
    if let Some(rest) = name.strip_prefix("RTMAX") {
        let number = 64
            - if rest.is_empty() {
                0
            } else {
                offset(rest, '-')?
            };
        return (34..=64).contains(&number).then_some(number);
    }
    let at = SIGNALS.iter().position(|s| *s == name)?;
    i32::try_from(at + 1).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Options, Failure> {
        parse(line.split_whitespace().map(OsString::from))
    }

    #[test]
    fn flags_stand_anywhere() {
        let lines = [
            "--root /r --log l --log-format json create --bundle /b --pid-file p web",
            "create web --bundle=/b --pid-file p --root=/r --log=l --log-format=json",
            "-root /r create -b /b web -pid-file=p --log l --log-format json",
        ];
        for line in lines {
            let options = parsed(line).unwrap();
            assert_eq!(options.root, PathBuf::from("/r"), "{line}");
            assert_eq!(options.log_format, Format::Json, "{line}");
            let Verb::Create(new) = options.verb else {
                panic!("{line}");
            };
            assert_eq!((&*new.id, new.bundle), ("web", "/b".into()), "{line}");
            assert_eq!(new.pid_file, Some("p".into()), "{line}");
        }
    }

    #[test]
    fn signals_have_numbers_and_names() {
        for (word, number) in [
            ("9", 9),
            ("KILL", 9),
            ("SIGTERM", 15),
            ("sigusr1", 10),
            ("0", 0),
            ("RTMIN+1", 35),
            ("SIGRTMAX", 64),
        ] {
            assert_eq!(signal_number(word), Some(number), "{word}");
        }
        for word in ["65", "-1", "NO", "", "RTMIN+40"] {
            assert_eq!(signal_number(word), None, "{word}");
        }
    }

    #[test]
    fn what_cannot_be_done_is_said() {
        for (line, word) in [
            ("--systemd-cgroup create x", "systemd-cgroup"),
            ("exec x true", "exec is not supported yet"),
            ("create a/b", "invalid container id"),
            ("create ..", "invalid container id"),
            ("create", "exactly one"),
            ("create --what x", "unknown flag"),
            ("fly x", "unknown verb"),
            ("kill x BLA", "unknown signal"),
        ] {
            let failure = parsed(line).unwrap_err().to_string();
            assert!(failure.contains(word), "{line}: {failure}");
        }
    }
}
