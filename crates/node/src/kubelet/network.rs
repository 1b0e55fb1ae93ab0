//! What the kubelet asks of the pod network: the upstream counterpart is CNI's ADD and DEL.

use std::net::IpAddr;
use std::path::PathBuf;

use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};

/// A port of the node that leads to a container (`hostPort`).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct HostPort {
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
    /// The port on the node.
    pub host_port: u16,
    /// The port in the pod.
    pub container_port: u16,
    /// Only this address of the node; `None` for all.
    pub host_ip: Option<IpAddr>,
}

/// A pod that needs a network namespace and addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodNetRequest {
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub name: String,
    /// The pod's uid: the key of the attachment.
    pub uid: String,
    /// The node's ports that lead to the pod.
    pub host_ports: Vec<HostPort>,
}

/// A pod's place in the network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodAttachment {
    /// A file that keeps the network namespace, as `ip netns` makes.
    pub netns: PathBuf,
    /// The pod's addresses, the first of the primary family.
    pub ips: Vec<IpAddr>,
}

/// The pod network of this node. Never called for pods with `hostNetwork`.
pub trait PodNetwork: Send + Sync + 'static {
    /// Gives a pod its network namespace and addresses. Idempotent by uid: a pod that is already attached keeps its
    /// addresses, also after a restart of the agent.
    fn add<'a>(&'a self, pod: &'a PodNetRequest) -> BoxFuture<'a, Result<PodAttachment, String>>;

    /// Takes everything back that [`PodNetwork::add`] made; a uid that is not attached is no error.
    fn del<'a>(&'a self, uid: &'a str) -> BoxFuture<'a, ()>;
}
