//! Lines of the shim's own log: one JSON object each.

use std::fmt::Write as _;

use crate::clock::Stamp;

/// One line, without its newline.
pub(crate) fn line(level: &str, pod: &str, text: &str) -> String {
    let time = String::from_utf8_lossy(Stamp::now().bytes()).into_owned();
    let mut line = String::with_capacity(96 + pod.len() + text.len());
    let pairs = [
        ("time", time.as_str()),
        ("level", level),
        ("pod", pod),
        ("msg", text),
    ];
    for (at, (key, value)) in pairs.into_iter().filter(|(_, v)| !v.is_empty()).enumerate() {
        line.push_str(if at == 0 { "{\"" } else { ",\"" });
        line.push_str(key);
        line.push_str("\":\"");
        escape(value, &mut line);
        line.push('"');
    }
    line.push('}');
    line
}

fn escape(value: &str, out: &mut String) {
    for c in value.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            // Writing into a string cannot fail.
            c if c.is_control() => drop(write!(out, "\\u{:04x}", u32::from(c))),
            c => out.push(c),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_came_from_outside_cannot_break_a_line() {
        let line = line("info", "", "a \"b\"\n\\");
        assert!(line.ends_with(r#""level":"info","msg":"a \"b\"\u000a\\"}"#));
    }
}
