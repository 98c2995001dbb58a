//! Output to log lines in the format that kubelet reads.
//!
//! ```text
//! 2006-01-02T15:04:05.000000000Z stdout F content
//! └── 30 characters ───────────┘ └ 6 ─┘ │ content, its newline taken off
//!                                        F: a whole line, P: to be joined with the next
//! ```
//!
//! Joining the contents of P and F lines, with a newline after each F, gives the output back, byte
//! for byte.

use crate::clock::{STAMP_LEN, Stamp};
use crate::limits::LINE_MAX;

/// Where the letter P or F stands in a line: after the time, the stream's name and two blanks.
const TAG_AT: usize = STAMP_LEN + 1 + 6 + 1;
/// Where the content begins.
const CONTENT_AT: usize = TAG_AT + 2;

/// Which of a container's streams; a terminal's output is `Stdout`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

impl Stream {
    fn name(self) -> &'static [u8; 6] {
        match self {
            Self::Stdout => b"stdout",
            Self::Stderr => b"stderr",
        }
    }
}

/// Cuts one stream's output into lines; keeps the start of a line whose end has not come yet.
#[derive(Debug)]
pub(crate) struct Splitter {
    stream: Stream,
    /// At most `LINE_MAX` bytes, none of them a newline.
    pending: Vec<u8>,
}

impl Splitter {
    /// For a stream from its beginning.
    pub(crate) fn new(stream: Stream) -> Self {
        Self {
            stream,
            pending: Vec::new(),
        }
    }

    /// Appends to `out` the lines that `data` completes.
    pub(crate) fn feed(&mut self, data: &[u8], stamp: &Stamp, out: &mut Vec<u8>) {
        let mut rest = data;
        while let Some(at) = rest.iter().position(|byte| *byte == b'\n') {
            let (line, after) = rest.split_at(at);
            let end = self.cut_long(line, stamp, out);
            self.emit(b'F', end, stamp, out);
            rest = after.get(1..).unwrap_or_default();
        }
        let end = self.cut_long(rest, stamp, out);
        self.pending.extend_from_slice(end);
        if self.pending.is_empty() {
            self.pending = Vec::new(); // an idle stream holds no buffer
        }
    }

    /// Appends what is left at the end of the stream: a line without a newline is a P line, as
    /// containerd writes it.
    pub(crate) fn finish(&mut self, stamp: &Stamp, out: &mut Vec<u8>) {
        if !self.pending.is_empty() {
            self.emit(b'P', &[], stamp, out);
        }
        self.pending = Vec::new();
    }

    /// Emits P lines while more than one line's worth is there; gives the rest of `part`.
    fn cut_long<'a>(&mut self, mut part: &'a [u8], stamp: &Stamp, out: &mut Vec<u8>) -> &'a [u8] {
        while self.pending.len() + part.len() > LINE_MAX {
            let (full, after) = part.split_at(LINE_MAX - self.pending.len());
            self.emit(b'P', full, stamp, out);
            part = after;
        }
        part
    }

    fn emit(&mut self, tag: u8, end: &[u8], stamp: &Stamp, out: &mut Vec<u8>) {
        head(self.stream, tag, stamp, out);
        out.extend_from_slice(&self.pending);
        out.extend_from_slice(end);
        out.push(b'\n');
        self.pending.clear();
    }
}

fn head(stream: Stream, tag: u8, stamp: &Stamp, out: &mut Vec<u8>) {
    out.extend_from_slice(stamp.bytes());
    out.push(b' ');
    out.extend_from_slice(stream.name());
    out.extend_from_slice(&[b' ', tag, b' ']);
}

/// A whole line of our own on standard error; `text` has no newline.
pub(crate) fn note(text: &str, stamp: &Stamp) -> Vec<u8> {
    let mut line = Vec::with_capacity(CONTENT_AT + text.len() + 1);
    head(Stream::Stderr, b'F', stamp, &mut line);
    line.extend_from_slice(text.as_bytes());
    line.push(b'\n');
    line
}

/// How many bytes of output stand in `lines`, which were made here.
pub(crate) fn content_bytes(lines: &[u8]) -> u64 {
    let bytes: usize = lines
        .split_inclusive(|byte| *byte == b'\n')
        .map(|line| match line.get(TAG_AT) {
            Some(b'F') => line.len() - CONTENT_AT, // with its newline
            Some(_) => line.len() - CONTENT_AT - 1,
            None => 0,
        })
        .sum();
    u64::try_from(bytes).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HEAD: &str = "1970-01-01T00:00:00.000000007Z stdout ";

    fn split(chunks: &[&[u8]]) -> Vec<u8> {
        let (mut splitter, mut out) = (Splitter::new(Stream::Stdout), Vec::new());
        let stamp = Stamp::at(7);
        for chunk in chunks {
            splitter.feed(chunk, &stamp, &mut out);
        }
        splitter.finish(&stamp, &mut out);
        out
    }

    /// What kubelet makes of a log.
    fn joined(log: &[u8]) -> Vec<u8> {
        let mut output = Vec::new();
        for line in log.split_inclusive(|byte| *byte == b'\n') {
            assert!(line.starts_with(HEAD.as_bytes()) && line.ends_with(b"\n"));
            let content = &line[CONTENT_AT..line.len() - 1];
            assert!(content.len() <= LINE_MAX);
            output.extend_from_slice(content);
            match &line[HEAD.len()..CONTENT_AT] {
                b"F " => output.push(b'\n'),
                other => assert_eq!(other, b"P "),
            }
        }
        output
    }

    #[test]
    fn lines_that_arrive_in_pieces_are_written_whole() {
        let log = split(&[b"he", b"llo\nwor", b"ld\n\nend"]);
        let expected = format!("{HEAD}F hello\n{HEAD}F world\n{HEAD}F \n{HEAD}P end\n");
        assert_eq!(String::from_utf8(log).unwrap(), expected);
    }

    #[test]
    fn a_line_of_the_longest_length_is_not_split_and_one_byte_more_is() {
        let line = vec![b'x'; LINE_MAX];
        assert_eq!(split(&[&line, b"\n"]).len(), CONTENT_AT + LINE_MAX + 1);
        let log = split(&[&line, b"y\n"]);
        assert_eq!(log[TAG_AT], b'P');
        assert!(log.ends_with(format!("{HEAD}F y\n").as_bytes()));
    }

    #[test]
    fn an_idle_stream_holds_no_buffer() {
        let mut splitter = Splitter::new(Stream::Stdout);
        splitter.feed(b"part", &Stamp::at(7), &mut Vec::new());
        splitter.feed(b"ly\n", &Stamp::at(7), &mut Vec::new());
        assert_eq!(splitter.pending.capacity(), 0);
    }

    proptest! {
        #[test]
        fn joining_the_lines_gives_the_output_back(
            pieces in proptest::collection::vec(
                (proptest::collection::vec(any::<u8>(), 0..40), 1_usize..1200, any::<bool>()),
                0..12,
            )
        ) {
            // Repetition makes lines that are longer than the limit; the flag ends some of them.
            let chunks: Vec<Vec<u8>> = pieces
                .into_iter()
                .map(|(bytes, times, end)| {
                    let mut chunk = bytes.repeat(times);
                    chunk.extend(end.then_some(b'\n'));
                    chunk
                })
                .collect();
            let chunks: Vec<&[u8]> = chunks.iter().map(Vec::as_slice).collect();
            let log = split(&chunks);
            let output = chunks.concat();
            prop_assert_eq!(content_bytes(&log), output.len() as u64);
            prop_assert_eq!(joined(&log), output);
        }
    }
}
