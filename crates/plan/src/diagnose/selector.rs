//! A selector that matches no pod: which pods it nearly matches.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use api::Kind;
use api::core::{Pod, Service};

use super::{Evidence, Problem, Reason, count, near};
use crate::objects::{Labels, in_namespace, map_matches};
use crate::podfacts;

/// Pods of other namespaces that are looked at, at most: a hint is not worth a walk over a whole cluster.
const ELSEWHERE_MAX: usize = 10_000;
/// Misses that are told, the nearest first.
const TOLD_MAX: usize = 2;

/// How near a miss is: the smaller, the nearer.
type Rank = (usize, usize, Reverse<usize>);

/// The selector as `kubectl -l` takes it.
pub(super) fn text(selector: &Labels) -> String {
    let pairs: Vec<String> = selector.iter().map(|(key, value)| format!("{key}={value}")).collect();
    pairs.join(",")
}

/// No pod matches.
pub(super) fn problem(service: &Service, evidence: &Evidence<'_>) -> Problem {
    let selector = service.spec.as_ref().and_then(|spec| spec.selector.clone());
    let selector = selector.unwrap_or_default();
    let pods = || in_namespace(evidence.pods, service.namespace()).map(AsRef::as_ref);
    let mut misses = misses(&selector, pods().filter(|pod| podfacts::is_active(pod)));
    if let Some(elsewhere) = elsewhere(&selector, service, evidence) {
        misses.truncate(TOLD_MAX - 1);
        misses.push(elsewhere);
    }
    misses.truncate(TOLD_MAX);
    if misses.is_empty() && pods().next().is_none() {
        misses.push(format!("namespace {} has no pods", service.namespace()));
    }
    let message = format!("selector {} matches no pod", text(&selector));
    let words: Vec<String> = std::iter::once(message).chain(misses).collect();
    Problem::new(Reason::SelectorMatchesNoPods, words.join("; "))
}

/// What pods have instead, the nearest first.
fn misses<'a>(selector: &Labels, pods: impl Iterator<Item = &'a Pod>) -> Vec<String> {
    let empty = Labels::new();
    let mut found: BTreeMap<(usize, usize, String), usize> = BTreeMap::new();
    for pod in pods {
        let labels = pod.metadata.labels.as_ref().unwrap_or(&empty);
        let unmet: Vec<(&String, &String)> =
            selector.iter().filter(|(key, value)| labels.get(*key) != Some(*value)).collect();
        // One pair missed by a pod that has all others, or by any pod if it is the only one.
        let [(key, value)] = unmet.as_slice() else { continue };
        let Some((class, far, words)) = miss(selector.len(), key, value, labels) else { continue };
        *found.entry((class, far, words)).or_default() += 1;
    }
    let mut ranked: Vec<(Rank, String)> = found
        .into_iter()
        .map(|((class, far, words), pods)| ((class, far, Reverse(pods)), words))
        .collect();
    ranked.sort();
    ranked
        .into_iter()
        .map(|((_, _, Reverse(pods)), words)| {
            let have = if pods == 1 { "has" } else { "have" };
            format!("{} {}", count(pods, "pod"), words.replacen("have", have, 1))
        })
        .collect()
}

/// How a pod misses one pair of the selector: by its value, by its key, or by having no such label.
fn miss(pairs: usize, key: &str, value: &str, labels: &Labels) -> Option<(usize, usize, String)> {
    let others = if pairs > 1 { ", and match otherwise" } else { "" };
    if let Some(instead) = labels.get(key)
        && let Some(far) = near::distance(instead, value)
    {
        return Some((0, far, format!("have {key}={instead}{others}")));
    }
    let other_keys = labels.iter().filter(|(other, _)| *other != key);
    let by_key = other_keys
        .filter_map(|(other, instead)| {
            let far = near::distance(instead, value)?;
            let keys = near::distance(other, key);
            (far == 0 || keys.is_some_and(|keys| keys < 4))
                .then(|| (far + keys.unwrap_or(5), other, instead))
        })
        .min();
    if let Some((far, other, instead)) = by_key {
        return Some((1, far, format!("have {other}={instead}{others}")));
    }
    if pairs == 1 {
        return None;
    }
    let instead = labels.get(key).map_or_else(
        || format!("have no label {key}{others}"),
        |instead| format!("have {key}={instead}{others}"),
    );
    Some((2, 0, instead))
}

/// Pods of another namespace that the selector matches.
fn elsewhere(selector: &Labels, service: &Service, evidence: &Evidence<'_>) -> Option<String> {
    let mut namespaces: BTreeMap<&str, usize> = BTreeMap::new();
    for pod in evidence.pods.values().take(ELSEWHERE_MAX) {
        let matches = pod.namespace() != service.namespace()
            && podfacts::is_active(pod)
            && map_matches(selector, pod.metadata.labels.as_ref());
        if matches {
            *namespaces.entry(pod.namespace()).or_default() += 1;
        }
    }
    let (namespace, pods) = namespaces.into_iter().max_by_key(|(_, pods)| *pods)?;
    let verb = if pods == 1 { "does" } else { "do" };
    Some(format!("{} in namespace {namespace} {verb}", count(pods, "pod")))
}
