//! What the kernel shows, beside what it should hold. The programs write rules in words of their own, which differ from
//! version to version: only what decides about a packet is compared.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;
use net::iptables::{Delta, Ruleset, Saved, Table, TableDelta, TableId};

use super::jumps;
use super::names::{EXTERNAL_SERVICES, FIREWALL, NODE_PORTS, SERVICES, is_of_service, owns, word};
use crate::service::Protocol;

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
            (Some(address), Some(port)) if rule.protocol == Some("udp") => {
                found.insert(SocketAddr::new(address, port));
            }
            (Some(address), None) => {
                nodes.insert(address);
            }
            _ => {}
        }
    }
    for port in
        chain(NODE_PORTS).filter(|rule| rule.protocol == Some("udp")).filter_map(|rule| rule.port)
    {
        found.extend(nodes.iter().map(|address| SocketAddr::new(*address, port)));
    }
    found
}

/// The rules about one address and port, in words that do not depend on the program's version: of shared chains by what
/// they say, of a Service's own chains by their place.
#[must_use]
pub fn share(
    saved: &Saved,
    address: SocketAddr,
    protocol: Protocol,
) -> BTreeMap<String, BTreeMap<String, String>> {
    let rules = |table: TableId, chain: &str| {
        let rules = saved.table(table).and_then(|chains| chains.get(chain));
        rules.into_iter().flatten()
    };
    let words = |rule: &str| sense(rule).into_iter().collect::<Vec<_>>().join(" ");
    let mut found: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
    let (mut ahead, mut is_nodes) = (Vec::new(), false);
    for (table, chain) in ENTRANCES {
        for rule in rules(table, chain) {
            let asks = Matches::of(rule);
            let to_node_ports = asks.port.is_none() && asks.target == Some(NODE_PORTS);
            let at = asks.address == Some(address.ip());
            let port = asks.port == Some(address.port()) && asks.protocol == Some(word(protocol));
            is_nodes |= at && to_node_ports;
            let meets = match chain {
                NODE_PORTS => is_nodes && port,
                _ => at && (port || to_node_ports),
            };
            if meets {
                let chain = found.entry(format!("{} {chain}", table.word())).or_default();
                chain.insert(words(rule), String::new());
                ahead.extend(asks.target.filter(|_| table == TableId::Nat));
            }
        }
    }
    while let Some(chain) = ahead.pop() {
        let name = format!("{} {chain}", TableId::Nat.word());
        if !is_of_service(chain) || found.contains_key(&name) {
            continue;
        }
        let numbered = (1..).zip(rules(TableId::Nat, chain));
        let all = numbered.map(|(place, rule)| (format!("rule {place:03}"), words(rule)));
        found.insert(name, all.collect());
        ahead.extend(rules(TableId::Nat, chain).filter_map(|rule| Matches::of(rule).target));
    }
    found
}

/// Shared chains that have rules for single addresses and ports.
const ENTRANCES: [(TableId, &str); 5] = [
    (TableId::Nat, SERVICES),
    (TableId::Nat, NODE_PORTS),
    (TableId::Filter, SERVICES),
    (TableId::Filter, EXTERNAL_SERVICES),
    (TableId::Filter, FIREWALL),
];

/// What a rule asks of a packet, and where it leads.
#[derive(Default)]
struct Matches<'a> {
    address: Option<IpAddr>,
    port: Option<u16>,
    protocol: Option<&'a str>,
    target: Option<&'a str>,
}

impl<'a> Matches<'a> {
    fn of(rule: &'a str) -> Self {
        let mut found = Self::default();
        let mut words = rule.split_ascii_whitespace();
        while let Some(word) = words.next() {
            match word {
                "-d" => {
                    let net = words.next().and_then(|word| word.split('/').next());
                    found.address = net.and_then(|address| address.parse().ok());
                }
                "-p" => found.protocol = words.next(),
                "-j" => found.target = words.next(),
                "--dport" => found.port = words.next().and_then(|word| word.parse().ok()),
                _ => {}
            }
        }
        found
    }
}
