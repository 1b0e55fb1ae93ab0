//! Whom a proxied request is for: the agent of a pod's node, a pod, or an endpoint of a Service.
//!
//! Upstream counterpart: `pkg/registry/core/pod/strategy.go` (`LogLocation`, `streamLocation`, `ResourceLocation`) and
//! `pkg/registry/core/service/storage` (`ResourceLocation`).

use std::net::{IpAddr, SocketAddr};

use api::resource::Subresource;
use api::{Reason, StatusError};
use http::Uri;
use rand::seq::IndexedRandom;
use serde_json::Value;

use crate::Cache;
use crate::lookup::{ENDPOINT_SLICES, NODES, PODS, SERVICES, array, text};
use crate::request::Query;
use crate::rest::Context;

/// Where agents listen unless the node says otherwise.
const AGENT_PORT: u16 = 10250;

/// How the backend is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Security {
    /// HTTP.
    Plain,
    /// HTTPS with certificates of the cluster on both sides.
    Agent,
    /// HTTPS with whatever certificate the backend has.
    Unverified,
}

/// A backend and the path there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Target {
    /// Its address.
    pub address: IpAddr,
    /// Its port.
    pub port: u16,
    /// How it is spoken to.
    pub security: Security,
    /// Path and query.
    pub path: String,
}

impl Target {
    /// Address and port.
    pub(super) fn authority(&self) -> String {
        SocketAddr::new(self.address, self.port).to_string()
    }

    /// The whole URL.
    pub(super) fn url(&self) -> String {
        let scheme = if self.security == Security::Plain { "http" } else { "https" };
        format!("{scheme}://{}{}", self.authority(), self.path)
    }
}

/// Finds the backend of a request; none for the logs of a pod that no node has yet.
pub(super) fn find(
    context: &Context<'_>,
    part: Subresource,
    uri: &Uri,
) -> Result<Option<Target>, StatusError> {
    let cache = context.registry.cache();
    let (namespace, name) = (context.info.namespace.as_str(), context.info.name.as_str());
    if part != Subresource::Proxy {
        let pod = PODS
            .get(cache, namespace, name)
            .ok_or_else(|| StatusError::not_found("", "pods", name))?;
        if part == Subresource::Log && text(&pod, "/spec/nodeName").is_empty() {
            return Ok(None);
        }
        return of_agent(cache, &pod, part, &context.info.query, uri.query().unwrap_or(""))
            .map(Some);
    }
    let query = uri.query().map(|query| format!("?{query}")).unwrap_or_default();
    let path = format!("{}{query}", tail(uri.path(), !namespace.is_empty()));
    let id = Id::parse(name).ok_or_else(|| {
        StatusError::bad_request(format!("invalid {} request {name:?}", context.resource.singular))
    })?;
    if NODES.is(context.resource) {
        let (address, port) = agent(cache, id.name)?;
        let port = id.port.parse().unwrap_or(port);
        return Ok(Some(Target { address, port, security: Security::Agent, path }));
    }
    let (address, port) = if SERVICES.is(context.resource) {
        endpoint(cache, namespace, &id)?
    } else {
        pod_address(cache, namespace, &id)?
    };
    let security = if id.scheme == "https" { Security::Unverified } else { Security::Plain };
    Ok(Some(Target { address, port, security, path }))
}

/// What follows `proxy`, as it was written; at least a slash.
fn tail(path: &str, namespaced: bool) -> String {
    // /api/v1/namespaces/a/pods/b/proxy/… or /api/v1/nodes/b/proxy/…, after a first empty piece.
    let before = if namespaced { 8 } else { 6 };
    let rest: Vec<&str> = path.splitn(before + 1, '/').skip(before).collect();
    format!("/{}", rest.join("/"))
}

/// `{scheme:}name{:port}`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Id<'a> {
    scheme: &'a str,
    name: &'a str,
    port: &'a str,
}

impl<'a> Id<'a> {
    fn parse(text: &'a str) -> Option<Self> {
        let parts: Vec<&str> = text.split(':').collect();
        let id = match parts[..] {
            [name] => Self { scheme: "", name, port: "" },
            [name, port] => Self { scheme: "", name, port },
            [scheme @ ("" | "http" | "https"), name, port] => Self { scheme, name, port },
            _ => return None,
        };
        (!id.name.is_empty()).then_some(id)
    }
}

/// Address and port of a node's agent.
fn agent(cache: &Cache, name: &str) -> Result<(IpAddr, u16), StatusError> {
    let node =
        NODES.get(cache, "", name).ok_or_else(|| StatusError::not_found("", "nodes", name))?;
    let internal = array(&node, "/status/addresses")
        .iter()
        .filter(|address| address["type"] == "InternalIP")
        .find_map(|address| text(address, "/address").parse().ok());
    let known = &node["status"]["addresses"];
    let address = internal.ok_or_else(|| {
        StatusError::internal(format!("no preferred addresses found; known addresses: {known}"))
    })?;
    let port = node.pointer("/status/daemonEndpoints/kubeletEndpoint/Port").and_then(Value::as_u64);
    let port = port
        .and_then(|port| u16::try_from(port).ok())
        .filter(|port| *port != 0)
        .unwrap_or(AGENT_PORT);
    Ok((address, port))
}

/// The agent of a pod's node, and the path of the pod's part there.
fn of_agent(
    cache: &Cache,
    pod: &Value,
    part: Subresource,
    query: &Query,
    raw_query: &str,
) -> Result<Target, StatusError> {
    let (namespace, name) = (text(pod, "/metadata/namespace"), text(pod, "/metadata/name"));
    let container = match part {
        Subresource::PortForward => String::new(),
        _ => container(pod, query.get("container"))?,
    };
    let node = text(pod, "/spec/nodeName");
    if node.is_empty() {
        return Err(StatusError::bad_request(format!("pod {name} does not have a host assigned")));
    }
    let (address, port) = agent(cache, node)?;
    let path = match part {
        Subresource::Log => format!("/containerLogs/{namespace}/{name}/{container}"),
        Subresource::Exec => format!("/exec/{namespace}/{name}/{container}"),
        Subresource::Attach => format!("/attach/{namespace}/{name}/{container}"),
        _ => format!("/portForward/{namespace}/{name}"),
    };
    let mut pairs: Vec<String> = raw_query
        .split('&')
        .filter(|pair| !pair.is_empty() && !pair.starts_with("container="))
        .map(str::to_owned)
        .collect();
    if part == Subresource::PortForward {
        // The agent's own name of the option.
        for pair in &mut pairs {
            if let Some(ports) = pair.strip_prefix("ports=") {
                *pair = format!("port={ports}");
            }
        }
    }
    if matches!(part, Subresource::Exec | Subresource::Attach) {
        // The agent's own names of these options.
        for (option, own) in [("stdin", "input"), ("stdout", "output"), ("stderr", "error")] {
            if query.flag(option) {
                pairs.push(format!("{own}=1"));
            }
        }
    }
    let query = if pairs.is_empty() { String::new() } else { format!("?{}", pairs.join("&")) };
    Ok(Target { address, port, security: Security::Agent, path: format!("{path}{query}") })
}

/// The container that is meant.
fn container(pod: &Value, wanted: &str) -> Result<String, StatusError> {
    let names = |list: &str| -> Vec<String> {
        let list = array(pod, &format!("/spec/{list}"));
        list.iter().map(|container| text(container, "/name").to_owned()).collect()
    };
    let (own, init, ephemeral) =
        (names("containers"), names("initContainers"), names("ephemeralContainers"));
    let name = text(pod, "/metadata/name");
    if wanted.is_empty() {
        if let [one] = own.as_slice() {
            return Ok(one.clone());
        }
        let mut message = format!("a container name must be specified for pod {name}");
        if !own.is_empty() {
            message.push_str(&format!(", choose one of: [{}]", own.join(" ")));
        }
        if !init.is_empty() {
            message.push_str(&format!(" or one of the init containers: [{}]", init.join(" ")));
        }
        if !ephemeral.is_empty() {
            message.push_str(&format!(
                " or one of the ephemeral containers: [{}]",
                ephemeral.join(" ")
            ));
        }
        return Err(StatusError::bad_request(message));
    }
    if own.iter().chain(&init).chain(&ephemeral).any(|known| known == wanted) {
        return Ok(wanted.to_owned());
    }
    Err(StatusError::bad_request(format!("container {wanted} is not valid for pod {name}")))
}

fn pod_address(cache: &Cache, namespace: &str, id: &Id<'_>) -> Result<(IpAddr, u16), StatusError> {
    let pod = PODS
        .get(cache, namespace, id.name)
        .ok_or_else(|| StatusError::not_found("", "pods", id.name))?;
    let address = text(&pod, "/status/podIP")
        .parse()
        .map_err(|_| StatusError::bad_request("address not allowed"))?;
    let ports: Vec<&Value> = array(&pod, "/spec/containers")
        .iter()
        .flat_map(|container| array(container, "/ports"))
        .collect();
    let number =
        |port: &Value| port["containerPort"].as_u64().and_then(|port| u16::try_from(port).ok());
    let port = if id.port.is_empty() {
        ports.first().and_then(|port| number(port))
    } else {
        id.port.parse().ok().or_else(|| {
            ports.iter().find(|port| port["name"] == id.port).and_then(|port| number(port))
        })
    };
    Ok((address, port.unwrap_or(if id.scheme == "https" { 443 } else { 80 })))
}

/// A ready endpoint of a Service's port, any of them.
fn endpoint(cache: &Cache, namespace: &str, id: &Id<'_>) -> Result<(IpAddr, u16), StatusError> {
    let service = SERVICES
        .get(cache, namespace, id.name)
        .ok_or_else(|| StatusError::not_found("", "services", id.name))?;
    let unavailable = |message: String| StatusError::new(Reason::ServiceUnavailable, message);
    let ports = array(&service, "/spec/ports");
    let by_number = id.port.parse::<u64>().ok();
    let port = ports.iter().find(|port| match by_number {
        Some(number) => port["port"] == number,
        None => id.port.is_empty() || text(port, "/name") == id.port,
    });
    let port_name = match port {
        Some(port) => text(port, "/name"),
        None => {
            let name = id.name;
            return Err(unavailable(format!(
                "no service port {:?} found for service {name:?}",
                id.port
            )));
        }
    };
    let slices = ENDPOINT_SLICES.list(cache, namespace);
    let candidates: Vec<(IpAddr, u16)> = slices
        .iter()
        .filter(|slice| slice["metadata"]["labels"]["kubernetes.io/service-name"] == id.name)
        .flat_map(|slice| ready(slice, port_name))
        .collect();
    candidates
        .choose(&mut rand::rng())
        .copied()
        .ok_or_else(|| unavailable(format!("no endpoints available for service {:?}", id.name)))
}

/// Addresses of a slice's ready endpoints, with the number of the named port.
fn ready(slice: &Value, port_name: &str) -> Vec<(IpAddr, u16)> {
    let port = array(slice, "/ports").iter().find(|port| text(port, "/name") == port_name);
    let Some(number) =
        port.and_then(|port| port["port"].as_u64()).and_then(|port| u16::try_from(port).ok())
    else {
        return Vec::new();
    };
    array(slice, "/endpoints")
        .iter()
        .filter(|endpoint| endpoint["conditions"]["ready"].as_bool().unwrap_or(true))
        .filter_map(|endpoint| text(endpoint, "/addresses/0").parse().ok())
        .map(|address| (address, number))
        .collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use serde_json::json;

    #[test]
    fn containers_are_chosen_in_upstreams_words() {
        let one = json!({"metadata": {"name": "x"}, "spec": {"containers": [{"name": "a"}]}});
        let two = json!({"metadata": {"name": "x"}, "spec": {"containers": [{"name": "a"}, {"name": "b"}],
            "initContainers": [{"name": "i"}]}});
        assert_eq!(container(&one, "").unwrap(), "a");
        assert_eq!(container(&two, "i").unwrap(), "i");
        assert_eq!(
            container(&two, "").unwrap_err().message,
            "a container name must be specified for pod x, choose one of: [a b] or one of the init containers: [i]"
        );
        assert_eq!(container(&two, "z").unwrap_err().message, "container z is not valid for pod x");
    }

    #[test]
    fn ids_and_tails_are_taken_apart() {
        assert_eq!(Id::parse("b"), Some(Id { scheme: "", name: "b", port: "" }));
        assert_eq!(Id::parse("b:80"), Some(Id { scheme: "", name: "b", port: "80" }));
        assert_eq!(Id::parse("https:b:web"), Some(Id { scheme: "https", name: "b", port: "web" }));
        assert_eq!(Id::parse("ftp:b:1"), None);
        assert_eq!(Id::parse(":"), None);
        assert_eq!(tail("/api/v1/namespaces/a/services/b/proxy/x%20y/", true), "/x%20y/");
        assert_eq!(tail("/api/v1/namespaces/a/services/b/proxy/", true), "/");
        assert_eq!(tail("/api/v1/nodes/b/proxy/pods", false), "/pods");
    }

    #[test]
    fn only_ready_endpoints_of_the_port_answer() {
        let slice = json!({"ports": [{"name": "web", "port": 8080}], "endpoints": [
            {"addresses": ["10.0.0.1"], "conditions": {"ready": true}},
            {"addresses": ["10.0.0.2"], "conditions": {"ready": false}},
            {"addresses": ["10.0.0.3"]}]});
        let found: Vec<String> = ready(&slice, "web")
            .iter()
            .map(|(address, port)| format!("{address}:{port}"))
            .collect();
        assert_eq!(found, ["10.0.0.1:8080", "10.0.0.3:8080"]);
        assert!(ready(&slice, "other").is_empty());
    }
}
