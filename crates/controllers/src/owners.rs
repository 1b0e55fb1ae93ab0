//! Which keys a changed object makes dirty: its controller, or the workloads that could adopt it.

use api::apps::{DaemonSet, Deployment, ReplicaSet, StatefulSet};
use api::batch::Job;
use api::meta::LabelSelector;
use api::{Kind, Name, Objects};
use plan::objects::{in_namespace, matches};

/// A kind that owns others by a label selector.
pub(crate) trait Selects: Kind {
    /// Its selector.
    fn selector(&self) -> Option<&LabelSelector>;
}

macro_rules! selects {
    ($($type:ty),*) => {
        $(impl Selects for $type {
            fn selector(&self) -> Option<&LabelSelector> {
                self.spec.as_ref().map(|spec| &spec.selector)
            }
        })*
    };
}

selects!(Deployment, ReplicaSet, StatefulSet, DaemonSet);

impl Selects for Job {
    fn selector(&self) -> Option<&LabelSelector> {
        self.spec.as_ref()?.selector.as_ref()
    }
}

/// The name of the object's controller if that is of `kind`.
pub(crate) fn controller<K: Kind>(object: &K, kind: &str) -> Option<Name> {
    let owner = object.controller().filter(|owner| owner.kind == kind)?;
    Some(Name::new(object.namespace(), &owner.name))
}

/// The owners that could adopt an object without a controller.
pub(crate) fn selecting<O: Selects, K: Kind>(owners: &Objects<O>, object: &K) -> Vec<Name> {
    if object.controller().is_some() {
        return Vec::new();
    }
    let labels = object.meta().labels.as_ref();
    in_namespace(owners, object.namespace())
        .filter(|owner| owner.selector().is_some_and(|one| matches(one, labels)))
        .map(|owner| owner.object_name())
        .collect()
}
