//! What a change of the objects would change for packets: flows that move, clients that lose their path, what becomes
//! reachable from outside, and what cannot be.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use api::core::{Pod, Service};
use api::{Kind, Name};
use serde::Serialize;

use super::exposed::{Exposure, exposed, external_addresses, on_node, silent_outside};
use super::{Cluster, UNPLACED, count};
use crate::endpointslice::{has_selector, is_headless, selected};
use crate::podfacts;
use crate::service::{Action, Frontend, FrontendKind};

/// A flow that ends elsewhere than before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Moved {
    /// Whose connections: `Service default/web, port 80/TCP`.
    pub flow: String,
    /// For which clients.
    pub clients: String,
    /// Where they ended.
    pub before: String,
    /// Where they will end.
    pub after: String,
}

/// Clients that are served now, and will not be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Lost {
    /// Whose connections.
    pub flow: String,
    /// Which clients.
    pub clients: String,
    /// Why.
    pub why: String,
}

/// What differs for packets.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// Flows that end elsewhere, or begin to be served.
    pub flows: Vec<Moved>,
    /// Clients that lose their path.
    pub lost: Vec<Lost>,
    /// What becomes reachable from outside.
    pub exposed: Vec<Exposure>,
    /// What is no longer reachable from outside.
    pub hidden: Vec<Exposure>,
    /// What the API server will refuse, or what two Services want both.
    pub conflicts: Vec<String>,
}

impl Difference {
    /// Whether nothing changes for any packet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Tells two clusters apart.
#[must_use]
pub fn difference(before: &Cluster, after: &Cluster) -> Difference {
    let mut found = Difference::default();
    flows(before, after, &mut found);
    let (old, new) = (exposed(before), exposed(after));
    let same = |a: &Exposure, b: &Exposure| {
        (&a.address, a.port, a.protocol, &a.service, &a.pod, a.service_port, &a.sources)
            == (&b.address, b.port, b.protocol, &b.service, &b.pod, b.service_port, &b.sources)
    };
    let lacks = |list: &[Exposure], one: &Exposure| !list.iter().any(|other| same(one, other));
    found.exposed = new.iter().filter(|one| lacks(&old, one)).cloned().collect();
    found.hidden = old.iter().filter(|one| lacks(&new, one)).cloned().collect();
    let known: BTreeSet<String> = conflicts(before).into_iter().collect();
    found.conflicts = conflicts(after).into_iter().filter(|one| !known.contains(one)).collect();
    found
}

/// Who connects, to what: the Service, its port, from inside or outside, by the node that judges.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Flow {
    service: Name,
    port: u16,
    protocol: &'static str,
    outside: bool,
    node: String,
}

/// Where a flow ends: pods by workload, or why nowhere.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Ends {
    At(BTreeMap<String, usize>),
    Nowhere(&'static str),
}

impl std::fmt::Display for Ends {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::At(workloads) => {
                let shown = workloads
                    .iter()
                    .map(|(at, pods)| format!("{at} ({})", count(*pods, "endpoint")));
                f.write_str(&shown.collect::<Vec<_>>().join(" and "))
            }
            Self::Nowhere(why) => write!(f, "nowhere: {why}"),
        }
    }
}

fn flows(before: &Cluster, after: &Cluster, found: &mut Difference) {
    let nodes: BTreeSet<String> = [before, after]
        .iter()
        .flat_map(|cluster| cluster.nodes.keys())
        .map(|name| name.name.to_string())
        .collect();
    let nodes = if nodes.is_empty() { [UNPLACED.to_owned()].into() } else { nodes };
    let (old, new) = (ends(before, &nodes), ends(after, &nodes));
    let mut changes: BTreeMap<_, Vec<&str>> = BTreeMap::new();
    for flow in old.keys().chain(new.keys()).collect::<BTreeSet<_>>() {
        let (was, will) = (old.get(flow), new.get(flow));
        if was == will {
            continue;
        }
        let same = (&flow.service, flow.port, flow.protocol, flow.outside, was, will);
        changes.entry(same).or_default().push(&flow.node);
    }
    for ((service, port, protocol, outside, was, will), on) in changes {
        let flow = format!("Service {service}, port {port}/{protocol}");
        let place = match (on.len() == nodes.len(), outside) {
            (true, false) => "clients in the cluster".to_owned(),
            (true, true) => "clients outside".to_owned(),
            (false, false) => format!("clients on {}", on.join(", ")),
            (false, true) => format!("clients outside, by way of {}", on.join(", ")),
        };
        let gone = |cluster: &Cluster| match cluster.services.contains_key(service) {
            true => Ends::Nowhere("it is not reached this way"),
            false => Ends::Nowhere("there is no such Service"),
        };
        let was = was.cloned().unwrap_or_else(|| gone(before));
        let will = will.cloned().unwrap_or_else(|| gone(after));
        match (&was, &will) {
            (Ends::At(_), Ends::Nowhere(why)) => {
                found.lost.push(Lost { flow, clients: place, why: (*why).to_owned() });
            }
            _ => found.flows.push(Moved {
                flow,
                clients: place,
                before: was.to_string(),
                after: will.to_string(),
            }),
        }
    }
}

fn ends(cluster: &Cluster, nodes: &BTreeSet<String>) -> BTreeMap<Flow, Ends> {
    let mut found = BTreeMap::new();
    for (name, service) in &cluster.services {
        if is_headless(service) {
            headless(cluster, service, nodes, &mut found);
            continue;
        }
        for node in nodes {
            for at in on_node(cluster, service, node).frontends {
                let outside = at.kind != FrontendKind::ClusterIp;
                let flow = Flow {
                    service: name.clone(),
                    port: at.identity.port(),
                    protocol: at.protocol.word(),
                    outside,
                    node: node.clone(),
                };
                let ends = end(cluster, &at);
                // Of a Service's addresses outside the one that serves is told.
                let kept = found.get(&flow).is_some_and(|old| matches!(old, Ends::At(_)));
                if !kept {
                    found.insert(flow, ends);
                }
            }
        }
    }
    found
}

fn end(cluster: &Cluster, at: &Frontend) -> Ends {
    let why = match at.kind {
        FrontendKind::ClusterIp => match at.action {
            Action::Reject => Some("the Service has no endpoints"),
            Action::Drop => Some("internalTrafficPolicy is Local and no endpoint is here"),
            _ => None,
        },
        _ => silent_outside(&at.action),
    };
    if let Some(why) = why {
        return Ends::Nowhere(why);
    }
    let endpoints = match &at.action {
        Action::Forward { endpoints, .. } => endpoints.as_slice(),
        Action::Split { outside, .. } => outside.as_slice(),
        Action::Reject | Action::Drop => &[],
    };
    Ends::At(labels(cluster, endpoints.iter().copied()))
}

fn labels(
    cluster: &Cluster,
    endpoints: impl Iterator<Item = SocketAddr>,
) -> BTreeMap<String, usize> {
    let mut found = BTreeMap::new();
    for endpoint in endpoints {
        let owner = match cluster.pod_at(endpoint.ip()) {
            Some(pod) => workload(pod),
            None => endpoint.ip().to_string(),
        };
        *found.entry(format!("{owner} port {}", endpoint.port())).or_default() += 1;
    }
    found
}

/// Clients of a headless Service reach its pods by name.
fn headless(
    cluster: &Cluster,
    service: &Service,
    nodes: &BTreeSet<String>,
    found: &mut BTreeMap<Flow, Ends>,
) {
    let name = service.object_name();
    let records = crate::dns::service_records(service, cluster.slices_of(&name).into_iter())
        .map(|r| r.target);
    let addresses: Vec<IpAddr> = match records {
        Some(crate::dns::Target::Headless(all)) => all.iter().map(|one| one.address).collect(),
        _ => Vec::new(),
    };
    for port in service.spec.iter().flat_map(|spec| spec.ports.iter().flatten()) {
        let number = u16::try_from(port.port).unwrap_or(0);
        let at = addresses.iter().map(|address| SocketAddr::new(*address, number));
        let ends = if addresses.is_empty() {
            Ends::Nowhere("its name has no address: no endpoint is ready")
        } else {
            Ends::At(labels(cluster, at))
        };
        for node in nodes {
            let protocol = crate::service::Protocol::of(port.protocol.as_deref());
            let flow = Flow {
                service: name.clone(),
                port: number,
                protocol: protocol.map_or("TCP", crate::service::Protocol::word),
                outside: false,
                node: node.clone(),
            };
            found.insert(flow, ends.clone());
        }
    }
}

/// `Deployment web`, or the pod itself when nobody owns it. A ReplicaSet is called after its Deployment and a hash.
fn workload(pod: &Pod) -> String {
    match pod.controller() {
        None => format!("Pod {}", pod.name()),
        Some(owner) if owner.kind == "ReplicaSet" => match owner.name.rsplit_once('-') {
            Some((deployment, _)) => format!("Deployment {deployment}"),
            None => format!("ReplicaSet {}", owner.name),
        },
        Some(owner) => format!("{} {}", owner.kind, owner.name),
    }
}

/// Numbers and addresses that two Services want, addresses out of range, and Services that select more than one
/// workload.
fn conflicts(cluster: &Cluster) -> Vec<String> {
    let mut taken: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut found = Vec::new();
    for (name, service) in &cluster.services {
        let Some(spec) = &service.spec else { continue };
        let mut own: BTreeSet<String> = BTreeSet::new();
        for port in spec.ports.iter().flatten() {
            own.extend(
                port.node_port.filter(|port| *port != 0).map(|port| format!("node port {port}")),
            );
            for address in external_addresses(service).0 {
                let protocol = port.protocol.as_deref().unwrap_or("TCP");
                own.insert(format!(
                    "load balancer address {address}, port {}/{protocol}",
                    port.port
                ));
            }
        }
        own.extend(
            spec.health_check_node_port
                .filter(|port| *port != 0)
                .map(|port| format!("node port {port}")),
        );
        for address in cluster_ips(service) {
            own.insert(format!("clusterIP {address}"));
            let ours = |cidr: &&ipnet::IpNet| cidr.addr().is_ipv4() == address.is_ipv4();
            let mut ranges = cluster.service_cidrs.iter().filter(ours).peekable();
            let known = ranges.peek().is_some() && !cluster.invented.contains(&address);
            if known && !ranges.any(|range| range.contains(&address)) {
                found.push(format!(
                    "clusterIP {address} of Service {name} is in no range of Services"
                ));
            }
        }
        for one in own {
            taken.entry(one).or_default().push(name.to_string());
        }
        found.extend(mixed(cluster, name, service));
    }
    for (what, who) in taken.into_iter().filter(|(_, who)| who.len() > 1) {
        found.push(format!("{what} is wanted by Service {}", who.join(" and Service ")));
    }
    found
}

fn cluster_ips(service: &Service) -> BTreeSet<IpAddr> {
    let spec = service.spec.as_ref();
    let listed = spec.and_then(|spec| spec.cluster_ips.as_ref()).into_iter().flatten();
    let one = spec.and_then(|spec| spec.cluster_ip.as_ref());
    listed.chain(one).filter_map(|text| text.parse().ok()).collect()
}

/// A Service whose selector takes the pods of several workloads, which is rarely meant.
fn mixed(cluster: &Cluster, name: &Name, service: &Service) -> Option<String> {
    if !has_selector(service) {
        return None;
    }
    let pods = selected(&cluster.pods, service).filter(|pod| !podfacts::is_terminal(pod));
    let owned = pods.filter(|pod| pod.controller().is_some());
    let workloads: BTreeSet<String> = owned.map(|pod| workload(pod)).collect();
    (workloads.len() > 1).then(|| {
        let all: Vec<String> = workloads.into_iter().collect();
        format!("the selector of Service {name} takes pods of {}", all.join(" and "))
    })
}
