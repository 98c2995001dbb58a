//! The command line: words, `--flag`s and `--option VALUE`s.

use std::str::FromStr;

/// What the user typed and nobody took yet.
#[derive(Debug)]
pub(crate) struct Args {
    left: Vec<String>,
}

impl Args {
    pub(crate) fn new(words: impl IntoIterator<Item = String>) -> Self {
        Self {
            left: words.into_iter().collect(),
        }
    }

    /// The first word, unless it is an option.
    pub(crate) fn word(&mut self) -> Option<String> {
        let first = self.left.first()?;
        (!first.starts_with("--") || first == "--help").then(|| self.left.remove(0))
    }

    /// Whether `--name` is there.
    pub(crate) fn flag(&mut self, name: &str) -> bool {
        let at = self.left.iter().position(|w| w == name);
        at.map(|at| self.left.remove(at)).is_some()
    }

    /// The value behind `--name`.
    pub(crate) fn option(&mut self, name: &str) -> Result<Option<String>, String> {
        let Some(at) = self.left.iter().position(|w| w == name) else {
            return Ok(None);
        };
        if at + 1 == self.left.len() {
            return Err(format!("{name} wants a value"));
        }
        self.left.remove(at);
        Ok(Some(self.left.remove(at)))
    }

    /// The number behind `--name`.
    pub(crate) fn number<T: FromStr>(&mut self, name: &str) -> Result<Option<T>, String> {
        let Some(text) = self.option(name)? else {
            return Ok(None);
        };
        text.parse()
            .map(Some)
            .map_err(|_| format!("{name} wants a number, not {text:?}"))
    }

    /// All that is left.
    pub(crate) fn rest(self) -> Vec<String> {
        self.left
    }

    /// Nothing may be left.
    pub(crate) fn end(self) -> Result<(), String> {
        match self.left.first() {
            None => Ok(()),
            Some(word) => Err(format!("unknown argument {word:?}; see `cargo xtask help`")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_taken_out_wherever_they_stand() {
        let words = "pod --json out --rounds 3 --debug"
            .split(' ')
            .map(String::from);
        let mut args = Args::new(words);
        assert_eq!(args.word().as_deref(), Some("pod"));
        assert_eq!(args.number("--rounds"), Ok(Some(3)));
        assert!(args.flag("--debug") && !args.flag("--debug"));
        assert_eq!(args.option("--json"), Ok(Some("out".into())));
        assert_eq!(args.end(), Ok(()));
    }

    #[test]
    fn what_nobody_knows_and_what_lacks_its_value_is_named() {
        let args = |text: &str| Args::new(text.split(' ').map(String::from));
        assert!(args("--what").end().unwrap_err().contains("--what"));
        assert!(
            args("--json")
                .option("--json")
                .unwrap_err()
                .contains("--json")
        );
        assert!(
            args("--n x")
                .number::<u32>("--n")
                .unwrap_err()
                .contains("\"x\"")
        );
    }
}
