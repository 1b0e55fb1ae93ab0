//! What a Service needs, keeps and gives back at creation and change.
//!
//! Upstream counterpart: `pkg/registry/core/service/storage/{alloc,storage}.go` and `…/service/strategy.go`.

use std::net::IpAddr;

use api::resource::FieldError;
use api::{Name, StatusError};
use serde_json::{Map, Value, json};

use super::Allocator;
use super::families::{self, Family};
use super::ports::{self, number};

impl Allocator {
    /// Completes a Service that is to be stored: families, ClusterIPs, node ports. `old` is what it replaces. The
    /// Service is not taken into the allocator.
    ///
    /// # Errors
    /// 422 for values that cannot be given, 500 when a range is full, both in upstream's words.
    pub fn allocate(
        &self,
        service: &mut Value,
        old: Option<&Value>,
        seed: u64,
    ) -> Result<(), StatusError> {
        if !service["spec"].is_object() {
            return Ok(());
        }
        if let Some(old) = old {
            drop_by_type(service, old);
            keep_allocated(service, old);
        }
        normalize(service, old);
        families::complete(self, service, old)?;
        if needs_cluster_ip(service) && !is_headless(service) {
            self.allocate_addresses(service, seed)?;
        }
        ports::complete(self, service, old, seed)
    }

    fn allocate_addresses(&self, service: &mut Value, seed: u64) -> Result<(), StatusError> {
        let owner = name(service);
        let given = service["spec"]["clusterIPs"].clone();
        let mut chosen = Vec::new();
        for (index, family) in families::families(service).into_iter().enumerate() {
            let Some(text) =
                given.get(index).and_then(Value::as_str).filter(|text| !text.is_empty())
            else {
                let address = self.next_address(family, seed).map_err(|why| {
                    StatusError::internal(format!("failed to allocate a serviceIP: {why}"))
                })?;
                chosen.push(address.to_string());
                continue;
            };
            // What is no address of that family is left to validation.
            if let Some(address) =
                text.parse::<IpAddr>().ok().filter(|address| Family::of(*address) == family)
            {
                self.check_address(address, &owner).map_err(|why| {
                    let why = format!("failed to allocate IP {text}: {why}");
                    invalid(service, &[FieldError::invalid("spec.clusterIPs", &given, why)])
                })?;
            }
            chosen.push(text.to_owned());
        }
        let extra =
            given.as_array().into_iter().flatten().skip(chosen.len()).filter_map(Value::as_str);
        let chosen: Vec<String> = chosen.iter().cloned().chain(extra.map(str::to_owned)).collect();
        // One that is named and differs from the list is left to validation.
        if service["spec"]["clusterIP"].as_str().unwrap_or("").is_empty() {
            service["spec"]["clusterIP"] = chosen.first().map_or("", String::as_str).into();
        }
        service["spec"]["clusterIPs"] = json!(chosen);
        Ok(())
    }
}

/// 422 about a Service.
pub(super) fn invalid(service: &Value, errors: &[FieldError]) -> StatusError {
    StatusError::invalid("", "Service", service["metadata"]["name"].as_str().unwrap_or(""), errors)
}

/// Namespace and name.
pub(super) fn name(service: &Value) -> Name {
    let text = |field: &str| service["metadata"][field].as_str().unwrap_or("");
    Name::new(text("namespace"), text("name"))
}

/// The ClusterIPs that a Service holds.
pub(super) fn addresses(service: &Value) -> Vec<IpAddr> {
    let list = strings(&service["spec"]["clusterIPs"]);
    let list = if list.is_empty() {
        service["spec"]["clusterIP"].as_str().into_iter().collect()
    } else {
        list
    };
    if needs_cluster_ip(service) {
        list.into_iter().filter_map(|text| text.parse().ok()).collect()
    } else {
        Vec::new()
    }
}

/// The node ports that a Service holds.
pub(super) fn node_ports(service: &Value) -> Vec<u16> {
    let ports = service["spec"]["ports"].as_array().into_iter().flatten();
    let mut held: Vec<u16> = ports.filter_map(|port| number(&port["nodePort"])).collect();
    held.extend(number(&service["spec"]["healthCheckNodePort"]));
    held
}

/// The strings of an array.
pub(super) fn strings(value: &Value) -> Vec<&str> {
    value.as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}

/// Every type but ExternalName has ClusterIPs, or `None`.
pub(super) fn needs_cluster_ip(service: &Value) -> bool {
    matches!(
        service["spec"]["type"].as_str(),
        None | Some("" | "ClusterIP" | "NodePort" | "LoadBalancer")
    )
}

/// Whether node ports may be there at all.
pub(super) fn needs_node_ports(service: &Value) -> bool {
    matches!(service["spec"]["type"].as_str(), Some("NodePort" | "LoadBalancer"))
}

/// Whether load balancers ask this Service's nodes for local endpoints.
pub(super) fn needs_health_check(service: &Value) -> bool {
    service["spec"]["type"] == "LoadBalancer" && service["spec"]["externalTrafficPolicy"] == "Local"
}

/// Whether clients outside reach the Service: only then it has a policy for them.
fn has_outside(service: &Value) -> bool {
    let external = service["spec"]["externalIPs"].as_array().is_some_and(|ips| !ips.is_empty());
    needs_node_ports(service)
        || (external && service["spec"]["type"].as_str().unwrap_or("ClusterIP") == "ClusterIP")
}

/// `clusterIP: None`.
pub(super) fn is_headless(service: &Value) -> bool {
    service["spec"]["clusterIPs"].get(0).unwrap_or(&service["spec"]["clusterIP"]) == "None"
}

fn spec(service: &mut Value) -> &mut Map<String, Value> {
    service["spec"].as_object_mut().expect("checked at the entry")
}

/// Drops what only the old type needed, unless the writer changed it meanwhile.
fn drop_by_type(service: &mut Value, old: &Value) {
    let same = |service: &Value, field: &str| service["spec"][field] == old["spec"][field];
    if needs_cluster_ip(old) && !needs_cluster_ip(service) {
        for field in
            ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy", "internalTrafficPolicy"]
        {
            if same(service, field) {
                spec(service).remove(field);
            }
        }
    }
    if needs_node_ports(old) && !needs_node_ports(service) {
        let old_ports = node_ports(old);
        for port in service["spec"]["ports"].as_array_mut().into_iter().flatten() {
            let held = number(&port["nodePort"]).is_some_and(|number| old_ports.contains(&number));
            if let Some(port) = port.as_object_mut().filter(|_| held) {
                port.remove("nodePort");
            }
        }
    }
    let left = has_outside(old) && !has_outside(service);
    if left && same(service, "externalTrafficPolicy") {
        spec(service).remove("externalTrafficPolicy");
    }
    if needs_health_check(old)
        && !needs_health_check(service)
        && same(service, "healthCheckNodePort")
    {
        spec(service).remove("healthCheckNodePort");
    }
    if old["spec"]["type"] == "LoadBalancer" && service["spec"]["type"] != "LoadBalancer" {
        for field in ["allocateLoadBalancerNodePorts", "loadBalancerClass"] {
            if same(service, field) {
                spec(service).remove(field);
            }
        }
    }
}

/// What was allocated and is not named stays.
fn keep_allocated(service: &mut Value, old: &Value) {
    let empty = |value: &Value| value.as_str().unwrap_or("").is_empty();
    if needs_cluster_ip(old) && needs_cluster_ip(service) {
        if empty(&service["spec"]["clusterIP"]) && !empty(&old["spec"]["clusterIP"]) {
            service["spec"]["clusterIP"] = old["spec"]["clusterIP"].clone();
        }
        if strings(&service["spec"]["clusterIPs"]).is_empty()
            && service["spec"]["clusterIP"] == old["spec"]["clusterIP"]
            && !strings(&old["spec"]["clusterIPs"]).is_empty()
        {
            service["spec"]["clusterIPs"] = old["spec"]["clusterIPs"].clone();
        }
    }
    if needs_node_ports(old) && needs_node_ports(service) {
        keep_node_ports(service, old);
    }
    if needs_health_check(old)
        && needs_health_check(service)
        && number(&service["spec"]["healthCheckNodePort"]).is_none()
    {
        service["spec"]["healthCheckNodePort"] = old["spec"]["healthCheckNodePort"].clone();
    }
}

fn keep_node_ports(service: &mut Value, old: &Value) {
    let taken: Vec<(Value, Value)> = port_list(service)
        .iter()
        .filter(|port| number(&port["nodePort"]).is_some())
        .map(|port| (port["protocol"].clone(), port["nodePort"].clone()))
        .collect();
    for port in service["spec"]["ports"].as_array_mut().into_iter().flatten() {
        if number(&port["nodePort"]).is_some() {
            continue;
        }
        let was = port_list(old)
            .iter()
            .find(|was| was["port"] == port["port"] && was["protocol"] == port["protocol"]);
        if let Some(was) = was.filter(|was| number(&was["nodePort"]).is_some())
            && !taken.contains(&(was["protocol"].clone(), was["nodePort"].clone()))
        {
            port["nodePort"] = was["nodePort"].clone();
        }
    }
}

fn port_list(service: &Value) -> &[Value] {
    service["spec"]["ports"].as_array().map_or(&[], Vec::as_slice)
}

/// `clusterIP` and `clusterIPs` say the same.
fn normalize(service: &mut Value, old: Option<&Value>) {
    let first = |service: &Value| service["spec"]["clusterIP"].as_str().unwrap_or("").to_owned();
    let now = first(service);
    let Some(old) = old else {
        if !now.is_empty() && strings(&service["spec"]["clusterIPs"]).is_empty() {
            service["spec"]["clusterIPs"] = json!([now]);
        }
        return;
    };
    let list_same = service["spec"]["clusterIPs"] == old["spec"]["clusterIPs"];
    if now != first(old) && list_same {
        if now.is_empty() {
            spec(service).remove("clusterIPs");
        } else {
            service["spec"]["clusterIPs"] = json!([now]);
        }
    } else if now == first(old) && !list_same && strings(&service["spec"]["clusterIPs"]).is_empty()
    {
        spec(service).remove("clusterIP");
        spec(service).remove("clusterIPs");
    } else if !now.is_empty() && strings(&service["spec"]["clusterIPs"]).is_empty() {
        service["spec"]["clusterIPs"] = json!([now]);
    }
}
