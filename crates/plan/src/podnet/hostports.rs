//! The nftables table of host ports: ports of the node that lead to one pod (`hostPort`).
//!
//! Upstream counterpart: the CNI plugin `portmap`. A port of one address of the node goes before the same port of all.
//! The ports also answer on the loopback addresses, which needs `route_localnet`.

use std::net::{IpAddr, Ipv4Addr};

use api::core::{ContainerPort, Pod};
use ipnet::{IpNet, Ipv4Net};
use net::nft::{
    Chain, ChainKind, CmpOp, Elements, Expr, Family, Field, Fields, Hook, HookPoint, MetaKey, Reg,
    Rule, Set, Table, Value, Verdict, load,
};

use super::ruleset::within;
use crate::podfacts;
use crate::pods::is_sidecar;
use crate::service::Protocol;

/// The table's name.
pub const TABLE: &str = "rhumb_hostports";
/// Ports of one address: address, protocol, port to pod, port.
const BOUND: &str = "bound";
/// Ports of all addresses: protocol, port to pod, port.
const ANY: &str = "any";
/// Pods with host ports.
const PODS: &str = "pods";
/// The same pods as clients of themselves.
const HAIRPIN: &str = "hairpin";
const PORTS: &str = "ports";
/// Services are translated first, at -100: who is through with them is left alone by this table.
const AFTER_SERVICES: i32 = -90;
/// The kernel's number of local addresses in `fib … type`.
const LOCAL: u32 = 2;

/// A port of the node that leads to a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPort {
    /// The number of the protocol above IP.
    pub protocol: u8,
    /// Only this address of the node; `None` for all.
    pub host_ip: Option<Ipv4Addr>,
    /// The port on the node.
    pub host_port: u16,
    /// The pod.
    pub pod: Ipv4Addr,
    /// The port in the pod.
    pub container_port: u16,
}

/// The node's ports that lead to a pod, as its containers ask for them; none for a pod that has ended, has no IPv4 address
/// yet, or lives in the node's own network.
#[must_use]
pub fn of_pod(pod: &Pod) -> Vec<HostPort> {
    let Some(spec) = pod.spec.as_ref().filter(|spec| spec.host_network != Some(true)) else {
        return Vec::new();
    };
    let address = podfacts::addresses(pod).find_map(|text| text.parse::<Ipv4Addr>().ok());
    let Some(address) = address.filter(|_| !podfacts::is_terminal(pod)) else { return Vec::new() };
    let sidecars = spec.init_containers.iter().flatten().filter(|init| is_sidecar(init));
    let containers = spec.containers.iter().chain(sidecars);
    let ports = containers.flat_map(|container| container.ports.iter().flatten());
    ports.filter_map(|port| host_port(port, address)).collect()
}

fn host_port(port: &ContainerPort, pod: Ipv4Addr) -> Option<HostPort> {
    let host_port = u16::try_from(port.host_port?).ok().filter(|number| *number > 0)?;
    let asked = port.host_ip.as_deref().and_then(|text| text.parse::<IpAddr>().ok());
    let host_ip = match asked.filter(|address| !address.is_unspecified()) {
        None => None,
        Some(IpAddr::V4(address)) => Some(address),
        Some(IpAddr::V6(_)) => return None,
    };
    let protocol = Protocol::of(port.protocol.as_deref())?.number();
    let container_port = u16::try_from(port.container_port).ok()?;
    Some(HostPort { protocol, host_ip, host_port, pod, container_port })
}

/// The table of these ports. Of two pods with the same port the first keeps it; the scheduler puts such pods on different
/// nodes.
#[must_use]
pub fn table(ports: &[HostPort]) -> Table {
    let mut table = Table::new(Family::Ip, TABLE);
    let pod_and_port = [Field::Ipv4, Field::Port];
    let own = [Field::Ipv4, Field::Proto, Field::Port];
    table.sets.insert(BOUND.into(), Set::map(own, pod_and_port));
    table.sets.insert(ANY.into(), Set::map([Field::Proto, Field::Port], pod_and_port));
    table.sets.insert(PODS.into(), Set::of([Field::Ipv4]));
    table.sets.insert(HAIRPIN.into(), Set::of([Field::Ipv4, Field::Ipv4]));
    let (mut bound, mut any, mut pods, mut hairpin) =
        (Elements::new(), Elements::new(), Elements::new(), Elements::new());
    for port in ports {
        let pod = IpAddr::V4(port.pod);
        let to = Fields::new().address(pod).port(port.container_port).data();
        let fields = port.host_ip.map_or_else(Fields::new, |ip| Fields::new().address(ip.into()));
        let key = fields.proto(port.protocol).port(port.host_port).key();
        let map = if port.host_ip.is_some() { &mut bound } else { &mut any };
        map.entry(key).or_insert(to);
        pods.insert(Fields::new().address(pod).key(), Value::None);
        hairpin.insert(Fields::new().address(pod).address(pod).key(), Value::None);
    }
    for (set, elements) in [(BOUND, bound), (ANY, any), (PODS, pods), (HAIRPIN, hairpin)] {
        table.elements.insert(set.into(), elements);
    }
    let nat = |point, priority| Some(Hook { kind: ChainKind::Nat, point, priority });
    table.chains.insert(PORTS.into(), Chain { hook: None, rules: translation() });
    for (name, point) in [("prerouting", HookPoint::Prerouting), ("output", HookPoint::Output)] {
        let rules = vec![Rule::new([Expr::Verdict(Verdict::Jump(PORTS.into()))])];
        table.chains.insert(name.into(), Chain { hook: nat(point, AFTER_SERVICES), rules });
    }
    let chain = Chain { hook: nat(HookPoint::Postrouting, 100), rules: masquerade() };
    table.chains.insert("postrouting".into(), chain);
    let raw = Hook { kind: ChainKind::Filter, point: HookPoint::Prerouting, priority: -300 };
    table.chains.insert("loopback".into(), Chain { hook: Some(raw), rules: vec![guard()] });
    table
}

/// From the node's port to the pod's.
fn translation() -> Vec<Rule> {
    let lookup = |set: &str, to| Expr::Lookup {
        set: set.into(),
        from: Reg(0),
        to: Some(Reg(to)),
        invert: false,
    };
    let dnat = |at| Expr::Dnat { addr: Reg(at), port: Some(Reg(at + 1)) };
    let bound = Rule::new([
        load::destination(Family::Ip, Reg(0)),
        load::l4proto(Reg(1)),
        load::destination_port(Reg(2)),
        lookup(BOUND, 3),
        dnat(3),
    ]);
    let any = Rule::new([
        Expr::FibDestinationType { to: Reg(0) },
        Expr::Cmp { from: Reg(0), op: CmpOp::Eq, value: LOCAL.to_ne_bytes().into() },
        load::l4proto(Reg(0)),
        load::destination_port(Reg(1)),
        lookup(ANY, 2),
        dnat(2),
    ]);
    vec![bound, any]
}

/// With `route_localnet` neighbours could send to the loopback addresses: what comes from elsewhere is dropped
/// (CVE-2020-8558). Answers of pods are translated back only after this.
fn guard() -> Rule {
    let mut lo = [0; 16];
    lo[..2].copy_from_slice(b"lo");
    let mut exprs = vec![
        Expr::Meta { key: MetaKey::IifName, to: Reg(0) },
        Expr::Cmp { from: Reg(0), op: CmpOp::Neq, value: lo.into() },
    ];
    exprs.extend(within(load::destination(Family::Ip, Reg(0)), &loopback()));
    exprs.push(Expr::Verdict(Verdict::Drop));
    Rule::new(exprs)
}

fn loopback() -> IpNet {
    IpNet::V4(Ipv4Net::new(Ipv4Addr::new(127, 0, 0, 0), 8).expect("8 is a prefix length"))
}

/// A pod cannot answer the node's loopback addresses, nor itself under its own.
fn masquerade() -> Vec<Rule> {
    let is_in = |set: &str| Expr::Lookup { set: set.into(), from: Reg(0), to: None, invert: false };
    let source = |reg| load::source(Family::Ip, Reg(reg));
    let destination = |reg| load::destination(Family::Ip, Reg(reg));
    let mut from_loopback = within(source(0), &loopback());
    from_loopback.extend([destination(0), is_in(PODS), Expr::Masquerade]);
    vec![
        Rule::new(from_loopback),
        Rule::new([source(0), destination(1), is_in(HAIRPIN), Expr::Masquerade]),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(protocol: u8, host_ip: Option<&str>, pod: &str) -> HostPort {
        let host_ip = host_ip.map(|ip| ip.parse().unwrap());
        let pod = pod.parse().unwrap();
        HostPort { protocol, host_ip, host_port: 54_323, pod, container_port: 8080 }
    }

    #[test]
    fn the_same_port_of_two_addresses_and_two_protocols_leads_to_different_pods() {
        let table = table(&[
            port(6, Some("127.0.0.1"), "10.244.0.1"),
            port(6, Some("198.18.0.11"), "10.244.0.2"),
            port(17, Some("198.18.0.11"), "10.244.0.3"),
            port(6, None, "10.244.0.4"),
            port(6, None, "10.244.0.5"),
        ]);
        assert_eq!(table.elements[BOUND].len(), 3);
        assert_eq!(table.elements[ANY].len(), 1, "the first one keeps the port");
        let kept = Fields::new().address(IpAddr::from([10, 244, 0, 4])).port(8080).data();
        assert_eq!(table.elements[ANY].values().next(), Some(&kept));
        assert_eq!(table.elements[HAIRPIN].len(), 5);
    }

    #[test]
    fn one_address_goes_before_all_of_them() {
        let text = net::nft::render(&table(&[port(6, None, "10.244.0.4")]));
        let at = |needle: &str| text.find(needle).unwrap_or_else(|| panic!("no {needle}: {text}"));
        assert!(at("map @bound") < at("map @any"), "{text}");
        assert!(at("daddr @pods masquerade") < at("@hairpin masquerade"), "{text}");
    }
}
