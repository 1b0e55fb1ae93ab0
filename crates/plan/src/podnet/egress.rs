//! The table of a machine that lets a lab out: what comes from the lab's nodes goes out under the machine's own address.

use ipnet::IpNet;
use net::nft::{Chain, ChainKind, Expr, Family, Hook, HookPoint, Reg, Rule, Table, Verdict, load};

use super::ruleset::within;

/// The table's name for a cluster.
#[must_use]
pub fn name(cluster: &str) -> String {
    format!("rhumb_egress_{}", cluster.replace('-', "_"))
}

/// The table: from `lab` to anywhere but `lab` is masqueraded.
#[must_use]
pub fn table(cluster: &str, lab: IpNet) -> Table {
    let family = if lab.addr().is_ipv4() { Family::Ip } else { Family::Ip6 };
    let mut table = Table::new(family, &name(cluster));
    let hook = Hook { kind: ChainKind::Nat, point: HookPoint::Postrouting, priority: 100 };
    let stays = within(load::destination(family, Reg(0)), &lab);
    let leaves = within(load::source(family, Reg(0)), &lab);
    let rules = vec![
        Rule::new(stays.into_iter().chain([Expr::Verdict(Verdict::Return)])),
        Rule::new(leaves.into_iter().chain([Expr::Masquerade])),
    ];
    table.chains.insert("postrouting".into(), Chain { hook: Some(hook), rules });
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stays_in_the_lab_keeps_its_address() {
        let text = net::nft::render(&table("a-b", "198.18.0.0/24".parse().unwrap()));
        assert!(text.contains("table ip rhumb_egress_a_b"), "{text}");
        let at = |needle: &str| text.find(needle).unwrap_or_else(|| panic!("no {needle}: {text}"));
        assert!(at("return") < at("masquerade"), "{text}");
    }
}
