//! The pod network's nftables table: pods reach the outside under their node's address, and each other under their own.
//!
//! Upstream counterpart: the CNI plugins' `ipMasq`, Flannel's and kindnet's masquerade rules.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use net::nft::{
    Chain, ChainKind, CmpOp, Expr, Family, Field, Fields, Hook, HookPoint, Key, Reg, Rule, Set,
    Table, Value, Verdict, load,
};

/// The table's name.
pub const TABLE: &str = "rhumb_podnet";
const NODES: &str = "nodes";

/// The table of one family: what comes from `pods` and goes neither to `pods` nor to a node is masqueraded.
#[must_use]
pub fn table(family: Family, pods: &[IpNet], nodes: &BTreeSet<IpAddr>) -> Table {
    let is_ours = |address: &IpAddr| Family::of(address) == family;
    let mut table = Table::new(family, TABLE);
    let field = if family == Family::Ip { Field::Ipv4 } else { Field::Ipv6 };
    table.sets.insert(NODES.into(), Set::of([field]));
    let elements = nodes.iter().filter(|address| is_ours(address));
    let elements = elements.map(|address| (Fields::new().address(*address).key(), Value::None));
    table
        .elements
        .insert(NODES.into(), elements.collect::<std::collections::BTreeMap<Key, Value>>());
    let hook = Hook { kind: ChainKind::Nat, point: HookPoint::Postrouting, priority: 100 };
    let mut rules = Vec::new();
    for cidr in pods.iter().filter(|cidr| is_ours(&cidr.addr())) {
        rules.push(Rule::new(
            within(load::destination(family, Reg(0)), cidr).into_iter().chain([accept()]),
        ));
    }
    let to_node = Expr::Lookup { set: NODES.into(), from: Reg(0), to: None, invert: false };
    rules.push(Rule::new([load::destination(family, Reg(0)), to_node, accept()]));
    for cidr in pods.iter().filter(|cidr| is_ours(&cidr.addr())) {
        rules.push(Rule::new(
            within(load::source(family, Reg(0)), cidr).into_iter().chain([Expr::Masquerade]),
        ));
    }
    table.chains.insert("postrouting".into(), Chain { hook: Some(hook), rules });
    table
}

fn accept() -> Expr {
    Expr::Verdict(Verdict::Return)
}

/// Breaks off unless the loaded address is within `cidr`.
pub(super) fn within(load: Expr, cidr: &IpNet) -> Vec<Expr> {
    let octets = |address: IpAddr| -> Box<[u8]> {
        match address {
            IpAddr::V4(v4) => v4.octets().into(),
            IpAddr::V6(v6) => v6.octets().into(),
        }
    };
    let mask = octets(cidr.netmask());
    let xor = vec![0; mask.len()].into();
    vec![
        load,
        Expr::Bitwise { from: Reg(0), to: Reg(0), mask, xor },
        Expr::Cmp { from: Reg(0), op: CmpOp::Eq, value: octets(cidr.network()) },
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_traffic_to_the_outside_is_masqueraded() {
        let pods = ["10.244.0.0/16".parse().unwrap()];
        let text = net::nft::render(&table(
            Family::Ip,
            &pods,
            &BTreeSet::from(["198.18.0.11".parse().unwrap()]),
        ));
        let at =
            |needle: &str| text.find(needle).unwrap_or_else(|| panic!("{needle} is not in {text}"));
        assert!(text.contains("198.18.0.11"), "{text}");
        assert!(at("ip daddr 10.244.0.0/16 return") < at("ip daddr @nodes return"));
        assert!(at("ip daddr @nodes return") < at("ip saddr 10.244.0.0/16 masquerade"));
    }
}
