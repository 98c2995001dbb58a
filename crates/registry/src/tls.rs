//! Certificate files to a TLS configuration: rustls with aws-lc-rs, the machine's own roots.
//!
//! Roots are loaded when the first https connection needs them: a machine without any must still pull
//! over plain http.

use std::fmt;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::ResolvesClientCert;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, aws_lc_rs};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use wharf_types::Digest;

use crate::limits::CONFIG_FILE_BYTES_MAX;

/// TLS cannot be set up as configured.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// A certificate or key file cannot be read.
    #[error("read {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The kernel's answer.
        source: Arc<io::Error>,
    },
    /// The file holds nothing that can be used.
    #[error("{} holds no usable {what} in PEM form", path.display())]
    Pem {
        /// The file.
        path: PathBuf,
        /// "certificate", "private key".
        what: &'static str,
    },
    /// Nothing to verify a server with.
    #[error(
        "no trusted certificate authorities on this machine: install ca-certificates, or name a `ca` in hosts.toml"
    )]
    NoRoots,
    /// The TLS library refused the configuration.
    #[error("set up TLS")]
    Setup {
        /// Its reason.
        source: rustls::Error,
    },
}

/// The files that the configuration of a host names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct TlsFiles {
    /// Added to the machine's roots.
    pub(crate) ca: Vec<PathBuf>,
    /// Certificate and key; `None`: the key is in the certificate's file.
    pub(crate) client: Vec<(PathBuf, Option<PathBuf>)>,
    /// `None`: not said.
    pub(crate) skip_verify: Option<bool>,
}

impl TlsFiles {
    /// Whether the configuration says anything about TLS.
    pub(crate) fn is_explicit(&self) -> bool {
        !self.ca.is_empty() || !self.client.is_empty() || self.skip_verify.is_some()
    }

    /// Reads the files as they are now.
    pub(crate) fn load(&self) -> Result<TlsMaterial, TlsError> {
        let mut material = TlsMaterial {
            skip_verify: self.skip_verify == Some(true),
            ..TlsMaterial::default()
        };
        for path in &self.ca {
            material.ca.push((path.clone(), read(path)?));
        }
        for (path, key) in &self.client {
            let certificate = (path.clone(), read(path)?);
            let key = match key {
                Some(key) => (key.clone(), read(key)?),
                None => certificate.clone(),
            };
            material.client.push((certificate, key));
        }
        Ok(material)
    }
}

type PemFile = (PathBuf, Vec<u8>);

/// The content of those files. It holds private keys: `Debug` does not show it.
#[derive(Clone, Default)]
pub(crate) struct TlsMaterial {
    ca: Vec<PemFile>,
    client: Vec<(PemFile, PemFile)>,
    skip_verify: bool,
}

impl fmt::Debug for TlsMaterial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (ca, client) = (self.ca.len(), self.client.len());
        write!(f, "TlsMaterial({ca} ca, {client} client)")
    }
}

impl TlsMaterial {
    /// Equal for equal content: connections are shared by it, and replaced files get new connections.
    pub(crate) fn identity(&self) -> Digest {
        let files = self
            .client
            .iter()
            .flat_map(|(certificate, key)| [certificate, key]);
        let mut text = format!("{} {}", self.skip_verify, self.ca.len());
        for (_, bytes) in self.ca.iter().chain(files) {
            text = format!("{text} {}", Digest::of(bytes));
        }
        Digest::of(text.as_bytes())
    }

    /// Builds the configuration. Reads the machine's roots: it blocks for some milliseconds.
    pub(crate) fn config(&self) -> Result<ClientConfig, TlsError> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(|source| TlsError::Setup { source })?;
        let builder = if self.skip_verify {
            let algorithms = provider.signature_verification_algorithms;
            builder
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(AnyServer { algorithms }))
        } else {
            builder.with_root_certificates(self.roots()?)
        };
        if self.client.is_empty() {
            return Ok(builder.with_no_client_auth());
        }
        let keys = self
            .client
            .iter()
            .map(|(certificate, key)| certified_key(certificate, key, &provider))
            .collect::<Result<Vec<_>, _>>()?;
        Ok(builder.with_client_cert_resolver(Arc::new(ClientKeys(keys))))
    }

    fn roots(&self) -> Result<RootCertStore, TlsError> {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        for (path, bytes) in &self.ca {
            let certificates = certificates(path, bytes)?;
            let (added, _ignored) = roots.add_parsable_certificates(certificates);
            if added == 0 {
                return Err(TlsError::Pem {
                    path: path.clone(),
                    what: "certificate",
                });
            }
        }
        if roots.is_empty() {
            return Err(TlsError::NoRoots);
        }
        Ok(roots)
    }
}

fn certificates(path: &Path, bytes: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    CertificateDer::pem_slice_iter(bytes)
        .collect::<Result<Vec<_>, _>>()
        .ok()
        .filter(|found| !found.is_empty())
        .ok_or_else(|| TlsError::Pem {
            path: path.to_owned(),
            what: "certificate",
        })
}

fn certified_key(
    certificate: &PemFile,
    key: &PemFile,
    provider: &CryptoProvider,
) -> Result<Arc<CertifiedKey>, TlsError> {
    let chain = certificates(&certificate.0, &certificate.1)?;
    let der = PrivateKeyDer::from_pem_slice(&key.1).map_err(|_pem| TlsError::Pem {
        path: key.0.clone(),
        what: "private key",
    })?;
    CertifiedKey::from_der(chain, der, provider)
        .map(Arc::new)
        .map_err(|source| TlsError::Setup { source })
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    let failed = |error| TlsError::Io {
        path: path.to_owned(),
        source: Arc::new(error),
    };
    let mut bytes = Vec::new();
    std::fs::File::open(path)
        .map_err(failed)?
        .take(CONFIG_FILE_BYTES_MAX + 1)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > CONFIG_FILE_BYTES_MAX {
        return Err(failed(io::ErrorKind::FileTooLarge.into()));
    }
    Ok(bytes)
}

/// Several client certificates: the first whose key fits what the server can verify.
#[derive(Debug)]
struct ClientKeys(Vec<Arc<CertifiedKey>>);

impl ResolvesClientCert for ClientKeys {
    fn resolve(&self, _hints: &[&[u8]], schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.0
            .iter()
            .find(|key| key.key.choose_scheme(schemes).is_some())
            .cloned()
    }

    fn has_certs(&self) -> bool {
        !self.0.is_empty()
    }
}

/// `skip_verify`: any certificate will do, but the server must own it.
struct AnyServer {
    algorithms: WebPkiSupportedAlgorithms,
}

impl fmt::Debug for AnyServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AnyServer")
    }
}

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, certificate, signed, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, certificate, signed, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
