//! Both services on one listener, behind the layers.

use tokio::net::UnixListener;
use tonic::transport::Server;
use wharf_api::MESSAGE_MAX;
use wharf_api::v1::image_service_server::ImageServiceServer;
use wharf_api::v1::runtime_service_server::RuntimeServiceServer;

use crate::accept::connections;
use crate::deadline::DeadlineLayer;
use crate::image_service::ImageDoor;
use crate::observe::ObserveLayer;
use crate::runtime_service::RuntimeDoor;

/// Requests that one connection may have in flight: kubelet has one connection and many workers.
const STREAMS_PER_CONNECTION_MAX: u32 = 1000;

/// The listener failed.
#[derive(Debug, thiserror::Error)]
#[error("serve CRI")]
pub struct ServeError(#[from] tonic::transport::Error);

/// Answers until `stop`, then takes no more and returns when the last request in flight is answered.
///
/// # Errors
///
/// The listener fails.
pub async fn serve(
    listener: UnixListener,
    runtime: RuntimeDoor,
    images: ImageDoor,
    stop: impl Future<Output = ()>,
) -> Result<(), ServeError> {
    let runtime = RuntimeServiceServer::new(runtime)
        .max_decoding_message_size(MESSAGE_MAX)
        .max_encoding_message_size(MESSAGE_MAX);
    let images = ImageServiceServer::new(images)
        .max_decoding_message_size(MESSAGE_MAX)
        .max_encoding_message_size(MESSAGE_MAX);
    Server::builder()
        .max_concurrent_streams(STREAMS_PER_CONNECTION_MAX)
        .layer(ObserveLayer)
        .layer(DeadlineLayer)
        .add_service(runtime)
        .add_service(images)
        .serve_with_incoming_shutdown(connections(listener), stop)
        .await?;
    Ok(())
}
