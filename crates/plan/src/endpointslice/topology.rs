//! Topology hints by annotation: endpoints are handed to zones in proportion to the zones' CPUs, or not at all.
//!
//! Upstream counterpart: `topologycache` of `staging/src/k8s.io/endpointslice` (KEP-2433). There is no cache here: which hints
//! are there is read from the slices.

use std::collections::BTreeMap;

use api::core::{Node, Service};
use api::discovery::{Endpoint, EndpointHints, EndpointSlice, ForZone};
use api::{Objects, quantity};

use super::desired::ZONE;
use super::pack::Writes;
use super::{Groups, identity};
use crate::objects::{annotation, label};

const MODE: &str = "service.kubernetes.io/topology-mode";
/// The older name of [`MODE`], which counts first.
const HINTS: &str = "service.kubernetes.io/topology-aware-hints";
/// Nodes with one of these labels carry no pods that Services should be spread by.
const EXCLUDED: [&str; 2] =
    ["node-role.kubernetes.io/control-plane", "node-role.kubernetes.io/master"];

/// What the annotation leads to, in upstream's words.
const NO_NODES: &str =
    "Insufficient Node information: allocatable CPU or zone not specified on one or more nodes";
const ONE_ZONE: &str = "Nodes only ready in one zone";
const NO_ZONE: &str = "One or more endpoints do not have a zone specified";
const FEW_ENDPOINTS: &str = "Insufficient number of endpoints";
const OVERLOAD: &str = "Unable to allocate minimum required endpoints to each zone without exceeding overload threshold";
pub(super) const ENABLED: &str = "Topology Aware Hints has been enabled";
pub(super) const DISABLED: &str = "Topology Aware Hints has been disabled";

/// Whether the Service asks for hints by annotation: its slices depend on the nodes' CPUs.
#[must_use]
pub fn is_wanted(service: &Service) -> bool {
    let mode = annotation(service, HINTS).or_else(|| annotation(service, MODE));
    matches!(mode, Some("Auto" | "auto"))
}

/// Whether an endpoint of the slice has hints.
pub(super) fn is_hinted(slice: &EndpointSlice) -> bool {
    slice.endpoints.iter().flatten().any(|endpoint| endpoint.hints.is_some())
}

fn is_ready(endpoint: &Endpoint) -> bool {
    endpoint.conditions.as_ref().and_then(|conditions| conditions.ready) == Some(true)
}

/// Gives wanted endpoints the hints that they have already, so that slices stay as they are where that will do.
pub(super) fn remember(groups: &mut Groups, existing: &[EndpointSlice]) {
    let present = existing.iter().flat_map(|slice| slice.endpoints.iter().flatten());
    let present: BTreeMap<_, _> =
        present.map(|endpoint| (identity(endpoint), &endpoint.hints)).collect();
    for (_, endpoints) in groups.values_mut() {
        for (identity, endpoint) in endpoints.iter_mut().filter(|(_, endpoint)| is_ready(endpoint))
        {
            endpoint.hints = present.get(identity).and_then(|hints| (*hints).clone());
        }
    }
}

/// How many endpoints a zone is to have.
#[derive(Clone, Copy, Debug, Default)]
struct Share {
    /// In parts, [`Shares::whole`] of which are one endpoint: so that amounts are exact.
    wanted: i128,
    /// With fewer endpoints the zone is overloaded.
    least: i128,
}

#[derive(Debug)]
struct Shares {
    zones: BTreeMap<String, Share>,
    whole: i128,
    /// Endpoints beyond what the zones need at least.
    spare: i128,
}

impl Shares {
    /// The share of a zone; none of one without nodes.
    fn of(&self, zone: &str) -> Share {
        self.zones.get(zone).copied().unwrap_or_default()
    }
}

/// What a node adds to its zone, in thousandths of a CPU: `None` for nodes that do not count, which are those that are not
/// ready and the control plane's; `Some(None)` when the node does not say.
#[must_use]
pub fn weight(node: &Node) -> Option<Option<(String, i128)>> {
    let conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let mut ready = conditions.filter(|condition| condition.type_ == "Ready");
    let is_ready = ready.next().is_some_and(|condition| condition.status == "True");
    if !is_ready || EXCLUDED.iter().any(|key| label(node, key).is_some()) {
        return None;
    }
    let zone = label(node, ZONE).filter(|zone| !zone.is_empty());
    let allocatable = node.status.as_ref().and_then(|status| status.allocatable.as_ref());
    let cpu = allocatable.and_then(|amounts| quantity::parse(&amounts.get("cpu")?.0).ok());
    let cpu = cpu.map(|cpu| cpu.millis()).filter(|cpu| *cpu > 0);
    Some(zone.map(ToOwned::to_owned).zip(cpu))
}

/// Thousandths of a CPU by zone.
fn cpus(nodes: &Objects<Node>) -> Result<BTreeMap<String, i128>, String> {
    let mut zones: BTreeMap<String, i128> = BTreeMap::new();
    for known in nodes.values().filter_map(|node| weight(node)) {
        let (zone, cpu) = known.ok_or(NO_NODES)?;
        *zones.entry(zone).or_default() += cpu;
    }
    match zones.len() {
        0 => Err(NO_NODES.to_owned()),
        1 => Err(ONE_ZONE.to_owned()),
        _ => Ok(zones),
    }
}

/// The share of each zone in `count` endpoints: at least what keeps a zone's endpoints from more than a fifth of overload.
fn shares(nodes: &Objects<Node>, count: usize) -> Result<Shares, String> {
    let cpus = cpus(nodes)?;
    let detail = |why: &str| format!("{why} ({count} endpoints, {} zones)", cpus.len());
    if cpus.len() > count {
        return Err(detail(FEW_ENDPOINTS));
    }
    let number = i128::try_from(count).unwrap_or(i128::MAX);
    let whole: i128 = cpus.values().sum();
    // Five sixths: what is left when every endpoint of the zone carries a fifth more than its part.
    let least = |cpu: i128| (cpu * number * 5 + whole * 6 - 1) / (whole * 6);
    let spare = number - cpus.values().map(|cpu| least(*cpu)).sum::<i128>();
    if spare < 0 {
        return Err(detail(OVERLOAD));
    }
    let zones = cpus
        .iter()
        .map(|(zone, cpu)| {
            let least = least(*cpu);
            let wanted = (cpu * number).max(least * whole);
            (zone.clone(), Share { wanted, least })
        })
        .collect();
    Ok(Shares { zones, whole, spare })
}

/// Puts hints on the endpoints of one family's slices; what is written anyway changes first, then slices whose hints will
/// not do. `Err` says why there are no hints, and none are left.
pub(super) fn spread(nodes: &Objects<Node>, writes: &mut Writes) -> Result<(), String> {
    let done = try_spread(nodes, writes);
    if done.is_err() {
        remove(writes);
    }
    done
}

/// Takes all hints off.
fn remove(writes: &mut Writes) {
    let (hinted, plain) = std::mem::take(&mut writes.unchanged).into_iter().partition(is_hinted);
    writes.unchanged = plain;
    writes.update.extend::<Vec<_>>(hinted);
    for endpoint in changing(writes) {
        endpoint.hints = None;
    }
}

/// The endpoints of slices that are written.
fn changing(writes: &mut Writes) -> impl Iterator<Item = &mut Endpoint> {
    let slices = writes.create.iter_mut().chain(&mut writes.update);
    slices.flat_map(|slice| slice.endpoints.iter_mut().flatten())
}

fn try_spread(nodes: &Objects<Node>, writes: &mut Writes) -> Result<(), String> {
    let all = writes.create.iter().chain(&writes.update).chain(&writes.unchanged);
    let ready = all.flat_map(|slice| slice.endpoints.iter().flatten()).filter(|one| is_ready(one));
    let shares = shares(nodes, ready.count())?;
    let mut given = Counts::new();
    for slice in std::mem::take(&mut writes.unchanged) {
        match hinted(&slice, &shares, &given) {
            Some(with) => {
                given = with;
                writes.unchanged.push(slice);
            }
            None => writes.update.push(slice),
        }
    }
    let mut free = Counts::new();
    for endpoint in changing(writes) {
        endpoint.hints = None;
        if is_ready(endpoint) {
            let zone = endpoint.zone.clone().filter(|zone| !zone.is_empty());
            let zone = zone.ok_or_else(|| NO_ZONE.to_owned())?;
            *free.entry(zone.clone()).or_default() += 1;
            endpoint.hints = Some(to(zone));
        }
    }
    let (mut give, mut receive) = moves(&shares, given, free);
    for endpoint in changing(writes).filter(|endpoint| is_ready(endpoint)) {
        let own = endpoint.zone.as_ref().and_then(|zone| give.get_mut(zone));
        let Some(own) = own.filter(|left| **left > 0) else { continue };
        let Some((zone, lacks)) = receive.iter_mut().find(|(_, lacks)| **lacks > 0) else { break };
        endpoint.hints = Some(to(zone.clone()));
        *own -= 1;
        *lacks -= 1;
    }
    Ok(())
}

fn to(zone: String) -> EndpointHints {
    EndpointHints { for_zones: Some(vec![ForZone { name: zone }]), for_nodes: None }
}

type Counts = BTreeMap<String, i128>;

/// The hints by zone with those of a slice, unless the slice's will not do: an endpoint without, a zone that gets none, or
/// so many that others could not have what they need.
fn hinted(slice: &EndpointSlice, shares: &Shares, given: &Counts) -> Option<Counts> {
    let mut given = given.clone();
    for endpoint in slice.endpoints.iter().flatten().filter(|endpoint| is_ready(endpoint)) {
        let zones =
            endpoint.hints.as_ref()?.for_zones.as_ref().filter(|zones| !zones.is_empty())?;
        for zone in zones {
            shares.zones.get(&zone.name)?;
            *given.entry(zone.name.clone()).or_default() += 1;
        }
    }
    let beyond = given.iter().map(|(zone, count)| (count - shares.of(zone).least).max(0));
    (beyond.sum::<i128>() <= shares.spare).then_some(given)
}

/// How many endpoints each zone gives away and receives: one at a time, from who has most too many to who lacks most, and
/// then until no zone is overloaded. `free` are the zones' own endpoints that can be given, `given` the others'.
fn moves(shares: &Shares, given: Counts, mut free: Counts) -> (Counts, Counts) {
    let mut has = given;
    free.iter().for_each(|(zone, count)| *has.entry(zone.clone()).or_default() += count);
    for zone in shares.zones.keys() {
        has.entry(zone.clone()).or_default();
    }
    let whole = shares.whole;
    let (mut give, mut receive) = (Counts::new(), Counts::new());
    loop {
        let over = |zone: &str, count: &i128| count * whole - shares.of(zone).wanted;
        let gives = |zone: &str| free.get(zone).is_some_and(|free| *free > 0);
        let giver =
            has.iter().filter(|(zone, _)| gives(zone)).max_by_key(|(zone, has)| over(zone, has));
        let taker = has.iter().min_by_key(|(zone, has)| over(zone, has));
        let (Some((from, most)), Some((to, fewest))) = (giver, taker) else { break };
        let (much, little) = (over(from, most), -over(to, fewest));
        let worth = (much >= whole || little >= whole) && 2 * much >= whole && 2 * little >= whole;
        let needy = has.iter().find(|(zone, has)| **has < shares.of(zone).least);
        let able = has.iter().filter(|(zone, has)| gives(zone) && **has > shares.of(zone).least);
        let able = able.max_by_key(|(zone, has)| over(zone, has));
        let (from, to) = match (worth, able, needy) {
            (true, ..) => (from.clone(), to.clone()),
            (false, Some((able, _)), Some((needy, _))) => (able.clone(), needy.clone()),
            _ => break,
        };
        *has.entry(from.clone()).or_default() -= 1;
        *free.entry(from.clone()).or_default() -= 1;
        *give.entry(from).or_default() += 1;
        *has.entry(to.clone()).or_default() += 1;
        *receive.entry(to).or_default() += 1;
    }
    (give, receive)
}

#[cfg(test)]
mod tests;
