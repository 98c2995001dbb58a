//! A manifest's bytes, checked: digest, size, type, and that it is one document and not two.
//!
//! Source: image-spec manifest.md, image-index.md, media-types.md; CVE-2021-41190.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, header};
use serde::Deserialize;
use serde::de::IgnoredAny;
use wharf_types::Digest;

use crate::error::FetchError;

/// All that is asked for: a registry that is not told answers schema 1.
const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, \
    application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, \
    application/vnd.docker.distribution.manifest.v2+json, \
    application/json, */*";
/// The media type of an OCI index.
const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// The media type of an OCI manifest.
const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// The beginning of both media types of schema 1.
const SCHEMA_ONE: &str = "application/vnd.docker.distribution.manifest.v1+";

/// A manifest or index as the registry holds it.
#[derive(Debug, Clone)]
pub struct Manifest {
    /// Of `bytes`, computed here.
    pub digest: Digest,
    /// What the document is.
    pub media_type: String,
    /// Byte for byte: they are the identity.
    pub bytes: Bytes,
}

/// The parts of a document that decide what it is.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Shape {
    schema_version: Option<u64>,
    media_type: Option<String>,
    manifests: Option<IgnoredAny>,
    config: Option<IgnoredAny>,
    layers: Option<IgnoredAny>,
}

/// The headers of a question for a manifest.
pub(crate) fn request_headers() -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(header::ACCEPT, HeaderValue::from_static(ACCEPT));
    headers
}

/// Makes a manifest of what `host` sent for `what`.
pub(crate) fn check(
    host: &str,
    what: &str,
    expected: Option<Digest>,
    headers: &HeaderMap,
    bytes: Bytes,
) -> Result<Manifest, FetchError> {
    let digest = Digest::of(&bytes);
    if expected.is_some_and(|expected| expected != digest) {
        return Err(FetchError::Digest {
            host: host.to_owned(),
            what: what.to_owned(),
            found: digest,
        });
    }
    let malformed = |problem: String| FetchError::Malformed {
        host: host.to_owned(),
        what: what.to_owned(),
        problem,
    };
    let schema_one = || FetchError::SchemaOne {
        host: host.to_owned(),
        what: what.to_owned(),
    };
    let announced = content_type(headers);
    if announced
        .as_deref()
        .is_some_and(|t| t.starts_with(SCHEMA_ONE))
    {
        return Err(schema_one());
    }
    let shape: Shape = serde_json::from_slice(&bytes)
        .map_err(|error| malformed(format!("it is not a manifest: {error}")))?;
    if shape.schema_version == Some(1) {
        return Err(schema_one());
    }
    if shape.manifests.is_some() && (shape.layers.is_some() || shape.config.is_some()) {
        return Err(malformed(
            "it claims to be an index and a manifest at once (`manifests` beside `config` or `layers`)"
                .to_owned(),
        ));
    }
    let own = shape.media_type.filter(|own| !own.is_empty());
    let media_type = match (announced, own) {
        (Some(announced), Some(own)) if announced != own && expected.is_none() => {
            // Without a digest nothing else says which of the two the publisher meant.
            return Err(malformed(format!(
                "it is announced as {announced}, but calls itself {own}"
            )));
        }
        (_, Some(own)) => own,
        (Some(announced), None) => announced,
        (None, None) if shape.manifests.is_some() => OCI_INDEX.to_owned(),
        (None, None) if shape.config.is_some() => OCI_MANIFEST.to_owned(),
        (None, None) => return Err(malformed("neither index nor manifest".to_owned())),
    };
    Ok(Manifest {
        digest,
        media_type,
        bytes,
    })
}

/// The announced media type; types that say nothing are none.
fn content_type(headers: &HeaderMap) -> Option<String> {
    let value = headers.get(header::CONTENT_TYPE)?.to_str().ok()?;
    let media_type = value.split(';').next()?.trim().to_ascii_lowercase();
    match media_type.as_str() {
        ""
        | "application/json"
        | "text/plain"
        | "text/json"
        | "application/octet-stream"
        | "binary/octet-stream" => None,
        _ => Some(media_type),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn media_type(announced: &str, body: &str, by_digest: bool) -> Result<String, String> {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, announced.parse().unwrap());
        let bytes = Bytes::copy_from_slice(body.as_bytes());
        let expected = by_digest.then(|| Digest::of(&bytes));
        check("h", "w", expected, &headers, bytes)
            .map(|m| m.media_type)
            .map_err(|e| e.to_string())
    }

    #[test]
    fn the_type_is_what_header_and_body_agree_on() {
        let oci = r#"{"schemaVersion":2,"config":{},"layers":[]}"#;
        assert_eq!(
            media_type("application/json", oci, false).unwrap(),
            OCI_MANIFEST
        );
        assert_eq!(
            media_type("text/plain; charset=utf-8", r#"{"manifests":[]}"#, false).unwrap(),
            OCI_INDEX
        );
        let docker = "application/vnd.docker.distribution.manifest.v2+json";
        assert_eq!(
            media_type(&format!("{docker}; x=y"), oci, false).unwrap(),
            docker
        );
        let named = format!(r#"{{"mediaType":"{OCI_MANIFEST}","config":{{}}}}"#);
        assert!(
            media_type(docker, &named, false)
                .unwrap_err()
                .contains("calls itself")
        );
        assert_eq!(media_type(docker, &named, true).unwrap(), OCI_MANIFEST);
    }

    #[test]
    fn a_document_is_one_thing_only() {
        for two in [
            r#"{"manifests":[],"layers":[]}"#,
            r#"{"manifests":[],"config":{}}"#,
        ] {
            assert!(
                media_type(OCI_INDEX, two, true)
                    .unwrap_err()
                    .contains("at once")
            );
        }
        let index = media_type(OCI_INDEX, r#"{"manifests":[],"layers":null}"#, true);
        assert_eq!(index.unwrap(), OCI_INDEX);
        for twice in [
            r#"{"manifests":[],"manifests":[]}"#,
            "[]",
            "",
            "{\"a\"",
            "{}",
        ] {
            assert!(
                media_type("application/json", twice, true).is_err(),
                "{twice}"
            );
        }
    }

    #[test]
    fn schema_one_is_refused_with_the_remedy() {
        let by_header = media_type(
            "application/vnd.docker.distribution.manifest.v1+prettyjws",
            "{}",
            true,
        );
        let by_body = media_type(
            "application/json",
            r#"{"schemaVersion":1,"fsLayers":[]}"#,
            false,
        );
        for refused in [by_header, by_body] {
            assert!(refused.unwrap_err().contains("rebuild it"));
        }
    }
}
