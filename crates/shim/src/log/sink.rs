//! One container's log file: whole lines only, also on a full disk.

use std::os::fd::OwnedFd;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use crate::clock::Stamp;
use crate::log::line;

/// Where a container's lines go, and what could not be written.
#[derive(Debug)]
pub(crate) struct Sink {
    file: Option<OwnedFd>,
    gap: Option<Gap>,
    /// The file ends in the middle of a line that could not be taken back.
    torn: bool,
}

#[derive(Debug, Clone, Copy)]
struct Gap {
    bytes: u64,
    cause: Errno,
}

impl Gap {
    fn text(self) -> String {
        let Self { bytes, cause } = self;
        let cause = reason(cause);
        format!("wharf: {bytes} bytes of output lost: {cause}")
    }
}

/// The kernel's answer in its usual words, in lower case.
fn reason(errno: Errno) -> String {
    match errno {
        Errno::NOSPC => "no space left on device".to_owned(),
        Errno::DQUOT => "disk quota exceeded".to_owned(),
        other => std::io::Error::from(other).to_string(),
    }
}

impl Sink {
    /// Lines go to `file`, which is opened for appending; without one they are dropped.
    pub(crate) fn new(file: Option<OwnedFd>) -> Self {
        Self {
            file,
            gap: None,
            torn: false,
        }
    }

    /// The next line goes to `file`. Everything written before is whole lines.
    pub(crate) fn reopen(&mut self, file: OwnedFd) {
        self.file = Some(file);
        self.torn = false;
    }

    /// Writes whole lines. What cannot be written is counted, and a line says so as soon as writing
    /// works again. Gives the reason when output begins to be lost.
    pub(crate) fn write(&mut self, lines: &[u8]) -> Option<String> {
        if self.file.is_none() || (lines.is_empty() && self.gap.is_none()) {
            return None;
        }
        if let Some(gap) = self.gap {
            let mut note = Vec::new();
            if self.torn {
                note.push(b'\n');
            }
            note.extend_from_slice(&line::note(&gap.text(), &Stamp::now()));
            if self.put(&note).is_err() {
                self.lose(gap.cause, line::content_bytes(lines));
                return None;
            }
            self.gap = None;
            self.torn = false;
        }
        let (written, cause) = match self.put(lines) {
            Ok(()) => return None,
            Err(failed) => failed,
        };
        let rest = lines.get(written..).unwrap_or_default();
        self.lose(cause, line::content_bytes(rest));
        Some(reason(cause))
    }

    /// Writes lines that are not a container's output; what does not fit is dropped.
    pub(crate) fn write_raw(&mut self, lines: &[u8]) {
        if let Err((_, _dropped)) = self.put(lines) {
            self.torn = false;
        }
    }

    fn lose(&mut self, cause: Errno, bytes: u64) {
        let before = self.gap.map_or(0, |gap| gap.bytes);
        self.gap = Some(Gap {
            bytes: before.saturating_add(bytes),
            cause,
        });
    }

    /// Writes all of `lines`, or gives the length of the whole lines that are in the file.
    fn put(&mut self, lines: &[u8]) -> Result<(), (usize, Errno)> {
        let Some(file) = &self.file else {
            return Ok(());
        };
        let mut written = 0;
        while let Some(rest) = lines.get(written..).filter(|rest| !rest.is_empty()) {
            let cause = match rustix::io::write(file, rest) {
                Ok(0) => Errno::IO,
                Ok(n) => {
                    written += n;
                    continue;
                }
                Err(Errno::INTR) => continue,
                Err(Errno::AGAIN) => match poll(&mut [PollFd::new(file, PollFlags::OUT)], None) {
                    Ok(_) | Err(Errno::INTR) => continue,
                    Err(cause) => cause,
                },
                Err(cause) => cause,
            };
            let done = lines.get(..written).unwrap_or_default();
            let whole = done
                .iter()
                .rposition(|b| *b == b'\n')
                .map_or(0, |at| at + 1);
            self.torn |= written > whole && take_back(file, written - whole).is_err();
            return Err((whole, cause));
        }
        Ok(())
    }
}

/// Cuts the last `bytes` off: they are the start of a line whose end did not fit.
fn take_back(file: &OwnedFd, bytes: usize) -> Result<(), Errno> {
    let size = u64::try_from(rustix::fs::fstat(file)?.st_size).map_err(|_negative| Errno::INVAL)?;
    let bytes = u64::try_from(bytes).map_err(|_too_big| Errno::INVAL)?;
    let size = size.checked_sub(bytes).ok_or(Errno::INVAL)?;
    rustix::fs::ftruncate(file, size)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::line::{Splitter, Stream};
    use std::fs::{self, File, OpenOptions};

    fn lines(text: &str) -> Vec<u8> {
        let mut out = Vec::new();
        Splitter::new(Stream::Stdout).feed(text.as_bytes(), &Stamp::at(0), &mut out);
        out
    }

    fn full() -> OwnedFd {
        OwnedFd::from(OpenOptions::new().append(true).open("/dev/full").unwrap())
    }

    #[test]
    fn a_full_disk_leaves_one_line_about_what_was_lost() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("0.log");
        let mut sink = Sink::new(Some(full()));
        let reason = sink.write(&lines("12345\n"));
        assert_eq!(reason.as_deref(), Some("no space left on device"));
        assert_eq!(sink.write(&lines("6789\n")), None);
        sink.reopen(File::create(&path).unwrap().into());
        sink.write(&lines("after\n"));
        sink.write(&lines("more\n"));
        let log = fs::read_to_string(&path).unwrap();
        let contents: Vec<&str> = log.lines().map(|line| &line[31..]).collect();
        let note = "stderr F wharf: 11 bytes of output lost: no space left on device";
        assert_eq!(contents, [note, "stdout F after", "stdout F more"]);
    }

    #[test]
    fn a_line_that_fits_in_part_is_taken_back() {
        // A disk that is really full needs a mount of its own: tests/it/logs.rs.
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("0.log");
        fs::write(&path, "whole\nhal").unwrap();
        let file: OwnedFd = OpenOptions::new().append(true).open(&path).unwrap().into();
        take_back(&file, 3).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "whole\n");
        assert_eq!(take_back(&file, 7), Err(Errno::INVAL));
    }
}
