//! Node ports of a Service, those of health checks among them.
//!
//! Upstream counterpart: `allocNodePorts`, `updateNodePorts` and `allocHealthCheckNodePort` of `alloc.go`.

use api::StatusError;
use api::resource::FieldError;
use serde_json::Value;

use super::Allocator;
use super::service::{invalid, name, needs_health_check, needs_node_ports};

/// Fills the node ports that the Service needs and lacks.
pub(super) fn complete(
    allocator: &Allocator,
    service: &mut Value,
    old: Option<&Value>,
    seed: u64,
) -> Result<(), StatusError> {
    let owner = name(service);
    let mut chosen: Vec<u16> = requested(allocator, service, old.is_none())?;
    let wanted = service["spec"]["type"] == "NodePort"
        || (service["spec"]["type"] == "LoadBalancer"
            && service["spec"]["allocateLoadBalancerNodePorts"].as_bool().unwrap_or(true));
    let ports = service["spec"]["ports"].as_array().map_or(0, Vec::len);
    for index in 0..if wanted { ports } else { 0 } {
        let port = &service["spec"]["ports"][index];
        if number(&port["nodePort"]).is_some() {
            continue;
        }
        let next = match sibling(service, index) {
            Some(shared) => shared,
            None => allocator
                .next_port(seed.rotate_left(u32::try_from(index % 64).unwrap_or(0)), &chosen)
                .map_err(|why| {
                    StatusError::internal(format!("failed to allocate a nodePort: {why}"))
                })?,
        };
        chosen.push(next);
        service["spec"]["ports"][index]["nodePort"] = next.into();
    }
    if needs_health_check(service) {
        match number(&service["spec"]["healthCheckNodePort"]) {
            Some(port) => allocator.check_port(port, &owner).map_err(|why| {
                StatusError::internal(format!(
                    "failed to allocate requested HealthCheck NodePort {port}: {why}"
                ))
            })?,
            None => {
                let port = allocator.next_port(seed.rotate_right(7), &chosen).map_err(|why| {
                    StatusError::internal(format!(
                        "failed to allocate a HealthCheck NodePort: {why}"
                    ))
                })?;
                service["spec"]["healthCheckNodePort"] = port.into();
            }
        }
    }
    Ok(())
}

/// The node ports that the Service names itself, all free or its own. A new Service may share one among the protocols of one
/// port, not among ports; of a changed one validation asks for less.
fn requested(
    allocator: &Allocator,
    service: &Value,
    is_new: bool,
) -> Result<Vec<u16>, StatusError> {
    let mut requested = Vec::new();
    if !needs_node_ports(service) {
        return Ok(requested);
    }
    let owner = name(service);
    let mut errors = Vec::new();
    let ports = service["spec"]["ports"].as_array().map_or(&[][..], Vec::as_slice);
    for (index, port) in ports.iter().enumerate() {
        let Some(given) = port["nodePort"].as_i64().filter(|given| *given != 0) else { continue };
        let checked = match u16::try_from(given) {
            Ok(given) => {
                let mut before = ports[..index].iter();
                let another = before.any(|other| {
                    number(&other["nodePort"]) == Some(given) && other["port"] != port["port"]
                });
                let taken = requested.contains(&given) && another && is_new;
                requested.push(given);
                let free = allocator.check_port(given, &owner);
                free.and_then(|()| {
                    if taken {
                        Err("provided port is already allocated".to_owned())
                    } else {
                        Ok(())
                    }
                })
            }
            Err(_) => allocator.check_port(0, &owner),
        };
        if let Err(why) = checked {
            errors.push(FieldError::invalid(
                format!("spec.ports[{index}].nodePort"),
                &port["nodePort"],
                why,
            ));
        }
    }
    if errors.is_empty() { Ok(requested) } else { Err(invalid(service, &errors)) }
}

/// The node port of the same port under another protocol: they share one number.
fn sibling(service: &Value, index: usize) -> Option<u16> {
    let ports = service["spec"]["ports"].as_array()?;
    let own = ports.get(index)?;
    let taken = |shared: u16| {
        ports.iter().any(|port| {
            number(&port["nodePort"]) == Some(shared) && port["protocol"] == own["protocol"]
        })
    };
    ports
        .iter()
        .filter(|port| port["port"] == own["port"] && port["protocol"] != own["protocol"])
        .find_map(|port| number(&port["nodePort"]))
        .filter(|shared| !taken(*shared))
}

/// A port number; 0 is none.
pub(super) fn number(value: &Value) -> Option<u16> {
    value.as_u64().and_then(|number| u16::try_from(number).ok()).filter(|number| *number != 0)
}
