//! What a kernel holds for one frontend, beside what it should hold; and sockets that listen.
//!
//! A node's agent sends [`Held`], read from nftables and cut to the frontend by [`share`], or from iptables and cut by
//! [`iptables::share`]; in mode ipvs with the virtual server beside the elements. The same cut of a fresh plan is what it
//! should be. Both are texts, so that a difference can be shown.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use net::iptables::Saved;
use net::nft::{Elements, Family, Field, Fields, SetData, Value, Verdict};
use serde::{Deserialize, Serialize};

use super::{Chain, Cluster, Step};
use crate::decide::Packet;
use crate::proxy::{FAMILIES, Fold, Mode, SetId, Settings, Snapshot, iptables, ipvs};
use crate::service::Protocol;

/// An address and port where a Service answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frontend {
    /// Where.
    pub address: SocketAddr,
    /// By which protocol.
    pub protocol: Protocol,
}

impl Frontend {
    /// The virtual server of IPVS that is there, if there is one.
    #[must_use]
    pub fn server(&self) -> net::ipvs::Server {
        net::ipvs::Server { address: self.address, protocol: self.protocol.number() }
    }
}

/// The virtual server's place in [`Held`].
pub const VIRTUAL_SERVER: &str = "the virtual server";

/// Elements of a table by set, key and value, as texts. In mode iptables rules, by chain, place and words.
pub type Held = BTreeMap<String, BTreeMap<String, String>>;

/// A listening socket.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Listener {
    /// `TCP` or `UDP`.
    pub protocol: String,
    /// The address that it is bound to; `0.0.0.0` or `::` for all.
    pub address: IpAddr,
    /// The port.
    pub port: u16,
}

/// The sets that have elements of single frontends.
pub const SETS: [SetId; 9] = [
    SetId::Services,
    SetId::Guarded,
    SetId::Inside,
    SetId::Outside,
    SetId::Endpoints,
    SetId::LocalEndpoints,
    SetId::Identities,
    SetId::Allowed,
    SetId::ClusterIps,
];

/// The elements of `set` that are about a frontend, as texts.
#[must_use]
pub fn share(set: SetId, elements: &Elements, frontend: Frontend) -> BTreeMap<String, String> {
    let address = frontend.address.ip();
    let family = Family::of(&address);
    let whole = Fields::new()
        .address(address)
        .proto(frontend.protocol.number())
        .port(frontend.address.port())
        .bytes();
    let alone = Fields::new().address(address).bytes();
    let kind = set.set(family);
    let ours = |key: &[u8]| match set {
        SetId::ClusterIps => *key == *alone,
        SetId::Allowed => key.get(alone.len()..).is_some_and(|rest| *rest == *whole),
        _ => key.starts_with(&whole),
    };
    let found = elements.iter().filter(|(key, _)| ours(key.ends().0));
    found
        .map(|(key, value)| {
            let (first, last) = key.ends();
            let mut shown = text(&kind.key, first);
            if key.range {
                shown = format!("{shown} to {}", text(&kind.key, last));
            }
            let value = match (value, &kind.data) {
                (Value::Data(bytes), SetData::Fields(fields)) => text(fields, bytes),
                (Value::Verdict(verdict), _) => verdict_text(verdict),
                _ => String::new(),
            };
            (shown, value)
        })
        .collect()
}

fn verdict_text(verdict: &Verdict) -> String {
    match verdict {
        Verdict::Goto(chain) | Verdict::Jump(chain) => chain.to_string(),
        other => format!("{other:?}").to_lowercase(),
    }
}

/// `10.96.0.10 . 6 . 53`
fn text(fields: &[Field], bytes: &[u8]) -> String {
    let mut shown = String::new();
    let mut at = 0;
    for field in fields {
        let size = usize::try_from(field.size()).expect("fields are a few bytes long");
        let Some(piece) = bytes.get(at..at + size) else { break };
        let padded = size.div_ceil(4) * 4;
        at += padded;
        if !shown.is_empty() {
            shown.push_str(" . ");
        }
        let one = match (field, piece) {
            (Field::Ipv4, &[a, b, c, d]) => Ipv4Addr::from([a, b, c, d]).to_string(),
            (Field::Ipv6, piece) => <[u8; 16]>::try_from(piece)
                .map_or_else(|_| String::new(), |all| Ipv6Addr::from(all).to_string()),
            (Field::Port, &[a, b, ..]) => u16::from_be_bytes([a, b]).to_string(),
            (Field::Mark, &[a, b, c, d]) => u32::from_ne_bytes([a, b, c, d]).to_string(),
            (_, &[number, ..]) => number.to_string(),
            _ => String::new(),
        };
        write!(shown, "{one}").expect("a String takes everything");
    }
    shown
}

fn fold(cluster: &Cluster, settings: Settings) -> Fold {
    let snapshot = snapshot(cluster, &settings);
    let mut fold = Fold::new(settings);
    fold.catch_up(&snapshot);
    fold
}

/// The whole rule set of the node of `settings`, in its mode's words, both families.
#[must_use]
pub fn ruleset(cluster: &Cluster, settings: Settings) -> String {
    match settings.mode {
        Mode::Nftables => {
            let fold = fold(cluster, settings);
            FAMILIES.map(|family| net::nft::render(&fold.table(family))).concat()
        }
        Mode::Ebpf => {
            let fold = fold(cluster, settings);
            let rules = FAMILIES.map(|family| net::nft::render(&fold.table(family))).concat();
            net::bpf::render(&fold.fast()) + &rules
        }
        Mode::Ipvs => {
            let fold = fold(cluster, settings);
            let servers = fold.servers();
            let names = servers.keys().copied().collect();
            let tables = FAMILIES.map(|family| {
                let led = ipvs::table_of(family, &names, &names);
                net::nft::render(&fold.table(family)) + &net::nft::render(&led)
            });
            tables.concat() + &net::ipvs::render(&ipvs::desired(&servers))
        }
        Mode::Iptables => {
            let snapshot = snapshot(cluster, &settings);
            let mut fold = iptables::Fold::new(settings);
            fold.advance(&snapshot);
            FAMILIES.map(|family| net::iptables::render(fold.rules(family))).concat()
        }
    }
}

fn snapshot(cluster: &Cluster, settings: &Settings) -> Snapshot {
    let node = cluster.nodes.get(&api::Name::cluster(&settings.node)).map(Arc::clone);
    let (services, slices) = (cluster.services.clone(), cluster.slices.clone());
    let addresses = cluster.addresses(&settings.node);
    let silent = Arc::new(cluster.silent(&settings.node));
    Snapshot { services, slices, node, addresses, silent, ..Snapshot::default() }
}

/// What the kernel of `node` should hold for a frontend.
#[must_use]
pub fn planned(cluster: &Cluster, node: &str, frontend: Frontend) -> Held {
    let settings = cluster.settings(node);
    if settings.mode == Mode::Iptables {
        return planned_rules(cluster, settings, frontend);
    }
    let fold = fold(cluster, settings);
    let table = fold.table(Family::of(&frontend.address.ip()));
    let shares = SETS.into_iter().filter_map(|set| {
        let share = share(set, table.elements.get(set.name())?, frontend);
        (!share.is_empty()).then(|| (set.name().to_owned(), share))
    });
    let mut planned: Held = shares.collect();
    // None in other modes.
    let virtuals = ipvs::desired(&fold.servers());
    let found = virtuals.get(&frontend.server());
    planned.extend(found.map(|found| (VIRTUAL_SERVER.to_owned(), share_server(found))));
    planned
}

/// What a virtual server chooses among, as texts: destinations that only keep their connections have no part.
#[must_use]
pub fn share_server(held: &net::ipvs::Held) -> BTreeMap<String, String> {
    let takes = held.destinations.iter().filter(|(_, destination)| destination.weight > 0);
    let shown =
        takes.map(|(to, destination)| (to.to_string(), format!("weight {}", destination.weight)));
    shown.chain([("scheduler".to_owned(), held.choice.scheduler.clone())]).collect()
}

fn planned_rules(cluster: &Cluster, settings: Settings, frontend: Frontend) -> Held {
    let snapshot = snapshot(cluster, &settings);
    let mut fold = iptables::Fold::new(settings);
    fold.advance(&snapshot);
    let rules = fold.rules(Family::of(&frontend.address.ip()));
    iptables::share(&Saved::of(rules), frontend.address, frontend.protocol)
}

/// What differs between what is planned and what is held, in words.
#[must_use]
pub fn differences(planned: &Held, held: &Held) -> Vec<String> {
    let none = BTreeMap::new();
    let mut found = Vec::new();
    // nftables' sets in the order in which a packet meets them.
    let sets = SETS.map(SetId::name).into_iter();
    let all = planned.keys().chain(held.keys()).map(String::as_str).collect::<BTreeSet<_>>();
    let others = all.into_iter().filter(|name| SETS.iter().all(|set| set.name() != *name));
    for set in sets.chain(others) {
        let (planned, held) = (planned.get(set).unwrap_or(&none), held.get(set).unwrap_or(&none));
        let shown = |key: &str, value: &str| {
            if value.is_empty() { key.to_owned() } else { format!("{key} : {value}") }
        };
        for (key, value) in planned {
            match held.get(key) {
                None => found.push(format!("{set} lacks {}", shown(key, value))),
                Some(other) if other != value => {
                    found.push(format!("{set} has {}, not {value}", shown(key, other)));
                }
                Some(_) => {}
            }
        }
        let extra = held.iter().filter(|(key, _)| !planned.contains_key(*key));
        found.extend(extra.map(|(key, value)| format!("{set} has {} besides", shown(key, value))));
    }
    found
}

impl Chain<'_> {
    /// Says what the kernel of the node holds, if anybody looked.
    pub(super) fn kernel(&mut self, node: &str, packet: &Packet) {
        let Some(fact) = self.facts.kernels.get(node) else { return };
        let step = match fact {
            Err(why) => Step::Kernel {
                node: node.to_owned(),
                agrees: None,
                words: format!("what node {node} holds is not known: {why}"),
                differences: Vec::new(),
            },
            Ok(held) => {
                let frontend = Frontend { address: packet.destination, protocol: packet.protocol };
                let planned = planned(self.cluster, node, frontend);
                let differences = differences(&planned, held);
                let number = held.values().map(BTreeMap::len).sum();
                let rules = self.cluster.settings(node).mode == Mode::Iptables;
                let elements = super::count(number, if rules { "rule" } else { "element" });
                let agrees = differences.is_empty();
                let ends = if agrees { "as planned" } else { "which is not what is planned" };
                let at = format!("{}/{}", packet.destination, packet.protocol.word());
                let words = format!("node {node} holds {elements} for {at}, {ends}");
                Step::Kernel { node: node.to_owned(), agrees: Some(agrees), words, differences }
            }
        };
        self.steps.push(step);
    }
}
