//! What a pull sees of registries that behave and misbehave: an in-process server on 127.0.0.1.

mod auth;
mod blob;
mod hosts;
mod manifest;
mod server;

use std::path::Path;
use std::time::Duration;

use wharf_types::{Digest, Reference};

use crate::retry::Pace;
use crate::{BlobRequest, Client, ClientConfig, Credentials, FetchError};

/// A manifest that everybody accepts.
const MANIFEST: &[u8] = br#"{"schemaVersion":2,"config":{},"layers":[]}"#;
const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";

fn client(certs_d: Option<&Path>) -> Client {
    client_that_waits(certs_d, Duration::from_secs(20))
}

/// A client that takes a connection for stalled after `stall_window`.
fn client_that_waits(certs_d: Option<&Path>, stall_window: Duration) -> Client {
    let pace = Pace {
        first_delay: Duration::from_millis(1),
        retry_after_max: Duration::from_millis(5),
        head_timeout: Duration::from_secs(20),
        stall_window,
    };
    let config = ClientConfig {
        certs_d: certs_d.map(Path::to_owned),
        user_agent: "wharf/test".to_owned(),
    };
    Client::with_pace(config, pace).unwrap()
}

fn reference(domain: &str) -> Reference {
    format!("{domain}/team/app:v1").parse().unwrap()
}

fn ann() -> Credentials {
    Credentials::Basic {
        username: "ann".to_owned(),
        password: "hunter2".to_owned(),
    }
}

fn write_hosts(certs_d: &Path, domain: &str, text: &str) {
    let directory = certs_d.join(domain);
    std::fs::create_dir_all(&directory).unwrap();
    std::fs::write(directory.join("hosts.toml"), text).unwrap();
}

/// Bytes that differ from place to place.
fn content(length: usize) -> Vec<u8> {
    (0..length)
        .map(|i| u8::try_from(i * 31 % 251).unwrap())
        .collect()
}

fn request(content: &[u8]) -> BlobRequest {
    BlobRequest {
        digest: Digest::of(content),
        size: u64::try_from(content.len()).unwrap(),
        offset: 0,
    }
}

/// All bytes of a blob, or the first error.
async fn pull(
    client: &Client,
    reference: &Reference,
    request: BlobRequest,
    credentials: &Credentials,
) -> Result<Vec<u8>, FetchError> {
    let mut stream = client.blob(reference, request, credentials).await?;
    let mut all = Vec::new();
    while let Some(bytes) = stream.next().await {
        all.extend_from_slice(&bytes?);
    }
    Ok(all)
}
