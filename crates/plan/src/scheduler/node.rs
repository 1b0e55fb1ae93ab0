//! A node with what is taken on it.

use std::sync::Arc;

use api::core::{Node, Pod};

use super::ports::{HostPort, host_ports};
use super::resources::{Amounts, add, amounts, requests};
use crate::objects::label;

/// Requests assumed, for scoring only, of a pod that states none (upstream: 100m and 200Mi).
const CPU_ASSUMED: i128 = 100;
const MEMORY_ASSUMED: i128 = (200 << 20) * 1000;

/// A node and its pods.
#[derive(Debug)]
pub(super) struct NodeInfo<'a> {
    pub(super) node: &'a Node,
    pub(super) allocatable: Amounts,
    pub(super) requested: Amounts,
    /// As `requested`, with assumed values for pods that state none.
    pub(super) weighed: (i128, i128),
    pub(super) ports: Vec<HostPort>,
    pub(super) pods: Vec<&'a Arc<Pod>>,
}

/// CPU and memory of a pod for scoring.
pub(super) fn weight(requests: &Amounts) -> (i128, i128) {
    let of =
        |name: &str, assumed| requests.get(name).copied().filter(|one| *one > 0).unwrap_or(assumed);
    (of("cpu", CPU_ASSUMED), of("memory", MEMORY_ASSUMED))
}

impl<'a> NodeInfo<'a> {
    /// A node without pods.
    pub(super) fn new(node: &'a Node) -> Self {
        let status = node.status.as_ref();
        let allocatable = status.and_then(|status| status.allocatable.as_ref());
        let allocatable =
            allocatable.or_else(|| status.and_then(|status| status.capacity.as_ref()));
        Self {
            node,
            allocatable: amounts(allocatable),
            requested: Amounts::new(),
            weighed: (0, 0),
            ports: Vec::new(),
            pods: Vec::new(),
        }
    }

    /// Takes what the pod requests.
    pub(super) fn add(&mut self, pod: &'a Arc<Pod>) {
        let requests = requests(pod);
        let (cpu, memory) = weight(&requests);
        self.weighed = (self.weighed.0 + cpu, self.weighed.1 + memory);
        add(&mut self.requested, &requests);
        self.ports.extend(host_ports(pod));
        self.pods.push(pod);
    }

    /// A label of the node.
    pub(super) fn label(&self, key: &str) -> Option<&'a str> {
        label(self.node, key)
    }
}
