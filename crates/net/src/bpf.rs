//! What the eBPF programs are told, as data; `kernel` has the layouts.
//!
//! A frontend names sets of endpoints by a number made from what is in them. So a change of endpoints is another set,
//! and whoever looks at a frontend finds either all of the one or all of the other.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

/// The protocol UDP in the IP header.
const UDP: u8 = 17;

/// A set's number.
pub type SetNumber = u64;

/// The endpoints that one audience may draw from. With a count of 0 its packets are left to the rules underneath.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Choice {
    /// The set.
    pub set: SetNumber,
    /// How many are in it.
    pub count: u32,
    /// Whether the node puts its address in place of the client's.
    pub masquerade: bool,
    /// Whether these are this node's endpoints only, by policy: affinity to them is remembered apart.
    pub local: bool,
    /// Whether another node with the endpoint answers the client itself, and sees its address.
    pub direct: bool,
}

/// Where a Service answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FrontendKey {
    /// Address and port.
    pub address: SocketAddr,
    /// The number in the IP header.
    pub protocol: u8,
}

/// What happens there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Frontend {
    /// For pods of the cluster.
    pub pods: Choice,
    /// For this node itself.
    pub node: Choice,
    /// For everybody else.
    pub outside: Choice,
    /// Equal for all frontends of a Service port: affinity holds across them.
    pub identity: u64,
    /// Seconds of affinity; 0 for none.
    pub affinity_s: u32,
}

/// Endpoints that are drawn from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EndpointSet {
    /// In the order of their numbers.
    pub endpoints: Vec<SocketAddr>,
    /// The addresses among them that are on this node: they may become clients of themselves.
    pub own: Vec<IpAddr>,
    /// Whether something is remembered that leads to them, so that one must be able to ask who is in the set.
    pub remembered: bool,
    /// Whether clients from outside are led to it: all nodes lead a client to the same endpoint, as far as they can.
    pub spread: bool,
}

impl EndpointSet {
    fn members(&self) -> impl Iterator<Item = SocketAddr> {
        let own = self.own.iter().map(|address| SocketAddr::new(*address, 0));
        own.chain(self.endpoints.iter().copied().filter(|_| self.remembered))
    }
}

/// All that the programs are told of Services.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tables {
    /// By address and protocol.
    pub frontends: BTreeMap<FrontendKey, Frontend>,
    /// Every set that a frontend names.
    pub sets: BTreeMap<SetNumber, Arc<EndpointSet>>,
}

/// What differs between two [`Tables`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// Sets that come: told first.
    pub come: BTreeMap<SetNumber, Arc<EndpointSet>>,
    /// Frontends that differ; `None` is gone.
    pub frontends: BTreeMap<FrontendKey, Option<Frontend>>,
    /// Sets that nobody names any more: taken away last, when nobody can be reading them.
    pub gone: BTreeMap<SetNumber, Arc<EndpointSet>>,
}

impl Change {
    /// Whether nothing differs.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.come.is_empty() && self.frontends.is_empty() && self.gone.is_empty()
    }
}

/// An endpoint's place: the family of its map, the set, its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct EndpointKey {
    /// Which of the two maps.
    pub ipv6: bool,
    /// The set.
    pub set: SetNumber,
    /// From 0 to the set's count.
    pub index: u32,
}

/// One that is in a set. Port 0: an address of this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Member {
    /// The set.
    pub set: SetNumber,
    /// Address and port.
    pub address: SocketAddr,
}

/// The maps' entries, as the kernel has them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Entries {
    /// Where Services answer.
    pub frontends: BTreeMap<FrontendKey, Frontend>,
    /// Whom they lead to.
    pub endpoints: BTreeMap<EndpointKey, SocketAddr>,
    /// Who is in a set.
    pub members: BTreeSet<Member>,
}

/// Entries of a set.
pub fn endpoints(
    number: SetNumber,
    set: &EndpointSet,
) -> impl Iterator<Item = (EndpointKey, SocketAddr)> {
    (0..).zip(&set.endpoints).map(move |(index, endpoint)| {
        (EndpointKey { ipv6: endpoint.is_ipv6(), set: number, index }, *endpoint)
    })
}

/// Entries of a set, beside its endpoints.
pub fn members(number: SetNumber, set: &EndpointSet) -> impl Iterator<Item = Member> {
    set.members().map(move |address| Member { set: number, address })
}

impl Tables {
    /// As entries of maps.
    #[must_use]
    pub fn entries(&self) -> Entries {
        Entries {
            frontends: self.frontends.clone(),
            endpoints: self.sets.iter().flat_map(|(number, set)| endpoints(*number, set)).collect(),
            members: self.sets.iter().flat_map(|(number, set)| members(*number, set)).collect(),
        }
    }

    /// Takes a change in.
    pub fn apply(&mut self, change: &Change) {
        self.sets.extend(change.come.iter().map(|(number, set)| (*number, Arc::clone(set))));
        for (key, frontend) in &change.frontends {
            match frontend {
                Some(frontend) => self.frontends.insert(*key, *frontend),
                None => self.frontends.remove(key),
            };
        }
        for number in change.gone.keys() {
            self.sets.remove(number);
        }
    }
}

/// What to do with the kernel's entries, in this order; no reader ever misses what it was led to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Steps {
    /// First these are told, ...
    pub endpoints: Vec<(EndpointKey, SocketAddr)>,
    /// ... and these, ...
    pub members: Vec<Member>,
    /// ... then frontends are led to them, or taken away with `None`.
    pub frontends: Vec<(FrontendKey, Option<Frontend>)>,
    /// When nobody can be reading it any more, this goes.
    pub spare: Spare,
}

/// What nobody is led to any more.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Spare {
    /// Of sets that are gone.
    pub endpoints: BTreeSet<EndpointKey>,
    /// The same.
    pub members: BTreeSet<Member>,
}

impl Spare {
    /// Whether nothing waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.endpoints.is_empty() && self.members.is_empty()
    }

    /// Takes in what a change leaves over, and lets go of what it needs again.
    pub fn follow(&mut self, steps: &Steps) {
        for (key, _) in &steps.endpoints {
            self.endpoints.remove(key);
        }
        for member in &steps.members {
            self.members.remove(member);
        }
        self.endpoints.extend(&steps.spare.endpoints);
        self.members.extend(&steps.spare.members);
    }
}

impl Steps {
    /// Whether there is nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl From<&Change> for Steps {
    fn from(change: &Change) -> Self {
        Self {
            endpoints: change.come.iter().flat_map(|(set, all)| endpoints(*set, all)).collect(),
            members: change.come.iter().flat_map(|(set, all)| members(*set, all)).collect(),
            frontends: change.frontends.iter().map(|(key, new)| (*key, *new)).collect(),
            spare: Spare {
                endpoints: change
                    .gone
                    .iter()
                    .flat_map(|(set, all)| endpoints(*set, all).map(|(key, _)| key))
                    .collect(),
                members: change.gone.iter().flat_map(|(set, all)| members(*set, all)).collect(),
            },
        }
    }
}

impl Entries {
    /// What makes these entries the wanted ones.
    #[must_use]
    pub fn steps(&self, wanted: &Self) -> Steps {
        let changed =
            wanted.frontends.iter().filter(|(key, new)| self.frontends.get(key) != Some(new));
        let gone = self.frontends.keys().filter(|key| !wanted.frontends.contains_key(key));
        Steps {
            endpoints: wanted
                .endpoints
                .iter()
                .filter(|(key, endpoint)| self.endpoints.get(key) != Some(endpoint))
                .map(|(key, endpoint)| (*key, *endpoint))
                .collect(),
            members: wanted.members.difference(&self.members).copied().collect(),
            frontends: changed
                .map(|(key, new)| (*key, Some(*new)))
                .chain(gone.map(|key| (*key, None)))
                .collect(),
            spare: Spare {
                endpoints: self
                    .endpoints
                    .keys()
                    .filter(|key| !wanted.endpoints.contains_key(key))
                    .copied()
                    .collect(),
                members: self.members.difference(&wanted.members).copied().collect(),
            },
        }
    }
}

/// The tables as text, a frontend a line.
#[must_use]
pub fn render(tables: &Tables) -> String {
    let mut text = String::new();
    for (key, frontend) in &tables.frontends {
        let protocol = if key.protocol == UDP { "udp" } else { "tcp" };
        text.push_str(&format!("frontend {} {protocol}", key.address));
        let choices =
            [("pods", frontend.pods), ("node", frontend.node), ("outside", frontend.outside)];
        for (audience, choice) in choices.iter().filter(|(_, choice)| choice.count > 0) {
            let masquerade = if choice.masquerade { " masquerade" } else { "" };
            let local = if choice.local { " local" } else { "" };
            let direct = if choice.direct { " direct" } else { "" };
            text.push_str(&format!(" {audience} {:016x}{masquerade}{local}{direct}", choice.set));
        }
        if frontend.affinity_s > 0 {
            text.push_str(&format!(" affinity {}s", frontend.affinity_s));
        }
        text.push('\n');
    }
    for (number, set) in &tables.sets {
        let words = set.endpoints.iter().map(ToString::to_string);
        let own = set.own.iter().map(|address| format!("own {address}"));
        let words: Vec<String> =
            words.chain(own).chain(set.spread.then(|| "spread".to_owned())).collect();
        text.push_str(&format!("set {number:016x} {}\n", words.join(" ")));
    }
    text
}
