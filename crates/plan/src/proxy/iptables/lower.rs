//! One Service's share of the rules: its own chains, and its rules in chains that all Services share.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use api::Name;
use ipnet::IpNet;
use net::iptables::Chain;
use net::nft::Family;

use super::names::{FIREWALL, MARK_MASQ, OFF_CLUSTER, PortName, word};
use crate::proxy::Settings;
use crate::service::{Action, Frontend, FrontendKind, Protocol, ServiceView};

/// Chains that all Services share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Shared {
    /// `nat`: addresses to chains of Services.
    Services,
    /// `nat`: node ports to chains of Services.
    NodePorts,
    /// `filter`: cluster addresses without endpoints.
    NoEndpoints,
    /// `filter`: other addresses without endpoints.
    NoExternal,
    /// `filter`: health checks.
    HealthChecks,
    /// `filter`: clients outside the source ranges.
    Firewall,
}

/// What only one Service can have: the first one by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Claim {
    At(Protocol, SocketAddr),
    NodePort(Protocol, u16),
}

/// A rule in a shared chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) claim: Claim,
    pub(super) chain: Shared,
    pub(super) rule: Arc<str>,
}

/// A Service's share in one family.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) chains: BTreeMap<Arc<str>, Chain>,
    pub(super) entries: Vec<Entry>,
    pub(super) cluster_ips: BTreeSet<IpAddr>,
    pub(super) node_local: BTreeSet<IpAddr>,
}

impl Part {
    pub(super) fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Whether another part adds the same to what is shared.
    pub(super) fn shares_as(&self, other: &Self) -> bool {
        self.entries == other.entries
            && self.cluster_ips == other.cluster_ips
            && self.node_local == other.node_local
    }
}

/// Writes a Service's view as rules.
pub(super) fn lower(name: &Name, view: &ServiceView, family: Family, settings: &Settings) -> Part {
    let ours = |address: &&IpAddr| Family::of(address) == family;
    let mut part = Part {
        cluster_ips: view.cluster_ips.iter().filter(ours).copied().collect(),
        node_local: view.node_local.iter().filter(ours).copied().collect(),
        ..Part::default()
    };
    // Where two kinds of addresses meet, the first one rules.
    let mut seen = BTreeSet::new();
    let mut ports: Vec<(SocketAddr, Protocol, Vec<&Frontend>)> = Vec::new();
    let all = view.frontends.iter().filter(|frontend| ours(&&frontend.address.ip()));
    for frontend in all.filter(|frontend| seen.insert((frontend.protocol, frontend.address))) {
        let key = (frontend.identity, frontend.protocol);
        match ports.iter_mut().find(|(identity, protocol, _)| (*identity, *protocol) == key) {
            Some((.., frontends)) => frontends.push(frontend),
            None => ports.push((key.0, key.1, vec![frontend])),
        }
    }
    for (at, (identity, protocol, frontends)) in ports.iter().enumerate() {
        let Some(first) = frontends.first() else { continue };
        let name = PortName::of(name, &first.port_name, *protocol);
        let port = Port {
            comment: name.comment(),
            name,
            protocol: *protocol,
            identity: *identity,
            affinity_s: first.affinity_s,
            family,
            settings,
        };
        port.add(&mut part, frontends);
        if let Some((health, _)) = view.health.filter(|_| at == 0) {
            port.health_check(&mut part, health);
        }
    }
    part
}

/// One Service port in one family.
struct Port<'a> {
    name: PortName,
    comment: String,
    protocol: Protocol,
    identity: SocketAddr,
    affinity_s: Option<u32>,
    family: Family,
    settings: &'a Settings,
}

/// The endpoints that a Service port's chains draw from.
#[derive(Default)]
struct Draws<'a> {
    all: &'a [SocketAddr],
    local: &'a [SocketAddr],
    /// Whether clients from outside are kept on the node.
    external_local: bool,
    is_external: bool,
    internal_local: bool,
}

fn draws<'a>(frontends: &[&'a Frontend]) -> Draws<'a> {
    let mut draws = Draws::default();
    for frontend in frontends {
        draws.is_external |= frontend.kind != FrontendKind::ClusterIp;
        match &frontend.action {
            Action::Forward { endpoints, local: true, .. } => {
                draws.local = endpoints;
                draws.internal_local = true;
            }
            Action::Forward { endpoints, .. } => draws.all = endpoints,
            Action::Split { inside, outside, .. } => {
                draws.external_local = true;
                draws.all = inside;
                draws.local = outside;
            }
            Action::Reject | Action::Drop => {}
        }
    }
    draws
}

impl Port<'_> {
    fn add(&self, part: &mut Part, frontends: &[&Frontend]) {
        let draws = draws(frontends);
        for endpoint in draws.all.iter().chain(draws.local) {
            part.chains.insert(self.name.sep(*endpoint), self.endpoint(*endpoint));
        }
        if !draws.all.is_empty() {
            let chain = self.draw(draws.all, !draws.internal_local);
            part.chains.insert(self.name.svc().into(), chain);
        }
        if !draws.local.is_empty() {
            let chain = self.draw(draws.local, draws.internal_local);
            part.chains.insert(self.name.svl().into(), chain);
        }
        if draws.is_external && !(draws.all.is_empty() && draws.local.is_empty()) {
            part.chains.insert(self.name.ext().into(), self.external(&draws));
        }
        for frontend in frontends {
            match frontend.kind {
                FrontendKind::ClusterIp => self.at_cluster_ip(part, frontend),
                FrontendKind::NodePort => self.at_node_port(part, frontend),
                FrontendKind::ExternalIp | FrontendKind::LoadBalancer => {
                    self.at_external(part, frontend);
                }
            }
        }
    }

    fn push(&self, part: &mut Part, chain: Shared, frontend: &Frontend, rule: String) {
        let claim = Claim::At(self.protocol, frontend.address);
        part.entries.push(Entry { claim, chain, rule: rule.into() });
    }

    fn comment(&self, rest: &str) -> String {
        format!("-m comment --comment \"{}{rest}\"", self.comment)
    }

    /// Matches the destination.
    fn at(&self, address: SocketAddr) -> String {
        let word = word(self.protocol);
        format!("-m {word} -p {word} -d {} --dport {}", address.ip(), address.port())
    }

    /// A client on the node itself takes no notice of `port unreachable` before it has sent again, a second later; and the
    /// kernel spares these messages when there are many.
    fn reject(&self) -> &'static str {
        if self.protocol == Protocol::Tcp { "REJECT --reject-with tcp-reset" } else { "REJECT" }
    }

    fn port(&self, number: u16) -> String {
        let word = word(self.protocol);
        format!("-m {word} -p {word} --dport {number}")
    }

    fn pod_cidrs(&self) -> impl Iterator<Item = &IpNet> {
        self.settings.pod_cidrs(self.family)
    }

    /// `KUBE-SEP-…`: one endpoint. A client that reaches itself must not see itself.
    fn endpoint(&self, endpoint: SocketAddr) -> Chain {
        let (comment, sep) =
            (format!("-m comment --comment {}", self.comment), self.name.sep(endpoint));
        let word = word(self.protocol);
        let remember = match self.affinity_s {
            Some(_) => format!("-m recent --name {sep} --set "),
            None => String::new(),
        };
        chain([
            format!("{comment} -s {} -j {MARK_MASQ}", endpoint.ip()),
            format!("{comment} {remember}-m {word} -p {word} -j DNAT --to-destination {endpoint}"),
        ])
    }

    /// `KUBE-SVC-…` and `KUBE-SVL-…`: one of the endpoints, all with the same chance.
    fn draw(&self, endpoints: &[SocketAddr], of_cluster_ip: bool) -> Chain {
        let mut rules = Vec::new();
        if of_cluster_ip {
            rules.extend(self.off_cluster());
        }
        let comment = |endpoint: &SocketAddr| self.comment(&format!(" -> {endpoint}"));
        if let Some(seconds) = self.affinity_s {
            for endpoint in endpoints {
                let (comment, sep) = (comment(endpoint), self.name.sep(*endpoint));
                rules.push(format!(
                    "{comment} -m recent --name {sep} --rcheck --seconds {seconds} --reap -j {sep}"
                ));
            }
        }
        let count = u32::try_from(endpoints.len()).unwrap_or(u32::MAX);
        for (left, endpoint) in (1..=count).rev().zip(endpoints) {
            let chance = f64::from(left).recip();
            let draw = match left {
                1 => String::new(),
                _ => format!("-m statistic --mode random --probability {chance:.10} "),
            };
            rules.push(format!("{} {draw}-j {}", comment(endpoint), self.name.sep(*endpoint)));
        }
        chain(rules)
    }

    /// Clients of the cluster address that are no pods are masqueraded.
    fn off_cluster(&self) -> Option<String> {
        let matches = format!("{} {}", self.comment(" cluster IP"), self.at(self.identity));
        if self.settings.masquerade_all {
            return Some(format!("{matches} -j {MARK_MASQ}"));
        }
        let mut cidrs = self.pod_cidrs();
        let first = cidrs.next()?;
        Some(match cidrs.next() {
            None => format!("{matches} ! -s {first} -j {MARK_MASQ}"),
            Some(_) => format!("{matches} -j {OFF_CLUSTER}"),
        })
    }

    /// `KUBE-EXT-…`: from outside the cluster.
    fn external(&self, draws: &Draws<'_>) -> Chain {
        let comment = |before: &str| {
            format!("-m comment --comment \"{before} {} external destinations\"", self.comment)
        };
        if !draws.external_local {
            let comment = comment("masquerade traffic for");
            return chain([format!("{comment} -j {MARK_MASQ}"), format!("-j {}", self.name.svc())]);
        }
        let mut rules = Vec::new();
        if !draws.all.is_empty() {
            let (svc, pods) = (self.name.svc(), comment("pod traffic for"));
            rules.extend(self.pod_cidrs().map(|cidr| format!("{pods} -s {cidr} -j {svc}")));
            let own = "-m addrtype --src-type LOCAL";
            rules.push(format!("{} {own} -j {MARK_MASQ}", comment("masquerade LOCAL traffic for")));
            rules.push(format!("{} {own} -j {svc}", comment("route LOCAL traffic for")));
        }
        if !draws.local.is_empty() {
            rules.push(format!("-j {}", self.name.svl()));
        }
        chain(rules)
    }

    fn at_cluster_ip(&self, part: &mut Part, frontend: &Frontend) {
        let at = self.at(frontend.address);
        let rule = |rest: &str, target: &str| format!("{} {at} -j {target}", self.comment(rest));
        let (chain, rule) = match &frontend.action {
            Action::Reject => (Shared::NoEndpoints, rule(" has no endpoints", self.reject())),
            Action::Drop => (Shared::NoEndpoints, rule(" has no local endpoints", "DROP")),
            Action::Forward { local: true, .. } => {
                (Shared::Services, rule(" cluster IP", &self.name.svl()))
            }
            Action::Forward { .. } | Action::Split { .. } => {
                (Shared::Services, rule(" cluster IP", &self.name.svc()))
            }
        };
        self.push(part, chain, frontend, rule);
    }

    fn at_external(&self, part: &mut Part, frontend: &Frontend) {
        let at = self.at(frontend.address);
        let what = match frontend.kind {
            FrontendKind::LoadBalancer => " loadbalancer IP",
            _ => " external IP",
        };
        match &frontend.action {
            Action::Reject => self.reject_external(part, frontend),
            Action::Drop => self.no_local(part, frontend),
            Action::Forward { .. } | Action::Split { .. } => {
                let target = match &frontend.sources {
                    Some(sources) => self.guard(part, frontend, sources),
                    None => self.name.ext(),
                };
                let rule = format!("{} {at} -j {target}", self.comment(what));
                self.push(part, Shared::Services, frontend, rule);
                if matches!(&frontend.action, Action::Split { outside, .. } if outside.is_empty()) {
                    self.no_local(part, frontend);
                }
            }
        }
    }

    /// `KUBE-FW-…`: source ranges, and the node itself. Who passes none is left to the filter.
    fn guard(&self, part: &mut Part, frontend: &Frontend, sources: &[IpNet]) -> String {
        let (ext, firewall) = (self.name.ext(), self.name.firewall());
        let comment = self.comment(" loadbalancer IP");
        let mut rules: Vec<String> =
            sources.iter().map(|range| format!("{comment} -s {range} -j {ext}")).collect();
        rules.push(format!("{comment} -m addrtype --src-type LOCAL -j {ext}"));
        let name = &self.comment;
        let rest = format!("other traffic to {name} will be dropped by {FIREWALL}");
        rules.push(format!("-m comment --comment \"{rest}\""));
        part.chains.insert(firewall.as_str().into(), chain(rules));
        let comment = self.comment(&format!(" traffic not accepted by {firewall}"));
        let rule = format!("{comment} {} -j DROP", self.at(frontend.address));
        self.push(part, Shared::Firewall, frontend, rule);
        firewall
    }

    /// Without endpoints those are refused whom the source ranges admit, and others dropped.
    fn reject_external(&self, part: &mut Part, frontend: &Frontend) {
        let (comment, at) = (self.comment(" has no endpoints"), self.at(frontend.address));
        let mut clients = vec![String::new()];
        if let Some(sources) = &frontend.sources {
            clients = sources.iter().map(|range| format!("-s {range} ")).collect();
            clients.push("-m addrtype --src-type LOCAL ".to_owned());
        }
        for client in clients {
            let rule = format!("{comment} {at} {client}-j {}", self.reject());
            self.push(part, Shared::NoExternal, frontend, rule);
        }
        if frontend.sources.is_some() {
            let comment = self.comment(" traffic not accepted");
            self.push(part, Shared::NoExternal, frontend, format!("{comment} {at} -j DROP"));
        }
    }

    fn no_local(&self, part: &mut Part, frontend: &Frontend) {
        let comment = self.comment(" has no local endpoints");
        let rule = format!("{comment} {} -j DROP", self.at(frontend.address));
        self.push(part, Shared::NoExternal, frontend, rule);
    }

    fn at_node_port(&self, part: &mut Part, frontend: &Frontend) {
        let outside = match &frontend.action {
            Action::Reject => return self.reject_external(part, frontend),
            Action::Drop => return self.no_local(part, frontend),
            Action::Forward { .. } => None,
            Action::Split { outside, .. } => Some(outside),
        };
        if outside.is_some_and(Vec::is_empty) {
            self.no_local(part, frontend);
        }
        let number = frontend.address.port();
        let (claim, chain) = (Claim::NodePort(self.protocol, number), Shared::NodePorts);
        // The chain has the port once, though the node has several addresses.
        if part.entries.iter().any(|entry| (entry.claim, entry.chain) == (claim, chain)) {
            return;
        }
        let port = self.port(number);
        let mut push = |rule: String| part.entries.push(Entry { claim, chain, rule: rule.into() });
        // Pods may be of another node, and would be answered past this one, were they not masqueraded.
        if let Some(outside) = outside {
            let (svl, comment) = (self.name.svl(), self.comment(" for pods of any node"));
            let target = if outside.is_empty() { MARK_MASQ } else { &svl };
            for cidr in self.pod_cidrs() {
                push(format!("{comment} {port} -s {cidr} -j {target}"));
            }
        }
        push(format!("-m comment --comment {} {port} -j {}", self.comment, self.name.ext()));
    }

    fn health_check(&self, part: &mut Part, number: u16) {
        let comment = self.comment(" health check node port");
        let rule = format!("{comment} -m tcp -p tcp --dport {number} -j ACCEPT").into();
        let claim = Claim::NodePort(Protocol::Tcp, number);
        part.entries.push(Entry { claim, chain: Shared::HealthChecks, rule });
    }
}

pub(super) fn chain(rules: impl IntoIterator<Item = String>) -> Chain {
    rules.into_iter().map(Arc::from).collect()
}
