//! Facts on objects of any kind: who owns them, references to them, walks over collections, selectors over labels.

use std::collections::BTreeMap;
use std::sync::Arc;

use api::core::ObjectReference;
use api::meta::{LabelSelector, LabelSelectorRequirement};
use api::{Kind, Name, Objects};

/// Labels, annotations, selectors.
pub type Labels = BTreeMap<String, String>;

/// The objects of one namespace, by name.
pub fn in_namespace<'a, K>(
    objects: &'a Objects<K>,
    namespace: &str,
) -> impl Iterator<Item = &'a Arc<K>> + use<'a, K> {
    let first = Name::new(namespace, "");
    let namespace = Arc::clone(&first.namespace);
    objects
        .range(first..)
        .take_while(move |(name, _)| name.namespace == namespace)
        .map(|(_, object)| object)
}

/// A reference to `object`, as events and owners carry it.
#[must_use]
pub fn reference<K: Kind>(object: &K) -> ObjectReference {
    let text = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    ObjectReference {
        api_version: Some(K::API_VERSION.to_owned()),
        kind: Some(K::KIND.to_owned()),
        namespace: text(object.namespace()),
        name: text(object.name()),
        uid: text(object.uid()),
        resource_version: object.meta().resource_version.clone(),
        field_path: None,
    }
}

/// Whether `owner` controls `object`.
pub fn is_controlled_by<K: Kind, O: Kind>(object: &K, owner: &O) -> bool {
    object.controller().is_some_and(|controller| controller.uid == owner.uid())
}

/// The value of a label, if set.
pub fn label<'a, K: Kind>(object: &'a K, key: &str) -> Option<&'a str> {
    object.meta().labels.as_ref()?.get(key).map(String::as_str)
}

/// The value of an annotation, if set.
pub fn annotation<'a, K: Kind>(object: &'a K, key: &str) -> Option<&'a str> {
    object.meta().annotations.as_ref()?.get(key).map(String::as_str)
}

/// Whether a map selector matches: every pair is present. An empty one matches everything.
#[must_use]
pub fn map_matches(selector: &Labels, labels: Option<&Labels>) -> bool {
    selector.iter().all(|(key, value)| labels.and_then(|labels| labels.get(key)) == Some(value))
}

/// Whether a label selector matches. An empty one matches everything; an unknown operator nothing.
#[must_use]
pub fn matches(selector: &LabelSelector, labels: Option<&Labels>) -> bool {
    let exact = selector.match_labels.as_ref().is_none_or(|map| map_matches(map, labels));
    let mut rules = selector.match_expressions.iter().flatten();
    exact && rules.all(|rule| requirement_matches(rule, labels))
}

fn requirement_matches(rule: &LabelSelectorRequirement, labels: Option<&Labels>) -> bool {
    let value = labels.and_then(|labels| labels.get(&rule.key));
    let listed = |value: &String| rule.values.iter().flatten().any(|one| one == value);
    match rule.operator.as_str() {
        "In" => value.is_some_and(listed),
        "NotIn" => !value.is_some_and(listed),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(text: &str) -> Labels {
        text.split(',')
            .filter_map(|pair| pair.split_once('='))
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect()
    }

    #[test]
    fn selectors_match_as_upstream() {
        let rule = |key: &str, operator: &str, values: &[&str]| LabelSelector {
            match_expressions: Some(vec![LabelSelectorRequirement {
                key: key.into(),
                operator: operator.into(),
                values: Some(values.iter().map(ToString::to_string).collect()),
            }]),
            match_labels: None,
        };
        let have = labels("app=web,tier=front");
        for (selector, expected) in [
            (rule("app", "In", &["web", "db"]), true),
            (rule("app", "In", &["db"]), false),
            (rule("app", "NotIn", &["db"]), true),
            (rule("zone", "NotIn", &["a"]), true),
            (rule("zone", "Exists", &[]), false),
            (rule("zone", "DoesNotExist", &[]), true),
            (rule("app", "Near", &[]), false),
            (LabelSelector::default(), true),
        ] {
            assert_eq!(matches(&selector, Some(&have)), expected, "{selector:?}");
        }
    }

    #[test]
    fn a_namespace_is_walked_alone() {
        let pod = |namespace: &str, name: &str| {
            let mut pod = api::core::Pod::default();
            pod.metadata.namespace = Some(namespace.into());
            pod.metadata.name = Some(name.into());
            (pod.object_name(), Arc::new(pod))
        };
        let pods: Objects<api::core::Pod> =
            [pod("a", "x"), pod("b", "x"), pod("b", "y"), pod("bb", "z")].into_iter().collect();
        let names: Vec<_> = in_namespace(&pods, "b").map(|pod| pod.name().to_owned()).collect();
        assert_eq!(names, ["x", "y"]);
    }
}
