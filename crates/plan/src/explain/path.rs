//! The packet's way: the node that judges it, what it decides, and where that leads.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use api::core::Service;
use api::{Kind, Name};

use super::exposed::external_addresses;
use super::name::ports_of;
use super::rules::SOURCE_RANGES;
use super::{Chain, Client, End, Frontend, Hop, Listener, Listens, Question, Sees, Step, called};
use crate::decide::{Decision, Packet, State, Verdict, decide};
use crate::loadbalancer::{View, announcer};
use crate::service::{Frontend as At, FrontendKind, NodeView, Surroundings, is_proxied, view};

impl Chain<'_> {
    /// Sends the packet on its way.
    pub(super) fn send(
        &mut self,
        question: &Question,
        client: &Client,
        destination: SocketAddr,
    ) -> Result<End, End> {
        let same = client.addresses.iter().find(|own| own.is_ipv4() == destination.is_ipv4());
        let source = match same {
            Some(source) => *source,
            None if client.is_anybody => IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, 1]),
            None => {
                let family = if destination.is_ipv4() { "IPv4" } else { "IPv6" };
                return Err((Sees::NoClient, format!("The sender has no {family} address.")));
            }
        };
        let node = match &client.node {
            Some(node) => node.clone(),
            None => self.entry(question, destination.ip())?,
        };
        let packet =
            Packet { source, from_node: client.is_node, destination, protocol: question.protocol };
        self.judge(&node, &packet, client)
    }

    /// The node that a packet from outside comes to.
    fn entry(&mut self, question: &Question, address: IpAddr) -> Result<String, End> {
        if let Some(node) = self.cluster.node_at(address) {
            let words = format!("{} is its address", self.cluster.address(address));
            let node = node.name().to_owned();
            self.steps.push(Step::Entry { node: node.clone(), words });
            return Ok(node);
        }
        let (mut node, mut words) = (None, String::new());
        for service in self.cluster.services.values() {
            let (balancers, external) = external_addresses(service);
            if balancers.contains(&address) {
                node = self.announcer(service, address);
                words = match &node {
                    Some(_) => format!("it announces {}", self.cluster.address(address)),
                    None => "the load balancer chooses a node; this one is taken".to_owned(),
                };
                node = question.node.clone().or(node).or_else(|| self.some_node());
            } else if external.contains(&address) {
                words =
                    "whoever routes the external address chooses a node; this one is taken".into();
                node = question.node.clone().or_else(|| self.some_node());
            }
        }
        match node {
            Some(node) => {
                self.steps.push(Step::Entry { node: node.clone(), words });
                Ok(node)
            }
            None => Err(self.not_routed(address)),
        }
    }

    fn some_node(&self) -> Option<String> {
        self.cluster.nodes.keys().next().map(|node| node.name.to_string())
    }

    /// The node that answers for a load balancer's address, where this project's load balancer does.
    fn announcer(&self, service: &Service, address: IpAddr) -> Option<String> {
        if !crate::loadbalancer::is_ours(service) {
            return None;
        }
        let view = View {
            services: self.cluster.services.clone(),
            slices: self.cluster.slices.clone(),
            nodes: self.cluster.nodes.clone(),
            silent: Arc::default(),
        };
        announcer(&view, service, address)
    }

    /// Outside nobody knows the way to addresses of pods and Services.
    fn not_routed(&mut self, address: IpAddr) -> End {
        let shown = self.cluster.address(address);
        let owner = self.owner(address);
        let settings = self.cluster.settings("");
        let inside = settings.pod_cidrs.iter().chain(&settings.service_cidrs);
        let inside = owner.is_some() || inside.into_iter().any(|cidr| cidr.contains(&address));
        if !inside {
            let words = format!("{shown} is no address of this cluster.");
            self.say_address(shown, None, &words, true);
            return (Sees::Outside, words);
        }
        let whose = owner.map_or_else(|| "an address inside the cluster".to_owned(), |(_, w)| w);
        let words = format!("{whose}: outside the cluster nobody routes it to a node");
        self.say_address(shown, None, &words, false);
        let verdict = "The packet never comes to the cluster: from outside use a node port or a load balancer's address.";
        (Sees::Silence, verdict.to_owned())
    }

    pub(super) fn say_address(
        &mut self,
        address: String,
        service: Option<String>,
        words: &str,
        passes: bool,
    ) {
        self.steps.push(Step::Address { address, service, words: words.to_owned(), passes });
    }

    /// The Service that has an address as its ClusterIP, or the pod.
    fn owner(&self, address: IpAddr) -> Option<(Option<Name>, String)> {
        let text = address.to_string();
        let services = self.cluster.services.iter().find(|(_, service)| {
            let spec = service.spec.as_ref();
            let listed = spec.and_then(|spec| spec.cluster_ips.as_ref()).into_iter().flatten();
            let one = spec.and_then(|spec| spec.cluster_ip.as_ref());
            listed.chain(one).any(|ip| *ip == text)
        });
        if let Some((name, _)) = services {
            return Some((Some(name.clone()), format!("the ClusterIP of Service {name}")));
        }
        let pod = self.cluster.pod_at(address)?;
        Some((None, format!("the address of {}", called(&**pod))))
    }

    /// What `node` does with the packet.
    fn judge(&mut self, node: &str, packet: &Packet, client: &Client) -> Result<End, End> {
        let view = self.cluster.node_view(node);
        let settings = self.cluster.settings(node);
        let state = State {
            services: &self.cluster.services,
            slices: &self.cluster.slices,
            node: &view,
            settings: &settings,
        };
        let decision = decide(packet, &state);
        let Some(name) = decision.service.clone() else {
            return self.no_frontend(node, packet, client, &decision);
        };
        let service = self.cluster.services.get(&name).cloned().expect("it was decided by");
        let at = self.frontend(&service, packet, &view, &settings);
        let at = at.expect("the decision was made at one of the Service's frontends");
        let shown = self.shown(packet);
        self.say_address(shown, Some(name.to_string()), &reached(&at, &service, node), true);
        self.want_kernel(node, packet);
        self.rules(&service, &at, packet, client, &view);
        match &decision.verdict {
            Verdict::Forward(endpoints) => {
                self.endpoints(&service, &at, &decision, &view);
                self.nat(packet, endpoints, node);
                self.route(node, endpoints.keys());
                self.kernel(node, packet);
                Ok(self.listening(endpoints.keys().copied(), packet, Some(&name)))
            }
            refused => {
                let stopped = |step: &Step| matches!(step, Step::Rule { field, passes: false, .. } if field == SOURCE_RANGES);
                if !self.steps.iter().any(stopped) {
                    self.endpoints(&service, &at, &decision, &view);
                }
                self.kernel(node, packet);
                self.diagnose(&service);
                Err(ended(refused, decision.reason))
            }
        }
    }

    pub(super) fn shown(&self, packet: &Packet) -> String {
        format!("{}/{}", self.cluster.socket(packet.destination), packet.protocol.word())
    }

    fn frontend(
        &self,
        service: &Service,
        packet: &Packet,
        node: &NodeView,
        settings: &crate::proxy::Settings,
    ) -> Option<At> {
        let around = Surroundings { node, external_ips: settings.external_ips };
        let slices = self.cluster.slices_of(&service.object_name());
        let frontends = view(service, &slices, around).frontends;
        frontends
            .into_iter()
            .find(|at| at.address == packet.destination && at.protocol == packet.protocol)
    }

    /// No Service answers at this address and port.
    fn no_frontend(
        &mut self,
        node: &str,
        packet: &Packet,
        client: &Client,
        decision: &Decision,
    ) -> Result<End, End> {
        let address = packet.destination.ip();
        let shown = self.shown(packet);
        let owner = self.owner(address);
        match &decision.verdict {
            Verdict::Reject => {
                self.want_kernel(node, packet);
                let name = owner.and_then(|(name, _)| name);
                let service = name.as_ref().and_then(|name| self.cluster.services.get(name));
                let has = service.map_or_else(String::new, |service| ports_of(service));
                let whose = name.as_ref().map_or_else(String::new, ToString::to_string);
                let port = format!("{}/{}", packet.destination.port(), packet.protocol.word());
                let words = format!(
                    "the ClusterIP of Service {whose}, which has no port {port}; it has {has}"
                );
                self.say_address(shown, Some(whose), &words, false);
                self.kernel(node, packet);
                Err(ended(&decision.verdict, decision.reason))
            }
            Verdict::Drop => {
                let words = "in the range of Services, but no Service has it";
                self.say_address(shown, None, words, false);
                Err(ended(&decision.verdict, decision.reason))
            }
            _ => self.pass(node, packet, client, owner),
        }
    }

    /// It is no Service's packet: the network takes it where it says.
    fn pass(
        &mut self,
        node: &str,
        packet: &Packet,
        client: &Client,
        owner: Option<(Option<Name>, String)>,
    ) -> Result<End, End> {
        let address = packet.destination.ip();
        let shown = self.shown(packet);
        if let Some((Some(name), _)) = owner {
            return Err(self.not_proxied(&name, shown, node));
        }
        if let Some(target) = self.cluster.node_at(address) {
            let target = target.name().to_owned();
            if target == node {
                let led = self.host_port(node, packet).map(Ok);
                return led.unwrap_or_else(|| Err(self.own_port(node, packet)));
            }
            let words = format!("{} is its address, so it decides", self.cluster.address(address));
            self.steps.push(Step::Entry { node: target.clone(), words });
            let onward = Packet { from_node: false, ..*packet };
            return self.judge(&target, &onward, client);
        }
        if let Some((_, whose)) = owner {
            self.say_address(shown, None, &format!("{whose}; no Service is involved"), true);
            self.steps.push(Step::Nat {
                destination: "stays".into(),
                source: format!("stays {}", self.cluster.address(packet.source)),
            });
            self.route(node, [&packet.destination]);
            return Ok(self.listening([packet.destination].into_iter(), packet, None));
        }
        let settings = self.cluster.settings(node);
        if settings.pod_cidrs.iter().any(|cidr| cidr.contains(&address)) {
            self.say_address(shown, None, "in the range of pods, but no pod has it", false);
            let verdict = "No pod has this address: nobody answers.";
            return Err((Sees::Silence, verdict.to_owned()));
        }
        self.say_address(shown, None, "no address of this cluster", true);
        let words = format!("The packet leaves the cluster by {node}.");
        Ok((Sees::Outside, words))
    }

    /// A Service that this proxy leaves alone.
    fn not_proxied(&mut self, name: &Name, shown: String, node: &str) -> End {
        let service = self.cluster.services.get(name);
        let local = service.is_some_and(|service| crate::service::is_node_local(service));
        let (words, verdict) = if local {
            (
                format!(
                    "the ClusterIP of Service {name}; the agent of {node} answers on it itself"
                ),
                format!("It arrives: the agent of {node} answers."),
            )
        } else {
            debug_assert!(!service.is_some_and(|service| is_proxied(service)), "it was passed");
            let labels = service.and_then(|service| service.meta().labels.as_ref());
            let other = crate::service::LABEL_PROXY_NAME;
            if labels.is_some_and(|labels| labels.contains_key(other)) {
                let words = format!(
                    "the ClusterIP of Service {name}, which the label {other} gives to another proxy"
                );
                (words, "Another proxy decides.".to_owned())
            } else {
                let label = crate::service::LABEL_HEADLESS;
                let words = format!(
                    "the ClusterIP of Service {name}, which the label {label} takes from the proxy"
                );
                (words, "No proxy carries it.".to_owned())
            }
        };
        self.say_address(shown, Some(name.to_string()), &words, true);
        (if local { Sees::Answer } else { Sees::Outside }, verdict)
    }

    /// A port of a node that no Service has.
    fn own_port(&mut self, node: &str, packet: &Packet) -> End {
        let words = format!(
            "node {node}'s own address; no Service has port {} there",
            packet.destination.port()
        );
        self.say_address(self.shown(packet), None, &words, true);
        let hints = super::miss::of_node_port(self.cluster, packet.destination.port());
        let name = Name::cluster(node);
        self.wanted.pods.push((name.clone(), node.to_owned()));
        let end = match self.facts.listeners.get(&name) {
            Some(Ok(listeners)) if heard(listeners, packet.destination, packet) => {
                (Sees::Answer, format!("It arrives: a process of node {node} listens there."))
            }
            Some(Ok(_)) => (Sees::Refused, format!("Nothing on node {node} listens there.")),
            _ => (
                Sees::Refused,
                format!(
                    "No Service answers there; whether a process of node {node} does is not known."
                ),
            ),
        };
        if end.0 != Sees::Answer && !hints.is_empty() {
            self.steps.push(Step::Why { hints });
        }
        end
    }

    fn nat(&mut self, packet: &Packet, endpoints: &BTreeMap<SocketAddr, bool>, node: &str) {
        let source = self.cluster.address(packet.source);
        let kept: Vec<_> = endpoints.iter().filter(|(_, masquerade)| !**masquerade).collect();
        let itself = endpoints.keys().any(|endpoint| endpoint.ip() == packet.source);
        let source = match (kept.len(), itself) {
            (0, false) => {
                format!("becomes the address of node {node}: the endpoint does not see the client")
            }
            (0, true) if endpoints.len() == 1 => {
                format!("becomes the address of node {node}, because the client reaches itself")
            }
            (0, true) => format!("becomes the address of node {node}"),
            (_, true) => format!(
                "stays {source}, or becomes the address of node {node} when the client reaches itself"
            ),
            (_, false) => format!("stays {source}"),
        };
        let destination = match endpoints.keys().next() {
            Some(only) if endpoints.len() == 1 => format!("becomes {}", self.cluster.socket(*only)),
            _ => "becomes the endpoint's".to_owned(),
        };
        self.steps.push(Step::Nat { destination, source });
    }

    pub(super) fn route<'e>(
        &mut self,
        node: &str,
        endpoints: impl IntoIterator<Item = &'e SocketAddr>,
    ) {
        let hops = endpoints.into_iter().map(|endpoint| {
            let to = self.cluster.socket(*endpoint);
            let way = match self.node_of(endpoint.ip()) {
                None => "not of this cluster: by the node's own routes".to_owned(),
                Some(other) if other.is_empty() => "its pod has no node yet".to_owned(),
                Some(other) if other == node => format!("on the same node, {node}"),
                Some(other) => match self.cluster.node_address(&other) {
                    Some(address) => {
                        format!("by way of node {other} ({})", self.cluster.address(address))
                    }
                    None => format!("by way of node {other}"),
                },
            };
            Hop { to, way }
        });
        let hops = hops.collect();
        self.steps.push(Step::Route { hops });
    }

    /// The node of an endpoint; empty when its pod has none yet.
    fn node_of(&self, address: IpAddr) -> Option<String> {
        if let Some(pod) = self.cluster.pod_at(address) {
            return Some(crate::podfacts::node_name(pod).to_owned());
        }
        self.cluster.node_at(address).map(|node| node.name().to_owned())
    }

    /// Whether those who may get it listen, and what the client sees of that.
    pub(super) fn listening(
        &mut self,
        endpoints: impl Iterator<Item = SocketAddr>,
        packet: &Packet,
        service: Option<&Name>,
    ) -> End {
        let endpoints: Vec<Listens> = endpoints.map(|at| self.listens(at, packet)).collect();
        if self.facts.listeners.is_empty() {
            return (Sees::Answer, "It arrives, if the pod listens.".to_owned());
        }
        let all = endpoints.len();
        let closed = endpoints.iter().filter(|one| one.open == Some(false)).count();
        let unknown = endpoints.iter().all(|one| one.open.is_none());
        let ports = packet.protocol;
        self.steps.push(Step::Listening { endpoints });
        if closed > 0
            && let Some(service) = service
        {
            self.miss_listener(service);
        }
        match (closed, all) {
            (0, _) if unknown => {
                (Sees::Answer, "It arrives; whether the pod listens is not known.".to_owned())
            }
            (0, _) => (Sees::Answer, "It arrives.".to_owned()),
            (closed, all) if closed == all => {
                let who = if all == 1 { "the pod does not listen" } else { "no endpoint listens" };
                let words = format!(
                    "It is refused: it reaches the pod, but {who} on that {} port.",
                    ports.word()
                );
                (Sees::Refused, words)
            }
            (closed, all) => (
                Sees::Mixed,
                format!("Some connections are refused: {closed} of {all} endpoints do not listen."),
            ),
        }
    }

    fn listens(&mut self, at: SocketAddr, packet: &Packet) -> Listens {
        let address = self.cluster.socket(at);
        let Some(pod) = self.cluster.pod_at(at.ip()) else {
            return Listens { address, open: None, words: "no pod of this cluster".into() };
        };
        let name = pod.object_name();
        let node = crate::podfacts::node_name(pod).to_owned();
        self.wanted.pods.push((name.clone(), node));
        match self.facts.listeners.get(&name) {
            None => Listens { address, open: None, words: format!("not known for pod {name}") },
            Some(Err(why)) => Listens { address, open: None, words: format!("not known: {why}") },
            Some(Ok(listeners)) => {
                let open = heard(listeners, at, packet);
                let words = if open {
                    format!("pod {name} listens")
                } else {
                    format!(
                        "pod {name} does not listen there; {}",
                        heard_instead(listeners, packet)
                    )
                };
                Listens { address, open: Some(open), words }
            }
        }
    }

    fn want_kernel(&mut self, node: &str, packet: &Packet) {
        let frontend = Frontend { address: packet.destination, protocol: packet.protocol };
        self.wanted.kernels.push((node.to_owned(), frontend));
    }
}

fn heard(listeners: &[Listener], at: SocketAddr, packet: &Packet) -> bool {
    listeners.iter().any(|one| {
        one.protocol == packet.protocol.word()
            && one.port == at.port()
            && (one.address == at.ip() || one.address.is_unspecified())
            // An IPv6 socket on :: takes IPv4 too, unless told otherwise; an IPv4 socket never takes IPv6.
            && (at.is_ipv4() || one.address.is_ipv6())
    })
}

fn heard_instead(listeners: &[Listener], packet: &Packet) -> String {
    let ours = listeners.iter().filter(|one| one.protocol == packet.protocol.word());
    let shown: std::collections::BTreeSet<String> = ours
        .map(|one| {
            if one.address.is_unspecified() {
                one.port.to_string()
            } else {
                SocketAddr::new(one.address, one.port).to_string()
            }
        })
        .collect();
    if shown.is_empty() {
        return format!("it has no listening {} socket", packet.protocol.word());
    }
    format!("it listens on {}", shown.into_iter().collect::<Vec<_>>().join(", "))
}

/// Why the address is this Service's.
fn reached(at: &At, service: &Service, node: &str) -> String {
    let name = service.object_name();
    let number = i32::from(at.identity.port());
    let ports = service.spec.iter().flat_map(|spec| spec.ports.iter().flatten());
    let port = ports.into_iter().find(|port| port.port == number);
    let port = port.and_then(|port| port.name.as_deref());
    let port = port.map_or_else(|| number.to_string(), |port| format!("{number} ({port})"));
    match at.kind {
        FrontendKind::ClusterIp => format!("the ClusterIP of Service {name}, port {port}"),
        FrontendKind::NodePort => format!(
            "node {node}'s address and node port {} of Service {name}, port {port}",
            at.address.port()
        ),
        FrontendKind::ExternalIp => format!("an external address of Service {name}, port {port}"),
        FrontendKind::LoadBalancer => {
            format!("the load balancer's address of Service {name}, port {port}")
        }
    }
}

fn ended(verdict: &Verdict, reason: &str) -> End {
    match verdict {
        Verdict::Reject => (Sees::Refused, format!("It is refused: {reason}.")),
        _ => (Sees::Silence, format!("It is dropped, and the client waits in vain: {reason}.")),
    }
}
