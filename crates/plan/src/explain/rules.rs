//! The rules of a Service that a packet meets, each with what it means for this one.

use api::Kind;
use api::core::{Service, ServiceSpec};
use api::service::RESET_CONNECTIONS;

use super::{Chain, Client, Step};
use crate::decide::Packet;
use crate::service::{Action, Frontend, FrontendKind, NodeView, Protocol, reset_after};

/// The field that admits clients.
pub(super) const SOURCE_RANGES: &str = "loadBalancerSourceRanges";

impl Chain<'_> {
    /// Says each rule that holds at the frontend.
    pub(super) fn rules(
        &mut self,
        service: &Service,
        at: &Frontend,
        packet: &Packet,
        client: &Client,
        node: &NodeView,
    ) {
        let Some(spec) = &service.spec else { return };
        self.source_ranges(at, packet, client);
        if let Some(seconds) = at.affinity_s {
            let words = format!(
                "a client stays with its endpoint on this node for {}, if it still takes connections",
                span(seconds)
            );
            self.rule("sessionAffinity ClientIP", words, true);
        }
        if at.kind == FrontendKind::ClusterIp {
            self.internal_policy(spec, at, node);
        } else {
            self.external_policy(spec, at, packet, client, node);
        }
        if spec.publish_not_ready_addresses == Some(true) {
            let words = "pods that are not ready count as ready".to_owned();
            self.rule("publishNotReadyAddresses", words, true);
        }
        self.resets(service, at);
        if let Some(distribution) = &spec.traffic_distribution {
            let zone = node.zone.as_deref();
            let place = zone.map_or_else(|| "no zone".to_owned(), |zone| format!("zone {zone}"));
            let words =
                format!("endpoints near the client first; node {} is in {place}", node.name);
            self.rule(&format!("trafficDistribution {distribution}"), words, true);
        }
    }

    fn rule(&mut self, field: &str, words: String, passes: bool) {
        self.steps.push(Step::Rule { field: field.to_owned(), words, passes });
    }

    /// What becomes of the connection when its endpoint goes.
    fn resets(&mut self, service: &Service, at: &Frontend) {
        let annotations = service.meta().annotations.as_ref();
        let asked = annotations.and_then(|all| all.get(RESET_CONNECTIONS));
        let Some(text) = asked.filter(|_| at.protocol == Protocol::Tcp) else { return };
        let words = match reset_after(service) {
            Some(_) => "a connection is reset so long after its endpoint is gone".to_owned(),
            None => {
                "this is no time such as 10s: a connection to an endpoint that is gone is left alone"
                    .to_owned()
            }
        };
        self.rule(&format!("{RESET_CONNECTIONS} {text}"), words, true);
    }

    fn source_ranges(&mut self, at: &Frontend, packet: &Packet, client: &Client) {
        let Some(ranges) = &at.sources else { return };
        let shown: Vec<String> = ranges.iter().map(ToString::to_string).collect();
        let shown = shown.join(", ");
        let inside = ranges.iter().any(|range| range.contains(&packet.source));
        let who = if client.is_anybody {
            format!("a client such as {}", packet.source)
        } else {
            self.cluster.address(packet.source)
        };
        let words = match (packet.from_node, inside) {
            (true, _) => format!("the node itself always passes; others must be in {shown}"),
            (false, true) => format!("{who} is in {shown}"),
            (false, false) => format!("{who} is not in {shown}"),
        };
        self.rule(SOURCE_RANGES, words, packet.from_node || inside);
    }

    fn internal_policy(&mut self, spec: &ServiceSpec, at: &Frontend, node: &NodeView) {
        let local = spec.internal_traffic_policy.as_deref() == Some("Local");
        let (words, passes) = match (&at.action, local) {
            (Action::Drop, _) => {
                (format!("only endpoints on node {}, and there is none", node.name), false)
            }
            (_, true) => (format!("only endpoints on node {}", node.name), true),
            (_, false) => ("endpoints on every node".to_owned(), true),
        };
        let policy = if local { "Local" } else { "Cluster" };
        self.rule(&format!("internalTrafficPolicy {policy}"), words, passes);
    }

    fn external_policy(
        &mut self,
        spec: &ServiceSpec,
        at: &Frontend,
        packet: &Packet,
        client: &Client,
        node: &NodeView,
    ) {
        let local = spec.external_traffic_policy.as_deref() == Some("Local");
        if !local {
            let words = "endpoints on every node".to_owned();
            return self.rule("externalTrafficPolicy Cluster", words, true);
        }
        let field = "externalTrafficPolicy Local";
        let in_cluster = packet.from_node || client.pod.is_some();
        match &at.action {
            _ if in_cluster => {
                let words = "does not bind clients in the cluster: endpoints on every node";
                self.rule(field, words.to_owned(), true);
            }
            Action::Split { outside, .. } if outside.is_empty() => {
                let words = format!("only endpoints on node {}, and there is none", node.name);
                self.rule(field, words, false);
            }
            _ => self.rule(field, format!("only endpoints on node {}", node.name), true),
        }
    }
}

/// `3 h`, `90 s`.
fn span(seconds: u32) -> String {
    match (seconds % 3600, seconds % 60) {
        (0, _) => format!("{} h", seconds / 3600),
        (_, 0) => format!("{} min", seconds / 60),
        _ => format!("{seconds} s"),
    }
}
