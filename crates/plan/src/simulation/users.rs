//! Users: Services come, change and go, workloads scale and roll, pods are deleted, slices are edited by hand.

use api::Name;
use api::core::Service;
use serde_json::{Value, json};

use super::Cluster;
use crate::action::ObjectKind;

pub(super) const APPS: [&str; 2] = ["web", "api"];
const SERVICES: usize = 5;
const REPLICAS_MAX: usize = 4;

pub(super) fn deployment(app: &str) -> Value {
    let labels = json!({"app": app});
    let rolling = json!({"maxSurge": "25%", "maxUnavailable": "25%"});
    let container =
        json!({"name": "main", "image": "v0", "ports": [{"name": "http", "containerPort": 8080}]});
    json!({
        "metadata": {"namespace": "default", "name": app},
        "spec": {
            "replicas": 2, "selector": {"matchLabels": labels}, "revisionHistoryLimit": 10,
            "progressDeadlineSeconds": 600,
            "strategy": {"type": "RollingUpdate", "rollingUpdate": rolling},
            "template": {"metadata": {"labels": labels}, "spec": {"containers": [container]}},
        },
    })
}

impl Cluster {
    pub(super) fn user_acts(&mut self) {
        match self.chance.below(10) {
            0..4 => self.write_service(),
            4 => self.delete_service(),
            5 => {
                let replicas = self.chance.below(REPLICAS_MAX + 1);
                self.change_deployment(&json!({"spec": {"replicas": replicas}}));
            }
            6 => {
                let image = format!("v{}", self.chance.below(4));
                let container = json!({"name": "main", "image": image,
                    "ports": [{"name": "http", "containerPort": 8080}]});
                let template = json!({"spec": {"containers": [container]}});
                self.change_deployment(&json!({"spec": {"template": template}}));
            }
            7 | 8 => self.delete_pod(),
            _ => self.tamper(),
        }
    }

    fn change_deployment(&mut self, patch: &Value) {
        let app = self.chance.pick(&APPS).expect("there are two");
        self.world.edit(ObjectKind::Deployment, &Name::new("default", app), patch);
        self.record();
    }

    fn delete_pod(&mut self) {
        let names: Vec<Name> = self.now().pods.keys().cloned().collect();
        if let Some(name) = self.chance.pick(&names) {
            self.world.delete(ObjectKind::Pod, &name);
            self.record();
        }
    }

    fn delete_service(&mut self) {
        let name = Name::new("default", &format!("s{}", self.chance.below(SERVICES)));
        if let Some(old) = self.world.value(ObjectKind::Service, &name).cloned() {
            self.allocator.release(&old);
            self.world.remove(ObjectKind::Service, &name);
            self.record();
        }
    }

    /// A Service that chance has written.
    fn service(&mut self, name: &Name) -> Value {
        let kind = ["ClusterIP", "ClusterIP", "NodePort", "LoadBalancer"][self.chance.below(4)];
        let app = ["web", "api", "api", "nobody"][self.chance.below(4)];
        let protocol = ["TCP", "UDP"][self.chance.below(2)];
        let port = 80 + self.chance.below(2);
        let target = if self.chance.is(50) { json!("http") } else { json!(8080) };
        let mut spec = json!({
            "type": kind, "selector": {"app": app}, "internalTrafficPolicy": "Cluster",
            "ports": [{"port": port, "protocol": "TCP", "targetPort": target}],
            "sessionAffinity": "None",
        });
        if protocol == "UDP" {
            spec["ports"][0] = json!({"port": port, "protocol": "UDP", "targetPort": 8080});
        }
        if kind == "ClusterIP" && self.chance.is(20) {
            spec["clusterIP"] = "None".into();
        }
        if kind != "ClusterIP" {
            let policy = ["Cluster", "Local"][self.chance.below(2)];
            spec["externalTrafficPolicy"] = policy.into();
        }
        if self.chance.is(20) {
            spec["sessionAffinity"] = "ClientIP".into();
            spec["sessionAffinityConfig"] = json!({"clientIP": {"timeoutSeconds": 10_800}});
        }
        if self.chance.is(15) {
            spec["internalTrafficPolicy"] = "Local".into();
        }
        if self.chance.is(15) {
            spec["publishNotReadyAddresses"] = false.into();
        }
        json!({"metadata": {"namespace": &*name.namespace, "name": &*name.name}, "spec": spec})
    }

    /// Creates or changes one of the Services, as the API server does: addresses and ports come from the allocator.
    fn write_service(&mut self) {
        let name = Name::new("default", &format!("s{}", self.chance.below(SERVICES)));
        let old = self.world.value(ObjectKind::Service, &name).cloned();
        let mut new = self.service(&name);
        let seed = self.chance.number();
        if let Some(old) = &old {
            // A Service stays with or without an address.
            if (old["spec"]["clusterIP"] == "None") != (new["spec"]["clusterIP"] == "None") {
                return;
            }
            new["metadata"] = old["metadata"].clone();
        }
        if self.allocator.allocate(&mut new, old.as_ref(), seed).is_err() {
            return;
        }
        if let Some(old) = &old {
            self.allocator.release(old);
            let spec = new["spec"].clone();
            self.world.edit(ObjectKind::Service, &name, &json!({"spec": null}));
            self.world.edit(ObjectKind::Service, &name, &json!({"spec": spec}));
            self.world.touched.pop();
        } else {
            self.world.add::<Service>(new.clone());
        }
        self.allocator.take(&new);
        self.record();
    }
}
