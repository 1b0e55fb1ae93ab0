//! The end of a namespace: what is deleted, what stays and why. Upstream counterpart: `pkg/controller/namespace/deletion`.

use std::collections::BTreeMap;
use std::time::Duration;

use api::core::{Namespace, NamespaceCondition};
use api::meta::Time;
use api::{Kind, Name, Objects};
use jiff::Timestamp;
use serde_json::Value;

/// The finalizer that stands for the namespace's contents.
const FINALIZER: &str = "kubernetes";
/// How soon contents that stayed are looked at again.
pub const RETRY: Duration = Duration::from_millis(500);

/// What to do with one namespace.
#[derive(Clone, Debug, PartialEq)]
pub enum Plan {
    /// It lives, or others still hold it.
    Nothing,
    /// Delete everything in it, and then its finalizer.
    Empty(Box<Namespace>),
}

/// Decides whether a namespace is to be emptied.
#[must_use]
pub fn plan(namespaces: &Objects<Namespace>, name: &str) -> Plan {
    let Some(namespace) = namespaces.get(&Name::cluster(name)) else { return Plan::Nothing };
    let finalizers = namespace.spec.as_ref().and_then(|spec| spec.finalizers.as_ref());
    let held = finalizers.is_some_and(|all| all.iter().any(|one| one == FINALIZER));
    if namespace.is_deleting() && held {
        Plan::Empty(Box::new(Namespace::clone(namespace)))
    } else {
        Plan::Nothing
    }
}

/// The namespace without its finalizer, for the `finalize` subresource.
#[must_use]
pub fn ended(namespace: &Namespace) -> Namespace {
    let mut namespace = namespace.clone();
    let finalizers = namespace.spec.get_or_insert_default().finalizers.get_or_insert_default();
    finalizers.retain(|one| one != FINALIZER);
    namespace
}

/// A namespaced resource as discovery lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resource {
    /// `/api/v1`, `/apis/apps/v1`.
    pub root: String,
    /// The plural.
    pub name: String,
}

impl Resource {
    /// The namespaced resources of a discovery document that can be listed and deleted; pods last but for what they mount.
    #[must_use]
    pub fn deletable(root: &str, list: &Value) -> Vec<Self> {
        let all = list["resources"].as_array().into_iter().flatten();
        let usable = all.filter(|one| {
            let can = |verb: &str| {
                one["verbs"].as_array().is_some_and(|all| all.iter().any(|have| have == verb))
            };
            one["namespaced"] == true && can("list") && can("delete")
        });
        usable
            .filter_map(|one| one["name"].as_str())
            .filter(|name| !name.contains('/'))
            .map(|name| Self { root: root.to_owned(), name: name.to_owned() })
            .collect()
    }

    /// The path of the collection in a namespace.
    #[must_use]
    pub fn path(&self, namespace: &str) -> String {
        format!("{}/namespaces/{namespace}/{}", self.root, self.name)
    }

    /// `pods.`, `deployments.apps`: how conditions name it.
    #[must_use]
    pub fn qualified(&self) -> String {
        let group = self.root.strip_prefix("/apis/").and_then(|one| one.split('/').next());
        format!("{}.{}", self.name, group.unwrap_or(""))
    }
}

/// What is left in a namespace after a round of deletions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Contents {
    counts: BTreeMap<String, usize>,
    finalizers: BTreeMap<String, usize>,
    failures: Vec<String>,
}

impl Contents {
    /// Whether nothing is left and nothing failed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.counts.is_empty() && self.failures.is_empty()
    }

    /// Notes a failed deletion.
    pub fn fail(&mut self, resource: &Resource, error: &str) {
        self.failures.push(format!("{}: {error}", resource.qualified()));
    }

    /// Counts objects that are still there, and the finalizers that hold them.
    pub fn count(&mut self, resource: &Resource, items: &[Value]) {
        if !items.is_empty() {
            *self.counts.entry(resource.qualified()).or_default() += items.len();
        }
        for item in items {
            let all = item["metadata"]["finalizers"].as_array().into_iter().flatten();
            for one in all.filter_map(Value::as_str) {
                *self.finalizers.entry(one.to_owned()).or_default() += 1;
            }
        }
    }
}

/// The namespace with conditions that tell what is left; `None` when they already do.
#[must_use]
pub fn status(namespace: &Namespace, left: &Contents, now: Timestamp) -> Option<Namespace> {
    let join = |all: &BTreeMap<String, usize>, what: &str| {
        let all: Vec<_> = all
            .iter()
            .map(|(name, count)| match what {
                "resource" => format!("{name} has {count} resource instances"),
                _ => format!("{name} in {count} resource instances"),
            })
            .collect();
        all.join(", ")
    };
    let rows: [(&str, &str, &str, String, String); 3] = [
        (
            "NamespaceDeletionContentFailure",
            "ContentDeletionFailed",
            "ContentDeleted",
            left.failures.join(", "),
            "All content successfully deleted, may be waiting on finalization".into(),
        ),
        (
            "NamespaceContentRemaining",
            "SomeResourcesRemain",
            "ContentRemoved",
            if left.counts.is_empty() {
                String::new()
            } else {
                format!("Some resources are remaining: {}", join(&left.counts, "resource"))
            },
            "All content successfully removed".into(),
        ),
        (
            "NamespaceFinalizersRemaining",
            "SomeFinalizersRemain",
            "ContentHasNoFinalizers",
            if left.finalizers.is_empty() {
                String::new()
            } else {
                let all = join(&left.finalizers, "finalizer");
                format!("Some content in the namespace has finalizers remaining: {all}")
            },
            "All content-preserving finalizers finished".into(),
        ),
    ];
    let mut changed = namespace.clone();
    let status = changed.status.get_or_insert_default();
    status.phase = Some("Terminating".into());
    let conditions = status.conditions.get_or_insert_default();
    for (type_, bad, good, problem, fine) in rows {
        let trouble = !problem.is_empty();
        let value = if trouble { "True" } else { "False" };
        let message = if trouble { problem } else { fine };
        let reason = if trouble { bad } else { good };
        let old = conditions.iter().find(|one| one.type_ == type_);
        let since = old.filter(|one| one.status == value);
        let since = since.and_then(|one| one.last_transition_time.clone());
        let condition = NamespaceCondition {
            type_: type_.into(),
            status: value.into(),
            reason: Some(reason.into()),
            message: Some(message),
            last_transition_time: since.or(Some(Time(now))),
        };
        conditions.retain(|one| one.type_ != type_);
        conditions.push(condition);
    }
    (changed != *namespace).then_some(changed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_holds_a_namespace_is_told() {
        let list = json!({"resources": [
            {"name": "pods", "namespaced": true, "verbs": ["list", "delete"]},
            {"name": "pods/log", "namespaced": true, "verbs": ["get"]},
            {"name": "bindings", "namespaced": true, "verbs": ["create"]},
            {"name": "nodes", "namespaced": false, "verbs": ["list", "delete"]},
        ]});
        let resources = Resource::deletable("/api/v1", &list);
        assert_eq!(resources.len(), 1);
        assert_eq!(resources[0].path("a"), "/api/v1/namespaces/a/pods");
        let mut left = Contents::default();
        left.count(&resources[0], &[json!({"metadata": {"finalizers": ["x/y"]}})]);
        let changed = status(&Namespace::default(), &left, Timestamp::UNIX_EPOCH).expect("news");
        let conditions = changed.status.as_ref().and_then(|one| one.conditions.clone());
        let messages: Vec<_> =
            conditions.into_iter().flatten().filter_map(|one| one.message).collect();
        assert_eq!(
            messages,
            [
                "All content successfully deleted, may be waiting on finalization",
                "Some resources are remaining: pods. has 1 resource instances",
                "Some content in the namespace has finalizers remaining: x/y in 1 resource instances",
            ]
        );
        assert_eq!(status(&changed, &left, Timestamp::UNIX_EPOCH), None);
    }
}
