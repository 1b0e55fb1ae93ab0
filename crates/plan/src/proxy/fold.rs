//! The whole state as a fold over Services: a changed Service costs the work of one Service.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use api::core::{Node, Service};
use api::discovery::EndpointSlice;
use api::{Name, Objects};
use ipnet::IpNet;
use net::bpf;
use net::nft::{Chain, Family, Key, SetChange, Table, Value};

use super::claim::Claim;
use super::ebpf::{Before, Fast};
use super::elements::{ChainId, Class, Lowered, SetId, lower};
use super::ruleset::{draw_chain, skeleton};
use super::views::Views;
use super::{FAMILIES, Mode, Settings, ipvs};

/// The objects that the proxy watches, at one moment.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// All Services.
    pub services: Objects<Service>,
    /// All EndpointSlices.
    pub slices: Objects<EndpointSlice>,
    /// This node's object.
    pub node: Option<Arc<Node>>,
    /// Addresses of all nodes, whose word counts on which endpoint a client gets.
    pub nodes: BTreeSet<IpAddr>,
    /// The addresses that this node has; needed only where node ports answer on more than the primary ones.
    pub addresses: BTreeSet<IpAddr>,
    /// Nodes that have fallen silent.
    pub silent: Arc<BTreeSet<String>>,
    /// Addresses that are Services' or nobody's, where that is known better than at start; see [`Fold::follow`].
    pub service_cidrs: Vec<IpNet>,
    /// The objects that may differ from the snapshot before; `None` when that is not known.
    pub dirty: Option<Dirty>,
}

/// Names of objects that may have changed. A hint that spares comparing everything, never a source of truth: what is
/// named is read from the snapshot.
#[derive(Clone, Debug, Default)]
pub struct Dirty {
    /// Services.
    pub services: BTreeSet<Name>,
    /// EndpointSlices.
    pub slices: BTreeSet<Name>,
}

/// What differs in one family's table.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct FamilyChange {
    /// Chains that elements name for the first time.
    pub chains: Vec<(Arc<str>, Chain)>,
    /// Elements.
    pub elements: Vec<SetChange>,
}

/// What differs between two snapshots.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Change {
    /// By family.
    pub families: BTreeMap<Family, FamilyChange>,
    /// What the eBPF programs are told; nothing in mode nftables.
    pub fast: bpf::Change,
    /// Whether a UDP flow may now lead to the wrong place.
    pub udp: bool,
    /// Whether health check ports or their numbers differ.
    pub health: bool,
    /// Whether a TCP connection that is then to be reset may now lead to an endpoint that is gone.
    pub resets: bool,
    /// Virtual servers of IPVS; none in other modes.
    pub servers: ipvs::Change,
}

impl Change {
    /// Whether there is nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        let none = |change: &FamilyChange| change.chains.is_empty() && change.elements.is_empty();
        let rest = self.udp || self.health || self.resets || !self.servers.is_empty();
        self.families.values().all(none) && self.fast.is_empty() && !rest
    }
}

/// Where new connections, or UDP flows, to a frontend may lead.
pub type Frontends = BTreeMap<SocketAddr, BTreeSet<SocketAddr>>;

/// Who claims an element.
type Claims = BTreeMap<(SetId, Key), Claim<Value>>;

/// What elements were before a change; `None` while nobody asks.
type Moved = Option<BTreeMap<Family, BTreeMap<(SetId, Key), Option<Value>>>>;

#[derive(Clone, Debug, Default)]
struct FamilyState {
    claims: Claims,
    chains: BTreeSet<ChainId>,
}

/// A Service's keys by family, in the order of [`FAMILIES`].
type Share = [Vec<(SetId, Key)>; 2];

/// The desired state of the proxy, kept in step with snapshots.
#[derive(Clone, Debug)]
pub struct Fold {
    views: Views,
    shares: BTreeMap<Name, Share>,
    families: BTreeMap<Family, FamilyState>,
    /// In mode ebpf only.
    fast: Option<Fast>,
    servers: ipvs::Claims,
}

impl Fold {
    /// No Services yet.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        Self {
            fast: (settings.mode == Mode::Ebpf).then(Fast::default),
            views: Views::new(settings),
            shares: BTreeMap::new(),
            families: FAMILIES.into_iter().map(|family| (family, FamilyState::default())).collect(),
            servers: ipvs::Claims::default(),
        }
    }

    /// Begins anew when the ranges of Services are others than before, which shape all rules; answers whether it did.
    pub fn follow(&mut self, snapshot: &Snapshot) -> bool {
        let ranges = &snapshot.service_cidrs;
        let moved = !ranges.is_empty() && *ranges != self.settings().service_cidrs;
        if moved {
            let settings = self.settings().clone();
            *self = Self::new(Settings { service_cidrs: ranges.clone(), ..settings });
        }
        moved
    }

    /// Takes a newer snapshot; answers what differs from the last one.
    pub fn advance(&mut self, snapshot: &Snapshot) -> Change {
        let mut moved: Moved = Some(BTreeMap::new());
        let mut change = self.step(snapshot, &mut moved);
        for (family, moved) in moved.into_iter().flatten() {
            let state = &self.families[&family];
            let changes = moved.into_iter().filter_map(|(at, old)| {
                let new = state.claims.get(&at).map(|claim| claim.value().clone());
                let (set, key) = at;
                (old != new).then(|| SetChange { set: set.name().into(), key, old, new })
            });
            change.families.entry(family).or_default().elements.extend(changes);
        }
        change.families.retain(|_, all| !all.chains.is_empty() || !all.elements.is_empty());
        change
    }

    /// Takes a newer snapshot without asking what differs: for when everything is told anyway.
    pub fn catch_up(&mut self, snapshot: &Snapshot) {
        self.step(snapshot, &mut None);
    }

    fn step(&mut self, snapshot: &Snapshot, moved: &mut Moved) -> Change {
        let dirty = self.views.advance(snapshot);
        let mut change = Change::default();
        let mut before = Before::default();
        // First all that goes, then all that comes: an address may move from one Service to another.
        for name in &dirty {
            if let Some(fast) = &mut self.fast {
                fast.withdraw(name, &mut before);
            }
            let Some(share) = self.shares.remove(name) else { continue };
            self.withdraw(name, &share, moved);
        }
        for name in dirty {
            let (view, touched) = self.views.look(&name);
            change.health |= touched.health;
            change.udp |= touched.udp;
            change.resets |= touched.resets;
            if let Some(fast) = &mut self.fast {
                fast.claim(&name, &view, self.views.settings(), &mut before);
            }
            let Settings { mode, ipvs_scheduler, .. } = *self.settings();
            if mode == Mode::Ipvs {
                self.servers.put(&name, &view, ipvs_scheduler, &mut change.servers);
            }
            let lowered = FAMILIES.map(|family| lower(&view, family, mode));
            let keys = |lowered: &Lowered| {
                lowered.elements.iter().map(|(set, key, _)| (*set, key.clone())).collect()
            };
            let share: Share = [keys(&lowered[0]), keys(&lowered[1])];
            self.claim(&name, lowered, moved, &mut change);
            if share.iter().any(|keys| !keys.is_empty()) {
                self.shares.insert(name, share);
            }
        }
        if let Some(fast) = &mut self.fast {
            change.fast = fast.settle(before);
        }
        change
    }

    /// The whole table of a family.
    #[must_use]
    pub fn table(&self, family: Family) -> Table {
        let mut table = skeleton(family, self.settings());
        let state = &self.families[&family];
        let chains = state.chains.iter().map(|id| draw_chain(family, self.settings(), *id));
        table.chains.extend(chains);
        for (map, key, value) in state.chains.iter().flat_map(|id| Class::Draw(*id).elements()) {
            table.elements.entry(map.name().into()).or_default().insert(key, value);
        }
        let mut claims = state.claims.iter().peekable();
        while let Some(((set, _), _)) = claims.peek().copied() {
            let of_set = std::iter::from_fn(|| claims.next_if(|((other, _), _)| other == set));
            let elements = of_set.map(|((_, key), claim)| (key.clone(), claim.value().clone()));
            table.elements.insert(set.name().into(), elements.collect());
        }
        table
    }

    /// All that the eBPF programs are told; nothing in mode nftables.
    #[must_use]
    pub fn fast(&self) -> bpf::Tables {
        self.fast.as_ref().map(Fast::tables).unwrap_or_default()
    }

    /// The virtual servers of IPVS; none in other modes.
    #[must_use]
    pub fn servers(&self) -> ipvs::Servers {
        self.servers.servers()
    }

    /// The Services that the table is planned from.
    #[must_use]
    pub fn views(&self) -> &Views {
        &self.views
    }

    /// Where UDP flows to each frontend may lead.
    #[must_use]
    pub fn udp(&self) -> Frontends {
        self.views.udp()
    }

    /// Health check ports: the Service and the number of ready endpoints here.
    #[must_use]
    pub fn health(&self) -> BTreeMap<u16, (Name, usize)> {
        self.views.health()
    }

    /// What the proxy was told at start.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        self.views.settings()
    }

    fn withdraw(&mut self, name: &Name, share: &Share, moved: &mut Moved) {
        for (family, keys) in FAMILIES.into_iter().zip(share) {
            let state = self.families.get_mut(&family).expect("both families are there");
            for at in keys {
                let Some(claim) = state.claims.get_mut(at) else { continue };
                if let Some(moved) = moved {
                    let before = moved.entry(family).or_default().entry(at.clone());
                    before.or_insert_with(|| Some(claim.value().clone()));
                }
                if !claim.remove(name) {
                    state.claims.remove(at);
                }
            }
        }
    }

    fn claim(
        &mut self,
        name: &Name,
        lowered: [Lowered; 2],
        moved: &mut Moved,
        change: &mut Change,
    ) {
        for (family, lowered) in FAMILIES.into_iter().zip(lowered) {
            let state = self.families.get_mut(&family).expect("both families are there");
            for id in lowered.chains {
                if state.chains.insert(id) {
                    let change = change.families.entry(family).or_default();
                    change.chains.push(draw_chain(family, self.views.settings(), id));
                    change.elements.extend(Class::Draw(id).elements().map(|(map, key, new)| {
                        SetChange { set: map.name().into(), key, old: None, new: Some(new) }
                    }));
                }
            }
            for (set, key, value) in lowered.elements {
                let place = state.claims.entry((set, key));
                if let Some(moved) = moved {
                    let before = match &place {
                        Entry::Occupied(claim) => Some(claim.get().value().clone()),
                        Entry::Vacant(_) => None,
                    };
                    let moved = moved.entry(family).or_default();
                    moved.entry(place.key().clone()).or_insert(before);
                }
                match place {
                    Entry::Occupied(mut claim) => claim.get_mut().add((name.clone(), value)),
                    Entry::Vacant(place) => {
                        place.insert(Claim::new((name.clone(), value)));
                    }
                }
            }
        }
    }
}
