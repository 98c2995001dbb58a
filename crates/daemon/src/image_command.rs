//! `wharf image`: what people ask about images.

use std::error::Error;
use std::io::{self, Write as _};

use crate::api::{self, client};
use crate::config::Config;

/// What `wharf image check` found.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum Found {
    #[error("{0} of {1} images are damaged: pull them again, which replaces what is damaged")]
    Damaged(usize, usize),
    #[error("no such image: {0}")]
    Unknown(String),
}

/// Asks the daemon to look at these images, or all, and prints what it says.
pub(crate) fn check(config: &Config, names: &[String]) -> Result<(), Box<dyn Error>> {
    let answer = client::check(&config.state.join(api::SOCKET), names)?;
    let mut out = io::stdout().lock();
    let mut damaged = 0;
    for image in &answer.images {
        let word = if image.damage.is_empty() {
            "whole"
        } else {
            damaged += 1;
            "damaged"
        };
        writeln!(out, "{word:8} {} {}", image.id, image.names.join(" "))?;
        for found in &image.damage {
            let path = if found.path.is_empty() {
                String::new()
            } else {
                format!("{:?}: ", found.path)
            };
            writeln!(out, "    {}: {path}{}", found.part, found.what)?;
        }
        for layer in &image.unlisted {
            writeln!(
                out,
                "    layer {layer}: not checked, it came before wharf kept lists; remove and pull the image to have one"
            )?;
        }
    }
    if !answer.unknown.is_empty() {
        return Err(Found::Unknown(answer.unknown.join(", ")).into());
    }
    if damaged > 0 {
        return Err(Found::Damaged(damaged, answer.images.len()).into());
    }
    Ok(())
}
