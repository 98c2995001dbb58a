//! Networks that people make, at the engine's door: pods join and leave them while they run.

use wharf_network::named::{Endpoint, NamedNetworks};

use crate::engine::Engine;
use crate::error::RequestError;
use crate::sockets::JoinNetwork;

impl Engine {
    /// The networks that people made; `None` over a world that is not a machine. They are created, removed
    /// and listed there; pods come in by [`Engine::connect_network`].
    pub fn named_networks(&self) -> Option<&NamedNetworks> {
        self.named.as_ref()
    }

    /// Connects a ready pod to a network, and answers its questions for names at 127.0.0.11.
    ///
    /// # Errors
    ///
    /// `NotFound` for the pod, `State` when it is not ready; a step for everything else: `Conflict` when
    /// it is in the network already, or on the host's network. Then nothing is left.
    pub async fn connect_network(
        &self,
        pod: &str,
        asked: JoinNetwork,
    ) -> Result<Endpoint, RequestError> {
        self.pods.connect_network(pod, asked).await
    }

    /// Disconnects a pod from a network.
    ///
    /// # Errors
    ///
    /// `NotFound` for the pod; a step for everything else: `Conflict` when it is not in the network.
    pub async fn disconnect_network(&self, pod: &str, network: &str) -> Result<(), RequestError> {
        self.pods.disconnect_network(pod, network).await
    }
}
