//! What `ps` shows of a shim: its pod.
//!
//! The arguments of the zygote are overwritten through /proc/self/mem; `PR_SET_MM`, the other way,
//! needs `CAP_SYS_RESOURCE`.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt as _;

/// Makes `title` the process's command line, cut to the room that the old one took.
///
/// # Errors
///
/// When /proc is not there.
pub(crate) fn set(title: &str) -> io::Result<()> {
    let stat = fs::read_to_string("/proc/self/stat")?;
    let Some((start, end)) = argument_area(&stat) else {
        return Err(io::Error::from(io::ErrorKind::InvalidData));
    };
    // The last byte stays NUL: whatever still reads an argument finds its end.
    let room = usize::try_from(end.saturating_sub(start))
        .unwrap_or(0)
        .saturating_sub(1);
    let mut area = vec![0; room];
    let shown = title.len().min(room);
    area[..shown].copy_from_slice(&title.as_bytes()[..shown]);
    OpenOptions::new()
        .write(true)
        .open("/proc/self/mem")?
        .write_all_at(&area, start)
}

/// `arg_start` and `arg_end`: fields 48 and 49 of proc_pid_stat(5).
fn argument_area(stat: &str) -> Option<(u64, u64)> {
    // The command's name (field 2) may contain blanks and brackets; the last bracket ends it.
    let after_name = stat.get(stat.rfind(')')? + 1..)?;
    let mut fields = after_name.split_ascii_whitespace().skip(48 - 3);
    let start = fields.next()?.parse().ok()?;
    let end = fields.next()?.parse().ok()?;
    (start < end).then_some((start, end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_area_is_found_behind_a_name_with_brackets() {
        let numbers: Vec<String> = (4..=52).map(|n| (n * 10).to_string()).collect();
        let stat = format!("1 (a) b) S {}", numbers.join(" "));
        assert_eq!(argument_area(&stat), Some((480, 490)));
        assert_eq!(argument_area("1 (x) S 2"), None);
    }
}
