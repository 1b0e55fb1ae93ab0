//! What goes when its owners go: background, foreground and orphaning deletion. Upstream: `pkg/controller/garbagecollector`.

use api::Name;
use api::meta::{ObjectMeta, OwnerReference};
use serde_json::json;

use crate::action::{Action, ObjectKind, Plan as Writes};

const FOREGROUND: &str = "foregroundDeletion";
const ORPHAN: &str = "orphan";

/// One object of the graph.
#[derive(Clone, Debug, PartialEq)]
pub struct Item {
    /// Its kind.
    pub kind: ObjectKind,
    /// Its name.
    pub name: Name,
    /// Its uid.
    pub uid: String,
    /// Its resourceVersion.
    pub revision: Option<String>,
    /// Its owners.
    pub owners: Vec<OwnerReference>,
    /// Whether its deletion was asked for.
    pub deleting: bool,
    /// What holds its deletion.
    pub finalizers: Vec<String>,
}

impl Item {
    /// The item of an object.
    #[must_use]
    pub fn new(kind: ObjectKind, name: Name, meta: &ObjectMeta) -> Self {
        Self {
            kind,
            name,
            uid: meta.uid.clone().unwrap_or_default(),
            revision: meta.resource_version.clone(),
            owners: meta.owner_references.clone().unwrap_or_default(),
            deleting: meta.deletion_timestamp.is_some(),
            finalizers: meta.finalizers.clone().unwrap_or_default(),
        }
    }

    fn has(&self, finalizer: &str) -> bool {
        self.finalizers.iter().any(|one| one == finalizer)
    }

    fn waits_for_dependents(&self) -> bool {
        self.deleting && self.has(FOREGROUND)
    }
}

/// All objects by uid, and who depends on whom. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Graph {
    items: imbl::OrdMap<String, Item>,
    /// Pairs of owner and dependent.
    edges: imbl::OrdSet<(String, String)>,
}

impl Graph {
    /// Adds or replaces an object.
    pub fn insert(&mut self, item: Item) {
        self.unlink(&item.uid);
        for owner in &item.owners {
            self.edges.insert((owner.uid.clone(), item.uid.clone()));
        }
        self.items.insert(item.uid.clone(), item);
    }

    /// Forgets an object.
    pub fn remove(&mut self, uid: &str) {
        self.unlink(uid);
        self.items.remove(uid);
    }

    fn unlink(&mut self, uid: &str) {
        let owners = self.items.get(uid).map(|item| item.owners.clone());
        for owner in owners.into_iter().flatten() {
            self.edges.remove(&(owner.uid, uid.to_owned()));
        }
    }

    /// The uids of the objects that name `uid` as an owner.
    pub fn dependents<'a>(&'a self, uid: &'a str) -> impl Iterator<Item = &'a str> {
        self.edges
            .range((uid.to_owned(), String::new())..)
            .take_while(move |(owner, _)| owner == uid)
            .map(|(_, dependent)| dependent.as_str())
    }

    fn item(&self, uid: &str) -> Option<&Item> {
        self.items.get(uid)
    }
}

/// Writes that hold only if some owners are really gone.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// Owners that the graph does not know: each must be asked for, because the graph may lag behind.
    pub absent: Vec<(ObjectKind, Name, String)>,
    /// The writes.
    pub writes: Writes,
}

/// Decides about one object by its uid.
#[must_use]
pub fn plan(graph: &Graph, uid: &str) -> Plan {
    let mut plan = Plan::default();
    let Some(item) = graph.item(uid) else { return plan };
    if item.deleting {
        finish(graph, item, &mut plan);
        return plan;
    }
    let (mut solid, mut gone) = (Vec::new(), Vec::new());
    let mut waiting = false;
    for owner in &item.owners {
        match graph.item(&owner.uid) {
            Some(one) if one.waits_for_dependents() => {
                waiting = true;
                gone.push(owner);
            }
            Some(_) => solid.push(owner),
            None => match ObjectKind::named(&owner.api_version, &owner.kind) {
                // A kind that this collector does not watch: never deleted on its account.
                None => solid.push(owner),
                Some(kind) => {
                    let namespace = if kind.is_namespaced() { &*item.name.namespace } else { "" };
                    let name = Name::new(namespace, &owner.name);
                    plan.absent.push((kind, name, owner.uid.clone()));
                    gone.push(owner);
                }
            },
        }
    }
    if gone.is_empty() {
        return plan;
    }
    if solid.is_empty() {
        let blocks = graph.dependents(uid).next().is_some();
        let propagation = if item.has(ORPHAN) {
            "Orphan"
        } else if item.has(FOREGROUND) || (waiting && blocks) {
            "Foreground"
        } else {
            "Background"
        };
        plan.writes.push(Action::Delete {
            kind: item.kind,
            name: item.name.clone(),
            uid: item.uid.clone(),
            grace: None,
            propagation: Some(propagation),
        });
    } else {
        plan.writes.push(patch(item, &json!({ "ownerReferences": solid })));
    }
    plan
}

/// The last steps of an object that is being deleted: orphan its dependents, or wait for them.
fn finish(graph: &Graph, item: &Item, plan: &mut Plan) {
    let dependents = || graph.dependents(&item.uid).filter_map(|uid| graph.item(uid));
    let without = |finalizer: &str| {
        let left: Vec<_> = item.finalizers.iter().filter(|one| *one != finalizer).collect();
        patch(item, &json!({ "finalizers": left }))
    };
    if item.has(ORPHAN) {
        for dependent in dependents() {
            let owners: Vec<_> =
                dependent.owners.iter().filter(|owner| owner.uid != item.uid).collect();
            plan.writes.push(patch(dependent, &json!({ "ownerReferences": owners })));
        }
        plan.writes.push(without(ORPHAN));
    } else if item.has(FOREGROUND) {
        let blocked = dependents().any(|dependent| {
            dependent
                .owners
                .iter()
                .any(|owner| owner.uid == item.uid && owner.block_owner_deletion == Some(true))
        });
        if !blocked {
            plan.writes.push(without(FOREGROUND));
        }
    }
}

fn patch(item: &Item, metadata: &serde_json::Value) -> Action {
    let mut metadata = metadata.clone();
    if let Some(fields) = metadata.as_object_mut() {
        fields.insert("uid".into(), item.uid.clone().into());
        fields.insert("resourceVersion".into(), item.revision.clone().into());
    }
    Action::Patch {
        kind: item.kind,
        name: item.name.clone(),
        status: false,
        patch: json!({ "metadata": metadata }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(kind: ObjectKind, name: &str, owners: &[&str]) -> Item {
        let owners = owners.iter().map(|owner| OwnerReference {
            api_version: "apps/v1".into(),
            kind: "ReplicaSet".into(),
            name: (*owner).into(),
            uid: (*owner).into(),
            block_owner_deletion: Some(true),
            controller: None,
        });
        Item {
            kind,
            name: Name::new("a", name),
            uid: name.into(),
            revision: None,
            owners: owners.collect(),
            deleting: false,
            finalizers: Vec::new(),
        }
    }

    fn graph(items: &[Item]) -> Graph {
        let mut graph = Graph::default();
        items.iter().cloned().for_each(|item| graph.insert(item));
        graph
    }

    #[test]
    fn dependents_go_with_their_last_owner() {
        let pod = item(ObjectKind::Pod, "pod", &["set"]);
        let set = item(ObjectKind::ReplicaSet, "set", &[]);
        let mut graph = graph(&[pod, set]);
        assert_eq!(plan(&graph, "pod"), Plan::default());
        graph.remove("set");
        let plan_ = plan(&graph, "pod");
        assert_eq!(
            plan_.absent,
            [(ObjectKind::ReplicaSet, Name::new("a", "set"), "set".to_owned())]
        );
        assert!(matches!(
            plan_.writes.actions.as_slice(),
            [Action::Delete { propagation: Some("Background"), .. }]
        ));
    }

    #[test]
    fn a_second_owner_keeps_a_dependent() {
        let pod = item(ObjectKind::Pod, "pod", &["set", "other"]);
        let graph = graph(&[pod, item(ObjectKind::ReplicaSet, "other", &[])]);
        let plan = plan(&graph, "pod");
        assert!(matches!(plan.writes.actions.as_slice(), [Action::Patch { .. }]));
    }

    #[test]
    fn foreground_deletion_waits_for_dependents() {
        let mut set = item(ObjectKind::ReplicaSet, "set", &[]);
        set.deleting = true;
        set.finalizers = vec![FOREGROUND.into()];
        let mut graph = graph(&[set, item(ObjectKind::Pod, "pod", &["set"])]);
        assert_eq!(plan(&graph, "set"), Plan::default());
        assert!(matches!(plan(&graph, "pod").writes.actions.as_slice(), [Action::Delete { .. }]));
        graph.remove("pod");
        assert!(matches!(plan(&graph, "set").writes.actions.as_slice(), [Action::Patch { .. }]));
    }

    #[test]
    fn orphaning_takes_the_owner_away_and_keeps_the_rest() {
        let mut set = item(ObjectKind::ReplicaSet, "set", &[]);
        set.deleting = true;
        set.finalizers = vec![ORPHAN.into()];
        let graph = graph(&[set, item(ObjectKind::Pod, "pod", &["set"])]);
        let plan = plan(&graph, "set");
        let [Action::Patch { patch, .. }, Action::Patch { kind: ObjectKind::ReplicaSet, .. }] =
            plan.writes.actions.as_slice()
        else {
            panic!("{plan:?}");
        };
        assert_eq!(patch["metadata"]["ownerReferences"], json!([]));
    }
}
