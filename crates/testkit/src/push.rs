//! Pushes images to a registry over the distribution API: for real registries on loopback.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;

use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;

use crate::image::Blob;
use crate::place::Place;
use crate::samples::Served;

/// Pushes images, each to its repository under its tags; without tags, by digest only.
///
/// Blobs that the registry has are not sent again, those of another of these repositories are
/// mounted.
///
/// # Errors
/// The registry does not answer or refuses; the text has its words.
pub fn push(place: &Place, addr: SocketAddr, images: &[Served]) -> io::Result<()> {
    place.in_net(|| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        runtime.block_on(async {
            let mut client = Client::connect(addr).await?;
            for served in images {
                client.image(served).await?;
            }
            Ok(())
        })
    })
}

/// Whether something at `addr` answers `GET /v2/` with 200 or 401.
pub(crate) fn answers(place: &Place, addr: SocketAddr) -> bool {
    let ask = || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        runtime.block_on(async {
            let mut client = Client::connect(addr).await?;
            let (status, _, _) = client.send(Method::GET, "/v2/", &[], Bytes::new()).await?;
            Ok(matches!(status, StatusCode::OK | StatusCode::UNAUTHORIZED))
        })
    };
    place.in_net(ask).unwrap_or(false)
}

struct Client {
    addr: SocketAddr,
    sender: SendRequest<Full<Bytes>>,
    /// Digests that went out, and a repository that has each.
    there: HashMap<String, String>,
}

impl Client {
    async fn connect(addr: SocketAddr) -> io::Result<Self> {
        let stream = tokio::net::TcpStream::connect(addr).await?;
        let (sender, connection) = handshake(TokioIo::new(stream))
            .await
            .map_err(io::Error::other)?;
        tokio::spawn(connection);
        Ok(Self {
            addr,
            sender,
            there: HashMap::new(),
        })
    }

    /// Status, `Location` and body of the answer.
    async fn send(
        &mut self,
        method: Method,
        target: &str,
        headers: &[(header::HeaderName, &str)],
        body: Bytes,
    ) -> io::Result<(StatusCode, Option<String>, Bytes)> {
        let host = self.addr.to_string();
        let mut request = Request::builder()
            .method(method)
            .uri(target)
            .header(header::HOST, host);
        for (name, value) in headers {
            request = request.header(name, *value);
        }
        let request = request.body(Full::new(body)).map_err(io::Error::other)?;
        self.sender.ready().await.map_err(io::Error::other)?;
        let response = self
            .sender
            .send_request(request)
            .await
            .map_err(io::Error::other)?;
        let status = response.status();
        let location = response.headers().get(header::LOCATION);
        let location = location.and_then(|v| v.to_str().ok()).map(String::from);
        let body = response
            .into_body()
            .collect()
            .await
            .map_err(io::Error::other)?
            .to_bytes();
        Ok((status, location, body))
    }

    async fn image(&mut self, served: &Served) -> io::Result<()> {
        let (repository, image) = (served.repository.as_str(), &served.image);
        for blob in &image.blobs {
            self.blob(repository, blob).await?;
            self.there.insert(blob.digest.clone(), repository.into());
        }
        for manifest in image.children.iter().chain([&image.top]) {
            let reference = &manifest.blob.digest;
            self.manifest(repository, reference, &manifest.media_type, &manifest.blob)
                .await?;
        }
        for tag in &served.tags {
            self.manifest(repository, tag, &image.top.media_type, &image.top.blob)
                .await?;
        }
        Ok(())
    }

    async fn blob(&mut self, repository: &str, blob: &Blob) -> io::Result<()> {
        let digest = &blob.digest;
        let there = format!("/v2/{repository}/blobs/{digest}");
        if self.send(Method::HEAD, &there, &[], Bytes::new()).await?.0 == StatusCode::OK {
            return Ok(());
        }
        let mount = self
            .there
            .get(digest)
            .map(|from| format!("?mount={digest}&from={from}"));
        let uploads = format!(
            "/v2/{repository}/blobs/uploads/{}",
            mount.unwrap_or_default()
        );
        let (status, location, body) = self.send(Method::POST, &uploads, &[], Bytes::new()).await?;
        if status == StatusCode::CREATED {
            return Ok(()); // mounted
        }
        let Some(location) = location.filter(|_| status == StatusCode::ACCEPTED) else {
            return Err(refused("start of an upload", repository, status, &body));
        };
        let path = location
            .find("/v2/")
            .map_or(location.as_str(), |at| &location[at..]);
        let and = if path.contains('?') { '&' } else { '?' };
        let target = format!("{path}{and}digest={digest}");
        let kind = [(header::CONTENT_TYPE, "application/octet-stream")];
        let (status, _, body) = self
            .send(Method::PUT, &target, &kind, blob.bytes()?)
            .await?;
        if status == StatusCode::CREATED {
            return Ok(());
        }
        Err(refused(digest, repository, status, &body))
    }

    async fn manifest(
        &mut self,
        repository: &str,
        reference: &str,
        media_type: &str,
        blob: &Blob,
    ) -> io::Result<()> {
        let target = format!("/v2/{repository}/manifests/{reference}");
        let kind = [(header::CONTENT_TYPE, media_type)];
        let (status, _, body) = self
            .send(Method::PUT, &target, &kind, blob.bytes()?)
            .await?;
        if status == StatusCode::CREATED {
            return Ok(());
        }
        Err(refused(reference, repository, status, &body))
    }
}

fn refused(what: &str, repository: &str, status: StatusCode, body: &Bytes) -> io::Error {
    let words = String::from_utf8_lossy(body);
    io::Error::other(format!("push of {what} to {repository}: {status}: {words}"))
}
