//! Called by another program's name: a CNI plugin, or the helper that enters a network namespace.

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use wharf_network::plugin::{Plugins, PluginsConfig};
use wharf_network::{command, inside};

/// Where plugins of a process of its own keep what they know: where others look for it too.
const PLUGINS_ROOT: &str = "/var/lib/cni";
const PLUGINS_STATE: &str = "/run/cni";

/// Does what a program of that name does; `None` for our own names.
pub(crate) fn another() -> Option<ExitCode> {
    let mut args = std::env::args_os();
    let called = PathBuf::from(args.next()?);
    let name = Path::new(called.file_name()?).to_str()?;
    if name == inside::HELPER {
        let args: Option<Vec<String>> = args.map(|a| a.into_string().ok()).collect();
        return Some(help(&args?));
    }
    // A person who starts us by such a name does not mean the plugin.
    if name == "wharf" || std::env::var_os("CNI_COMMAND").is_none() {
        return None;
    }
    let plugins = Plugins::for_program(&PluginsConfig {
        root: PLUGINS_ROOT.into(),
        state: PLUGINS_STATE.into(),
    });
    plugins.get(name)?;
    let env = |key: &str| std::env::var(key).ok();
    let (text, good) = command::act(name, &plugins, &env, &mut io::stdin());
    Some(say(&text, good))
}

fn help(args: &[String]) -> ExitCode {
    match inside::help(args) {
        Ok(text) => say(&text, true),
        Err(e) => say(&e.raw_os_error().unwrap_or(0).to_string(), false),
    }
}

fn say(text: &str, good: bool) -> ExitCode {
    let said = io::stdout().write_all(text.as_bytes());
    match (said, good) {
        (Ok(()), true) => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}
