//! What the kernel shows, beside what it should hold. The programs write rules in words of their own, which differ from
//! version to version: only what decides about a packet is compared.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;
use net::iptables::{Delta, Ruleset, Saved, Table, TableDelta, TableId};

use super::jumps;
use super::names::{NODE_PORTS, SERVICES, owns};

/// What makes these rules of what the kernel has: all own chains anew, own ones that do not belong there away, jumps
/// where they are missing or altered. Chains and rules of others stay.
#[must_use]
pub fn takeover(saved: &Saved, rules: &Ruleset) -> Delta {
    let (none, nothing) = (Table::default(), BTreeMap::new());
    let mut delta = Delta::default();
    for id in TableId::ALL {
        let (wanted, found) =
            (rules.get(&id).unwrap_or(&none), saved.table(id).unwrap_or(&nothing));
        let own = found.keys().filter(|name| owns(id, name));
        let gone = own.filter(|name| !wanted.chains.contains_key(name.as_str()));
        let mut table = TableDelta {
            chains: wanted.chains.clone(),
            gone: gone.map(|name| Arc::from(name.as_str())).collect(),
            ..TableDelta::default()
        };
        for jump in jumps(id) {
            let rules = found.get(jump.base).into_iter().flatten();
            let alike: Vec<&String> = rules.filter(|rule| jump.resembles(rule)).collect();
            let is_wanted = wanted.jumps.contains(jump);
            if is_wanted && matches!(alike.as_slice(), [only] if jump.is(only)) {
                continue;
            }
            table
                .old_jumps
                .extend(alike.iter().map(|rule| (jump.base.to_owned(), (*rule).clone())));
            if is_wanted {
                table.new_jumps.insert(0, jump.clone());
            }
        }
        if table != TableDelta::default() {
            delta.tables.insert(id, table);
        }
    }
    delta
}

/// Whether a chain as the kernel shows it does what it should.
#[must_use]
pub fn agrees(shown: &[String], planned: &[Arc<str>]) -> bool {
    shown.len() == planned.len()
        && shown.iter().zip(planned).all(|(shown, planned)| sense(shown) == sense(planned))
}

/// The words of a rule that decide, in an order of their own.
fn sense(rule: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut words = rule.split_ascii_whitespace();
    let mut not = "";
    while let Some(word) = words.next() {
        if word == "!" {
            not = "! ";
            continue;
        }
        if ["-j", "-s", "-d", "-p", "-i", "--dport", "--to-destination", "--ctstate", "--src-type"]
            .contains(&word)
        {
            let value = words.next().unwrap_or_default();
            let net = value.parse::<IpNet>().map(|net| net.trunc());
            let net = net.or_else(|_| value.parse().map(|address: IpAddr| address.into()));
            let value = net.map_or_else(|_| value.to_owned(), |net| net.to_string());
            found.insert(format!("{not}{word} {value}"));
        }
        not = "";
    }
    found
}

/// The UDP frontends that rules lead somewhere, as `iptables-save` shows them.
#[must_use]
pub fn udp_frontends(saved: &Saved) -> BTreeSet<SocketAddr> {
    let chain = |name: &str| {
        let rules = saved.table(TableId::Nat).and_then(|chains| chains.get(name));
        rules.into_iter().flatten().map(|rule| Matches::of(rule))
    };
    let (mut found, mut nodes) = (BTreeSet::new(), BTreeSet::new());
    for rule in chain(SERVICES) {
        match (rule.address, rule.port) {
            (Some(address), Some(port)) if rule.is_udp => {
                found.insert(SocketAddr::new(address, port));
            }
            (Some(address), None) => {
                nodes.insert(address);
            }
            _ => {}
        }
    }
    for port in chain(NODE_PORTS).filter(|rule| rule.is_udp).filter_map(|rule| rule.port) {
        found.extend(nodes.iter().map(|address| SocketAddr::new(*address, port)));
    }
    found
}

/// What a rule asks of a packet.
#[derive(Default)]
struct Matches {
    address: Option<IpAddr>,
    port: Option<u16>,
    is_udp: bool,
}

impl Matches {
    fn of(rule: &str) -> Self {
        let mut found = Self::default();
        let mut words = rule.split_ascii_whitespace();
        while let Some(word) = words.next() {
            match word {
                "-d" => {
                    let net = words.next().and_then(|word| word.split('/').next());
                    found.address = net.and_then(|address| address.parse().ok());
                }
                "-p" => found.is_udp = words.next() == Some("udp"),
                "--dport" => found.port = words.next().and_then(|word| word.parse().ok()),
                _ => {}
            }
        }
        found
    }
}
