//! Services as iptables rules, in upstream's chains, for people and tools that know these: a chain for each Service port
//! and each endpoint. Upstream counterpart: `pkg/proxy/iptables`.
//!
//! Where upstream's rules do less than the specification there are more of them, and two chains called `RHUMB-…`;
//! `docs/data-plane.md` lists them.

mod lower;
mod names;
mod shown;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use api::Name;
use ipnet::IpNet;
use net::iptables::{Chain, Delta, Jump, Ruleset, Table, TableId};
use net::nft::Family;

use super::ruleset::MARK;
use super::{FAMILIES, Settings, Snapshot, Views};
use lower::{Claim, Part, Shared, chain, lower};
use names::{
    CANARY, EXTERNAL_SERVICES, FIREWALL, FORWARD, MARK_MASQ, NODE_PORTS, OFF_CLUSTER, POSTROUTING,
    SERVICES,
};

pub use names::{CLUSTER_IPS, owns};
pub use shown::{agrees, share, takeover, udp_frontends};

const NEW: &str = "-m conntrack --ctstate NEW ";
const PORTALS: &str = "kubernetes service portals";
const EXTERNAL_PORTALS: &str = "kubernetes externally-visible service portals";
const LOAD_BALANCERS: &str = "kubernetes load balancer firewall";

const fn jump(
    base: &'static str,
    only: &'static str,
    comment: &'static str,
    chain: &'static str,
) -> Jump {
    Jump { base, only, comment, chain }
}

/// Upstream's, in its order, and one more: what the node itself sends to external addresses is refused, too.
const FILTER_JUMPS: [Jump; 10] = [
    jump("INPUT", NEW, LOAD_BALANCERS, FIREWALL),
    jump("INPUT", "", "kubernetes health check service ports", NODE_PORTS),
    jump("INPUT", NEW, EXTERNAL_PORTALS, EXTERNAL_SERVICES),
    jump("FORWARD", NEW, LOAD_BALANCERS, FIREWALL),
    jump("FORWARD", "", "kubernetes forwarding rules", FORWARD),
    jump("FORWARD", NEW, PORTALS, SERVICES),
    jump("FORWARD", NEW, EXTERNAL_PORTALS, EXTERNAL_SERVICES),
    jump("OUTPUT", NEW, LOAD_BALANCERS, FIREWALL),
    jump("OUTPUT", NEW, PORTALS, SERVICES),
    jump("OUTPUT", NEW, EXTERNAL_PORTALS, EXTERNAL_SERVICES),
];
const NAT_JUMPS: [Jump; 3] = [
    jump("PREROUTING", "", PORTALS, SERVICES),
    jump("OUTPUT", "", PORTALS, SERVICES),
    jump("POSTROUTING", "", "kubernetes postrouting rules", POSTROUTING),
];

/// The jumps of a table.
#[must_use]
pub fn jumps(table: TableId) -> &'static [Jump] {
    match table {
        TableId::Filter => &FILTER_JUMPS,
        TableId::Nat => &NAT_JUMPS,
        TableId::Mangle => &[],
    }
}

/// What differs between two snapshots.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// By family; families without a difference are not there.
    pub families: BTreeMap<Family, Delta>,
    /// Whether a UDP flow may now lead to the wrong place.
    pub udp: bool,
    /// Whether a TCP connection that is then to be reset may now lead to an endpoint that is gone.
    pub resets: bool,
}

#[derive(Clone, Debug)]
struct State {
    parts: BTreeMap<Name, Part>,
    rules: Ruleset,
}

/// The desired rules, kept in step with snapshots. Services share chains that name each of them; those are written anew
/// when a Service comes, goes or changes its addresses, and not when its endpoints change.
#[derive(Clone, Debug)]
pub struct Fold {
    views: Views,
    families: BTreeMap<Family, State>,
}

impl Fold {
    /// No Services yet.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        let state = |family| State { parts: BTreeMap::new(), rules: fixed(family, &settings) };
        let families = FAMILIES.into_iter().map(|family| (family, state(family))).collect();
        let mut fold = Self { views: Views::new(settings), families };
        for family in FAMILIES {
            fold.share(family, &mut Delta::default());
        }
        fold
    }

    /// Begins anew when the ranges of Services are others than before, which shape all rules; answers whether it did.
    pub fn follow(&mut self, snapshot: &Snapshot) -> bool {
        let ranges = &snapshot.service_cidrs;
        let moved = !ranges.is_empty() && *ranges != self.views.settings().service_cidrs;
        if moved {
            let settings = self.views.settings().clone();
            *self = Self::new(Settings { service_cidrs: ranges.clone(), ..settings });
        }
        moved
    }

    /// Takes a newer snapshot; answers what differs from the last one.
    pub fn advance(&mut self, snapshot: &Snapshot) -> Change {
        let addresses = self.views.node().addresses.clone();
        let dirty = self.views.advance(snapshot);
        let moved = self.views.node().addresses != addresses;
        let mut change = Change::default();
        let mut shared = FAMILIES.map(|_| moved);
        let mut deltas = FAMILIES.map(|_| Delta::default());
        for name in dirty {
            let (view, touched) = self.views.look(&name);
            change.udp |= touched.udp;
            change.resets |= touched.resets;
            for ((family, delta), shared) in FAMILIES.into_iter().zip(&mut deltas).zip(&mut shared)
            {
                let part = lower(&name, &view, family, self.views.settings());
                let state = self.families.get_mut(&family).expect("both families are there");
                *shared |= state.put(&name, part, delta);
            }
        }
        for ((family, mut delta), shared) in FAMILIES.into_iter().zip(deltas).zip(shared) {
            if shared {
                self.share(family, &mut delta);
            }
            if !delta.is_empty() {
                change.families.insert(family, delta);
            }
        }
        change
    }

    /// All rules of a family.
    #[must_use]
    pub fn rules(&self, family: Family) -> &Ruleset {
        &self.families[&family].rules
    }

    /// The Services that the rules are planned from.
    #[must_use]
    pub fn views(&self) -> &Views {
        &self.views
    }

    /// Writes the shared chains anew.
    fn share(&mut self, family: Family, delta: &mut Delta) {
        let addresses = self.views.node().addresses.iter().copied();
        let addresses: Vec<IpAddr> =
            addresses.filter(|address| Family::of(address) == family).collect();
        let state = self.families.get_mut(&family).expect("both families are there");
        let chains = state.shared(family, self.views.settings(), &addresses);
        for (table, name, chain) in chains {
            let chains = &mut state.rules.entry(table).or_default().chains;
            if chains.get(name) != Some(&chain) {
                let changed = &mut delta.tables.entry(table).or_default().chains;
                changed.insert(name.into(), Arc::clone(&chain));
                chains.insert(name.into(), chain);
            }
        }
    }
}

impl State {
    /// Puts a Service's share in the place of the one before; answers whether shared chains change.
    fn put(&mut self, name: &Name, part: Part, delta: &mut Delta) -> bool {
        let before = self.parts.remove(name).unwrap_or_default();
        let shared = !before.shares_as(&part);
        let chains = &mut self.rules.entry(TableId::Nat).or_default().chains;
        let mut changed = BTreeMap::new();
        let mut gone = BTreeSet::new();
        for name in before.chains.keys().filter(|name| !part.chains.contains_key(*name)) {
            chains.remove(name);
            gone.insert(Arc::clone(name));
        }
        for (name, chain) in &part.chains {
            if before.chains.get(name) != Some(chain) {
                chains.insert(Arc::clone(name), Arc::clone(chain));
                changed.insert(Arc::clone(name), Arc::clone(chain));
            }
        }
        if !changed.is_empty() || !gone.is_empty() {
            let table = delta.tables.entry(TableId::Nat).or_default();
            table.chains.extend(changed);
            table.gone.extend(gone);
        }
        if !part.is_empty() {
            self.parts.insert(name.clone(), part);
        }
        shared
    }

    fn shared(
        &self,
        family: Family,
        settings: &Settings,
        addresses: &[IpAddr],
    ) -> Vec<(TableId, &'static str, Chain)> {
        let mut owners: BTreeMap<Claim, &Name> = BTreeMap::new();
        let mut rules: BTreeMap<Shared, Vec<Arc<str>>> = BTreeMap::new();
        for (name, part) in &self.parts {
            for entry in &part.entries {
                if *owners.entry(entry.claim).or_insert(name) == name {
                    rules.entry(entry.chain).or_default().push(Arc::clone(&entry.rule));
                }
            }
        }
        let mut take = |chain: Shared| rules.remove(&chain).unwrap_or_default();
        let mut services = take(Shared::Services);
        services.extend(addresses.iter().map(to_node_ports));
        let mut filter = take(Shared::NoEndpoints);
        let (tail, cluster_ips) = self.cluster_ips(family, settings);
        filter.extend(tail);
        let mut input = take(Shared::HealthChecks);
        if settings.node_ports_on_localhost() && family == Family::Ip {
            input.insert(0, LOOPBACK_GUARD.into());
        }
        let node_ports = take(Shared::NodePorts);
        vec![
            (TableId::Filter, EXTERNAL_SERVICES, take(Shared::NoExternal).into()),
            (TableId::Filter, FIREWALL, take(Shared::Firewall).into()),
            (TableId::Filter, NODE_PORTS, input.into()),
            (TableId::Filter, SERVICES, filter.into()),
            (TableId::Filter, CLUSTER_IPS, cluster_ips),
            (TableId::Nat, NODE_PORTS, node_ports.into()),
            (TableId::Nat, SERVICES, services.into()),
        ]
    }

    /// The end of the filter's `KUBE-SERVICES`, and the chain that it leads to: a port that its Service does not have is
    /// refused, an address that no Service has is discarded. Packets for endpoints do not come there.
    fn cluster_ips(&self, family: Family, settings: &Settings) -> (Vec<Arc<str>>, Chain) {
        let cidrs: Vec<&IpNet> = settings.service_cidrs(family).collect();
        let (mut tail, mut rules) = (Vec::new(), Vec::new());
        let node_local = self.parts.values().flat_map(|part| &part.node_local);
        rules.extend(node_local.map(|address| format!("-d {address} -j RETURN")));
        let mut known = BTreeSet::new();
        for address in self.parts.values().flat_map(|part| &part.cluster_ips) {
            if known.insert(address) {
                let inside = cidrs.iter().any(|cidr| cidr.contains(address));
                for reject in ["-p tcp -j REJECT --reject-with tcp-reset", "-j REJECT"] {
                    let rule = format!("-d {address} {reject}");
                    if inside { rules.push(rule) } else { tail.push(Arc::from(rule)) }
                }
            }
        }
        rules.push("-j DROP".to_owned());
        let comment = "-m comment --comment \"addresses of Services without such a port\"";
        tail.extend(
            cidrs.iter().map(|cidr| Arc::from(format!("{comment} -d {cidr} -j {CLUSTER_IPS}"))),
        );
        (tail, chain(rules))
    }
}

/// Node ports on 127.0.0.1 need `route_localnet`, with which neighbours could send to the loopback addresses: what comes
/// from elsewhere and is no answer is dropped (CVE-2020-8558). Upstream: the kubelet's `KUBE-FIREWALL`.
const LOOPBACK_GUARD: &str = "-m comment --comment \"block incoming localnet connections\" \
    -d 127.0.0.0/8 ! -i lo -m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP";

fn to_node_ports(address: &IpAddr) -> Arc<str> {
    let comment = "kubernetes service nodeports; NOTE: this must be the last rule in this chain";
    let own = if address.is_loopback() { "-m addrtype --src-type LOCAL " } else { "" };
    format!("-m comment --comment \"{comment}\" -d {address} {own}-j {NODE_PORTS}").into()
}

/// Chains that do not depend on Services, and the jumps.
fn fixed(family: Family, settings: &Settings) -> Ruleset {
    let mark = format!("{MARK:#x}");
    let forward = [
        "-m conntrack --ctstate INVALID -j DROP".to_owned(),
        format!("-m comment --comment \"kubernetes forwarding rules\" -m mark --mark {mark}/{mark} -j ACCEPT"),
        "-m comment --comment \"kubernetes forwarding conntrack rule\" -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"
            .to_owned(),
    ];
    let postrouting = [
        format!("-m mark ! --mark {mark}/{mark} -j RETURN"),
        format!("-j MARK --xor-mark {mark}"),
        "-m comment --comment \"kubernetes service traffic requiring SNAT\" -j MASQUERADE --random-fully"
            .to_owned(),
    ];
    let mut rules = Ruleset::new();
    for table in TableId::ALL {
        let chains = [(Arc::from(CANARY), chain([]))].into();
        rules.insert(table, Table { chains, jumps: jumps(table).to_vec() });
    }
    let mut put = |table, name: &str, rules_of: Chain| {
        rules.entry(table).or_default().chains.insert(name.into(), rules_of);
    };
    put(TableId::Filter, FORWARD, chain(forward));
    put(TableId::Nat, POSTROUTING, chain(postrouting));
    put(TableId::Nat, MARK_MASQ, chain([format!("-j MARK --or-mark {mark}")]));
    let pods: Vec<&IpNet> = settings.pod_cidrs(family).collect();
    if pods.len() > 1 {
        let mut rules: Vec<String> =
            pods.iter().map(|cidr| format!("-s {cidr} -j RETURN")).collect();
        rules.push(format!("-j {MARK_MASQ}"));
        put(TableId::Nat, OFF_CLUSTER, chain(rules));
    }
    rules
}
