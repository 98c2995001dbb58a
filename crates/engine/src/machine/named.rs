//! Pods in networks that people make: attached through the pod's shim, and their neighbours' names answered.

use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::path::PathBuf;
use std::sync::Arc;

use wharf_network::PodNetns;
use wharf_network::dns::{self, Listeners};
use wharf_network::named::{Connect, Endpoint, NamedError};
use wharf_types::{Kind, PodId};

use super::Parts;
use super::held::Held;
use crate::sockets::{JoinNetwork, PodSocket, Transport};
use crate::world::StepFailure;

const CONNECT: &str = "connect network";
const DISCONNECT: &str = "disconnect network";
const NAMES: &str = "serve names";

fn failure(stage: &'static str) -> impl FnOnce(NamedError) -> StepFailure {
    move |e| StepFailure::new(stage, e.kind(), e)
}

fn broken(stage: &'static str) -> impl FnOnce(io::Error) -> StepFailure {
    move |e| StepFailure::new(stage, crate::error::io_kind(&e), e)
}

impl Parts {
    /// Connects a pod with a network namespace of its own, and answers its questions for names.
    pub(super) async fn connect_network(
        &self,
        pod: &PodId,
        asked: JoinNetwork,
    ) -> Result<Endpoint, StepFailure> {
        let held = self.held(pod);
        let netns = held.as_deref().map(netns).transpose();
        let netns = netns.map_err(broken(CONNECT))?.flatten().ok_or_else(|| {
            let text = "the pod has no network namespace of its own: it uses the host's network, or its shim is gone";
            StepFailure::new(CONNECT, Kind::Conflict, text)
        })?;
        let join = Connect {
            pod: pod.to_string(),
            netns,
            names: asked.names,
            addresses: asked.addresses,
            ports: Vec::new(),
        };
        let made = self.named.connect(&asked.network, join).await;
        let made = made.map_err(failure(CONNECT))?;
        if let Err(failure) = self.refresh_names(pod).await {
            // Without names it would be another network than what was asked for.
            if let Err(left) = self.disconnect_network(pod, &asked.network).await {
                tracing::warn!(error = %left, "what was begun is not undone");
            }
            return Err(failure);
        }
        Ok(made)
    }

    /// Disconnects a pod.
    pub(super) async fn disconnect_network(
        &self,
        pod: &PodId,
        network: &str,
    ) -> Result<(), StepFailure> {
        let held = self.held(pod);
        // What cannot be had any more is gone, to the plugins.
        let netns = held.as_deref().and_then(|held| netns(held).ok()?);
        let done = self.named.disconnect(network, pod.as_str(), netns).await;
        done.map_err(failure(DISCONNECT))?;
        self.refresh_names(pod).await
    }

    /// What a pod is called is what is recorded of it; its sockets come with the first network, also after
    /// a restart of the daemon.
    pub(super) async fn refresh_names(&self, pod: &PodId) -> Result<(), StepFailure> {
        let memberships = self.named.memberships(pod.as_str());
        let alone = memberships.is_empty();
        self.resolver.book().set(pod.as_str(), memberships);
        let Some(held) = self.held(pod) else {
            self.forget_names(pod);
            return Ok(());
        };
        let mut serving = held.names.lock().await;
        if alone {
            *serving = None;
        } else if serving.is_none() {
            let listeners = self.listen_for_names(pod).await?;
            let served = self.resolver.serve(pod.as_str(), listeners);
            *serving = Some(served.map_err(broken(NAMES))?);
        }
        Ok(())
    }

    /// Nobody finds the pod any more.
    pub(super) fn forget_names(&self, pod: &PodId) {
        self.resolver.book().remove(pod.as_str());
    }

    async fn listen_for_names(&self, pod: &PodId) -> Result<Listeners, StepFailure> {
        let any = SocketAddr::from((dns::ADDRESS, 0));
        let udp = self.open_in_pod(pod, PodSocket::Bind(Transport::Datagram, any));
        let udp = UdpSocket::from(udp.await?);
        let tcp = self.open_in_pod(pod, PodSocket::Bind(Transport::Stream, any));
        let tcp = TcpListener::from(tcp.await?);
        let rules = self.open_in_pod(pod, PodSocket::Netfilter).await?;
        let udp_port = udp.local_addr().map_err(broken(NAMES))?.port();
        let tcp_port = tcp.local_addr().map_err(broken(NAMES))?.port();
        super::block(NAMES, move || {
            let led = dns::redirect(rules, udp_port, tcp_port);
            led.map_err(|e| StepFailure::new(NAMES, Kind::Internal, e))
        })
        .await?;
        Ok(Listeners { udp, tcp })
    }

    /// After a restart: pods in networks are answered again. Nobody waits for it.
    pub(super) fn restore_names(self: &Arc<Self>, pod: &PodId) {
        if self.named.memberships(pod.as_str()).is_empty() {
            return;
        }
        let (parts, pod) = (self.clone(), pod.clone());
        tokio::spawn(async move {
            if let Err(error) = parts.refresh_names(&pod).await {
                tracing::warn!(%pod, %error, "the pod's questions for names are not answered");
            }
        });
    }
}

/// The pod's own namespace; `None` when it uses the host's.
fn netns(held: &Held) -> io::Result<Option<PodNetns>> {
    let Some((fd, route)) = held.network() else {
        return Ok(None);
    };
    let own = || PathBuf::from(format!("/proc/{}/ns/net", held.facts.pid));
    Ok(Some(PodNetns {
        path: held.facts.netns.clone().unwrap_or_else(own),
        fd: fd.try_clone_to_owned()?,
        route: route.try_clone_to_owned()?,
    }))
}
