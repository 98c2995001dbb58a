//! Images: credentials and names in, descriptions out.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use wharf_api::v1;
use wharf_image::Image;
use wharf_registry::Credentials;
use wharf_types::Reference;

use super::field::{Checked, required, wrong};

/// Other names of docker.io: in docker's config.json, and of its registry.
const DOCKER_IO: [&str; 3] = ["docker.io", "index.docker.io", "registry-1.docker.io"];

/// The text of an image that has to be there.
pub(crate) fn text(image: Option<v1::ImageSpec>) -> Checked<String> {
    let image = required("image", image)?.image;
    if image.is_empty() {
        return Err(wrong("image.image", "must not be empty"));
    }
    Ok(image)
}

/// A name that can be pulled.
pub(crate) fn reference(image: Option<v1::ImageSpec>) -> Checked<Reference> {
    let text = text(image)?;
    let parsed = text.parse::<Reference>();
    parsed.map_err(|e| wrong("image.image", wharf_types::chain(&e)))
}

/// Who pulls. Credentials for another server than the one that is asked are not sent there.
pub(crate) fn credentials(
    auth: Option<v1::AuthConfig>,
    reference: &Reference,
) -> Checked<Credentials> {
    let Some(auth) = auth else {
        return Ok(Credentials::Anonymous);
    };
    if !belongs(&auth.server_address, reference.domain()) {
        return Ok(Credentials::Anonymous);
    }
    if !auth.username.is_empty() {
        return Ok(Credentials::Basic {
            username: auth.username,
            password: auth.password,
        });
    }
    if !auth.auth.is_empty() {
        return basic(&auth.auth);
    }
    if !auth.identity_token.is_empty() {
        return Ok(Credentials::IdentityToken(auth.identity_token));
    }
    if !auth.registry_token.is_empty() {
        return Ok(Credentials::RegistryToken(auth.registry_token));
    }
    Ok(Credentials::Anonymous)
}

/// Base64 of `username:password`; the text itself is in no error.
fn basic(auth: &str) -> Checked<Credentials> {
    let unreadable = || wrong("auth.auth", "is not base64 of username:password");
    let auth = auth.trim();
    let bytes = STANDARD
        .decode(auth)
        .or_else(|_padding| STANDARD_NO_PAD.decode(auth))
        .map_err(|_secret| unreadable())?;
    let text = String::from_utf8(bytes).map_err(|_secret| unreadable())?;
    let (username, password) = text.split_once(':').ok_or_else(unreadable)?;
    Ok(Credentials::Basic {
        username: username.to_owned(),
        // docker pads some of them with zero bytes.
        password: password.trim_end_matches('\0').to_owned(),
    })
}

/// Whether credentials for `server` (a host or a URL, or empty for any) are for `domain`.
fn belongs(server: &str, domain: &str) -> bool {
    if server.is_empty() {
        return true;
    }
    let host = server
        .split_once("://")
        .map_or(server, |(_scheme, rest)| rest);
    let host = host.split('/').next().unwrap_or_default();
    host == domain || (DOCKER_IO.contains(&host) && DOCKER_IO.contains(&domain))
}

/// An image in an answer.
pub(crate) fn item(image: &Image) -> v1::Image {
    let (uid, username) = user(&image.config.user);
    v1::Image {
        id: image.id.to_string(),
        repo_tags: image.repo_tags.clone(),
        repo_digests: image.repo_digests.clone(),
        size: image.size,
        uid,
        username,
        spec: None,
        pinned: false,
    }
}

/// `User` of an image's configuration (image-spec config.md): `user`, `uid`, `user:group`, …
fn user(user: &str) -> (Option<v1::Int64Value>, String) {
    let user = user.split(':').next().unwrap_or_default();
    match user.parse::<u32>() {
        Ok(uid) => (Some(v1::Int64Value { value: uid.into() }), String::new()),
        Err(_name) => (None, user.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(change: impl FnOnce(&mut v1::AuthConfig)) -> Checked<Credentials> {
        let mut auth = v1::AuthConfig::default();
        change(&mut auth);
        credentials(Some(auth), &"registry.test/a:1".parse().unwrap())
    }

    fn basic_of(username: &str, password: &str) -> Credentials {
        Credentials::Basic {
            username: username.to_owned(),
            password: password.to_owned(),
        }
    }

    #[test]
    fn every_form_of_credentials_is_understood() {
        let encode = |text: &str| STANDARD.encode(text);
        let u = |a: &mut v1::AuthConfig| (a.username, a.password) = ("u".into(), "p".into());
        assert_eq!(of(u).unwrap(), basic_of("u", "p"));
        assert_eq!(
            of(|a| a.auth = encode("u:p:q")).unwrap(),
            basic_of("u", "p:q")
        );
        assert_eq!(
            of(|a| a.auth = encode("u:p\0\0")).unwrap(),
            basic_of("u", "p")
        );
        assert_eq!(of(|a| a.auth = "dTpw".into()).unwrap(), basic_of("u", "p"));
        let token = || "t".to_owned();
        assert_eq!(
            of(|a| a.identity_token = token()).unwrap(),
            Credentials::IdentityToken(token())
        );
        assert_eq!(
            of(|a| a.registry_token = token()).unwrap(),
            Credentials::RegistryToken(token())
        );
        assert_eq!(of(|_| ()).unwrap(), Credentials::Anonymous);
    }

    #[test]
    fn unreadable_credentials_are_refused_without_being_shown() {
        for secret in ["se!cret", "c2VjcmV0", "/w=="] {
            let error = of(|a| a.auth = secret.to_owned()).unwrap_err().to_string();
            assert!(
                error.starts_with("auth.auth: ") && !error.contains(secret),
                "{error}"
            );
        }
    }

    #[test]
    fn credentials_go_only_to_the_server_that_they_are_for() {
        for (server, domain, theirs) in [
            ("", "registry.test", true),
            ("registry.test", "registry.test", true),
            ("https://registry.test/v2/", "registry.test", true),
            ("registry.test:5000", "registry.test", false),
            ("https://registry.test.evil/", "registry.test", false),
            ("https://index.docker.io/v1/", "docker.io", true),
            ("quay.io", "docker.io", false),
        ] {
            assert_eq!(belongs(server, domain), theirs, "{server} for {domain}");
        }
        let other = of(|a| {
            a.username = "u".into();
            a.server_address = "other.test".into();
        });
        assert_eq!(other.unwrap(), Credentials::Anonymous);
    }

    #[test]
    fn the_user_of_an_image_is_a_number_or_a_name() {
        let uid = |value| Some(v1::Int64Value { value });
        for (text, expected) in [
            ("", (None, "")),
            ("1002", (uid(1002), "")),
            ("1002:1003", (uid(1002), "")),
            ("www-data", (None, "www-data")),
            ("www-data:www-data", (None, "www-data")),
            ("0", (uid(0), "")),
            ("99999999999", (None, "99999999999")),
        ] {
            let (uid, name) = user(text);
            assert_eq!((uid, name.as_str()), expected, "{text}");
        }
    }

    #[test]
    fn what_is_no_reference_is_told_by_field() {
        let spec = |image: &str| {
            Some(v1::ImageSpec {
                image: image.to_owned(),
                ..Default::default()
            })
        };
        reference(spec("busybox")).unwrap();
        for bad in ["", "a.b/UPPER", "a b"] {
            let error = reference(spec(bad)).unwrap_err();
            assert_eq!(error.field, "image.image", "{bad}");
        }
        assert_eq!(reference(None).unwrap_err().field, "image");
    }
}
