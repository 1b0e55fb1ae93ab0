//! The whole state as a fold over Services: a changed Service costs the work of one Service.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use api::core::{Node, Service};
use api::discovery::EndpointSlice;
use api::{Name, Objects};
use imbl::ordmap::DiffItem;
use net::nft::{Chain, Family, Key, SetChange, Table, Value};

use super::elements::{ChainId, Class, Lowered, SetId, lower};
use super::ruleset::{draw_chain, skeleton};
use super::{FAMILIES, Settings};
use crate::service::{Action, NodeView, Protocol, ServiceView, Surroundings, service_of, view};

/// The objects that the proxy watches, at one moment.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// All Services.
    pub services: Objects<Service>,
    /// All EndpointSlices.
    pub slices: Objects<EndpointSlice>,
    /// This node's object.
    pub node: Option<Arc<Node>>,
    /// The addresses that this node has; needed only where node ports answer on more than the primary ones.
    pub addresses: BTreeSet<IpAddr>,
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
    /// Whether a UDP flow may now lead to the wrong place.
    pub udp: bool,
    /// Whether health check ports or their numbers differ.
    pub health: bool,
}

impl Change {
    /// Whether there is nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        let none = |change: &FamilyChange| change.chains.is_empty() && change.elements.is_empty();
        self.families.values().all(none) && !self.udp && !self.health
    }
}

/// Where UDP flows to a frontend may lead.
pub type UdpFrontends = BTreeMap<SocketAddr, BTreeSet<SocketAddr>>;

/// Who claims an element. Two Services may claim one (the same external address and port): the first by name has it.
type Claims = BTreeMap<(SetId, Key), Claim>;

/// What elements were before a change; `None` while nobody asks.
type Moved = Option<BTreeMap<Family, BTreeMap<(SetId, Key), Option<Value>>>>;

/// Almost every element has one claimant; the rest are in the order of their names.
#[derive(Clone, Debug)]
struct Claim {
    first: (Name, Value),
    others: Vec<(Name, Value)>,
}

impl Claim {
    fn add(&mut self, mut claim: (Name, Value)) {
        if claim.0 < self.first.0 {
            std::mem::swap(&mut self.first, &mut claim);
        }
        let place = self.others.partition_point(|(claimant, _)| *claimant < claim.0);
        self.others.insert(place, claim);
    }

    /// Whether anybody is left.
    fn remove(&mut self, name: &Name) -> bool {
        self.others.retain(|(claimant, _)| claimant != name);
        if self.first.0 != *name {
            return true;
        }
        if self.others.is_empty() {
            return false;
        }
        self.first = self.others.remove(0);
        true
    }
}

#[derive(Clone, Debug, Default)]
struct FamilyState {
    claims: Claims,
    chains: BTreeSet<ChainId>,
}

/// A Service's share of everything.
#[derive(Clone, Debug, Default)]
struct Share {
    /// Keys by family, in the order of [`FAMILIES`].
    keys: [Vec<(SetId, Key)>; 2],
    udp: Vec<(SocketAddr, Vec<SocketAddr>)>,
    health: Option<(u16, usize)>,
}

/// The desired state of the proxy, kept in step with snapshots.
#[derive(Clone, Debug)]
pub struct Fold {
    settings: Settings,
    node: NodeView,
    seen: Snapshot,
    slices_of: BTreeMap<Name, BTreeSet<Name>>,
    service_of: BTreeMap<Name, Name>,
    shares: BTreeMap<Name, Share>,
    families: BTreeMap<Family, FamilyState>,
}

impl Fold {
    /// No Services yet.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        Self {
            node: NodeView::of(&settings.node, None),
            settings,
            seen: Snapshot::default(),
            slices_of: BTreeMap::new(),
            service_of: BTreeMap::new(),
            shares: BTreeMap::new(),
            families: FAMILIES.into_iter().map(|family| (family, FamilyState::default())).collect(),
        }
    }

    /// Takes a newer snapshot; answers what differs from the last one.
    pub fn advance(&mut self, snapshot: &Snapshot) -> Change {
        let mut moved: Moved = Some(BTreeMap::new());
        let mut change = self.step(snapshot, &mut moved);
        for (family, moved) in moved.into_iter().flatten() {
            let state = &self.families[&family];
            let changes = moved.into_iter().filter_map(|(at, old)| {
                let new = state.claims.get(&at).map(|claim| claim.first.1.clone());
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
        let dirty = self.dirty(snapshot);
        self.seen = Snapshot { dirty: None, ..snapshot.clone() };
        let mut change = Change::default();
        // First all that goes, then all that comes: an address may move from one Service to another.
        let mut old_udp = BTreeMap::new();
        for name in &dirty {
            let Some(share) = self.shares.remove(name) else { continue };
            change.health |= share.health.is_some();
            self.withdraw(name, &share, moved);
            old_udp.insert(name.clone(), share.udp);
        }
        for name in dirty {
            let (share, lowered) = self.share(&name);
            change.health |= share.health.is_some();
            change.udp |= old_udp.remove(&name).unwrap_or_default() != share.udp;
            self.claim(&name, lowered, moved, &mut change);
            if share.health.is_some() || share.keys.iter().any(|keys| !keys.is_empty()) {
                self.shares.insert(name, share);
            }
        }
        change
    }

    /// The whole table of a family.
    #[must_use]
    pub fn table(&self, family: Family) -> Table {
        let mut table = skeleton(family, &self.settings);
        let state = &self.families[&family];
        let chains = state.chains.iter().map(|id| draw_chain(family, &self.settings, *id));
        table.chains.extend(chains);
        for (map, key, value) in state.chains.iter().flat_map(|id| Class::Draw(*id).elements()) {
            table.elements.entry(map.name().into()).or_default().insert(key, value);
        }
        let mut claims = state.claims.iter().peekable();
        while let Some(((set, _), _)) = claims.peek().copied() {
            let of_set = std::iter::from_fn(|| claims.next_if(|((other, _), _)| other == set));
            let elements = of_set.map(|((_, key), claim)| (key.clone(), claim.first.1.clone()));
            table.elements.insert(set.name().into(), elements.collect());
        }
        table
    }

    /// Where UDP flows to each frontend may lead.
    #[must_use]
    pub fn udp(&self) -> UdpFrontends {
        let mut frontends = UdpFrontends::new();
        for (frontend, endpoints) in self.shares.values().flat_map(|share| &share.udp) {
            frontends.entry(*frontend).or_default().extend(endpoints);
        }
        frontends
    }

    /// Health check ports: the Service and the number of ready endpoints here.
    #[must_use]
    pub fn health(&self) -> BTreeMap<u16, (Name, usize)> {
        let shares = self.shares.iter();
        shares
            .filter_map(|(name, share)| {
                share.health.map(|(port, count)| (port, (name.clone(), count)))
            })
            .collect()
    }

    /// This node as last seen.
    #[must_use]
    pub fn node(&self) -> &NodeView {
        &self.node
    }

    /// What the proxy was told at start.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The Services whose share may differ, from what differs in the objects.
    fn dirty(&mut self, snapshot: &Snapshot) -> BTreeSet<Name> {
        let Dirty { services: mut dirty, slices } = match &snapshot.dirty {
            Some(dirty) => dirty.clone(),
            None => compare(&self.seen, snapshot),
        };
        for name in slices {
            if let Some(service) = self.service_of.remove(&name) {
                if let Some(slices) = self.slices_of.get_mut(&service) {
                    slices.remove(&name);
                    if slices.is_empty() {
                        self.slices_of.remove(&service);
                    }
                }
                dirty.insert(service);
            }
            let slice = snapshot.slices.get(&name);
            if let Some(service) = slice.and_then(|slice| service_of(slice)) {
                self.slices_of.entry(service.clone()).or_default().insert(name.clone());
                self.service_of.insert(name, service.clone());
                dirty.insert(service);
            }
        }
        let node = self.settings.node_view(snapshot.node.as_deref(), &snapshot.addresses);
        if node != self.node {
            self.node = node;
            dirty.extend(snapshot.services.keys().cloned());
        }
        dirty
    }

    fn share(&self, name: &Name) -> (Share, [Lowered; 2]) {
        let Some(service) = self.seen.services.get(name) else { return Default::default() };
        let slices = self.slices_of.get(name).into_iter().flatten();
        let slices: Vec<&EndpointSlice> =
            slices.filter_map(|name| self.seen.slices.get(name).map(AsRef::as_ref)).collect();
        let around = Surroundings { node: &self.node, external_ips: self.settings.external_ips };
        let view = view(service, &slices, around);
        let lowered = FAMILIES.map(|family| lower(&view, family));
        let keys = |lowered: &Lowered| {
            lowered.elements.iter().map(|(set, key, _)| (*set, key.clone())).collect()
        };
        let keys = [keys(&lowered[0]), keys(&lowered[1])];
        (Share { keys, udp: udp(&view), health: view.health }, lowered)
    }

    fn withdraw(&mut self, name: &Name, share: &Share, moved: &mut Moved) {
        for (family, keys) in FAMILIES.into_iter().zip(&share.keys) {
            let state = self.families.get_mut(&family).expect("both families are there");
            for at in keys {
                let Some(claim) = state.claims.get_mut(at) else { continue };
                if let Some(moved) = moved {
                    let before = moved.entry(family).or_default().entry(at.clone());
                    before.or_insert_with(|| Some(claim.first.1.clone()));
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
                    change.chains.push(draw_chain(family, &self.settings, id));
                    change.elements.extend(Class::Draw(id).elements().map(|(map, key, new)| {
                        SetChange { set: map.name().into(), key, old: None, new: Some(new) }
                    }));
                }
            }
            for (set, key, value) in lowered.elements {
                let place = state.claims.entry((set, key));
                if let Some(moved) = moved {
                    let before = match &place {
                        Entry::Occupied(claim) => Some(claim.get().first.1.clone()),
                        Entry::Vacant(_) => None,
                    };
                    let moved = moved.entry(family).or_default();
                    moved.entry(place.key().clone()).or_insert(before);
                }
                match place {
                    Entry::Occupied(mut claim) => claim.get_mut().add((name.clone(), value)),
                    Entry::Vacant(place) => {
                        place.insert(Claim { first: (name.clone(), value), others: Vec::new() });
                    }
                }
            }
        }
    }
}

/// The names of all objects that differ.
fn compare(before: &Snapshot, after: &Snapshot) -> Dirty {
    fn names<K: PartialEq>(before: &Objects<K>, after: &Objects<K>) -> BTreeSet<Name> {
        let differences = before.diff(after).map(|item| {
            let (DiffItem::Add(name, _)
            | DiffItem::Remove(name, _)
            | DiffItem::Update { new: (name, _), .. }) = item;
            name.clone()
        });
        differences.collect()
    }
    Dirty {
        services: names(&before.services, &after.services),
        slices: names(&before.slices, &after.slices),
    }
}

fn udp(view: &ServiceView) -> Vec<(SocketAddr, Vec<SocketAddr>)> {
    let frontends = view.frontends.iter().filter(|frontend| frontend.protocol == Protocol::Udp);
    frontends
        .map(|frontend| {
            let endpoints = match &frontend.action {
                Action::Reject | Action::Drop => Vec::new(),
                Action::Forward { endpoints, .. } => endpoints.clone(),
                Action::Split { inside, outside, .. } => [inside.as_slice(), outside].concat(),
            };
            (frontend.address, endpoints)
        })
        .collect()
}
