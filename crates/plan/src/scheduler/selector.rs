//! Node selectors, taints and tolerations. Upstream counterpart: `k8s.io/component-helpers/scheduling/corev1`.

use api::Kind;
use api::core::{
    Node, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, Pod, Taint, Toleration,
};

/// Whether a node selector matches: one of its terms does.
#[must_use]
pub fn node_matches(selector: &NodeSelector, node: &Node) -> bool {
    selector.node_selector_terms.iter().any(|term| term_matches(term, node))
}

/// Whether a term matches; an empty one matches nothing.
pub(super) fn term_matches(term: &NodeSelectorTerm, node: &Node) -> bool {
    let rules = term.match_expressions.as_deref().unwrap_or(&[]);
    let fields = term.match_fields.as_deref().unwrap_or(&[]);
    let labels = node.metadata.labels.as_ref();
    (!rules.is_empty() || !fields.is_empty())
        && rules
            .iter()
            .all(|rule| holds(rule, labels.and_then(|all| all.get(&rule.key)).map(String::as_str)))
        && fields.iter().all(|rule| rule.key == "metadata.name" && holds(rule, Some(node.name())))
}

fn holds(rule: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let values = rule.values.as_deref().unwrap_or(&[]);
    let listed = value.is_some_and(|value| values.iter().any(|one| one == value));
    let numbers = || {
        let limit: i64 = values.first()?.parse().ok()?;
        Some((value?.parse::<i64>().ok()?, limit))
    };
    match rule.operator.as_str() {
        "In" => listed,
        "NotIn" => !listed,
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => numbers().is_some_and(|(value, limit)| value > limit),
        "Lt" => numbers().is_some_and(|(value, limit)| value < limit),
        _ => false,
    }
}

/// Whether the pod's nodeSelector and required node affinity match.
pub(super) fn pod_matches_node(pod: &Pod, node: &Node) -> bool {
    let Some(spec) = &pod.spec else { return true };
    let labels = node.metadata.labels.as_ref();
    let exact = spec.node_selector.as_ref();
    let required = spec
        .affinity
        .as_ref()
        .and_then(|affinity| affinity.node_affinity.as_ref())
        .and_then(|node| node.required_during_scheduling_ignored_during_execution.as_ref());
    exact.is_none_or(|exact| crate::objects::map_matches(exact, labels))
        && required.is_none_or(|selector| node_matches(selector, node))
}

/// Whether one of the tolerations tolerates the taint.
#[must_use]
pub fn tolerates(tolerations: &[Toleration], taint: &Taint) -> bool {
    tolerations.iter().any(|one| {
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        let (effect, key) = (text(&one.effect), text(&one.key));
        (effect.is_empty() || effect == taint.effect)
            && (key.is_empty() || key == taint.key)
            && match one.operator.as_deref().unwrap_or("Equal") {
                "Exists" => true,
                "Equal" | "" => !key.is_empty() && text(&one.value) == text(&taint.value),
                _ => false,
            }
    })
}

/// The pod's tolerations.
pub(super) fn tolerations(pod: &Pod) -> &[Toleration] {
    pod.spec.as_ref().and_then(|spec| spec.tolerations.as_deref()).unwrap_or(&[])
}

/// The first taint that keeps the pod away from the node.
pub(super) fn untolerated<'a>(pod: &Pod, node: &'a Node) -> Option<&'a Taint> {
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_deref()).unwrap_or(&[]);
    taints
        .iter()
        .filter(|taint| matches!(taint.effect.as_str(), "NoSchedule" | "NoExecute"))
        .find(|taint| !tolerates(tolerations(pod), taint))
}
