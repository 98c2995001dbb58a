//! The client side of the distribution specification: resolve, fetch, authorise, mirrors.
//!
//! [`Client`] turns a reference into manifests and blobs. Which hosts it asks, in which order and with
//! which certificates, is said by containerd's `certs.d` directory, read again for every pull.
//! Manifests are verified here; blobs by the caller, who hashes them anyway while unpacking.

pub mod limits; // every size, count and time that something outside could stretch
mod credentials; // who we are to a registry
mod tls; // certificate files to a TLS configuration
mod hosts; // hosts.toml: text to values
mod endpoint; // a registry's name to the hosts to ask, in order
mod retry; // how long to wait before asking again
mod transport; // one request over pooled connections, redirects by hand
mod error; // what a pull can fail with
mod answer; // from an answer's status and body to an error
mod auth; // 401 to an Authorization header
mod fetch; // one question to several hosts until one answers
mod manifest; // a manifest's bytes, checked
mod blob; // a blob's bytes, reconnecting
mod client; // the public face

pub use blob::{BlobRequest, BlobStream};
pub use client::{Client, ClientConfig};
pub use credentials::Credentials;
pub use error::{ClientError, FetchError};
pub use hosts::HostsError;
pub use manifest::Manifest;
pub use tls::TlsError;
pub use transport::{TlsFault, TransportError};

#[cfg(test)]
mod tests;
