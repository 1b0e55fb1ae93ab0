//! Clusters in which everything goes wrong in an order that a seed chooses: late and lost watches, stale plans, refused
//! writes, crashes, a kernel that fails. After quiet, everything must be as if nothing had.
//!
//! The loops are the product's own decisions; what surrounds them (API, watches, kubelets, kernel, users) is modelled here.

pub(crate) mod chance;
mod copies;
mod faults;
mod node;
mod parts;
mod users;

use std::collections::{BTreeMap, BTreeSet};

use api::Name;
use api::core::{Pod, Service};
use api::discovery::EndpointSlice;
use serde_json::{Value, json};

use crate::action::{ObjectKind, Plan};
use crate::alloc::Allocator;
use crate::world::World;
use chance::Chance;
use copies::{Copies, Copy, View};
use node::NodeModel;
use parts::Part;

/// How many histories run; more with `RHUMB_SEEDS`.
const SEEDS: u64 = 1_000;
/// Steps of one history.
const STEPS: usize = 120;
/// Rounds in which a quiet cluster must settle.
const SETTLE_MAX: usize = 60;
const NODES: usize = 3;

/// One change, as watches tell it.
#[derive(Clone)]
struct Event {
    name: Name,
    copy: Option<Copy>,
}

/// A cluster: the API in the middle, with the past of each kind, and everybody around it.
struct Cluster {
    world: World,
    past: BTreeMap<ObjectKind, Vec<Event>>,
    parts: Vec<(Part, View)>,
    nodes: Vec<(NodeModel, View)>,
    allocator: Allocator,
    chance: Chance,
    pod_addresses: u32,
}

fn ranges() -> Vec<ipnet::IpNet> {
    vec!["10.96.0.0/24".parse().expect("a constant")]
}

impl Cluster {
    fn new(seed: u64) -> Self {
        let node = |index: usize| (NodeModel::new(&node_name(index)), View::default());
        let mut cluster = Self {
            world: World::at(1_000),
            past: BTreeMap::new(),
            parts: Part::ALL.into_iter().map(|part| (part, View::default())).collect(),
            nodes: (0..NODES).map(node).collect(),
            allocator: Allocator::new(&ranges(), 30_000..=30_040),
            chance: Chance::new(seed),
            pod_addresses: 0,
        };
        for index in 0..NODES {
            cluster.world.add::<api::core::Node>(node_object(index));
        }
        for app in users::APPS {
            cluster.world.add::<api::apps::Deployment>(users::deployment(app));
        }
        cluster.record();
        cluster
    }

    /// Writes what has changed into the past, from where watches read it.
    fn record(&mut self) {
        for (kind, name) in std::mem::take(&mut self.world.touched) {
            let copy = self.world.value(kind, &name).and_then(|value| Copy::of(kind, value));
            self.past.entry(kind).or_default().push(Event { name, copy });
        }
    }

    /// Applies a plan as the API would: up to the first refused write. Tells how far each kind's past then reaches.
    fn write(&mut self, plan: Plan) -> BTreeMap<ObjectKind, usize> {
        self.world.attempt(plan);
        let touched: BTreeSet<ObjectKind> =
            self.world.touched.iter().map(|(kind, _)| *kind).collect();
        self.record();
        touched.into_iter().map(|kind| (kind, self.past[&kind].len())).collect()
    }

    /// One thing happens.
    fn step(&mut self) {
        match self.chance.below(100) {
            0..35 => self.deliver_something(),
            35..65 => self.run_something(),
            65..80 => self.user_acts(),
            80..92 => self.kubelet_acts(),
            92..96 => self.something_fails(),
            96..98 => self.world.now += 1,
            _ => self.flow_begins(),
        }
    }

    /// Everything is delivered and done until nothing changes.
    fn settle(&mut self) {
        for _ in 0..SETTLE_MAX {
            let before: usize = self.past.values().map(Vec::len).sum();
            self.world.now += 1;
            for index in 0..self.parts.len() {
                self.parts[index].1.deliver_all(&self.past);
                self.run_part(index);
            }
            for index in 0..NODES {
                self.kubelet(index);
                self.nodes[index].1.deliver_all(&self.past);
                self.run_proxy(index, false);
            }
            if self.past.values().map(Vec::len).sum::<usize>() == before {
                return;
            }
        }
        panic!("does not settle: {:?}", self.world.events.iter().rev().take(5).collect::<Vec<_>>());
    }

    /// What must hold at any moment.
    fn check_always(&self) {
        let (mut addresses, mut ports) = (BTreeSet::new(), BTreeSet::new());
        for (name, service) in &self.world.all::<Service>() {
            let Some(spec) = &service.spec else { continue };
            for address in spec.cluster_ips.iter().flatten().filter(|text| *text != "None") {
                assert!(addresses.insert(address.clone()), "{name} shares {address}");
            }
            let own: BTreeSet<i32> =
                spec.ports.iter().flatten().filter_map(|port| port.node_port).collect();
            for port in own {
                assert!(ports.insert(port), "{name} shares node port {port}");
            }
        }
    }

    /// What must hold after quiet.
    fn check_settled(&mut self) {
        self.check_always();
        let now = self.now();
        for (name, service) in &now.services {
            assert_eq!(self.told(&now, name), matching(&now, name, service), "endpoints of {name}");
        }
        for index in 0..NODES {
            self.nodes[index].0.check(&now);
        }
        for deployment in now.deployments.values() {
            let wanted = deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
            let status = deployment.status.as_ref();
            let found = status.and_then(|status| status.updated_replicas).unwrap_or(0);
            assert_eq!(
                found,
                wanted,
                "updated pods of {}",
                deployment.metadata.name.as_deref().unwrap_or("")
            );
        }
    }

    /// Everything as it is.
    fn now(&self) -> Copies {
        let mut view = View::default();
        view.deliver_all(&self.past);
        view.copies
    }

    /// The ready addresses that the controller's slices tell of a Service.
    fn told(&self, now: &Copies, name: &Name) -> BTreeSet<String> {
        let of_service = |slice: &&std::sync::Arc<EndpointSlice>| {
            let labels = slice.metadata.labels.as_ref();
            let label = labels.and_then(|labels| labels.get("kubernetes.io/service-name"));
            slice.metadata.namespace.as_deref() == Some(&*name.namespace)
                && label.is_some_and(|label| **label == *name.name)
        };
        let slices = now.slices.values().filter(of_service);
        let ready = slices.flat_map(|slice| slice.endpoints.iter().flatten()).filter(|endpoint| {
            endpoint.conditions.as_ref().and_then(|conditions| conditions.ready) == Some(true)
        });
        ready.flat_map(|endpoint| endpoint.addresses.clone()).collect()
    }
}

/// The addresses of the ready pods that a Service selects, found without the controller's help.
fn matching(now: &Copies, name: &Name, service: &Service) -> BTreeSet<String> {
    let selector = service.spec.as_ref().and_then(|spec| spec.selector.clone()).unwrap_or_default();
    let is_meant = |pod: &&std::sync::Arc<Pod>| {
        let labels = pod.metadata.labels.clone().unwrap_or_default();
        let ready = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
        pod.metadata.namespace.as_deref() == Some(&*name.namespace)
            && pod.metadata.deletion_timestamp.is_none()
            && !selector.is_empty()
            && selector.iter().all(|(key, value)| labels.get(key) == Some(value))
            && ready.into_iter().any(|one| one.type_ == "Ready" && one.status == "True")
    };
    let pods = now.pods.values().filter(is_meant);
    pods.filter_map(|pod| pod.status.as_ref()?.pod_ip.clone()).collect()
}

fn node_name(index: usize) -> String {
    format!("n{index}")
}

fn node_object(index: usize) -> Value {
    json!({
        "metadata": {"name": node_name(index),
            "labels": {"topology.kubernetes.io/zone": format!("z{}", index % 2)}},
        "status": {
            "addresses": [{"type": "InternalIP", "address": format!("198.18.0.{}", 11 + index)}],
            "allocatable": {"cpu": "8", "memory": "8Gi", "pods": "110"},
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    })
}

fn run(seed: u64) {
    let mut cluster = Cluster::new(seed);
    for _ in 0..STEPS {
        cluster.step();
        cluster.check_always();
    }
    cluster.settle();
    cluster.check_settled();
}

fn run_share(share: u64) {
    let seeds = option_env!("RHUMB_SEEDS").and_then(|text| text.parse().ok());
    for seed in (0..seeds.unwrap_or(SEEDS)).filter(|seed| seed % 4 == share) {
        let outcome = std::panic::catch_unwind(|| run(seed));
        assert!(outcome.is_ok(), "seed {seed} fails");
    }
}

// Four tests, so that they share the cores.

#[test]
fn every_history_converges_0() {
    run_share(0);
}

#[test]
fn every_history_converges_1() {
    run_share(1);
}

#[test]
fn every_history_converges_2() {
    run_share(2);
}

#[test]
fn every_history_converges_3() {
    run_share(3);
}
