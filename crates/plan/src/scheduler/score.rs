//! Which of the fitting nodes is best: upstream's score plugins and weights, each scaled to 0…100.

use api::Kind;
use api::core::Pod;

use super::node::{NodeInfo, weight};
use super::resources::requests;
use super::selector::{term_matches, tolerates, tolerations};
use super::{Cluster, affinity, spread};

/// The best of the nodes `fitting`; equal ones go to the node with fewer pods, then by name.
pub(super) fn best(cluster: &Cluster<'_>, pod: &Pod, fitting: &[usize]) -> Option<usize> {
    if fitting.len() < 2 {
        return fitting.first().copied();
    }
    let at = |values: &[i64]| -> Vec<i64> {
        fitting.iter().map(|index| values.get(*index).copied().unwrap_or(0)).collect()
    };
    let nodes: Vec<&NodeInfo<'_>> =
        fitting.iter().filter_map(|index| cluster.nodes.get(*index)).collect();
    let load = requests(pod);
    let load = weight(&load);
    let tainted: Vec<i64> = nodes.iter().map(|info| avoided_taints(pod, info)).collect();
    let preferred: Vec<i64> = nodes.iter().map(|info| preferred_terms(pod, info)).collect();
    let columns: [(i64, Vec<i64>); 6] = [
        (3, inverted(&tainted)),
        (2, scaled(&preferred)),
        (2, inverted(&at(&spread::crowding(cluster, pod)))),
        (2, ranged(&at(&affinity::preferences(cluster, pod)))),
        (1, nodes.iter().map(|info| least_allocated(info, load)).collect()),
        (1, nodes.iter().map(|info| balanced(info, load)).collect()),
    ];
    let total = |at: usize| -> i64 {
        columns.iter().map(|(weight, column)| weight * column.get(at).copied().unwrap_or(0)).sum()
    };
    let order = |at: &usize| {
        let info = nodes.get(*at);
        let pods = info.map_or(0, |info| info.pods.len());
        let name = info.map(|info| info.node.name().to_owned());
        (std::cmp::Reverse(total(*at)), pods, name)
    };
    (0..fitting.len()).min_by_key(order).and_then(|at| fitting.get(at).copied())
}

/// More is better: the highest becomes 100.
fn scaled(values: &[i64]) -> Vec<i64> {
    let highest = values.iter().max().copied().unwrap_or(0);
    values.iter().map(|value| if highest > 0 { value * 100 / highest } else { 0 }).collect()
}

/// Less is better: the highest becomes 0, and 0 becomes 100.
fn inverted(values: &[i64]) -> Vec<i64> {
    let highest = values.iter().max().copied().unwrap_or(0);
    values.iter().map(|value| if highest > 0 { 100 - value * 100 / highest } else { 100 }).collect()
}

/// More is better, and values may be negative: lowest 0, highest 100.
fn ranged(values: &[i64]) -> Vec<i64> {
    let lowest = values.iter().min().copied().unwrap_or(0);
    let span = values.iter().max().copied().unwrap_or(0) - lowest;
    values.iter().map(|value| if span > 0 { (value - lowest) * 100 / span } else { 0 }).collect()
}

fn avoided_taints(pod: &Pod, info: &NodeInfo<'_>) -> i64 {
    let taints = info.node.spec.iter().flat_map(|spec| spec.taints.iter().flatten());
    let avoided = taints
        .filter(|taint| taint.effect == "PreferNoSchedule" && !tolerates(tolerations(pod), taint));
    i64::try_from(avoided.count()).unwrap_or(i64::MAX)
}

fn preferred_terms(pod: &Pod, info: &NodeInfo<'_>) -> i64 {
    let affinity = pod.spec.as_ref().and_then(|spec| spec.affinity.as_ref());
    let terms = affinity
        .and_then(|affinity| affinity.node_affinity.as_ref())
        .and_then(|node| node.preferred_during_scheduling_ignored_during_execution.as_ref());
    terms
        .into_iter()
        .flatten()
        .filter(|term| term_matches(&term.preference, info.node))
        .map(|term| i64::from(term.weight))
        .sum()
}

/// The used fraction of cpu and memory with the pod, in thousandths.
fn used(info: &NodeInfo<'_>, load: (i128, i128)) -> [i64; 2] {
    let fraction = |name: &str, taken: i128| {
        let allocatable = info.allocatable.get(name).copied().unwrap_or(0);
        if allocatable <= 0 {
            return 1000;
        }
        i64::try_from((taken * 1000 / allocatable).clamp(0, 1000)).unwrap_or(1000)
    };
    let (cpu, memory) = info.weighed;
    [fraction("cpu", cpu + load.0), fraction("memory", memory + load.1)]
}

fn least_allocated(info: &NodeInfo<'_>, load: (i128, i128)) -> i64 {
    used(info, load).iter().map(|used| (1000 - used) / 10).sum::<i64>() / 2
}

fn balanced(info: &NodeInfo<'_>, load: (i128, i128)) -> i64 {
    let [cpu, memory] = used(info, load);
    100 - (cpu - memory).abs() / 20
}
