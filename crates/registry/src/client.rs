//! The public face: what a pull asks of a registry.

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use http::{HeaderMap, HeaderValue};
use wharf_types::{Digest, Reference};

use crate::answer::{Asked, read_body};
use crate::auth::Authorizer;
use crate::blob::{BlobRequest, BlobStream};
use crate::credentials::Credentials;
use crate::endpoint::Endpoint;
use crate::error::{ClientError, FetchError};
use crate::fetch::{Fetcher, Query};
use crate::limits::MANIFEST_BYTES_MAX;
use crate::manifest::{Manifest, check, request_headers};
use crate::retry::Pace;
use crate::transport::Transports;

/// What a client needs to know.
#[derive(Debug, Clone)]
pub struct ClientConfig {
    /// The root of containerd's `certs.d` tree, read again for every pull; `None`: there is none.
    pub certs_d: Option<PathBuf>,
    /// The `User-Agent` header.
    pub user_agent: String,
}

/// A client for all registries: connections, tokens and what is known about hosts. One per process;
/// clones share everything.
#[derive(Clone)]
pub struct Client {
    fetcher: Arc<Fetcher>,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("certs_d", &self.fetcher.certs_d)
            .finish_non_exhaustive()
    }
}

impl Client {
    /// Makes a client. Nothing is read and nobody is asked yet.
    ///
    /// # Errors
    /// When the user agent cannot be a header.
    pub fn new(config: ClientConfig) -> Result<Self, ClientError> {
        Self::with_pace(config, Pace::default())
    }

    pub(crate) fn with_pace(config: ClientConfig, pace: Pace) -> Result<Self, ClientError> {
        let user_agent = HeaderValue::from_str(&config.user_agent)
            .map_err(|_invalid| ClientError::UserAgent(config.user_agent.clone()))?;
        let fetcher = Fetcher {
            certs_d: config.certs_d,
            user_agent,
            pace,
            authorizer: Authorizer::default(),
            transports: Transports::default(),
            down: Mutex::default(),
            spoken: Mutex::default(),
        };
        Ok(Self {
            fetcher: Arc::new(fetcher),
        })
    }

    /// The manifest or index that `reference` names: by its digest when it has one, else by its tag.
    ///
    /// # Errors
    /// [`FetchError::kind`] says what can be done.
    pub async fn resolve(
        &self,
        reference: &Reference,
        credentials: &Credentials,
    ) -> Result<Manifest, FetchError> {
        let (name, expected) = match (reference.digest(), reference.tag()) {
            (Some(digest), _) => (digest.to_string(), Some(digest)),
            (None, tag) => (tag.unwrap_or("latest").to_owned(), None),
        };
        let query = query(reference, reference.to_string(), credentials);
        let query = Query {
            path: format!("{}/manifests/{name}", reference.path()),
            headers: request_headers(),
            by_digest: expected.is_some(),
            ..query
        };
        Box::pin(self.document(reference, query, expected)).await
    }

    /// A manifest of `reference`'s repository by its digest: a child of an index.
    ///
    /// # Errors
    /// [`FetchError::kind`] says what can be done.
    pub async fn manifest(
        &self,
        reference: &Reference,
        digest: Digest,
        credentials: &Credentials,
    ) -> Result<Manifest, FetchError> {
        self.resolve(&reference.with_digest(digest), credentials)
            .await
    }

    /// A blob of `reference`'s repository as a stream. The bytes are not hashed here: the caller must.
    ///
    /// # Errors
    /// When no host has it; [`FetchError::kind`] says what can be done.
    pub async fn blob(
        &self,
        reference: &Reference,
        blob: BlobRequest,
        credentials: &Credentials,
    ) -> Result<BlobStream, FetchError> {
        let what = format!("blob {} of {}", blob.digest, reference.repository());
        let query = Query {
            path: format!("{}/blobs/{}", reference.path(), blob.digest),
            by_digest: true,
            ..query(reference, what, credentials)
        };
        let fetcher = Arc::clone(&self.fetcher);
        Box::pin(BlobStream::open(fetcher, reference.domain(), query, blob)).await
    }

    async fn document(
        &self,
        reference: &Reference,
        query: Query,
        expected: Option<Digest>,
    ) -> Result<Manifest, FetchError> {
        let (fetcher, query) = (&self.fetcher, &query);
        let endpoints = fetcher.endpoints(reference.domain(), query).await?;
        let attempt = async |endpoint: &Endpoint| {
            let (head, body) = fetcher.ask(endpoint, query).await?.into_parts();
            let asked = Asked {
                host: endpoint.host(),
                what: &query.what,
                credentials: &query.credentials,
            };
            let patience = fetcher.pace.head_timeout;
            let bytes = read_body(body, MANIFEST_BYTES_MAX, patience, asked).await?;
            check(asked.host, asked.what, expected, &head.headers, bytes)
        };
        let (_, manifest) = fetcher.first(&endpoints, 0, &query.what, attempt).await?;
        Ok(manifest)
    }
}

fn query(reference: &Reference, what: String, credentials: &Credentials) -> Query {
    Query {
        what,
        repository: reference.path().to_owned(),
        path: String::new(),
        headers: HeaderMap::new(),
        credentials: credentials.clone(),
        by_digest: false,
    }
}
