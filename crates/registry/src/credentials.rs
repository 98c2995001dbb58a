//! Who we are to a registry. Values of this type hold secrets: they are compared and hashed, never printed.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// How to prove who is pulling. `Eq` and `Hash` so that a pull can be keyed by it.
#[derive(Clone, PartialEq, Eq, Hash)]
pub enum Credentials {
    /// Nobody in particular.
    Anonymous,
    /// A user's name and password (or access key).
    Basic {
        /// The account; it is named in errors.
        username: String,
        /// Its secret.
        password: String,
    },
    /// A refresh token, exchanged at the token server (`identitytoken` of docker's config.json).
    IdentityToken(String),
    /// A bearer token for the registry itself (`registrytoken` of docker's config.json).
    RegistryToken(String),
}

/// What stands in a text where a secret was.
const REDACTED: &str = "[redacted]";

impl Credentials {
    /// The account as errors name it.
    pub(crate) fn account(&self) -> String {
        match self {
            Self::Anonymous => "nobody (no credentials were given)".to_owned(),
            Self::Basic { username, .. } => format!("user {username:?}"),
            Self::IdentityToken(_) => "the owner of the identity token".to_owned(),
            Self::RegistryToken(_) => "the owner of the registry token".to_owned(),
        }
    }

    /// `text` without the secret: a server can send back what it was sent.
    pub(crate) fn redact(&self, text: &str) -> String {
        let secret = match self {
            Self::Anonymous => return text.to_owned(),
            Self::Basic { password, .. } => password,
            Self::IdentityToken(token) | Self::RegistryToken(token) => token,
        };
        if secret.is_empty() {
            return text.to_owned();
        }
        let text = text.replace(secret.as_str(), REDACTED);
        match self {
            Self::Basic { username, password } => {
                text.replace(&basic_value(username, password), REDACTED)
            }
            Self::Anonymous | Self::IdentityToken(_) | Self::RegistryToken(_) => text,
        }
    }
}

/// The part of an `Authorization` header behind `Basic ` (RFC 7617).
pub(crate) fn basic_value(username: &str, password: &str) -> String {
    STANDARD.encode(format!("{username}:{password}"))
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Anonymous => f.write_str("Anonymous"),
            Self::Basic { username, .. } => write!(f, "Basic({username:?}, {REDACTED})"),
            Self::IdentityToken(_) => write!(f, "IdentityToken({REDACTED})"),
            Self::RegistryToken(_) => write!(f, "RegistryToken({REDACTED})"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_shows_the_account_and_no_secret() {
        let all = [
            Credentials::Basic {
                username: "ann".into(),
                password: "hunter2".into(),
            },
            Credentials::IdentityToken("hunter2".into()),
            Credentials::RegistryToken("hunter2".into()),
        ];
        for credentials in all {
            assert!(!format!("{credentials:?}").contains("hunter2"));
            let told = credentials.redact("your password hunter2 is wrong");
            assert_eq!(told, "your password [redacted] is wrong");
        }
    }
}
