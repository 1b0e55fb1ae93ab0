//! The pod network of this node: a namespace, a link and an address for every pod, and routes to the other nodes' pods.
//!
//! Upstream counterpart: a CNI plugin (`ptp` with `host-local`) and Flannel's host-gw backend. A pod's link is a veth
//! pair without a bridge. Both ends know each other as permanent neighbours, so no ARP is ever sent. One small file a pod
//! remembers its address across restarts of the agent.

mod hostports;
mod pods;
mod routes;

pub use pods::PodNet;
pub use routes::{Options, follow_nodes};

use std::path::PathBuf;

/// Why the pod network of a pod or node could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum PodNetError {
    /// The node has no pod CIDR yet, or it is full.
    #[error("no IP addresses available in range set: {0}")]
    Full(String),
    /// The kernel refused a link, address or route.
    #[error(transparent)]
    Link(#[from] kernel::link::LinkError),
    /// The kernel refused a namespace.
    #[error(transparent)]
    Netns(#[from] kernel::netns::NetnsError),
    /// nftables refused the rules of masquerade or host ports.
    #[error("cannot set the rules of the pod network")]
    Netfilter(#[from] kernel::nftables::NetfilterError),
    /// The kernel refused a parameter.
    #[error(transparent)]
    Sysctl(#[from] kernel::sysctl::SysctlError),
    /// The file that remembers a pod's address cannot be read or written.
    #[error("cannot keep the record {path}")]
    Record {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
}
