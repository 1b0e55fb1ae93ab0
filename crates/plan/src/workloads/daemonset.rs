//! DaemonSets: one pod on every node that fits. Upstream counterpart: `pkg/controller/daemon`.

use std::collections::BTreeMap;
use std::sync::Arc;

use api::apps::{ControllerRevision, DaemonSet, DaemonSetSpec, DaemonSetStatus};
use api::core::{
    Affinity, Node, NodeAffinity, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, Pod,
    Toleration,
};
use api::{IntOrString, Kind, Name, Objects};
use jiff::Timestamp;

use super::revisions::{REVISION_HASH, history};
use super::{Claim, claim, count, pod_of, pod_prefix, resolve};
use crate::action::{Action, Plan};
use crate::objects::{in_namespace, is_controlled_by, label, reference};
use crate::podfacts;
use crate::scheduler::{accepts, tolerates};

/// Taints that daemon pods tolerate always, with their effects.
const TOLERATED: [(&str, &str); 6] = [
    ("node.kubernetes.io/not-ready", "NoExecute"),
    ("node.kubernetes.io/unreachable", "NoExecute"),
    ("node.kubernetes.io/disk-pressure", "NoSchedule"),
    ("node.kubernetes.io/memory-pressure", "NoSchedule"),
    ("node.kubernetes.io/pid-pressure", "NoSchedule"),
    ("node.kubernetes.io/unschedulable", "NoSchedule"),
];

/// What DaemonSets are planned from.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// All DaemonSets.
    pub daemon_sets: Objects<DaemonSet>,
    /// All pods.
    pub pods: Objects<Pod>,
    /// All nodes.
    pub nodes: Objects<Node>,
    /// All revisions.
    pub revisions: Objects<ControllerRevision>,
    /// The time of the plan.
    pub now: Timestamp,
}

/// Creates, replaces and deletes pods so that each fitting node has one, and writes the status.
#[must_use]
pub fn plan(snapshot: &Snapshot, key: &Name) -> Plan {
    let Some(set) = snapshot.daemon_sets.get(key) else { return Plan::none() };
    let Some(spec) = &set.spec else { return Plan::none() };
    let candidates = in_namespace(&snapshot.pods, set.namespace());
    let Claim { owned, mut actions } = claim(set.as_ref(), &spec.selector, candidates);
    let revisions: Vec<_> = in_namespace(&snapshot.revisions, set.namespace())
        .filter(|revision| is_controlled_by(revision.as_ref(), set.as_ref()))
        .cloned()
        .collect();
    let collisions = set.status.as_ref().and_then(|status| status.collision_count).unwrap_or(0);
    let mut history = history(set.as_ref(), &spec.template, &revisions, collisions);
    actions.append(&mut history.actions);
    let mut plan = Plan { actions, again: None };
    let hash =
        label(history.revisions.last().unwrap_or(&ControllerRevision::default()), REVISION_HASH)
            .unwrap_or("")
            .to_owned();
    let mut by_node: BTreeMap<String, Vec<Arc<Pod>>> = BTreeMap::new();
    for pod in owned {
        by_node.entry(target(&pod)).or_default().push(pod);
    }
    let template = daemon_pod(set, spec, &hash);
    let wanted: Vec<&str> = snapshot
        .nodes
        .values()
        .filter(|node| runs_on(&template, node))
        .map(|node| node.name())
        .collect();
    write_status(snapshot, set, &by_node, &wanted, &hash, &mut plan);
    if !set.is_deleting() {
        manage(snapshot, set, spec, &by_node, (&wanted, &hash, &template), &mut plan);
    }
    plan
}

/// The node that a daemon pod is for: where it is, or the one name that its affinity asks for.
fn target(pod: &Pod) -> String {
    let bound = podfacts::node_name(pod);
    if !bound.is_empty() {
        return bound.to_owned();
    }
    let affinity = pod.spec.as_ref().and_then(|spec| spec.affinity.as_ref());
    let terms = affinity
        .and_then(|one| one.node_affinity.as_ref())
        .and_then(|one| one.required_during_scheduling_ignored_during_execution.as_ref())
        .map(|one| one.node_selector_terms.as_slice());
    let fields = terms.into_iter().flatten().flat_map(|term| term.match_fields.iter().flatten());
    let named = fields.filter(|rule| rule.key == "metadata.name");
    named.flat_map(|rule| rule.values.iter().flatten()).next().cloned().unwrap_or_default()
}

fn daemon_pod(set: &DaemonSet, spec: &DaemonSetSpec, hash: &str) -> Pod {
    let mut pod = pod_of(&spec.template, set);
    pod.metadata.generate_name = Some(pod_prefix(set.name()));
    let labels = pod.metadata.labels.get_or_insert_default();
    labels.insert(REVISION_HASH.to_owned(), hash.to_owned());
    let pod_spec = pod.spec.get_or_insert_default();
    let host_network = pod_spec.host_network == Some(true);
    let tolerations = pod_spec.tolerations.get_or_insert_default();
    let network = [("node.kubernetes.io/network-unavailable", "NoSchedule")];
    let always = TOLERATED.iter().chain(network.iter().filter(|_| host_network));
    tolerations.extend(always.map(|(key, effect)| Toleration {
        key: Some((*key).to_owned()),
        operator: Some("Exists".into()),
        effect: Some((*effect).to_owned()),
        ..Toleration::default()
    }));
    pod
}

fn runs_on(pod: &Pod, node: &Node) -> bool {
    let tolerations = pod.spec.as_ref().and_then(|spec| spec.tolerations.as_deref()).unwrap_or(&[]);
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_deref()).unwrap_or(&[]);
    accepts(node, pod)
        && taints
            .iter()
            .filter(|taint| matches!(taint.effect.as_str(), "NoSchedule" | "NoExecute"))
            .all(|taint| {
                tolerates(tolerations, taint) || taint.key == "node.kubernetes.io/not-ready"
            })
}

/// The pod bound for one node by its affinity, so that the scheduler places it.
fn pinned(template: &Pod, node: &str) -> Pod {
    let mut pod = template.clone();
    let rule = NodeSelectorRequirement {
        key: "metadata.name".into(),
        operator: "In".into(),
        values: Some(vec![node.to_owned()]),
    };
    let affinity = pod.spec.get_or_insert_default().affinity.get_or_insert_with(Affinity::default);
    let node_affinity = affinity.node_affinity.get_or_insert_with(NodeAffinity::default);
    let required = node_affinity
        .required_during_scheduling_ignored_during_execution
        .get_or_insert_with(NodeSelector::default);
    if required.node_selector_terms.is_empty() {
        required.node_selector_terms.push(NodeSelectorTerm::default());
    }
    for term in &mut required.node_selector_terms {
        term.match_fields = Some(vec![rule.clone()]);
    }
    pod
}

fn manage(
    snapshot: &Snapshot,
    set: &DaemonSet,
    spec: &DaemonSetSpec,
    by_node: &BTreeMap<String, Vec<Arc<Pod>>>,
    (wanted, hash, template): (&[&str], &str, &Pod),
    plan: &mut Plan,
) {
    let (mut create, mut doomed) = (Vec::new(), Vec::new());
    let id = |pod: &Arc<Pod>| (pod.object_name(), pod.uid().to_owned());
    for (node, pods) in by_node {
        let live = pods.iter().filter(|pod| !pod.is_deleting());
        if !wanted.contains(&node.as_str()) {
            doomed.extend(live.filter(|pod| !podfacts::is_terminal(pod)).map(id));
            continue;
        }
        let (ended, mut running): (Vec<_>, Vec<_>) =
            live.partition(|pod| podfacts::is_terminal(pod));
        doomed.extend(ended.into_iter().map(id));
        running.sort_by_key(|pod| (!podfacts::is_ready(pod), podfacts::created(pod.as_ref())));
        doomed.extend(running.into_iter().skip(1).map(id));
    }
    for node in wanted {
        if by_node.get(*node).is_none_or(Vec::is_empty) {
            create.push(pinned(template, node));
        }
    }
    if doomed.is_empty() && create.is_empty() {
        doomed.extend(outdated(snapshot, spec, by_node, wanted, hash).iter().map(id));
    }
    let owner = reference(set);
    if !doomed.is_empty() {
        plan.push(Action::DeletePods { owner: owner.clone(), pods: doomed });
    }
    if !create.is_empty() {
        plan.push(Action::CreatePods { owner, pods: create });
    }
}

/// Pods of an older template that may go now: those that are unavailable anyway, and as many more as `maxUnavailable` allows.
fn outdated(
    snapshot: &Snapshot,
    spec: &DaemonSetSpec,
    by_node: &BTreeMap<String, Vec<Arc<Pod>>>,
    wanted: &[&str],
    hash: &str,
) -> Vec<Arc<Pod>> {
    let strategy = spec.update_strategy.as_ref();
    if strategy.and_then(|one| one.type_.as_deref()) == Some("OnDelete") {
        return Vec::new();
    }
    let limit = strategy.and_then(|one| one.rolling_update.as_ref()?.max_unavailable.clone());
    let limit = resolve(&limit.unwrap_or(IntOrString::Int(1)), count(wanted.len()), true).max(1);
    let seconds = spec.min_ready_seconds.unwrap_or(0);
    let available =
        |pod: &Pod| !pod.is_deleting() && podfacts::is_available(pod, seconds, snapshot.now);
    let unavailable = wanted
        .iter()
        .filter(|node| !by_node.get(**node).into_iter().flatten().any(|pod| available(pod)));
    let mut room = limit - count(unavailable.count());
    let old = by_node
        .values()
        .flatten()
        .filter(|pod| !pod.is_deleting() && label(pod.as_ref(), REVISION_HASH) != Some(hash));
    let mut doomed = Vec::new();
    for pod in old {
        if !available(pod) {
            doomed.push(Arc::clone(pod));
        } else if room > 0 {
            room -= 1;
            doomed.push(Arc::clone(pod));
        }
    }
    doomed
}

fn write_status(
    snapshot: &Snapshot,
    set: &DaemonSet,
    by_node: &BTreeMap<String, Vec<Arc<Pod>>>,
    wanted: &[&str],
    hash: &str,
    plan: &mut Plan,
) {
    let old = set.status.clone().unwrap_or_default();
    let seconds = set.spec.as_ref().and_then(|spec| spec.min_ready_seconds).unwrap_or(0);
    let (mut current, mut ready, mut available, mut updated, mut stray) = (0, 0, 0, 0, 0);
    for (node, pods) in by_node {
        let live = pods.iter().filter(|pod| podfacts::is_active(pod));
        let Some(pod) = live.min_by_key(|pod| podfacts::created(pod.as_ref())) else { continue };
        if !wanted.contains(&node.as_str()) {
            stray += 1;
            continue;
        }
        current += 1;
        ready += i32::from(podfacts::is_ready(pod));
        updated += i32::from(label(pod.as_ref(), REVISION_HASH) == Some(hash));
        match podfacts::availability(pod, seconds, snapshot.now) {
            Ok(()) => available += 1,
            Err(missing) => missing.into_iter().for_each(|missing| plan.after(missing)),
        }
    }
    let some = |number: i32| (number != 0).then_some(number);
    let desired = count(wanted.len());
    let status = DaemonSetStatus {
        current_number_scheduled: current,
        desired_number_scheduled: desired,
        number_available: some(available),
        number_misscheduled: stray,
        number_ready: ready,
        number_unavailable: some(desired - available),
        observed_generation: set.metadata.generation,
        updated_number_scheduled: some(updated),
        collision_count: old.collision_count,
        conditions: old.conditions.clone(),
    };
    if status != old {
        let mut set = set.clone();
        set.status = Some(status);
        plan.push(Action::UpdateStatus(set.into()));
    }
}
