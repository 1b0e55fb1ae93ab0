//! Who the client is: whether it is admitted, and whether the node puts its own address in place of the client's.

use std::net::IpAddr;

use ipnet::IpNet;

use super::Packet;
use super::endpoints::Scope;
use super::frontends::Target;
use crate::proxy::Settings;
use crate::service::FrontendKind;

const ANNOTATION_SOURCE_RANGES: &str = "service.beta.kubernetes.io/load-balancer-source-ranges";

/// Where a packet comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Client {
    /// A pod of the cluster, on any node.
    Pod,
    /// This node itself.
    Node,
    /// Anybody else, also other nodes.
    Outside,
}

/// Tells pods by their addresses. Source: services.md section 4, "Source NAT" (detect-local by cluster CIDR).
pub(super) fn client(packet: &Packet, settings: &Settings) -> Client {
    if settings.pod_cidrs.iter().any(|cidr| cidr.contains(&packet.source)) {
        Client::Pod
    } else if packet.from_node {
        Client::Node
    } else {
        Client::Outside
    }
}

/// `loadBalancerSourceRanges` bind the load balancer's addresses only, are asked before the endpoint is chosen, and
/// always admit the node itself. Ranges of the other family do not count: with none of this family everybody is
/// admitted. Source: services.md section 1, row 16, and section 4, "LB source ranges".
pub(super) fn is_admitted(packet: &Packet, target: &Target<'_>) -> bool {
    if target.kind != FrontendKind::LoadBalancer || packet.from_node {
        return true;
    }
    let mut ranges = source_ranges(target);
    ranges.retain(|range| is_same_family(range, &target.address.ip()));
    ranges.is_empty() || ranges.iter().any(|range| range.contains(&packet.source))
}

/// The field, or where that is empty the annotation; blanks around a range are tolerated.
fn source_ranges(target: &Target<'_>) -> Vec<IpNet> {
    let listed: Vec<&str> = match target.spec.load_balancer_source_ranges.as_deref() {
        Some([_, ..]) => {
            let listed = target.spec.load_balancer_source_ranges.iter().flatten();
            listed.map(String::as_str).collect()
        }
        _ => {
            let annotations = target.service.metadata.annotations.as_ref();
            let text = annotations.and_then(|all| all.get(ANNOTATION_SOURCE_RANGES));
            text.into_iter().flat_map(|text| text.split(',')).collect()
        }
    };
    listed.iter().filter_map(|text| text.trim().parse().ok()).collect()
}

/// Whether the endpoint sees the node instead of the client, whoever the endpoint is:
/// clients of cluster addresses that are no pods (all, with `--masquerade-all`; none, where the addresses of pods are
/// not known), and external clients unless the policy is Local. With that the node itself is masqueraded, and pods are
/// where a node port leads them to another node.
/// Source: services.md section 4, "Source NAT"; `pkg/proxy/nftables/proxier.go`.
pub(super) fn is_masqueraded(
    target: &Target<'_>,
    client: Client,
    scope: Scope,
    settings: &Settings,
) -> bool {
    let local = target.spec.external_traffic_policy.as_deref() == Some("Local");
    let pods_known = || {
        let mut pods = settings.pod_cidrs.iter();
        pods.any(|cidr| is_same_family(cidr, &target.address.ip()))
    };
    match target.kind {
        FrontendKind::ClusterIp if settings.masquerade_all => true,
        FrontendKind::ClusterIp => client != Client::Pod && pods_known(),
        _ if !local => true,
        FrontendKind::NodePort if scope == Scope::ShortCircuit => true,
        _ => client == Client::Node,
    }
}

fn is_same_family(cidr: &IpNet, address: &IpAddr) -> bool {
    cidr.addr().is_ipv4() == address.is_ipv4()
}
