//! `runtime.v1.ImageService`: each RPC is a conversion, one call of the image crate, a conversion.

use std::collections::HashMap;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::json;
use tonic::{Request, Response, Status};
use wharf_api::v1;
use wharf_api::v1::image_service_server::ImageService;
use wharf_image::{Image, Images, PullRequest};
use wharf_store::{Store, Usage};
use wharf_types::ChainId;

use crate::code::{pull_status, status};
use crate::convert::image;
use crate::stage::Stage;

/// What a client gets.
type Answer<T> = Result<Response<T>, Status>;

/// Whose names CRI sees (containerd's word for it).
const NAMESPACE: &str = "k8s.io";

/// The door to the images. Cheap to clone.
#[derive(Debug, Clone)]
pub struct ImageDoor {
    images: Images,
    store: Store,
}

impl ImageDoor {
    /// A door to `images` and the space that they and containers take in `store`.
    pub fn new(images: Images, store: Store) -> Self {
        Self { images, store }
    }

    fn listed(&self, filter: Option<v1::ImageFilter>) -> Vec<v1::Image> {
        let text = filter.and_then(|f| f.image).unwrap_or_default().image;
        let found = if text.is_empty() {
            self.images.list().to_vec()
        } else {
            self.images.find(&text).into_iter().collect()
        };
        found.iter().map(|one| image::item(one)).collect()
    }
}

#[tonic::async_trait]
impl ImageService for ImageDoor {
    async fn list_images(
        &self,
        request: Request<v1::ListImagesRequest>,
    ) -> Answer<v1::ListImagesResponse> {
        let images = self.listed(request.into_inner().filter);
        Ok(Response::new(v1::ListImagesResponse { images }))
    }

    type StreamImagesStream = crate::portion::Messages<v1::StreamImagesResponse>;

    async fn stream_images(
        &self,
        request: Request<v1::StreamImagesRequest>,
    ) -> Answer<Self::StreamImagesStream> {
        let images = self.listed(request.into_inner().filter);
        let message = |images| v1::StreamImagesResponse { images };
        Ok(Response::new(crate::portion::portions(&images, message)))
    }

    async fn image_status(
        &self,
        request: Request<v1::ImageStatusRequest>,
    ) -> Answer<v1::ImageStatusResponse> {
        let request = request.into_inner();
        let found = self.images.find(&image::text(request.image)?);
        let info = match &found {
            Some(found) if request.verbose => info(found),
            _ => HashMap::new(),
        };
        let image = found.as_deref().map(image::item);
        Ok(Response::new(v1::ImageStatusResponse { image, info }))
    }

    async fn pull_image(
        &self,
        request: Request<v1::PullImageRequest>,
    ) -> Answer<v1::PullImageResponse> {
        let stage = Stage::of(&request);
        let request = request.into_inner();
        let reference = image::reference(request.image)?;
        let credentials = image::credentials(request.auth, &reference)?;
        let name = reference.to_string();
        stage.tell(move || Some(format!("pulling {name}")));
        let pull = PullRequest {
            reference,
            credentials,
            namespace: NAMESPACE.to_owned(),
            platform: None,
        };
        let pulled = self.images.pull(pull).await;
        let image = pulled.map_err(|e| pull_status(e.kind(), &e))?;
        let image_ref = image.id.to_string();
        Ok(Response::new(v1::PullImageResponse { image_ref }))
    }

    async fn remove_image(
        &self,
        request: Request<v1::RemoveImageRequest>,
    ) -> Answer<v1::RemoveImageResponse> {
        let text = image::text(request.into_inner().image)?;
        let removed = self.images.remove(&text).await;
        removed.map_err(|e| status(e.kind(), &e))?;
        Ok(Response::new(v1::RemoveImageResponse {}))
    }

    async fn image_fs_info(
        &self,
        _: Request<v1::ImageFsInfoRequest>,
    ) -> Answer<v1::ImageFsInfoResponse> {
        // Writable layers may have to be measured: on a thread that may wait for the disk.
        let store = self.store.clone();
        let writable = tokio::task::spawn_blocking(move || store.snapshot_usage());
        let writable = writable
            .await
            .map_err(|e| Status::internal(e.to_string()))?;
        // The same place for both: kubelet takes different ones for two file systems.
        let place = self.store.root().to_string_lossy();
        Ok(Response::new(v1::ImageFsInfoResponse {
            image_filesystems: vec![used(&place, self.images.usage())],
            container_filesystems: vec![used(&place, writable)],
        }))
    }
}

fn used(place: &str, usage: Usage) -> v1::FilesystemUsage {
    v1::FilesystemUsage {
        timestamp: now_ns(),
        fs_id: Some(v1::FilesystemIdentifier {
            mountpoint: place.to_owned(),
        }),
        used_bytes: Some(v1::UInt64Value { value: usage.bytes }),
        inodes_used: Some(v1::UInt64Value {
            value: usage.inodes,
        }),
    }
}

/// Nanoseconds since 1970.
fn now_ns() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |d| i64::try_from(d.as_nanos()).unwrap_or(i64::MAX))
}

/// What `crictl inspecti` shows.
fn info(image: &Image) -> HashMap<String, String> {
    let config: serde_json::Value = serde_json::from_slice(&image.config_json).unwrap_or_default();
    let chain = ChainId::of(&image.layers).map(|id| id.to_string());
    let value = json!({"chainID": chain.unwrap_or_default(), "imageSpec": config});
    crate::info::map("info", &value)
}
