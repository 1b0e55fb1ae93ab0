//! A node: pods that start and go, the proxy's fold, what the kernel holds, and the flows through it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;

use api::Name;
use net::nft::{Elements, Family};
use serde_json::json;

use super::copies::Copies;
use super::{Cluster, NODES, node_name};
use crate::action::ObjectKind;
use crate::proxy::{Dirty, Fold, Frontends, Settings, Snapshot};

/// A proxy and its kernel.
pub(super) struct NodeModel {
    name: String,
    fold: Fold,
    kernel: BTreeMap<Arc<str>, Elements>,
    /// Whether the kernel holds what the fold says, as far as the proxy knows.
    is_known: bool,
    /// Where the kernel's rules lead UDP.
    leads: Frontends,
    /// Flows: frontend and endpoint.
    flows: BTreeSet<(SocketAddr, SocketAddr)>,
}

fn settings(node: &str) -> Settings {
    Settings {
        node: node.to_owned(),
        service_cidrs: super::ranges(),
        pod_cidrs: vec!["10.244.0.0/16".parse().expect("a constant")],
        ..Settings::default()
    }
}

fn snapshot(node: &str, copies: &Copies, dirty: Option<Dirty>) -> Snapshot {
    Snapshot {
        services: copies.services.clone(),
        slices: copies.slices.clone(),
        node: copies.nodes.get(&Name::cluster(node)).cloned(),
        dirty,
        ..Snapshot::default()
    }
}

impl NodeModel {
    pub(super) fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            fold: Fold::new(settings(name)),
            kernel: BTreeMap::new(),
            is_known: false,
            leads: Frontends::new(),
            flows: BTreeSet::new(),
        }
    }

    /// The agent dies; the kernel goes on.
    pub(super) fn crash(&mut self) {
        self.fold = Fold::new(settings(&self.name));
        self.is_known = false;
    }

    /// One round of the proxy. The kernel may refuse; then nothing of the transaction holds.
    fn advance(&mut self, copies: &Copies, dirty: Option<Dirty>, fails: bool) {
        let snapshot = snapshot(&self.name, copies, dirty);
        let udp = if self.is_known {
            let change = self.fold.advance(&snapshot);
            if fails {
                self.is_known = false;
                return;
            }
            for change in change.families.into_values().flat_map(|family| family.elements) {
                let set = self.kernel.entry(change.set).or_default();
                assert_eq!(set.get(&change.key), change.old.as_ref(), "the kernel would refuse");
                match change.new {
                    Some(new) => set.insert(change.key, new),
                    None => set.remove(&change.key),
                };
            }
            change.udp
        } else {
            self.fold.catch_up(&snapshot);
            if fails {
                return;
            }
            self.kernel = self.fold.table(Family::Ip).elements.into_iter().collect();
            self.is_known = true;
            true
        };
        self.leads = self.fold.udp();
        if udp {
            let leads = &self.leads;
            self.flows.retain(|(frontend, endpoint)| {
                leads.get(frontend).is_some_and(|endpoints| endpoints.contains(endpoint))
            });
        }
    }

    /// After quiet the kernel holds what a proxy that was never disturbed would have written.
    pub(super) fn check(&self, now: &Copies) {
        let mut fresh = Fold::new(settings(&self.name));
        fresh.catch_up(&snapshot(&self.name, now, None));
        for (set, expected) in fresh.table(Family::Ip).elements {
            // Classes stay for the next Service that needs them.
            if !set.contains("classes") {
                let found = self.kernel.get(&set).cloned().unwrap_or_default();
                assert_eq!(found, expected, "set {set} on {}", self.name);
            }
        }
        let leads = fresh.udp();
        for (frontend, endpoint) in &self.flows {
            let right = leads.get(frontend).is_some_and(|all| all.contains(endpoint));
            assert!(right, "a UDP flow to {frontend} leads to {endpoint} on {}", self.name);
        }
    }
}

impl Cluster {
    pub(super) fn run_proxy(&mut self, index: usize, fails: bool) {
        let (node, view) = &mut self.nodes[index];
        let named = view.dirty.replace(BTreeSet::new());
        let dirty = named.filter(|_| node.is_known).map(|named| {
            let mut dirty = Dirty::default();
            for (kind, name) in named {
                match kind {
                    ObjectKind::Service => dirty.services.insert(name),
                    ObjectKind::EndpointSlice => dirty.slices.insert(name),
                    _ => false,
                };
            }
            dirty
        });
        node.advance(&view.copies, dirty, fails);
    }

    /// A client begins a UDP flow through some node's rules.
    pub(super) fn flow_begins(&mut self) {
        let index = self.chance.below(NODES);
        let leads = &self.nodes[index].0.leads;
        let all: Vec<(SocketAddr, SocketAddr)> = leads
            .iter()
            .flat_map(|(frontend, endpoints)| {
                endpoints.iter().map(|endpoint| (*frontend, *endpoint))
            })
            .collect();
        if let Some(flow) = self.chance.pick(&all) {
            self.nodes[index].0.flows.insert(flow);
        }
    }

    /// Some node's kubelet does what is to do, or a pod changes its mind.
    pub(super) fn kubelet_acts(&mut self) {
        let index = self.chance.below(NODES);
        self.kubelet(index);
        let own = self.pods_of(index);
        if self.chance.is(30)
            && let Some((name, true)) = self.chance.pick(&own)
        {
            let ready = self.chance.is(60);
            self.world.set_ready(&name, ready);
            self.record();
        }
    }

    /// The pods of a node, and whether they run.
    fn pods_of(&self, index: usize) -> Vec<(Name, bool)> {
        let node = node_name(index);
        let pods = self.now().pods;
        let own = pods.iter().filter(|(_, pod)| {
            pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()) == Some(&node)
        });
        own.map(|(name, pod)| {
            let runs = pod.status.as_ref().is_some_and(|status| status.pod_ip.is_some());
            (name.clone(), runs && pod.metadata.deletion_timestamp.is_none())
        })
        .collect()
    }

    /// Starts bound pods and takes deleted ones away.
    pub(super) fn kubelet(&mut self, index: usize) {
        for (name, _) in self.pods_of(index) {
            let pod = self.world.value(ObjectKind::Pod, &name).expect("listed above");
            if pod["metadata"]["deletionTimestamp"].is_string() {
                self.world.remove(ObjectKind::Pod, &name);
            } else if pod["status"]["podIP"].is_null() {
                self.pod_addresses += 1;
                let address = format!("10.244.{index}.{}", 1 + self.pod_addresses % 250);
                let status = json!({"podIP": address, "podIPs": [{"ip": address}]});
                self.world.set_ready(&name, true);
                self.world.edit(ObjectKind::Pod, &name, &json!({"status": status}));
            }
        }
        self.record();
    }
}
