//! What changed in a record, added behind it in room that its file has: for a disk that gives no more.
//!
//! ```text
//! {the record} {fields that changed} {fields that changed later} … spaces
//! ```
//!
//! Nothing that was written is written over. Who dies in the middle leaves an object without an end, which
//! is as if it had never begun; the next one takes its place.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use serde::Deserialize as _;
use serde_json::de::SliceRead;
use serde_json::{Deserializer, Map, StreamDeserializer, Value};

/// Spaces at the end of each record file: room for how something ended, which must be written down
/// when the disk has none left. What they are is said by JSON: nothing.
pub(crate) const ROOM: usize = 2048;

type Fields = Map<String, Value>;

/// A record with its amendments: its fields, and where the next amendment begins.
///
/// # Errors
///
/// There is no whole record at the beginning. An amendment that is not whole is none.
fn read(bytes: &[u8]) -> Result<(Fields, usize), serde_json::Error> {
    let mut objects: StreamDeserializer<'_, SliceRead<'_>, Fields> =
        Deserializer::from_slice(bytes).into_iter();
    let mut fields = match objects.next() {
        Some(first) => first?,
        None => Fields::deserialize(&Value::Null)?,
    };
    let mut end = objects.byte_offset();
    while let Some(Ok(changed)) = objects.next() {
        fields.extend(changed);
        end = objects.byte_offset();
    }
    Ok((fields, end))
}

/// The whole record in `bytes`, if it was amended; `None`: it was not.
///
/// # Errors
///
/// As for [`read`].
pub(crate) fn amended(bytes: &[u8]) -> Result<Option<Value>, serde_json::Error> {
    let mut objects: StreamDeserializer<'_, SliceRead<'_>, serde::de::IgnoredAny> =
        Deserializer::from_slice(bytes).into_iter();
    if let Some(first) = objects.next() {
        first?;
    }
    match bytes.get(objects.byte_offset()..) {
        Some(rest) if !rest.trim_ascii().is_empty() => {
            read(bytes).map(|(fields, _)| Some(Value::Object(fields)))
        }
        _ => Ok(None),
    }
}

/// Adds to the record at `path` what is different in `wanted`, a whole record.
///
/// # Errors
///
/// `StorageFull`: its room is used up; otherwise the file system refuses, or one of both is no record. The
/// record is then as it was.
pub(crate) fn amend(path: &Path, wanted: &[u8]) -> io::Result<()> {
    let written = std::fs::read(path)?;
    let (fields, end) = read(&written)?;
    let (mut wanted, _) = read(wanted)?;
    wanted.retain(|name, value| fields.get(name) != Some(value));
    if wanted.is_empty() {
        return Ok(());
    }
    let mut rest = serde_json::to_vec(&wanted)?;
    let room = written.len().saturating_sub(end);
    if rest.len() > room {
        return Err(io::ErrorKind::StorageFull.into());
    }
    // Over one that is not whole, too.
    rest.resize(room, b' ');
    let at = u64::try_from(end).map_err(io::Error::other)?;
    OpenOptions::new()
        .write(true)
        .open(path)?
        .write_all_at(&rest, at)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(bytes: &[u8]) -> Value {
        match amended(bytes).unwrap() {
            Some(whole) => whole,
            None => serde_json::from_slice(bytes).unwrap(),
        }
    }

    #[test]
    fn a_record_that_is_amended_is_the_old_or_the_new_one_wherever_its_writer_dies() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("record");
        let records = [
            serde_json::json!({"id": "a", "phase": "Ready", "exit": null}),
            serde_json::json!({"id": "a", "phase": "Stopped", "exit": null}),
            serde_json::json!({"id": "a", "phase": "Stopped", "exit": {"code": 1, "text": "}{\" "}}),
        ];
        let mut file = records[0].to_string().into_bytes();
        file.resize(file.len() + 200, b' ');
        for (old, new) in records.iter().zip(&records[1..]) {
            std::fs::write(&path, &file).unwrap();
            amend(&path, new.to_string().as_bytes()).unwrap();
            let whole = std::fs::read(&path).unwrap();
            assert_eq!((found(&whole), whole.len()), (new.clone(), file.len()));
            for died_at in 0..whole.len() {
                let torn = [&whole[..died_at], &file[died_at..]].concat();
                let read = found(&torn);
                assert!(read == *old || read == *new, "{died_at}: {read}");
                // Whoever comes next writes over what is not whole.
                std::fs::write(&path, &torn).unwrap();
                amend(&path, new.to_string().as_bytes()).unwrap();
                assert_eq!(found(&std::fs::read(&path).unwrap()), *new);
            }
            file = whole;
        }
    }

    #[test]
    fn what_has_no_room_is_refused_and_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("record");
        std::fs::write(&path, b"{\"a\":1}        ").unwrap();
        let e = amend(&path, b"{\"a\":\"far too long\"}").unwrap_err();
        assert_eq!(e.kind(), io::ErrorKind::StorageFull);
        amend(&path, b"{\"a\":2}").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"{\"a\":1}{\"a\":2} ");
        assert!(amend(&dir.path().join("none"), b"{}").is_err());
        assert!(amended(b"{\"a\":").is_err() && amended(b"").unwrap().is_none());
    }
}
