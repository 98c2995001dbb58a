//! argv, environment and working directory, from the image's configuration and what was asked for.

use std::collections::HashMap;

use wharf_image::ImageConfig;

use crate::error::RequestError;
use crate::limits::{ENV_BYTES_MAX, ENV_MAX};
use crate::oci::Input;
use crate::spec::ContainerSpec;

/// What a program finds when neither image nor configuration says where programs are.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// argv. A command replaces the image's entry point and drops its command; arguments alone keep the
/// entry point.
pub(crate) fn args(spec: &ContainerSpec, image: &ImageConfig) -> Result<Vec<String>, RequestError> {
    let args: Vec<String> = if !spec.command.is_empty() {
        [&spec.command[..], &spec.args].concat()
    } else if !spec.args.is_empty() {
        [&image.entrypoint[..], &spec.args].concat()
    } else {
        [&image.entrypoint[..], &image.cmd].concat()
    };
    let invalid = |reason: &str| RequestError::Invalid {
        field: "command",
        reason: reason.to_owned(),
    };
    if args.is_empty() {
        return Err(invalid(
            "neither the image nor the configuration says what to run",
        ));
    }
    if args[0].is_empty() {
        return Err(invalid("the name of the program is empty"));
    }
    if args.iter().any(|a| a.contains('\0')) {
        return Err(invalid("an argument contains a NUL byte"));
    }
    Ok(args)
}

/// `KEY=value` in order: defaults, the image's, those asked for; a later one replaces an earlier one
/// where that stands.
pub(crate) fn env(input: &Input<'_>) -> Result<Vec<Vec<u8>>, RequestError> {
    check_env_size(input)?;
    let mut env = Environment::default();
    env.set(b"PATH", DEFAULT_PATH.as_bytes());
    if input.spec.tty {
        env.set(b"TERM", b"xterm");
    }
    env.set(b"HOSTNAME", input.pod.hostname.as_bytes());
    for line in &input.image.env {
        let (name, value) = line.split_once('=').unwrap_or((line, ""));
        env.set(name.as_bytes(), value.as_bytes());
    }
    for var in &input.spec.envs {
        let bad_name = var.name.is_empty() || var.name.contains(['=', '\0']);
        if bad_name || var.value.contains(&0) {
            let reason = format!(
                "{:?} cannot be a variable: no name may be empty or contain '=' or NUL, no value NUL",
                var.name
            );
            return Err(RequestError::Invalid {
                field: "envs",
                reason,
            });
        }
        env.set(var.name.as_bytes(), &var.value);
    }
    if !env.has(b"HOME") {
        env.set(b"HOME", input.home.as_bytes());
    }
    Ok(env.into_lines())
}

/// The image's as well as those asked for are somebody else's: bounded before anything is done with them.
fn check_env_size(input: &Input<'_>) -> Result<(), RequestError> {
    let over = |what, limit| Err(RequestError::Limit { what, limit });
    let (image, asked) = (&input.image.env, &input.spec.envs);
    if image.len() + asked.len() > ENV_MAX {
        let what = "the number of environment variables of the image and the container";
        return over(what, ENV_MAX);
    }
    let image = image.iter().map(String::len);
    let asked = asked.iter().map(|var| var.name.len() + var.value.len());
    if image.chain(asked).sum::<usize>() > ENV_BYTES_MAX {
        let what = "the size in bytes of the environment of the image and the container";
        return over(what, ENV_BYTES_MAX);
    }
    Ok(())
}

/// Where the program starts: absolute.
pub(crate) fn cwd(spec: &ContainerSpec, image: &ImageConfig) -> String {
    let dir = match spec.working_dir.is_empty() {
        false => spec.working_dir.as_str(),
        true => image.working_dir.as_str(),
    };
    if dir.starts_with('/') {
        dir.to_owned()
    } else {
        format!("/{dir}")
    }
}

/// The number of the signal that stops it: asked for, the image's, SIGTERM.
pub(crate) fn stop_signal(spec: &ContainerSpec, image: &ImageConfig) -> i32 {
    spec.stop_signal
        .or_else(|| signal_number(&image.stop_signal))
        .unwrap_or(SIGTERM)
}

const SIGTERM: i32 = 15;
/// Of this C library; the kernel's first real-time signals are its own.
const SIGRTMIN: i32 = 34;
const SIGRTMAX: i32 = 64;

/// signal(7), x86 and most others, in the order of their numbers from 1.
const SIGNALS: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2",
    "PIPE", "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG",
    "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
];

/// `15`, `TERM`, `SIGTERM`, `SIGRTMIN+3`.
fn signal_number(text: &str) -> Option<i32> {
    if let Ok(number) = text.parse::<i32>() {
        return (1..=SIGRTMAX).contains(&number).then_some(number);
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let real_time = match name.split_once(['+', '-']) {
        Some(("RTMIN", n)) => n.parse::<i32>().ok().and_then(|n| SIGRTMIN.checked_add(n)),
        Some(("RTMAX", n)) => n.parse::<i32>().ok().and_then(|n| SIGRTMAX.checked_sub(n)),
        _ if name == "RTMIN" => Some(SIGRTMIN),
        _ if name == "RTMAX" => Some(SIGRTMAX),
        _ => None,
    };
    if let Some(number) = real_time {
        return (SIGRTMIN..=SIGRTMAX).contains(&number).then_some(number);
    }
    let at = SIGNALS.iter().position(|known| *known == name)?;
    i32::try_from(at + 1).ok()
}

#[derive(Debug, Default)]
struct Environment {
    lines: Vec<Vec<u8>>,
    /// Which line has a name.
    places: HashMap<Vec<u8>, usize>,
}

impl Environment {
    fn set(&mut self, name: &[u8], value: &[u8]) {
        let line = [name, b"=", value].concat();
        match self.places.get(name).and_then(|at| self.lines.get_mut(*at)) {
            Some(place) => *place = line,
            None => {
                self.places.insert(name.to_vec(), self.lines.len());
                self.lines.push(line);
            }
        }
    }

    fn has(&self, name: &[u8]) -> bool {
        self.places.contains_key(name)
    }

    fn into_lines(self) -> Vec<Vec<u8>> {
        self.lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_are_known_by_name_and_number() {
        let cases = [
            ("15", Some(15)),
            ("TERM", Some(15)),
            ("SIGTERM", Some(15)),
            ("sigquit", Some(3)),
            ("SIGSYS", Some(31)),
            ("SIGRTMIN+3", Some(37)),
            ("RTMAX-1", Some(63)),
            ("0", None),
            ("65", None),
            ("SIGRTMIN+40", None),
            ("SIGRTMAX--9", None),
            ("", None),
            ("NOSUCH", None),
        ];
        for (text, number) in cases {
            assert_eq!(signal_number(text), number, "{text}");
        }
    }
}
