//! What is wrong with a request: always a field and a reason.

use tonic::Status;

use crate::code::bounded;

/// A field of a request that cannot be taken. Answered as INVALID_ARGUMENT.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {reason}")]
pub(crate) struct FieldError {
    /// The field, by its name in the API.
    pub(crate) field: &'static str,
    /// What is wrong with it and what would be right.
    pub(crate) reason: String,
}

impl From<FieldError> for Status {
    fn from(error: FieldError) -> Self {
        Self::invalid_argument(bounded(error.to_string()))
    }
}

/// What a conversion gives.
pub(crate) type Checked<T> = Result<T, FieldError>;

/// An error for `field`.
pub(crate) fn wrong(field: &'static str, reason: impl Into<String>) -> FieldError {
    FieldError {
        field,
        reason: reason.into(),
    }
}

/// A message that must be there.
pub(crate) fn required<T>(field: &'static str, value: Option<T>) -> Checked<T> {
    value.ok_or_else(|| wrong(field, "is missing"))
}

/// An enum's word; peers newer than us send numbers that we do not know.
pub(crate) fn word<E: TryFrom<i32>>(field: &'static str, number: i32) -> Checked<E> {
    E::try_from(number)
        .map_err(|_unknown| wrong(field, format!("{number} is not a value of this API")))
}

/// The longest name of a pod or container, in bytes (Kubernetes: 253 for objects).
const NAME_MAX: usize = 512;

/// A name: there, not endless, without control characters.
pub(crate) fn name(field: &'static str, text: &str) -> Checked<String> {
    if text.is_empty() {
        return Err(wrong(field, "must not be empty"));
    }
    if text.len() > NAME_MAX {
        let reason = format!(
            "is {} bytes long, at most {NAME_MAX} are allowed",
            text.len()
        );
        return Err(wrong(field, reason));
    }
    plain(field, text)
}

/// Text that ends up in a file or a path of ours: no control characters, so no line can be smuggled in.
pub(crate) fn plain(field: &'static str, text: &str) -> Checked<String> {
    if text.chars().any(char::is_control) {
        return Err(wrong(
            field,
            format!("{text:?} contains control characters"),
        ));
    }
    Ok(text.to_owned())
}

/// A word of a file whose words are separated by white space.
pub(crate) fn token(field: &'static str, text: &str) -> Checked<String> {
    if text.is_empty() || text.contains(char::is_whitespace) {
        let reason = format!("{text:?} must be one word without spaces");
        return Err(wrong(field, reason));
    }
    plain(field, text)
}

/// The longest path that the kernel takes (`PATH_MAX` with its final zero).
const PATH_MAX: usize = 4095;

/// A path that the kernel can take.
pub(crate) fn path(field: &'static str, text: &str) -> Checked<String> {
    if text.len() > PATH_MAX {
        return Err(wrong(field, format!("is longer than {PATH_MAX} bytes")));
    }
    if text.contains('\0') {
        return Err(wrong(field, "contains a zero byte"));
    }
    Ok(text.to_owned())
}

/// An absolute path.
pub(crate) fn absolute(field: &'static str, text: &str) -> Checked<String> {
    if !text.starts_with('/') {
        return Err(wrong(field, format!("{text:?} must be an absolute path")));
    }
    path(field, text)
}

/// An absolute path, or nothing.
pub(crate) fn absolute_or_empty(field: &'static str, text: &str) -> Checked<String> {
    if text.is_empty() {
        return Ok(String::new());
    }
    absolute(field, text)
}

/// Whether a path climbs.
pub(crate) fn climbs(text: &str) -> bool {
    text.split('/').any(|part| part == "..")
}

/// A user or group id: 32 bits, of which the last value means "none" to the kernel (chown(2)).
pub(crate) fn id(field: &'static str, value: i64) -> Checked<i64> {
    if (0..i64::from(u32::MAX)).contains(&value) {
        return Ok(value);
    }
    let reason = format!("{value} is not an id: 0 to {} are", u32::MAX - 1);
    Err(wrong(field, reason))
}

/// `value` within `range`, or 0 for "not set".
pub(crate) fn limit(
    field: &'static str,
    value: i64,
    range: std::ops::RangeInclusive<i64>,
) -> Checked<i64> {
    if value == 0 || range.contains(&value) {
        return Ok(value);
    }
    let reason = format!(
        "{value} is out of range: {} to {}",
        range.start(),
        range.end()
    );
    Err(wrong(field, reason))
}
