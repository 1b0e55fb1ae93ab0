//! Which failed pods count against a Job, and what else ends it: `podFailurePolicy`, `backoffLimitPerIndex`, `successPolicy`.
//!
//! Upstream counterparts: `pod_failure_policy.go`, `backoff_utils.go` and `success_policy.go` in `pkg/controller/job`.

use std::collections::{BTreeMap, BTreeSet};

use api::Kind;
use api::batch::{JobSpec, PodFailurePolicyOnExitCodesRequirement, PodFailurePolicyRule};
use api::core::{ContainerStatus, Pod};

use super::index_of;
use crate::podfacts;

/// What the failed pods of a Job mean for it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Failures {
    /// Pods that count.
    pub(super) counted: usize,
    /// Failures by index, of pods that count.
    pub(super) by_index: BTreeMap<i32, usize>,
    /// Indexes that are not tried again.
    pub(super) indexes: BTreeSet<i32>,
    /// Why the Job fails at once.
    pub(super) fatal: Option<String>,
}

/// Sums up the failed ones of `pods`.
pub(super) fn sum<'a>(spec: &JobSpec, pods: impl Iterator<Item = &'a Pod>) -> Failures {
    let mut failures = Failures::default();
    for pod in pods.filter(|pod| podfacts::phase(pod) == "Failed") {
        let verdict = verdict(spec, pod);
        if let Verdict::FailJob(why) = &verdict {
            failures.fatal.get_or_insert_with(|| why.clone());
        }
        if verdict == Verdict::Ignore {
            continue;
        }
        failures.counted += 1;
        let Some(index) = index_of(pod) else { continue };
        let times = failures.by_index.entry(index).or_default();
        *times += 1;
        let limit = spec.backoff_limit_per_index.and_then(|limit| usize::try_from(limit).ok());
        if limit.is_some_and(|limit| *times > limit || verdict == Verdict::FailIndex) {
            failures.indexes.insert(index);
        }
    }
    failures
}

#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Count,
    Ignore,
    FailIndex,
    FailJob(String),
}

/// The first rule that is about the pod decides.
fn verdict(spec: &JobSpec, pod: &Pod) -> Verdict {
    let rules = spec.pod_failure_policy.iter().flat_map(|policy| &policy.rules);
    for (position, rule) in rules.enumerate() {
        let Some(found) = matched(rule, pod) else { continue };
        let action = rule.action.as_str();
        return match action {
            "Ignore" => Verdict::Ignore,
            "FailIndex" => Verdict::FailIndex,
            "FailJob" => {
                Verdict::FailJob(format!("{found} matching {action} rule at index {position}"))
            }
            _ => Verdict::Count,
        };
    }
    Verdict::Count
}

/// What of the pod a rule is about, in upstream's words.
fn matched(rule: &PodFailurePolicyRule, pod: &Pod) -> Option<String> {
    let status = pod.status.as_ref()?;
    let place = format!("{}/{}", pod.namespace(), pod.name());
    if let Some(codes) = &rule.on_exit_codes {
        let main = status.container_statuses.iter().flatten();
        let mut all = main.chain(status.init_container_statuses.iter().flatten());
        let (name, code) = all.find_map(|one| Some((&one.name, exit_code(codes, one)?)))?;
        return Some(format!("Container {name} for pod {place} failed with exit code {code}"));
    }
    let patterns = rule.on_pod_conditions.as_ref()?;
    let mut conditions = status.conditions.iter().flatten();
    let found = conditions.find(|condition| {
        patterns.iter().any(|pattern| {
            let wanted = pattern.status.as_deref().unwrap_or("True");
            pattern.type_ == condition.type_ && wanted == condition.status
        })
    })?;
    Some(format!("Pod {place} has condition {}", found.type_))
}

/// The container's exit code, if the rule is about it.
fn exit_code(
    rule: &PodFailurePolicyOnExitCodesRequirement,
    container: &ContainerStatus,
) -> Option<i32> {
    if rule.container_name.as_ref().is_some_and(|name| *name != container.name) {
        return None;
    }
    let code = container.state.as_ref()?.terminated.as_ref()?.exit_code;
    let listed = rule.values.contains(&code);
    (code != 0 && listed == (rule.operator == "In")).then_some(code)
}

/// The position of the first rule of the success policy that the succeeded indexes fulfil.
pub(super) fn success_rule(spec: &JobSpec, succeeded: &BTreeSet<i32>) -> Option<usize> {
    spec.success_policy.as_ref()?.rules.iter().position(|rule| {
        let least = rule.succeeded_count.and_then(|count| usize::try_from(count).ok());
        match &rule.succeeded_indexes {
            Some(text) => {
                let named = parse_ranges(text);
                let met = named.iter().filter(|index| succeeded.contains(index)).count();
                met >= least.unwrap_or(named.len())
            }
            None => least.is_some_and(|least| succeeded.len() >= least),
        }
    })
}

/// `0-2,4` as numbers; what is malformed is left out.
fn parse_ranges(text: &str) -> BTreeSet<i32> {
    let mut numbers = BTreeSet::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        if let (Ok(first), Ok(last)) = (first.parse::<i32>(), last.parse::<i32>()) {
            numbers.extend(first..=last);
        }
    }
    numbers
}
