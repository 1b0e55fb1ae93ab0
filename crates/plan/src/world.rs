//! A small API for tests: keeps objects as JSON and applies the actions of plans as the API server would.

use std::collections::BTreeMap;
use std::sync::Arc;

use api::{Name, Objects};
use serde_json::{Value, json};

use crate::action::{Action, Known, Object, ObjectKind, Plan};

/// Objects by kind and name.
#[derive(Clone, Debug, Default)]
pub(crate) struct World {
    objects: BTreeMap<(ObjectKind, Name), Value>,
    revision: u64,
    /// The time in seconds.
    pub(crate) now: i64,
    /// Messages of events, oldest first.
    pub(crate) events: Vec<String>,
    /// What was created, changed or removed, in order.
    pub(crate) touched: Vec<(ObjectKind, Name)>,
}

fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(fields) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    for (key, value) in fields {
        if value.is_null() {
            target.as_object_mut().map(|target| target.remove(key));
        } else {
            merge(&mut target[key.as_str()], value);
        }
    }
}

impl World {
    /// An empty world at a time in seconds.
    pub(crate) fn at(now: i64) -> Self {
        Self { now, ..Self::default() }
    }

    /// The time of a plan.
    pub(crate) fn time(&self) -> jiff::Timestamp {
        jiff::Timestamp::from_second(self.now).expect("in range")
    }

    /// An object as JSON.
    pub(crate) fn value(&self, kind: ObjectKind, name: &Name) -> Option<&Value> {
        self.objects.get(&(kind, name.clone()))
    }

    /// All objects of a kind.
    pub(crate) fn all<K: Known>(&self) -> Objects<K> {
        let own = self.objects.iter().filter(|((kind, _), _)| *kind == K::KNOWN);
        own.map(|((_, name), value)| {
            (name.clone(), Arc::new(serde_json::from_value(value.clone()).expect("decodes")))
        })
        .collect()
    }

    /// Adds an object from JSON.
    pub(crate) fn add<K: Known + Into<Object>>(&mut self, value: Value) -> Name {
        let object: K = serde_json::from_value(value).expect("decodes");
        self.create(object.into())
    }

    /// Changes an object in place.
    pub(crate) fn edit(&mut self, kind: ObjectKind, name: &Name, patch: &Value) {
        self.revision += 1;
        self.touched.push((kind, name.clone()));
        let revision = self.revision.to_string();
        let object = self.objects.get_mut(&(kind, name.clone())).expect("exists");
        let before = object["spec"].clone();
        merge(object, patch);
        object["metadata"]["resourceVersion"] = revision.into();
        if object["spec"] != before {
            let generation = object["metadata"]["generation"].as_i64().unwrap_or(0);
            object["metadata"]["generation"] = (generation + 1).into();
        }
    }

    /// Removes an object.
    pub(crate) fn remove(&mut self, kind: ObjectKind, name: &Name) {
        self.objects.remove(&(kind, name.clone()));
        self.touched.push((kind, name.clone()));
    }

    /// Applies a plan up to the first write that the API server would refuse.
    pub(crate) fn attempt(&mut self, plan: Plan) {
        for action in plan.actions {
            if self.refuses(&action) {
                return;
            }
            self.apply(Plan { actions: vec![action], again: None });
        }
    }

    fn refuses(&self, action: &Action) -> bool {
        let is_stale = |object: &Object| {
            let meta = object.meta();
            let name = Name::new(
                meta.namespace.as_deref().unwrap_or(""),
                meta.name.as_deref().unwrap_or(""),
            );
            let present = self.value(object.kind(), &name);
            present.is_none_or(|present| {
                present["metadata"]["resourceVersion"].as_str() != meta.resource_version.as_deref()
            })
        };
        match action {
            Action::Create(object) => {
                let meta = object.meta();
                let namespace = meta.namespace.as_deref().unwrap_or("");
                let taken = |name: &String| {
                    self.value(object.kind(), &Name::new(namespace, name)).is_some()
                };
                meta.name.as_ref().is_some_and(taken)
            }
            Action::Update(object) | Action::UpdateStatus(object) => is_stale(object),
            Action::Patch { kind, name, patch, .. } => {
                let asked = &patch["metadata"]["resourceVersion"];
                self.value(*kind, name).is_none_or(|present| {
                    !asked.is_null() && *asked != present["metadata"]["resourceVersion"]
                })
            }
            Action::Delete { kind, name, uid, .. } => {
                self.value(*kind, name).is_none_or(|present| present["metadata"]["uid"] != **uid)
            }
            Action::DeletePods { pods, .. } => pods.iter().any(|(name, uid)| {
                let present = self.value(ObjectKind::Pod, name);
                present.is_none_or(|present| present["metadata"]["uid"] != **uid)
            }),
            Action::Bind { pod, uid, .. } => {
                self.value(ObjectKind::Pod, pod).is_none_or(|present| {
                    present["metadata"]["uid"] != **uid || !present["spec"]["nodeName"].is_null()
                })
            }
            Action::CreatePods { .. } | Action::Event(_) => false,
        }
    }

    /// Applies a plan. Panics where the API server would refuse.
    pub(crate) fn apply(&mut self, plan: Plan) {
        for action in plan.actions {
            match action {
                Action::Create(object) => {
                    self.create(object);
                }
                Action::Update(object) => self.replace(&object, false),
                Action::UpdateStatus(object) => self.replace(&object, true),
                Action::Patch { kind, name, patch, .. } => {
                    let old = &self.objects[&(kind, name.clone())]["metadata"]["resourceVersion"];
                    let asked = &patch["metadata"]["resourceVersion"];
                    assert!(asked.is_null() || asked == old, "conflict on {kind:?} {name}");
                    self.edit(kind, &name, &patch);
                }
                Action::Delete { kind, name, .. } => self.delete(kind, &name),
                Action::CreatePods { pods, .. } => {
                    for pod in pods {
                        self.create(pod.into());
                    }
                }
                Action::DeletePods { pods, .. } => {
                    pods.iter().for_each(|(name, _)| self.delete(ObjectKind::Pod, name));
                }
                Action::Bind { pod, node, .. } => {
                    self.edit(ObjectKind::Pod, &pod, &json!({"spec": {"nodeName": node}}));
                }
                Action::Event(notice) => self.events.push(notice.message),
            }
        }
    }

    fn create(&mut self, object: Object) -> Name {
        self.revision += 1;
        let kind = object.kind();
        let mut value = serde_json::to_value(&object).expect("encodes");
        let meta = &mut value["metadata"];
        if meta["name"].is_null() {
            let prefix = meta["generateName"].as_str().unwrap_or("").to_owned();
            meta["name"] = format!("{prefix}{:05}", self.revision).into();
        }
        if meta["uid"].is_null() {
            meta["uid"] = format!("uid-{}", self.revision).into();
        }
        meta["generation"] = 1.into();
        meta["resourceVersion"] = self.revision.to_string().into();
        meta["creationTimestamp"] = self.time().to_string().into();
        let text = |field: &str| value["metadata"][field].as_str().unwrap_or("").to_owned();
        let name = Name::new(&text("namespace"), &text("name"));
        self.touched.push((kind, name.clone()));
        let old = self.objects.insert((kind, name.clone()), value);
        assert!(old.is_none(), "{kind:?} {name} already exists");
        name
    }

    fn replace(&mut self, object: &Object, status: bool) {
        let meta = object.meta();
        let name =
            Name::new(meta.namespace.as_deref().unwrap_or(""), meta.name.as_deref().unwrap_or(""));
        let mut value = serde_json::to_value(object).expect("encodes");
        self.touched.push((object.kind(), name.clone()));
        let slot = self.objects.get_mut(&(object.kind(), name.clone())).expect("exists");
        let (asked, present) =
            (&value["metadata"]["resourceVersion"], &slot["metadata"]["resourceVersion"]);
        assert_eq!(asked, present, "conflict on {:?} {name}", object.kind());
        let spec = slot["spec"].clone();
        if status {
            slot["status"] = value["status"].take();
        } else {
            value["status"] = slot["status"].take();
            *slot = value;
        }
        self.revision += 1;
        slot["metadata"]["resourceVersion"] = self.revision.to_string().into();
        if slot["spec"] != spec {
            let generation = slot["metadata"]["generation"].as_i64().unwrap_or(0);
            slot["metadata"]["generation"] = (generation + 1).into();
        }
        let (deleting, free) = (meta.deletion_timestamp.is_some(), meta.finalizers.as_ref());
        if deleting && free.is_some_and(Vec::is_empty) {
            self.remove(object.kind(), &name);
        }
    }

    /// Pods that run on a node, and objects with finalizers, stay until somebody takes them away.
    pub(crate) fn delete(&mut self, kind: ObjectKind, name: &Name) {
        let object = &self.objects[&(kind, name.clone())];
        let held = object["metadata"]["finalizers"].as_array().is_some_and(|all| !all.is_empty());
        if held || (kind == ObjectKind::Pod && !object["spec"]["nodeName"].is_null()) {
            let time = self.time().to_string();
            self.edit(kind, name, &json!({"metadata": {"deletionTimestamp": time}}));
        } else {
            self.remove(kind, name);
        }
    }

    /// Makes a pod run and be ready, or not ready.
    pub(crate) fn set_ready(&mut self, name: &Name, ready: bool) {
        let (time, status) = (self.time().to_string(), if ready { "True" } else { "False" });
        let condition = json!([{"type": "Ready", "status": status, "lastTransitionTime": time}]);
        let status = json!({"phase": "Running", "conditions": condition});
        self.edit(ObjectKind::Pod, name, &json!({"status": status}));
    }
}
