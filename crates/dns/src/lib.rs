//! Cluster DNS on every node: the zone's answers over UDP and TCP, and everything else from the host's resolvers.
//!
//! Upstream counterpart: CoreDNS with its `kubernetes` and `forward` plugins. It listens on the `kube-dns` Service's own
//! address on each node, so a pod's query is never translated and never leaves the node.

mod codec;
mod feed;
mod forward;
mod known;
mod server;

pub use feed::{Sources, follow};
pub use forward::{Forwarder, resolvers};
pub use server::{Server, ServerError};

use std::sync::Arc;

use arc_swap::ArcSwap;
use plan::dns::Zone;

/// The zone that readers see: replaced whole, read without waiting.
pub type SharedZone = Arc<ArcSwap<Zone>>;
