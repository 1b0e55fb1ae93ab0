//! What the eBPF programs are told of Services: the tables of the fast path in front of the nftables rules.
//!
//! They take only what they carry completely. What is not here, or has no choice for whoever asks, goes by nftables, whose
//! rules are complete: refusals, discards, source ranges, SCTP.

#[cfg(test)]
mod tests;

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use api::Name;
use net::bpf::{Change, Choice, EndpointSet, Frontend, FrontendKey, SetNumber, Tables};
use net::nft::Family;
use sha2::{Digest, Sha256};

use super::Settings;
use super::claim::Claim;
use crate::service::{self, Action, FrontendKind, Masquerade, Protocol, ServiceView};

/// One Service's share of the tables.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Lowered {
    frontends: Vec<(FrontendKey, Frontend)>,
    sets: BTreeMap<SetNumber, Arc<EndpointSet>>,
}

/// The keys of a Service's share.
#[derive(Clone, Debug)]
struct Share {
    frontends: Vec<FrontendKey>,
    sets: Vec<SetNumber>,
}

/// A set and how many Services use it.
#[derive(Clone, Debug)]
struct Shared {
    set: Arc<EndpointSet>,
    uses: u32,
}

/// What was there before a change.
#[derive(Debug, Default)]
pub(super) struct Before {
    frontends: BTreeMap<FrontendKey, Option<Frontend>>,
    /// Sets, and whether they were there.
    sets: BTreeMap<SetNumber, bool>,
}

/// The tables as a fold over Services.
#[derive(Clone, Debug, Default)]
pub(super) struct Fast {
    frontends: BTreeMap<FrontendKey, Claim<Frontend>>,
    sets: BTreeMap<SetNumber, Shared>,
    shares: BTreeMap<Name, Share>,
}

impl Fast {
    /// All tables.
    pub(super) fn tables(&self) -> Tables {
        let frontends = self.frontends.iter().filter_map(|(key, claim)| Some((*key, told(claim)?)));
        let sets = self.sets.iter().map(|(number, shared)| (*number, Arc::clone(&shared.set)));
        Tables { frontends: frontends.collect(), sets: sets.collect() }
    }

    /// Takes a Service's share away.
    pub(super) fn withdraw(&mut self, name: &Name, before: &mut Before) {
        let Some(share) = self.shares.remove(name) else { return };
        for key in share.frontends {
            let Entry::Occupied(mut claim) = self.frontends.entry(key) else { continue };
            before.frontends.entry(key).or_insert_with(|| told(claim.get()));
            if !claim.get_mut().remove(name) {
                claim.remove();
            }
        }
        for number in share.sets {
            if let Some(shared) = self.sets.get_mut(&number) {
                before.sets.entry(number).or_insert(true);
                shared.uses -= 1;
            }
        }
    }

    /// Adds a Service's share, after all that goes has been withdrawn.
    pub(super) fn claim(
        &mut self,
        name: &Name,
        view: &ServiceView,
        settings: &Settings,
        before: &mut Before,
    ) {
        let lowered = lower(view, settings);
        if lowered.frontends.is_empty() {
            return;
        }
        let share = Share {
            frontends: lowered.frontends.iter().map(|(key, _)| *key).collect(),
            sets: lowered.sets.keys().copied().collect(),
        };
        self.shares.insert(name.clone(), share);
        for (key, frontend) in lowered.frontends {
            let claim = (name.clone(), frontend);
            match self.frontends.entry(key) {
                Entry::Occupied(mut known) => {
                    before.frontends.entry(key).or_insert_with(|| told(known.get()));
                    known.get_mut().add(claim);
                }
                Entry::Vacant(place) => {
                    before.frontends.entry(key).or_insert(None);
                    place.insert(Claim::new(claim));
                }
            }
        }
        for (number, set) in lowered.sets {
            let known = self.sets.entry(number);
            before.sets.entry(number).or_insert(matches!(known, Entry::Occupied(_)));
            known.or_insert(Shared { set, uses: 0 }).uses += 1;
        }
    }

    /// What differs from before; sets that nobody uses any more go.
    pub(super) fn settle(&mut self, before: Before) -> Change {
        let mut change = Change::default();
        for (key, old) in before.frontends {
            let new = self.frontends.get(&key).and_then(told);
            if new != old {
                change.frontends.insert(key, new);
            }
        }
        for (number, was) in before.sets {
            let Entry::Occupied(shared) = self.sets.entry(number) else { continue };
            if shared.get().uses == 0 {
                let set = shared.remove().set;
                if was {
                    change.gone.insert(number, set);
                }
            } else if !was {
                change.come.insert(number, Arc::clone(&shared.get().set));
            }
        }
        change
    }
}

/// What the programs are told of a frontend. Whoever has it may leave all of it to the rules, and then nobody else has it.
fn told(claim: &Claim<Frontend>) -> Option<Frontend> {
    Some(*claim.value()).filter(|frontend| *frontend != Frontend::default())
}

fn lower(view: &ServiceView, settings: &Settings) -> Lowered {
    let mut lowered = Lowered::default();
    for frontend in &view.frontends {
        // Others are rare, and nftables knows them all. What is to be reset must be tracked with the address that the
        // client asked for.
        let is_carried = matches!(frontend.protocol, Protocol::Tcp | Protocol::Udp);
        if !is_carried || frontend.reset.is_some() {
            continue;
        }
        let mut told = lowered.choices(frontend, view, settings);
        if told != Frontend::default() {
            told.identity = identity(frontend);
            told.affinity_s = frontend.affinity_s.unwrap_or(0);
        }
        let key = FrontendKey { address: frontend.address, protocol: frontend.protocol.number() };
        lowered.frontends.push((key, told));
    }
    lowered
}

impl Lowered {
    fn choices(
        &mut self,
        frontend: &service::Frontend,
        view: &ServiceView,
        settings: &Settings,
    ) -> Frontend {
        let mut told = Frontend::default();
        let mut choose = |endpoints: &[SocketAddr], masquerade: bool, local: bool| {
            let choice = self.choice(frontend, endpoints, view, settings);
            if choice.count == 0 { choice } else { Choice { masquerade, local, ..choice } }
        };
        // Without pod ranges nobody is known to be off the cluster, or inside.
        let knows_pods = settings.pod_cidrs(Family::of(&frontend.address.ip())).next().is_some();
        match &frontend.action {
            Action::Reject | Action::Drop => {}
            Action::Forward { endpoints, masquerade, local } => {
                let always = *masquerade == Masquerade::Always || settings.masquerade_all;
                told.pods = choose(endpoints, always, *local);
                told.node = choose(endpoints, always || knows_pods, *local);
                let is_direct = settings.ebpf_dsr
                    && !settings.masquerade_all
                    && frontend.kind != FrontendKind::ClusterIp;
                told.outside = Choice { direct: is_direct && told.node.count > 0, ..told.node };
            }
            Action::Split { inside, outside, pods_inside } => {
                told.node = choose(inside, true, false);
                told.outside = choose(outside, false, true);
                told.pods = match (*pods_inside, knows_pods) {
                    (true, true) => choose(inside, false, false),
                    (false, true) if outside.is_empty() => choose(inside, true, false),
                    _ => told.outside,
                };
            }
        }
        // Whose address is in the source ranges is not looked up here; the node itself always may. With affinity, all
        // frontends have one memory, which then is the rules'. And a pod's loopback is its own.
        let is_ranged = match frontend.affinity_s {
            None => frontend.sources.is_some(),
            Some(_) => view.frontends.iter().any(|other| other.sources.is_some()),
        };
        if is_ranged || frontend.address.ip().is_loopback() {
            (told.pods, told.outside) = (Choice::default(), Choice::default());
        }
        told
    }

    fn choice(
        &mut self,
        frontend: &service::Frontend,
        endpoints: &[SocketAddr],
        view: &ServiceView,
        settings: &Settings,
    ) -> Choice {
        let is_service =
            |address: IpAddr| settings.service_cidrs.iter().any(|cidr| cidr.contains(&address));
        // An endpoint that is a Service's address would be led on from there.
        let carried = !endpoints.iter().any(|endpoint| is_service(endpoint.ip()));
        let Ok(count) = u32::try_from(endpoints.len()) else { return Choice::default() };
        if count == 0 || !carried {
            return Choice::default();
        }
        let addresses: BTreeSet<IpAddr> = endpoints.iter().map(SocketAddr::ip).collect();
        let set = EndpointSet {
            endpoints: endpoints.to_vec(),
            own: addresses.intersection(&view.local_endpoints).copied().collect(),
            remembered: frontend.protocol == Protocol::Udp || frontend.affinity_s.is_some(),
            spread: frontend.kind != FrontendKind::ClusterIp,
        };
        let number = number(&set);
        self.sets.entry(number).or_insert_with(|| Arc::new(set));
        Choice { set: number, count, ..Choice::default() }
    }
}

/// Equal sets have equal numbers, on every node and in every run; others differ.
fn number(set: &EndpointSet) -> SetNumber {
    let mut hash = Sha256::new();
    hash.update([u8::from(set.remembered), u8::from(set.spread)]);
    for endpoint in &set.endpoints {
        feed(&mut hash, endpoint.ip());
        hash.update(endpoint.port().to_be_bytes());
    }
    // No endpoint has the port 0: what follows it is no endpoint.
    for address in &set.own {
        feed(&mut hash, *address);
        hash.update([0, 0]);
    }
    first(hash)
}

fn identity(frontend: &service::Frontend) -> u64 {
    let mut hash = Sha256::new();
    feed(&mut hash, frontend.identity.ip());
    hash.update(frontend.identity.port().to_be_bytes());
    hash.update([frontend.protocol.number()]);
    first(hash)
}

fn feed(hash: &mut Sha256, address: IpAddr) {
    match address {
        IpAddr::V4(v4) => hash.update(v4.octets()),
        IpAddr::V6(v6) => hash.update(v6.octets()),
    }
}

fn first(hash: Sha256) -> u64 {
    let digest = hash.finalize();
    let (first, _) = digest.split_first_chunk::<8>().expect("a digest has 32 bytes");
    u64::from_be_bytes(*first)
}
