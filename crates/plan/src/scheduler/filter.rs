//! Whether a pod fits a node: upstream's filter plugins in upstream's order; the first that refuses gives the reason.

use api::Name;
use api::core::Pod;

use super::Cluster;
use super::affinity::Affinity;
use super::node::NodeInfo;
use super::ports::{HostPort, conflict, host_ports};
use super::reasons::Refusal;
use super::resources::{Amounts, requests};
use super::selector::{pod_matches_node, tolerates, tolerations, untolerated};
use super::spread::Spread;
use super::volumes::Needs;

/// The taint that `kubectl cordon` implies.
const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";

/// A pod with everything about it that does not depend on the node.
pub(super) struct Request<'a> {
    pod: &'a Pod,
    requests: Amounts,
    ports: Vec<HostPort>,
    volumes: Needs,
    spread: Spread<'a>,
    affinity: Affinity<'a>,
}

impl<'a> Request<'a> {
    pub(super) fn new(cluster: &'a Cluster<'_>, pod: &'a Pod, volumes: Needs) -> Self {
        Self {
            pod,
            requests: requests(pod),
            ports: host_ports(pod),
            volumes,
            spread: Spread::required(cluster, pod),
            affinity: Affinity::new(cluster, pod),
        }
    }

    /// Claims that are to be provisioned on the chosen node before the pod is bound.
    pub(super) fn unbound_claims(&self) -> Vec<Name> {
        self.volumes.unbound()
    }

    /// Whether the pod fits the node.
    pub(super) fn check(&self, info: &NodeInfo<'_>) -> Result<(), Refusal> {
        self.check_node(info)?;
        if self.ports.iter().any(|port| info.ports.iter().any(|taken| conflict(port, taken))) {
            let reason = "node(s) didn't have free ports for the requested pod ports";
            return Err(Refusal::for_now(reason));
        }
        self.check_resources(info)?;
        self.volumes.check(info.node)?;
        self.spread.check(info)?;
        self.affinity.check(info)
    }

    fn check_node(&self, info: &NodeInfo<'_>) -> Result<(), Refusal> {
        let cordoned = info.node.spec.as_ref().and_then(|spec| spec.unschedulable) == Some(true);
        let implied = api::core::Taint {
            key: UNSCHEDULABLE.to_owned(),
            effect: "NoSchedule".to_owned(),
            ..api::core::Taint::default()
        };
        if cordoned && !tolerates(tolerations(self.pod), &implied) {
            return Err(Refusal::for_good("node(s) were unschedulable"));
        }
        if untolerated(self.pod, info.node).is_some() {
            // Which taint is not said: since 1.35 upstream keeps keys and values out of what a pod's owner reads.
            return Err(Refusal::for_good("node(s) had untolerated taint(s)"));
        }
        if !pod_matches_node(self.pod, info.node) {
            return Err(Refusal::for_good("node(s) didn't match Pod's node affinity/selector"));
        }
        Ok(())
    }

    fn check_resources(&self, info: &NodeInfo<'_>) -> Result<(), Refusal> {
        let mut refusal = Refusal { reasons: Vec::new(), final_: false };
        let of = |amounts: &Amounts, name: &str| amounts.get(name).copied().unwrap_or(0);
        let taken = i128::try_from(info.pods.len()).unwrap_or(i128::MAX);
        if (taken + 1) * 1000 > of(&info.allocatable, "pods") {
            refusal.reasons.push("Too many pods".to_owned());
        }
        for (name, amount) in self.requests.iter().filter(|(_, amount)| **amount > 0) {
            let allocatable = of(&info.allocatable, name);
            if *amount > allocatable - of(&info.requested, name) {
                refusal.reasons.push(format!("Insufficient {name}"));
                refusal.final_ |= *amount > allocatable;
            }
        }
        if refusal.reasons.is_empty() { Ok(()) } else { Err(refusal) }
    }
}
