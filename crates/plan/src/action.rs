//! What a control loop writes to the API, as data: one vocabulary for every loop, so that each loop is only its decision.
//!
//! Upstream's counterpart is the calls of each controller on its clientset.

use std::time::Duration;

use api::core::ObjectReference;
use api::meta::ObjectMeta;
use api::{Kind, Name};
use serde::Serialize;
use serde_json::Value;

macro_rules! objects {
    ($($variant:ident: $type:ty,)*) => {
        /// An object of any kind that a control loop writes.
        #[derive(Clone, Debug, PartialEq, Serialize)]
        #[serde(untagged)]
        #[expect(missing_docs, reason = "the variants are the kinds")]
        pub enum Object { $($variant(Box<$type>),)* }

        /// The kinds that a control loop writes.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        #[expect(missing_docs, reason = "the variants are the kinds")]
        pub enum ObjectKind { $($variant,)* }

        $(impl From<$type> for Object {
            fn from(object: $type) -> Self { Self::$variant(Box::new(object)) }
        })*

        $(impl Known for $type {
            const KNOWN: ObjectKind = ObjectKind::$variant;
        })*

        impl ObjectKind {
            /// The kind that an owner reference names, if it is one of these.
            #[must_use]
            pub fn named(api_version: &str, kind: &str) -> Option<Self> {
                $(if is::<$type>(api_version, kind) {
                    return Some(Self::$variant);
                })*
                None
            }

            /// Whether objects of the kind live in namespaces.
            #[must_use]
            pub fn is_namespaced(self) -> bool {
                match self {
                    // A collection path with a namespace in it is that of a namespaced kind.
                    $(Self::$variant => <$type as Kind>::path("x") != <$type as Kind>::path(""),)*
                }
            }
        }

        impl Object {
            /// The object's kind.
            #[must_use]
            pub fn kind(&self) -> ObjectKind {
                match self { $(Self::$variant(_) => ObjectKind::$variant,)* }
            }

            /// The object's metadata.
            #[must_use]
            pub fn meta(&self) -> &ObjectMeta {
                match self { $(Self::$variant(object) => Kind::meta(object.as_ref()),)* }
            }
        }
    };
}

fn is<K: Kind>(api_version: &str, kind: &str) -> bool {
    K::KIND == kind && K::API_VERSION == api_version
}

/// A type that is one of [`ObjectKind`].
pub trait Known: Kind {
    /// Its kind as a value.
    const KNOWN: ObjectKind;
}

objects! {
    Pod: api::core::Pod,
    Node: api::core::Node,
    Namespace: api::core::Namespace,
    Service: api::core::Service,
    Endpoints: api::core::Endpoints,
    ConfigMap: api::core::ConfigMap,
    Secret: api::core::Secret,
    ServiceAccount: api::core::ServiceAccount,
    PersistentVolume: api::core::PersistentVolume,
    PersistentVolumeClaim: api::core::PersistentVolumeClaim,
    Deployment: api::apps::Deployment,
    ReplicaSet: api::apps::ReplicaSet,
    StatefulSet: api::apps::StatefulSet,
    DaemonSet: api::apps::DaemonSet,
    ControllerRevision: api::apps::ControllerRevision,
    Job: api::batch::Job,
    CronJob: api::batch::CronJob,
    EndpointSlice: api::discovery::EndpointSlice,
    PodDisruptionBudget: api::policy::PodDisruptionBudget,
    StorageClass: api::storage::StorageClass,
    ServiceCIDR: api::networking::ServiceCIDR,
    IPAddress: api::networking::IPAddress,
    ResourceQuota: api::core::ResourceQuota,
    ReplicationController: api::core::ReplicationController,
}

/// An event about an object, for `kubectl describe`.
#[derive(Clone, Debug, PartialEq)]
pub struct Notice {
    /// The object.
    pub about: ObjectReference,
    /// Whether it needs attention.
    pub warning: bool,
    /// In upstream's words.
    pub reason: &'static str,
    /// In upstream's words.
    pub message: String,
}

/// One write. An object that carries a resourceVersion is written only if it is still the newest.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Create an object; a taken name fails.
    Create(Object),
    /// Replace an object.
    Update(Object),
    /// Replace the status of an object.
    UpdateStatus(Object),
    /// Change fields by a merge patch (RFC 7386), of the status when `status` is set.
    Patch {
        /// Kind of the object.
        kind: ObjectKind,
        /// Its name.
        name: Name,
        /// Patch the `status` subresource.
        status: bool,
        /// The fields.
        patch: Value,
    },
    /// Delete the object with this uid.
    Delete {
        /// Kind of the object.
        kind: ObjectKind,
        /// Its name.
        name: Name,
        /// Its uid; another object of the same name stays.
        uid: String,
        /// Seconds of grace; `None` for the object's own.
        grace: Option<i64>,
        /// `Background`, `Foreground` or `Orphan`; `None` for the kind's default.
        propagation: Option<&'static str>,
    },
    /// Create pods in growing batches (1, 2, 4, …), stopping at the first failure, each told as an event of the owner.
    CreatePods {
        /// The controller.
        owner: ObjectReference,
        /// The pods, most wanted first.
        pods: Vec<api::core::Pod>,
    },
    /// Delete pods, each told as an event of the owner.
    DeletePods {
        /// The controller.
        owner: ObjectReference,
        /// Name and uid of each pod.
        pods: Vec<(Name, String)>,
    },
    /// Bind a pod to a node.
    Bind {
        /// The pod.
        pod: Name,
        /// Its uid.
        uid: String,
        /// The node's name.
        node: String,
    },
    /// Tell about it.
    Event(Notice),
}

/// Writes in order, and when to plan again if nothing happens before.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// In order; a failed write ends the plan.
    pub actions: Vec<Action>,
    /// Another plan after this time, for conditions that only time changes.
    pub again: Option<Duration>,
}

impl Plan {
    /// Nothing to do.
    #[must_use]
    pub fn none() -> Self {
        Self::default()
    }

    /// Adds a write.
    pub fn push(&mut self, action: Action) {
        self.actions.push(action);
    }

    /// Adds an event about `object`.
    pub fn event(&mut self, about: ObjectReference, reason: &'static str, message: String) {
        self.push(Action::Event(Notice { about, warning: false, reason, message }));
    }

    /// Adds an event about `object` that needs attention.
    pub fn warn(&mut self, about: ObjectReference, reason: &'static str, message: String) {
        self.push(Action::Event(Notice { about, warning: true, reason, message }));
    }

    /// Plans again after `delay` at the latest.
    pub fn after(&mut self, delay: Duration) {
        self.again = Some(self.again.map_or(delay, |again| again.min(delay)));
    }
}

/// Deletes `object` if it is still this one.
#[must_use]
pub fn delete<K: Known>(object: &K) -> Action {
    Action::Delete {
        kind: K::KNOWN,
        name: object.object_name(),
        uid: object.uid().to_owned(),
        grace: None,
        propagation: None,
    }
}

/// A merge patch on the metadata of exactly this state of `object`.
#[must_use]
pub fn patch_meta<K: Known>(object: &K, mut metadata: Value) -> Action {
    if let Some(fields) = metadata.as_object_mut() {
        fields.insert("uid".into(), object.uid().into());
        fields.insert("resourceVersion".into(), object.meta().resource_version.clone().into());
    }
    Action::Patch {
        kind: K::KNOWN,
        name: object.object_name(),
        status: false,
        patch: serde_json::json!({ "metadata": metadata }),
    }
}
