//! A cluster out of manifests, before anything is applied: pods of workloads, endpoints of pods, addresses to be allocated.
//!
//! What the control plane would make is made here by the same functions. Pods are taken as ready, for nobody knows
//! better yet. Addresses that the API server or a node would allocate are out of ranges that no network has; they are
//! remembered in [`Cluster::invented`] and never shown.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use api::core::{LoadBalancerIngress, Pod, PodIP, PodStatus, Service};
use api::discovery::EndpointSlice;
use api::resource::by_kind;
use api::{Kind, Name, ResourceScope};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::Cluster;
use crate::action::{Action, Object};
use crate::endpointslice::{self, Snapshot, mirror};
use crate::podfacts;

/// Stand-ins for addresses of pods, of class E (RFC 1112), which nobody has.
const PODS: [u8; 4] = [241, 0, 0, 0];
/// Stand-ins for addresses of Services.
const SERVICES: [u8; 4] = [242, 0, 0, 0];
/// A stand-in for the address of the node that is made up.
const NODES: [u8; 4] = [244, 0, 0, 0];
/// Stand-ins for addresses of load balancers.
const BALANCERS: [u8; 4] = [243, 0, 0, 0];
/// Stand-ins for IPv6 addresses, of the discard-only prefix (RFC 6666).
const V6: u16 = 0x100;
/// Pods of one workload that are made up: more say nothing new.
const PODS_MAX: i64 = 100;
/// The node of pods that no scheduler has seen, when no node is given.
pub const UNPLACED: &str = "(to be chosen)";

/// Why manifests are no cluster.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    /// A document is no object.
    #[error("a document has no apiVersion, kind or metadata.name")]
    NoObject,
    /// An object is not of the shape of its kind.
    #[error("{kind} {name:?} is not valid: {source}")]
    Shape {
        /// Its kind.
        kind: String,
        /// Its name.
        name: String,
        /// The cause.
        #[source]
        source: serde_json::Error,
    },
}

/// Adds manifests to a cluster.
#[derive(Debug)]
pub struct Manifests {
    cluster: Cluster,
    namespace: String,
    workloads: Vec<Value>,
    endpoints: api::Objects<api::core::Endpoints>,
    next: u32,
    nodes: Vec<String>,
    stand_in: String,
}

impl Manifests {
    /// On top of `base`; objects without a namespace are in `namespace`.
    #[must_use]
    pub fn over(base: Cluster, namespace: &str) -> Self {
        let next = u32::try_from(base.invented.len()).unwrap_or(0);
        Self {
            cluster: base,
            namespace: namespace.to_owned(),
            workloads: Vec::new(),
            endpoints: api::Objects::new(),
            next,
            nodes: Vec::new(),
            stand_in: UNPLACED.to_owned(),
        }
    }

    /// What the only node is called, should there be none.
    #[must_use]
    pub fn on_node(mut self, name: &str) -> Self {
        name.clone_into(&mut self.stand_in);
        self
    }

    /// Adds an object, or the objects of a List. Kinds that no packet meets are passed over.
    ///
    /// # Errors
    /// When it is no object, or not of its kind's shape.
    pub fn add(&mut self, mut object: Value) -> Result<(), FilesError> {
        if object.is_null() {
            return Ok(());
        }
        let kind = object["kind"].as_str().ok_or(FilesError::NoObject)?.to_owned();
        if let (true, Some(items)) = (kind.ends_with("List"), object["items"].as_array_mut()) {
            return std::mem::take(items).into_iter().try_for_each(|item| self.add(item));
        }
        let version = object["apiVersion"].as_str().ok_or(FilesError::NoObject)?;
        let (group, version) = version.split_once('/').unwrap_or(("", version));
        let row = by_kind(group, version, &kind);
        if object["metadata"]["name"].as_str().is_none() {
            return Err(FilesError::NoObject);
        }
        if let Some(row) = row {
            if row.scope == ResourceScope::Namespaced
                && object["metadata"]["namespace"].as_str().is_none()
            {
                object["metadata"]["namespace"] = self.namespace.as_str().into();
            }
            (row.rules.default)(&mut object);
        }
        match kind.as_str() {
            "Service" => {
                self.keep_allocated(&mut object);
                insert(&mut self.cluster.services, &kind, object)
            }
            "EndpointSlice" => insert(&mut self.cluster.slices, &kind, object),
            "Endpoints" => insert(&mut self.endpoints, &kind, object),
            "Pod" => insert(&mut self.cluster.pods, &kind, object),
            "Node" => insert(&mut self.cluster.nodes, &kind, object),
            "Namespace" => insert(&mut self.cluster.namespaces, &kind, object),
            "Deployment"
            | "ReplicaSet"
            | "StatefulSet"
            | "DaemonSet"
            | "Job"
            | "ReplicationController" => {
                self.workloads.push(object);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// What the API server keeps when a Service is applied again without it: addresses, node ports, the status.
    fn keep_allocated(&self, new: &mut Value) {
        let name = Name::new(
            new["metadata"]["namespace"].as_str().unwrap_or_default(),
            new["metadata"]["name"].as_str().unwrap_or_default(),
        );
        let Some(old) = self.cluster.services.get(&name) else { return };
        let old = serde_json::to_value(&**old).expect("objects encode");
        let kind = new["spec"]["type"].as_str().unwrap_or("ClusterIP").to_owned();
        if kind == "ExternalName" {
            return;
        }
        for field in ["clusterIP", "clusterIPs", "ipFamilies"] {
            if new["spec"][field].is_null() && new["spec"]["clusterIP"] != "None" {
                new["spec"][field] = old["spec"][field].clone();
            }
        }
        if kind == "LoadBalancer" && new["status"]["loadBalancer"]["ingress"].is_null() {
            new["status"] = old["status"].clone();
        }
        if kind == "ClusterIP" {
            return;
        }
        let held: Vec<Value> = old["spec"]["ports"].as_array().cloned().unwrap_or_default();
        for port in new["spec"]["ports"].as_array_mut().into_iter().flatten() {
            let same = |held: &&Value| {
                held["port"] == port["port"] && held["protocol"] == port["protocol"]
            };
            if let Some(held) = held.iter().find(same).filter(|_| port["nodePort"].is_null()) {
                port["nodePort"] = held["nodePort"].clone();
            }
        }
    }

    /// The cluster when all of it has been applied and has come to rest.
    ///
    /// # Errors
    /// When a workload's template is no pod.
    pub fn cluster(mut self) -> Result<Cluster, FilesError> {
        if self.cluster.nodes.is_empty() {
            self.add_node();
        }
        self.nodes = self.cluster.nodes.keys().map(|name| name.name.to_string()).collect();
        for workload in std::mem::take(&mut self.workloads) {
            self.expand(&workload)?;
        }
        self.start_pods();
        self.allocate();
        self.resolve();
        let made_up = IpAddr::from(PODS);
        let known = self.cluster.pod_cidrs.iter().any(|cidr| cidr.contains(&made_up));
        if !known {
            let range = ipnet::IpNet::new(made_up, 8).expect("8 is a prefix of IPv4");
            self.cluster.pod_cidrs.push(range);
            let v6 = IpAddr::from(Ipv6Addr::from([V6, 0, 0, 0, 0, 0, 0, 0]));
            self.cluster.pod_cidrs.push(ipnet::IpNet::new(v6, 64).expect("64 is a prefix of IPv6"));
        }
        Ok(self.cluster)
    }

    /// Endpoints are those of pods on nodes, and node ports answer on their addresses: there must be one.
    fn add_node(&mut self) {
        let address = self.invent(NODES).to_string();
        let name = self.stand_in.clone();
        let node = json!({ "metadata": { "name": name }, "status": {
            "addresses": [{ "type": "InternalIP", "address": address }],
            "conditions": [{ "type": "Ready", "status": "True" }] } });
        insert(&mut self.cluster.nodes, "Node", node).expect("it is of a Node's shape");
    }

    /// The pods of a workload, in place of those that it has now.
    fn expand(&mut self, workload: &Value) -> Result<(), FilesError> {
        let kind = workload["kind"].as_str().unwrap_or_default();
        let name = workload["metadata"]["name"].as_str().unwrap_or_default();
        let namespace = workload["metadata"]["namespace"].as_str().unwrap_or_default();
        self.remove_pods(kind, namespace, name);
        let spec = &workload["spec"];
        let count = match kind {
            "DaemonSet" => i64::try_from(self.nodes.len().max(1)).unwrap_or(1),
            "Job" => spec["parallelism"].as_i64().unwrap_or(1),
            _ => spec["replicas"].as_i64().unwrap_or(1),
        };
        for index in 0..count.min(PODS_MAX) {
            let mut pod = spec["template"].clone();
            pod["apiVersion"] = "v1".into();
            pod["kind"] = "Pod".into();
            let called = format!("{name}-{index}");
            pod["metadata"]["namespace"] = namespace.into();
            pod["metadata"]["name"] = called.as_str().into();
            pod["metadata"]["uid"] = format!("{kind}/{namespace}/{called}").into();
            pod["metadata"]["ownerReferences"] = json!([{ "apiVersion": workload["apiVersion"],
                "kind": kind, "name": name, "uid": "", "controller": true }]);
            if kind == "StatefulSet" {
                pod["spec"]["hostname"] = called.into();
                pod["spec"]["subdomain"] = spec["serviceName"].clone();
            }
            insert(&mut self.cluster.pods, "Pod", pod)?;
        }
        Ok(())
    }

    fn remove_pods(&mut self, kind: &str, namespace: &str, name: &str) {
        let owned = |pod: &Arc<Pod>| {
            pod.namespace() == namespace
                && pod.controller().is_some_and(|owner| match (kind, owner.kind.as_str()) {
                    // A ReplicaSet is called after its Deployment and its template's hash.
                    ("Deployment", "ReplicaSet") => {
                        owner.name.rsplit_once('-').is_some_and(|(owner, _)| owner == name)
                    }
                    (kind, owned) => kind == owned && owner.name == name,
                })
        };
        let pods = &self.cluster.pods;
        let gone: Vec<Name> =
            pods.iter().filter(|(_, pod)| owned(pod)).map(|(name, _)| name.clone()).collect();
        for name in gone {
            self.cluster.pods.remove(&name);
        }
    }

    /// Pods that nobody runs yet: placed by turns, with an address, ready.
    fn start_pods(&mut self) {
        let new = |pod: &Arc<Pod>| podfacts::phase(pod).is_empty();
        let pods: Vec<Arc<Pod>> =
            self.cluster.pods.values().filter(|pod| new(pod)).cloned().collect();
        let v6 = self.cluster.services.values().any(|service| {
            let spec = service.spec.as_ref();
            let mut families = spec.and_then(|spec| spec.ip_families.clone()).into_iter().flatten();
            families.any(|family| family == "IPv6")
        });
        for (turn, pod) in pods.into_iter().enumerate() {
            let mut pod = Pod::clone(&pod);
            let spec = pod.spec.get_or_insert_default();
            let turns = self.nodes.get(turn % self.nodes.len().max(1)).map(String::as_str);
            let node = spec.node_name.get_or_insert_with(|| turns.unwrap_or(UNPLACED).to_owned());
            let own = spec.host_network.unwrap_or(false).then(|| self.cluster.node_address(node));
            let mut ips = match own.flatten() {
                Some(address) => vec![address],
                None => vec![self.invent(PODS)],
            };
            if v6 {
                ips.push(self.invent_v6());
            }
            let ips: Vec<String> = ips.iter().map(IpAddr::to_string).collect();
            let ready = json!([{ "type": "Ready", "status": "True" }]);
            pod.status = Some(PodStatus {
                phase: Some("Running".to_owned()),
                pod_ip: ips.first().cloned(),
                pod_ips: Some(ips.into_iter().map(|ip| PodIP { ip }).collect()),
                conditions: serde_json::from_value(ready).ok(),
                ..PodStatus::default()
            });
            self.cluster.pods.insert(pod.object_name(), Arc::new(pod));
        }
    }

    fn invent(&mut self, [first, ..]: [u8; 4]) -> IpAddr {
        self.next += 1;
        let address = IpAddr::from(Ipv4Addr::from((u32::from(first) << 24) | self.next));
        self.cluster.invented.insert(address);
        address
    }

    fn invent_v6(&mut self) -> IpAddr {
        self.next += 1;
        let [high, low] = [self.next >> 16, self.next & 0xffff];
        let part = |part: u32| u16::try_from(part).expect("16 bits were left");
        let address = Ipv6Addr::from([V6, 0, 0, 0, 0, 0, part(high), part(low)]);
        self.cluster.invented.insert(address.into());
        address.into()
    }

    /// Addresses of Services that have none yet.
    fn allocate(&mut self) {
        let services: Vec<Arc<Service>> = self.cluster.services.values().cloned().collect();
        for service in services {
            let mut service = Service::clone(&service);
            let Some(spec) = &mut service.spec else { continue };
            let kind = spec.type_.clone().unwrap_or_default();
            let given = spec.cluster_ip.as_deref().unwrap_or_default();
            let listed = spec.ip_families.clone().unwrap_or_default();
            let mut v6 = listed.iter().map(|family| family == "IPv6").collect::<Vec<_>>();
            if v6.is_empty() {
                v6 = vec![given.contains(':')];
            }
            if kind != "ExternalName" && given.is_empty() {
                let ips: Vec<String> = v6
                    .iter()
                    .map(|v6| if *v6 { self.invent_v6() } else { self.invent(SERVICES) })
                    .map(|address| address.to_string())
                    .collect();
                spec.cluster_ip = ips.first().cloned();
                spec.cluster_ips = Some(ips);
            }
            if spec.ip_families.is_none() && kind != "ExternalName" {
                let word = |v6: &bool| if *v6 { "IPv6" } else { "IPv4" }.to_owned();
                spec.ip_families = Some(v6.iter().map(word).collect());
            }
            let held = super::exposed::external_addresses(&service).0;
            if kind == "LoadBalancer" && held.is_empty() {
                let asked = service.spec.as_ref().and_then(|spec| spec.load_balancer_ip.clone());
                let ip = asked.unwrap_or_else(|| self.invent(BALANCERS).to_string());
                let ingress = LoadBalancerIngress { ip: Some(ip), ..Default::default() };
                let status = service.status.get_or_insert_default();
                status.load_balancer.get_or_insert_default().ingress = Some(vec![ingress]);
            }
            self.cluster.services.insert(service.object_name(), Arc::new(service));
        }
    }

    /// The slices that the control plane would write.
    fn resolve(&mut self) {
        let snapshot = Snapshot {
            services: self.cluster.services.clone(),
            pods: self.cluster.pods.clone(),
            slices: self.cluster.slices.clone(),
            nodes: self.cluster.nodes.clone(),
        };
        let mirrored = mirror::Snapshot {
            services: self.cluster.services.clone(),
            endpoints: self.endpoints.clone(),
            slices: self.cluster.slices.clone(),
        };
        let names: Vec<Name> = self.cluster.services.keys().cloned().collect();
        let mut made: BTreeMap<String, u32> = BTreeMap::new();
        for name in names {
            // Slices of other clusters' controllers are there already; ours would stand beside them.
            self.forget_managed(&name);
            let mut plans =
                vec![endpointslice::plan(&snapshot_without(&snapshot, &self.cluster), &name)];
            if self.endpoints.contains_key(&name) {
                plans.push(mirror::plan(&mirrored, &name));
            }
            for action in plans.into_iter().flat_map(|plan| plan.actions) {
                let (Action::Create(object) | Action::Update(object)) = action else { continue };
                let Object::EndpointSlice(mut slice) = object else { continue };
                let count = made.entry(name.to_string()).or_default();
                *count += 1;
                slice.metadata.name = Some(format!("{}-{count}", name.name));
                self.cluster.slices.insert(slice.object_name(), Arc::from(slice));
            }
        }
    }

    /// Takes the slices away that the control plane keeps for a Service: they are made anew.
    fn forget_managed(&mut self, service: &Name) {
        let gone: Vec<Name> = self
            .cluster
            .slices_of(service)
            .into_iter()
            .filter(|slice| is_managed(slice))
            .map(Kind::object_name)
            .collect();
        for name in gone {
            self.cluster.slices.remove(&name);
        }
    }
}

fn is_managed(slice: &EndpointSlice) -> bool {
    crate::objects::label(slice, endpointslice::MANAGED_BY) == Some(endpointslice::CONTROLLER)
}

fn snapshot_without(snapshot: &Snapshot, cluster: &Cluster) -> Snapshot {
    Snapshot { slices: cluster.slices.clone(), ..snapshot.clone() }
}

fn insert<K: Kind + DeserializeOwned>(
    objects: &mut api::Objects<K>,
    kind: &str,
    object: Value,
) -> Result<(), FilesError> {
    let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    let shape = |source| FilesError::Shape { kind: kind.to_owned(), name, source };
    let object: K = serde_json::from_value(object).map_err(shape)?;
    objects.insert(object.object_name(), Arc::new(object));
    Ok(())
}
