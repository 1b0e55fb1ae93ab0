//! Objects by another object's name: the slices of a Service, the pods of a node. Kept in step by a reflector, so that a
//! lookup does not walk the collection. Upstream counterpart: client-go's indexers.

use std::collections::BTreeMap;
use std::sync::Arc;

use api::{Kind, Name, Objects};
use parking_lot::RwLock;

use crate::reflector::{Change, Reflector};

/// Objects of one kind, grouped by the names that a function gives them. Clones share it.
pub struct Index<K> {
    groups: Arc<RwLock<BTreeMap<Name, Objects<K>>>>,
}

impl<K> Clone for Index<K> {
    fn clone(&self) -> Self {
        Self { groups: Arc::clone(&self.groups) }
    }
}

impl<K> std::fmt::Debug for Index<K> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Index").field("groups", &self.groups.read().len()).finish()
    }
}

impl<K: Kind> Index<K> {
    /// Groups the objects of `reflector` by `group`. Make it before the inputs of the loop that reads it, so that it
    /// hears of every change first.
    pub fn new(
        reflector: &Reflector<K>,
        group: impl Fn(&K) -> Option<Name> + Send + Sync + 'static,
    ) -> Self {
        let index = Self { groups: Arc::default() };
        let groups = Arc::clone(&index.groups);
        reflector.listen(move |change| apply(&mut groups.write(), change, &group));
        index
    }

    /// The objects of one group: a snapshot.
    #[must_use]
    pub fn get(&self, group: &Name) -> Objects<K> {
        self.groups.read().get(group).cloned().unwrap_or_default()
    }
}

fn apply<K>(
    groups: &mut BTreeMap<Name, Objects<K>>,
    change: &Change<'_, K>,
    group: &impl Fn(&K) -> Option<Name>,
) {
    let before = change.old.and_then(|old| group(old));
    let after = change.new.and_then(|new| group(new));
    if let Some(left) = before.filter(|before| Some(before) != after.as_ref())
        && let Some(members) = groups.get_mut(&left)
    {
        members.remove(change.name);
        if members.is_empty() {
            groups.remove(&left);
        }
    }
    if let (Some(joined), Some(object)) = (after, change.new) {
        groups.entry(joined).or_default().insert(change.name.clone(), Arc::clone(object));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use api::core::Pod;

    fn pod(name: &str, node: &str) -> Pod {
        serde_json::from_value(serde_json::json!({
            "metadata": {"namespace": "default", "name": name, "resourceVersion": node.len().to_string()},
            "spec": {"nodeName": node, "containers": []},
        }))
        .unwrap()
    }

    #[tokio::test]
    async fn objects_follow_their_group() {
        let pods = Reflector::fixed([pod("a", "n1"), pod("b", "n1")]);
        let index = Index::new(&pods, |pod: &Pod| {
            Some(Name::cluster(pod.spec.as_ref()?.node_name.as_deref()?))
        });
        assert_eq!(index.get(&Name::cluster("n1")).len(), 2);
        pods.replace(vec![pod("a", "n22")], 2);
        assert!(index.get(&Name::cluster("n1")).is_empty());
        assert_eq!(index.get(&Name::cluster("n22")).len(), 1);
    }
}
