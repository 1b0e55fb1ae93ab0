//! Affinity between pods. Upstream counterpart: the `InterPodAffinity` plugin.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use api::core::{Pod, PodAffinityTerm};
use api::meta::{LabelSelector, LabelSelectorRequirement};
use api::{Kind, Name};

use super::node::NodeInfo;
use super::reasons::Refusal;
use super::{Cluster, Snapshot};
use crate::objects::matches;

type Domains<'a> = BTreeSet<(&'a str, &'a str)>;

/// The topology domains that the pod must and must not go to.
pub(super) struct Affinity<'a> {
    required: Vec<&'a PodAffinityTerm>,
    /// Domains of pods that each required term matches.
    satisfied: Vec<Domains<'a>>,
    /// The first pod of a group that only wants to be with itself may go anywhere.
    first_of_group: bool,
    anti: Vec<&'a PodAffinityTerm>,
    /// Domains of pods that the pod's own anti-affinity names.
    avoided: Domains<'a>,
    /// Domains where a present pod's anti-affinity names this pod.
    unwelcome: Domains<'a>,
}

/// Required affinity terms of a pod.
fn required(pod: &Pod) -> &[PodAffinityTerm] {
    let affinity = pod.spec.as_ref().and_then(|spec| spec.affinity.as_ref());
    let affinity = affinity.and_then(|affinity| affinity.pod_affinity.as_ref());
    let terms =
        affinity.and_then(|one| one.required_during_scheduling_ignored_during_execution.as_deref());
    terms.unwrap_or(&[])
}

/// Required anti-affinity terms of a pod.
fn required_anti(pod: &Pod) -> &[PodAffinityTerm] {
    let affinity = pod.spec.as_ref().and_then(|spec| spec.affinity.as_ref());
    let affinity = affinity.and_then(|affinity| affinity.pod_anti_affinity.as_ref());
    let terms =
        affinity.and_then(|one| one.required_during_scheduling_ignored_during_execution.as_deref());
    terms.unwrap_or(&[])
}

/// Whether `term` of `owner` names `pod`.
pub(super) fn names(snapshot: &Snapshot, owner: &Pod, term: &PodAffinityTerm, pod: &Pod) -> bool {
    let listed = term.namespaces.as_deref().unwrap_or(&[]);
    let by_selector = term.namespace_selector.as_ref().is_some_and(|selector| {
        let namespace = snapshot.namespaces.get(&Name::cluster(pod.namespace()));
        matches(selector, namespace.and_then(|one| one.metadata.labels.as_ref()))
    });
    let here = if listed.is_empty() && term.namespace_selector.is_none() {
        owner.namespace() == pod.namespace()
    } else {
        by_selector || listed.iter().any(|one| one == pod.namespace())
    };
    let selector = term.label_selector.as_ref();
    here && selector
        .is_some_and(|one| matches(&with_keys(one, term, owner), pod.meta().labels.as_ref()))
}

/// The selector with `matchLabelKeys` and `mismatchLabelKeys` filled in from the owner's labels.
fn with_keys(selector: &LabelSelector, term: &PodAffinityTerm, owner: &Pod) -> LabelSelector {
    let mut selector = selector.clone();
    let same = term.match_label_keys.iter().flatten().map(|key| (key, "In"));
    let other = term.mismatch_label_keys.iter().flatten().map(|key| (key, "NotIn"));
    for (key, operator) in same.chain(other) {
        if let Some(value) = crate::objects::label(owner, key) {
            selector.match_expressions.get_or_insert_default().push(LabelSelectorRequirement {
                key: key.clone(),
                operator: operator.into(),
                values: Some(vec![value.to_owned()]),
            });
        }
    }
    selector
}

impl<'a> Affinity<'a> {
    pub(super) fn new(cluster: &'a Cluster<'_>, pod: &'a Pod) -> Self {
        let snapshot = cluster.snapshot;
        let required: Vec<_> = required(pod).iter().collect();
        let anti: Vec<_> = required_anti(pod).iter().collect();
        let mut satisfied = vec![Domains::new(); required.len()];
        let (mut avoided, mut unwelcome) = (Domains::new(), Domains::new());
        for (info, other) in present(cluster) {
            for (term, domains) in required.iter().zip(&mut satisfied) {
                if names(snapshot, pod, term, other) {
                    domains.extend(domain(info, &term.topology_key));
                }
            }
            for term in &anti {
                if names(snapshot, pod, term, other) {
                    avoided.extend(domain(info, &term.topology_key));
                }
            }
            for term in required_anti(other) {
                if names(snapshot, other, term, pod) {
                    unwelcome.extend(domain(info, &term.topology_key));
                }
            }
        }
        let first_of_group = satisfied.iter().all(BTreeSet::is_empty)
            && required.iter().all(|term| names(snapshot, pod, term, pod));
        Self { required, satisfied, first_of_group, anti, avoided, unwelcome }
    }

    pub(super) fn check(&self, info: &NodeInfo<'_>) -> Result<(), Refusal> {
        let with_friends = self.required.iter().zip(&self.satisfied).all(|(term, domains)| {
            info.label(&term.topology_key).is_some_and(|value| {
                self.first_of_group || domains.contains(&(term.topology_key.as_str(), value))
            })
        });
        if !with_friends {
            return Err(Refusal::for_good("node(s) didn't match pod affinity rules"));
        }
        let inside = |domains: &Domains<'_>| {
            domains.iter().any(|(key, value)| info.label(key) == Some(*value))
        };
        if !self.anti.is_empty() && inside(&self.avoided) {
            return Err(Refusal::for_now("node(s) didn't match pod anti-affinity rules"));
        }
        if inside(&self.unwelcome) {
            let reason = "node(s) didn't satisfy existing pods anti-affinity rules";
            return Err(Refusal::for_now(reason));
        }
        Ok(())
    }
}

fn domain<'a>(info: &NodeInfo<'a>, key: &'a str) -> Option<(&'a str, &'a str)> {
    info.label(key).map(|value| (key, value))
}

/// Every placed pod with its node.
fn present<'c, 'a>(
    cluster: &'c Cluster<'a>,
) -> impl Iterator<Item = (&'c NodeInfo<'a>, &'a Arc<Pod>)> {
    cluster.nodes.iter().flat_map(|info| info.pods.iter().map(move |pod| (info, *pod)))
}

/// The weight of each node by preferred terms, of the pod and of the pods that are there.
pub(super) fn preferences(cluster: &Cluster<'_>, pod: &Pod) -> Vec<i64> {
    let mut weights: BTreeMap<(String, String), i64> = BTreeMap::new();
    for (info, other) in present(cluster) {
        for (owner, named) in [(pod, other.as_ref()), (other.as_ref(), pod)] {
            for (sign, term) in preferred(owner) {
                if names(cluster.snapshot, owner, &term.pod_affinity_term, named) {
                    let key = &term.pod_affinity_term.topology_key;
                    if let Some(value) = info.label(key) {
                        let entry = weights.entry((key.clone(), value.to_owned())).or_default();
                        *entry += sign * i64::from(term.weight);
                    }
                }
            }
        }
    }
    let of = |info: &NodeInfo<'_>| {
        let hits = weights.iter().filter(|((key, value), _)| info.label(key) == Some(value));
        hits.map(|(_, weight)| weight).sum()
    };
    cluster.nodes.iter().map(of).collect()
}

fn preferred(pod: &Pod) -> impl Iterator<Item = (i64, &api::core::WeightedPodAffinityTerm)> {
    let affinity = pod.spec.as_ref().and_then(|spec| spec.affinity.as_ref());
    let with = affinity.and_then(|one| one.pod_affinity.as_ref());
    let with =
        with.and_then(|one| one.preferred_during_scheduling_ignored_during_execution.as_ref());
    let apart = affinity.and_then(|one| one.pod_anti_affinity.as_ref());
    let apart =
        apart.and_then(|one| one.preferred_during_scheduling_ignored_during_execution.as_ref());
    with.into_iter()
        .flatten()
        .map(|term| (1, term))
        .chain(apart.into_iter().flatten().map(|term| (-1, term)))
}
