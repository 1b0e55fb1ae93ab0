//! The life of nodes: pod CIDRs, silence, taints, and what becomes of pods on nodes that are gone.
//!
//! Upstream counterparts: `pkg/controller/nodelifecycle`, `nodeipam`, `tainteviction`, `podgc`.

use std::time::Duration;

use api::coordination::Lease;
use api::core::{Node, NodeCondition, Pod, PodCondition, Taint};
use api::meta::Time;
use api::{Kind, Name, Objects};
use jiff::Timestamp;
use serde_json::json;

use crate::action::{Action, Plan, delete, patch_meta};
use crate::objects::reference;
use crate::podfacts;

mod cidr;
pub mod orphans;

pub use cidr::allocate;

/// The namespace of the nodes' leases.
pub const LEASES: &str = "kube-node-lease";
const NOT_READY: &str = "node.kubernetes.io/not-ready";
const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
/// Conditions that go Unknown when a node falls silent.
const REPORTED: [&str; 4] = ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"];
/// Conditions that keep new pods away, and their taints.
const PRESSURE: [(&str, &str); 4] = [
    ("MemoryPressure", "node.kubernetes.io/memory-pressure"),
    ("DiskPressure", "node.kubernetes.io/disk-pressure"),
    ("PIDPressure", "node.kubernetes.io/pid-pressure"),
    ("NetworkUnavailable", "node.kubernetes.io/network-unavailable"),
];

/// What nodes are planned from.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// All nodes.
    pub nodes: Objects<Node>,
    /// The nodes' leases.
    pub leases: Objects<Lease>,
    /// All pods.
    pub pods: Objects<Pod>,
    /// The cluster's pod addresses.
    pub pod_cidr: std::sync::Arc<str>,
    /// How long a node may be silent.
    pub grace: Duration,
    /// When this loop started: silence before it says nothing.
    pub started: Timestamp,
    /// The time of the plan.
    pub now: Timestamp,
}

/// The next step of one node.
#[must_use]
pub fn plan(snapshot: &Snapshot, key: &Name) -> Plan {
    let mut plan = Plan::none();
    let Some(node) = snapshot.nodes.get(key) else { return plan };
    if node.is_deleting() {
        return plan;
    }
    give_cidr(snapshot, node, &mut plan);
    let mut node = Node::clone(node);
    if silent(snapshot, &node, &mut plan) && mark_unknown(&mut node, snapshot.now) {
        plan.push(Action::UpdateStatus(node.clone().into()));
        let message = format!("Node {} status is now: NodeNotReady", node.name());
        plan.event(reference(&node), "NodeNotReady", message);
        return plan;
    }
    let taints = taints(&node, snapshot.now);
    let present = node.spec.as_ref().and_then(|spec| spec.taints.clone()).unwrap_or_default();
    if taints != present && plan.actions.is_empty() {
        let spec = json!({ "spec": { "taints": taints } });
        let mut action = patch_meta(&node, json!({}));
        if let Action::Patch { patch, .. } = &mut action {
            patch["spec"] = spec["spec"].clone();
        }
        plan.push(action);
    }
    follow_pods(snapshot, &node, &taints, &mut plan);
    plan
}

fn give_cidr(snapshot: &Snapshot, node: &Node, plan: &mut Plan) {
    let has = |node: &Node| node.spec.as_ref().is_some_and(|spec| spec.pod_cidr.is_some());
    if has(node) {
        return;
    }
    let taken = snapshot.nodes.values().filter_map(|one| one.spec.as_ref()?.pod_cidr.clone());
    match allocate(&snapshot.pod_cidr, taken) {
        Some(cidr) => {
            let mut action = patch_meta(node, json!({}));
            if let Action::Patch { patch, .. } = &mut action {
                patch["spec"] = json!({ "podCIDR": cidr, "podCIDRs": [cidr] });
            }
            plan.push(action);
        }
        None => {
            let message = format!("Node {} status is now: CIDRNotAvailable", node.name());
            plan.event(reference(node), "CIDRNotAvailable", message);
        }
    }
}

fn condition<'a>(node: &'a Node, type_: &str) -> Option<&'a NodeCondition> {
    node.status.as_ref()?.conditions.as_ref()?.iter().find(|one| one.type_ == type_)
}

/// Whether nothing was heard of the node for too long; plans again when it would be.
fn silent(snapshot: &Snapshot, node: &Node, plan: &mut Plan) -> bool {
    let lease = snapshot.leases.get(&Name::new(LEASES, node.name()));
    let renewed =
        lease.and_then(|lease| lease.spec.as_ref()?.renew_time.as_ref()).map(|time| time.0);
    let beat = condition(node, "Ready").and_then(|ready| ready.last_heartbeat_time.as_ref());
    let heard = [renewed, beat.map(|time| time.0), Some(podfacts::created(node))];
    let heard = heard.into_iter().flatten().fold(snapshot.started, Timestamp::max);
    let age = snapshot.now.as_millisecond() - heard.as_millisecond();
    let left = i64::try_from(snapshot.grace.as_millis()).unwrap_or(i64::MAX) - age;
    match u64::try_from(left) {
        Ok(left) if left > 0 => {
            plan.after(Duration::from_millis(left));
            false
        }
        _ => true,
    }
}

/// Sets what the node reported to Unknown. Whether anything changed.
fn mark_unknown(node: &mut Node, now: Timestamp) -> bool {
    let conditions = node.status.get_or_insert_default().conditions.get_or_insert_default();
    let mut changed = false;
    for type_ in REPORTED {
        match conditions.iter_mut().find(|one| one.type_ == type_) {
            Some(one) if one.status == "Unknown" => {}
            Some(one) => {
                one.status = "Unknown".into();
                one.reason = Some("NodeStatusUnknown".into());
                one.message = Some("Kubelet stopped posting node status.".into());
                one.last_transition_time = Some(Time(now));
                changed = true;
            }
            None => {
                conditions.push(NodeCondition {
                    type_: type_.into(),
                    status: "Unknown".into(),
                    reason: Some("NodeStatusNeverUpdated".into()),
                    message: Some("Kubelet never posted node status.".into()),
                    last_heartbeat_time: None,
                    last_transition_time: Some(Time(now)),
                });
                changed = true;
            }
        }
    }
    changed
}

/// The taints that the node's conditions call for, and all others that it has.
fn taints(node: &Node, now: Timestamp) -> Vec<Taint> {
    let spec = node.spec.clone().unwrap_or_default();
    let present = spec.taints.unwrap_or_default();
    let mut wanted: Vec<(&str, &str)> = Vec::new();
    match condition(node, "Ready").map(|ready| ready.status.as_str()) {
        Some("True") => {}
        Some("Unknown") => wanted.extend([(UNREACHABLE, "NoSchedule"), (UNREACHABLE, "NoExecute")]),
        _ => wanted.extend([(NOT_READY, "NoSchedule"), (NOT_READY, "NoExecute")]),
    }
    let pressed = PRESSURE
        .iter()
        .filter(|(type_, _)| condition(node, type_).is_some_and(|one| one.status == "True"));
    wanted.extend(pressed.map(|(_, taint)| (*taint, "NoSchedule")));
    if spec.unschedulable == Some(true) {
        wanted.push(("node.kubernetes.io/unschedulable", "NoSchedule"));
    }
    let ours = |taint: &Taint| {
        taint.key == NOT_READY
            || taint.key == UNREACHABLE
            || taint.key == "node.kubernetes.io/unschedulable"
            || PRESSURE.iter().any(|(_, key)| taint.key == *key)
    };
    let is =
        |taint: &Taint, (key, effect): (&str, &str)| taint.key == key && taint.effect == effect;
    let keep = |taint: &&Taint| !ours(taint) || wanted.iter().any(|one| is(taint, *one));
    let mut taints: Vec<Taint> = present.iter().filter(keep).cloned().collect();
    for (key, effect) in wanted {
        if !taints.iter().any(|taint| is(taint, (key, effect))) {
            taints.push(Taint {
                key: key.into(),
                effect: effect.into(),
                time_added: Some(Time(now)),
                value: None,
            });
        }
    }
    taints
}

/// Pods of a silent node are not ready; pods that do not tolerate a NoExecute taint, or no longer, are deleted.
fn follow_pods(snapshot: &Snapshot, node: &Node, taints: &[Taint], plan: &mut Plan) {
    let execute: Vec<&Taint> = taints.iter().filter(|taint| taint.effect == "NoExecute").collect();
    let unknown = condition(node, "Ready").is_some_and(|ready| ready.status == "Unknown");
    if execute.is_empty() && !unknown {
        return;
    }
    let here = snapshot.pods.values().filter(|pod| podfacts::node_name(pod) == node.name());
    for pod in here.filter(|pod| !podfacts::is_terminal(pod)) {
        if unknown && podfacts::is_ready(pod) {
            let mut changed = Pod::clone(pod);
            changed.status = Some(podfacts::with_condition(
                pod,
                PodCondition {
                    type_: "Ready".into(),
                    status: "False".into(),
                    last_transition_time: Some(Time(snapshot.now)),
                    ..PodCondition::default()
                },
            ));
            plan.push(Action::UpdateStatus(changed.into()));
            plan.warn(reference(pod.as_ref()), "NodeNotReady", "Node is not ready".into());
        }
        if pod.is_deleting() {
            continue;
        }
        match eviction(pod, &execute, snapshot.now) {
            None => {}
            Some(wait) if wait.is_zero() => {
                let message =
                    format!("Marking for deletion Pod {}/{}", pod.namespace(), pod.name());
                plan.event(reference(pod.as_ref()), "TaintManagerEviction", message);
                plan.push(delete(pod.as_ref()));
            }
            Some(wait) => plan.after(wait),
        }
    }
}

/// In how long the taints drive the pod away; `None` for never.
fn eviction(pod: &Pod, taints: &[&Taint], now: Timestamp) -> Option<Duration> {
    let tolerations = pod.spec.as_ref().and_then(|spec| spec.tolerations.as_deref()).unwrap_or(&[]);
    let mut soonest: Option<i64> = None;
    for taint in taints {
        let tolerating: Vec<_> = tolerations
            .iter()
            .filter(|one| crate::scheduler::tolerates(std::slice::from_ref(*one), taint))
            .collect();
        if tolerating.is_empty() {
            return Some(Duration::ZERO);
        }
        let seconds = tolerating.iter().filter_map(|one| one.toleration_seconds).min();
        if let Some(seconds) = seconds {
            let since = taint.time_added.as_ref().map_or(now, |time| time.0);
            let end = since.as_millisecond() + seconds.max(0).saturating_mul(1000);
            let left = (end - now.as_millisecond()).max(0);
            soonest = Some(soonest.map_or(left, |one| one.min(left)));
        }
    }
    soonest.map(|left| Duration::from_millis(u64::try_from(left).unwrap_or(0)))
}

#[cfg(test)]
mod tests;
