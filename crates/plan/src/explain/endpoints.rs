//! Who may get the packet and with what share, and for everybody else why not.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use api::core::{Pod, Service, ServicePort};
use api::{IntOrString, Kind};

use super::{Candidate, Chain, Excluded, Step};
use crate::decide::{Decision, LeftOut, Verdict};
use crate::service::{Frontend, NodeView, Protocol};
use crate::{endpointslice, podfacts};

impl Chain<'_> {
    /// Says who may get the packet, and who may not.
    pub(super) fn endpoints(
        &mut self,
        service: &Service,
        at: &Frontend,
        decision: &Decision,
        node: &NodeView,
    ) {
        let none = BTreeMap::new();
        let chosen = match &decision.verdict {
            Verdict::Forward(chosen) => chosen,
            _ => &none,
        };
        let share = 1000 / u32::try_from(chosen.len().max(1)).unwrap_or(u32::MAX);
        let candidates = chosen.keys().map(|address| {
            let pod = self.cluster.pod_at(address.ip());
            let node = pod.map(|pod| podfacts::node_name(pod).to_owned());
            Candidate {
                address: self.cluster.socket(*address),
                pod: pod.map(|pod| pod.object_name().to_string()),
                node: node.filter(|node| !node.is_empty()),
                share_permille: share,
            }
        });
        let candidates = candidates.collect();
        let left_out = self.left_out(service, at, decision, node);
        self.steps.push(Step::Endpoints { candidates, left_out });
    }

    fn left_out(
        &self,
        service: &Service,
        at: &Frontend,
        decision: &Decision,
        node: &NodeView,
    ) -> Vec<Excluded> {
        let mut known: BTreeSet<IpAddr> = BTreeSet::new();
        if let Verdict::Forward(chosen) = &decision.verdict {
            known.extend(chosen.keys().map(SocketAddr::ip));
        }
        let mut found = Vec::new();
        for (address, why) in &decision.left_out {
            known.insert(address.ip());
            let pod = self.cluster.pod_at(address.ip()).map(|pod| &**pod);
            let shown = Some(self.cluster.socket(*address));
            found.push(excluded(shown, pod, why_not(*why, pod, node)));
        }
        let Some(port) = port_at(service, at) else { return found };
        if endpointslice::has_selector(service) {
            let ipv4 = at.address.is_ipv4();
            let pods = endpointslice::selected(&self.cluster.pods, service);
            for pod in pods.filter(|pod| !has_any(pod, &known)) {
                let why = absent(pod, port, at.protocol, ipv4);
                let addresses = podfacts::addresses(pod).filter_map(|text| text.parse().ok());
                let address = addresses.into_iter().find(|one: &IpAddr| one.is_ipv4() == ipv4);
                let address = address.map(|address| self.cluster.address(address));
                found.push(excluded(address, Some(pod), why));
            }
        }
        found
    }
}

/// Why an endpoint gets no new connections, with what its pod and the node say of it.
fn why_not(why: LeftOut, pod: Option<&Pod>, node: &NodeView) -> String {
    let reason = why.reason();
    match (why, pod) {
        (LeftOut::NotReady, Some(pod)) => format!("{reason}{}", not_ready(pod)),
        (LeftOut::NotLocal, _) => format!("{reason} (this node is {})", node.name),
        (LeftOut::Silent, Some(pod)) => {
            let silent = podfacts::node_name(pod);
            format!("its node {silent} is silent: most of the nodes that watch it miss it")
        }
        (LeftOut::OtherZone, _) => {
            format!("{reason} ({})", node.zone.as_deref().unwrap_or("no zone"))
        }
        _ => reason.to_owned(),
    }
}

fn excluded(address: Option<String>, pod: Option<&Pod>, why: String) -> Excluded {
    let node = pod.map(podfacts::node_name).filter(|node| !node.is_empty());
    Excluded {
        address,
        pod: pod.map(|pod| pod.object_name().to_string()),
        node: node.map(str::to_owned),
        why,
    }
}

fn has_any(pod: &Pod, known: &BTreeSet<IpAddr>) -> bool {
    podfacts::addresses(pod).filter_map(|text| text.parse().ok()).any(|one| known.contains(&one))
}

/// The port of the Service that a frontend is of.
pub(super) fn port_at<'a>(service: &'a Service, at: &Frontend) -> Option<&'a ServicePort> {
    let ports = service.spec.as_ref()?.ports.as_deref()?;
    ports.iter().find(|port| {
        port.port == i32::from(at.identity.port())
            && Protocol::of(port.protocol.as_deref()) == Some(at.protocol)
    })
}

/// Why a pod that the Service selects is in no slice for the port.
fn absent(pod: &Pod, port: &ServicePort, protocol: Protocol, ipv4: bool) -> String {
    if podfacts::is_terminal(pod) {
        return format!("the pod has ended ({})", podfacts::phase(pod).to_lowercase());
    }
    let mut addresses = podfacts::addresses(pod).peekable();
    if addresses.peek().is_none() {
        let node = podfacts::node_name(pod);
        let why =
            if node.is_empty() { "the pod has no node yet" } else { "the pod has no address yet" };
        return format!("{why}{}", not_ready(pod));
    }
    let same = |text: &str| text.parse::<IpAddr>().is_ok_and(|one| one.is_ipv4() == ipv4);
    if !addresses.any(same) {
        return format!("the pod has no {} address", if ipv4 { "IPv4" } else { "IPv6" });
    }
    if let Some(target @ IntOrString::String(name)) = &port.target_port
        && podfacts::target_port(pod, target, protocol.word()).is_none()
    {
        return format!("the pod has no {} port named {name:?}", protocol.word());
    }
    "no EndpointSlice has it yet".to_owned()
}

/// `: container web is waiting: ImagePullBackOff`, or nothing when the pod does not say.
fn not_ready(pod: &Pod) -> String {
    let status = pod.status.as_ref();
    let statuses = status.and_then(|status| status.container_statuses.as_ref());
    let waiting = statuses.into_iter().flatten().find_map(|container| {
        let reason = container.state.as_ref()?.waiting.as_ref()?.reason.as_ref()?;
        Some(format!("container {} is waiting: {reason}", container.name))
    });
    let conditions = status.and_then(|status| status.conditions.as_ref()).into_iter().flatten();
    let mut unmet = conditions.filter(|condition| condition.status == "False");
    let message = unmet.find_map(|condition| condition.message.clone());
    waiting.or(message).map_or_else(String::new, |why| format!(": {why}"))
}
