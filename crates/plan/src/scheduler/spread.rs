//! Topology spread constraints, and the default spreading of a Service's or workload's pods.
//! Upstream counterpart: the `PodTopologySpread` plugin.

use std::collections::BTreeMap;

use api::core::{Pod, TopologySpreadConstraint};
use api::meta::{LabelSelector, LabelSelectorRequirement};
use api::{Kind, Name};

use super::Cluster;
use super::node::NodeInfo;
use super::reasons::Refusal;
use super::selector::{pod_matches_node, untolerated};
use crate::endpointslice::has_selector;
use crate::objects::{in_namespace, map_matches, matches};

/// One constraint with the matching pods in each domain.
struct Constraint {
    key: String,
    max_skew: i64,
    own: i64,
    minimum: i64,
    counts: BTreeMap<String, i64>,
}

/// The constraints that must hold.
pub(super) struct Spread<'a> {
    constraints: Vec<Constraint>,
    _pod: std::marker::PhantomData<&'a Pod>,
}

fn listed(pod: &Pod) -> &[TopologySpreadConstraint] {
    let spec = pod.spec.as_ref();
    spec.and_then(|spec| spec.topology_spread_constraints.as_deref()).unwrap_or(&[])
}

fn selector(constraint: &TopologySpreadConstraint, pod: &Pod) -> LabelSelector {
    let mut selector = constraint.label_selector.clone().unwrap_or_default();
    for key in constraint.match_label_keys.iter().flatten() {
        if let Some(value) = crate::objects::label(pod, key) {
            selector.match_expressions.get_or_insert_default().push(LabelSelectorRequirement {
                key: key.clone(),
                operator: "In".into(),
                values: Some(vec![value.to_owned()]),
            });
        }
    }
    selector
}

/// Matching pods of the pod's namespace on the node; those that go do not count.
fn matching(info: &NodeInfo<'_>, pod: &Pod, selector: &LabelSelector) -> i64 {
    let here = info.pods.iter().filter(|other| {
        other.namespace() == pod.namespace()
            && !other.is_deleting()
            && matches(selector, other.meta().labels.as_ref())
    });
    i64::try_from(here.count()).unwrap_or(i64::MAX)
}

/// Whether the node takes part in a constraint's count.
fn counts(constraint: &TopologySpreadConstraint, pod: &Pod, info: &NodeInfo<'_>) -> bool {
    let honor =
        |policy: &Option<String>, default: &str| policy.as_deref().unwrap_or(default) == "Honor";
    (!honor(&constraint.node_affinity_policy, "Honor") || pod_matches_node(pod, info.node))
        && (!honor(&constraint.node_taints_policy, "Ignore")
            || untolerated(pod, info.node).is_none())
}

impl Spread<'_> {
    /// The pod's `DoNotSchedule` constraints against the cluster.
    pub(super) fn required(cluster: &Cluster<'_>, pod: &Pod) -> Self {
        let hard = listed(pod).iter().filter(|one| one.when_unsatisfiable == "DoNotSchedule");
        let hard: Vec<_> = hard.collect();
        let complete =
            |info: &NodeInfo<'_>| hard.iter().all(|one| info.label(&one.topology_key).is_some());
        let constraints = hard.iter().map(|constraint| {
            let selector = selector(constraint, pod);
            let mut domains: BTreeMap<String, i64> = BTreeMap::new();
            for info in cluster.nodes.iter().filter(|info| complete(info)) {
                if let Some(value) = info.label(&constraint.topology_key)
                    && counts(constraint, pod, info)
                {
                    *domains.entry(value.to_owned()).or_default() += matching(info, pod, &selector);
                }
            }
            let wanted = usize::try_from(constraint.min_domains.unwrap_or(1)).unwrap_or(1);
            let minimum = if domains.len() < wanted {
                0
            } else {
                domains.values().min().copied().unwrap_or(0)
            };
            Constraint {
                key: constraint.topology_key.clone(),
                max_skew: i64::from(constraint.max_skew),
                own: i64::from(matches(&selector, pod.meta().labels.as_ref())),
                minimum,
                counts: domains,
            }
        });
        Self { constraints: constraints.collect(), _pod: std::marker::PhantomData }
    }

    pub(super) fn check(&self, info: &NodeInfo<'_>) -> Result<(), Refusal> {
        for constraint in &self.constraints {
            let Some(value) = info.label(&constraint.key) else {
                let reason =
                    "node(s) didn't match pod topology spread constraints (missing required label)";
                return Err(Refusal::for_good(reason));
            };
            let present = constraint.counts.get(value).copied().unwrap_or(0);
            if present + constraint.own - constraint.minimum > constraint.max_skew {
                let reason = "node(s) didn't match pod topology spread constraints";
                return Err(Refusal::for_now(reason));
            }
        }
        Ok(())
    }
}

/// How crowded each node's domains are by soft constraints, or by the defaults (host and zone) when the pod has none.
pub(super) fn crowding(cluster: &Cluster<'_>, pod: &Pod) -> Vec<i64> {
    let mut soft: Vec<(String, LabelSelector)> = listed(pod)
        .iter()
        .filter(|one| one.when_unsatisfiable == "ScheduleAnyway")
        .map(|one| (one.topology_key.clone(), selector(one, pod)))
        .collect();
    if listed(pod).is_empty()
        && let Some(selector) = default_selector(cluster, pod)
    {
        for key in ["kubernetes.io/hostname", "topology.kubernetes.io/zone"] {
            soft.push((key.to_owned(), selector.clone()));
        }
    }
    let mut crowding = vec![0; cluster.nodes.len()];
    for (key, selector) in soft {
        let mut domains: BTreeMap<&str, (i64, i64)> = BTreeMap::new();
        for info in &cluster.nodes {
            if let Some(value) = info.label(&key) {
                let entry = domains.entry(value).or_default();
                entry.0 += matching(info, pod, &selector);
                entry.1 += 1;
            }
        }
        for (info, total) in cluster.nodes.iter().zip(&mut crowding) {
            if let Some((count, _)) = info.label(&key).and_then(|value| domains.get(value)) {
                *total += count;
            }
        }
    }
    crowding
}

/// The selector of everything that selects this pod: its Services and its workload.
fn default_selector(cluster: &Cluster<'_>, pod: &Pod) -> Option<LabelSelector> {
    let snapshot = cluster.snapshot;
    let labels = pod.meta().labels.as_ref();
    let mut exact = BTreeMap::new();
    for service in in_namespace(&snapshot.services, pod.namespace()).filter(|one| has_selector(one))
    {
        let selector = service.spec.as_ref().and_then(|spec| spec.selector.clone());
        exact.extend(selector.filter(|one| map_matches(one, labels)).into_iter().flatten());
    }
    let mut selector = LabelSelector { match_labels: None, match_expressions: None };
    if let Some(owner) = pod.controller() {
        let name = Name::new(pod.namespace(), &owner.name);
        let own = match owner.kind.as_str() {
            "ReplicaSet" => snapshot
                .replica_sets
                .get(&name)
                .and_then(|set| Some(set.spec.as_ref()?.selector.clone())),
            "StatefulSet" => snapshot
                .stateful_sets
                .get(&name)
                .and_then(|set| Some(set.spec.as_ref()?.selector.clone())),
            _ => None,
        };
        if let Some(own) = own {
            exact.extend(own.match_labels.into_iter().flatten());
            selector.match_expressions = own.match_expressions;
        }
    }
    if exact.is_empty() && selector.match_expressions.is_none() {
        return None;
    }
    selector.match_labels = Some(exact);
    Some(selector)
}
