//! Where a proxied request goes. Upstream: `ResourceLocation`, `LogLocation`, `ExecLocation` of the pod and service
//! strategies.

use std::sync::Arc;

use api::resource::Subresource;
use api::{Reason, StatusError};
use http::Request;
use rand::seq::IndexedRandom as _;
use serde_json::Value;

use crate::lookup::{ENDPOINT_SLICES, NODES, PODS, SERVICES};
use crate::rest::Context;
use crate::{Body, Cache};

/// The agent's port when its node does not say.
const KUBELET_PORT: u16 = 10250;

/// Whether and how the target's certificate is checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Trust {
    /// No TLS.
    Plain,
    /// A node's agent: our own authority.
    Node,
    /// A pod's own: nobody can know it.
    Any,
}

/// Where a request goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Target {
    /// An address.
    pub(super) host: String,
    /// A port.
    pub(super) port: u16,
    /// Path and query.
    pub(super) path: String,
    /// TLS.
    pub(super) trust: Trust,
}

/// Decides the target.
///
/// # Errors
/// In upstream's words: no such object, no host, a wrong container.
pub(super) fn of(context: &Context<'_>, part: Subresource, request: &Request<Body>) -> Result<Target, StatusError> {
    let info = context.info;
    let query = request.uri().query().map(|query| format!("?{query}")).unwrap_or_default();
    let cache = context.registry.cache();
    match (context.resource.plural, part) {
        ("nodes", _) => node_proxy(cache, &info.name, &format!("{}{query}", info.tail)),
        ("services", _) => service_proxy(cache, &info.namespace, &info.name, &format!("{}{query}", info.tail)),
        ("pods", Subresource::Proxy) => {
            pod_proxy(cache, &info.namespace, &info.name, &format!("{}{query}", info.tail))
        }
        ("pods", part) => {
            let pod = PODS
                .get(cache, &info.namespace, &info.name)
                .ok_or_else(|| StatusError::not_found("", "pods", &info.name))?;
            container_target(cache, &pod, part, (info.query.get("container"), &query))
        }
        _ => Err(crate::reply::method_not_allowed()),
    }
}

/// A path of the agent of the pod's node.
fn container_target(
    cache: &Cache,
    pod: &Value,
    part: Subresource,
    (container, query): (&str, &str),
) -> Result<Target, StatusError> {
    let (namespace, name) = (text(&pod["metadata"]["namespace"]), text(&pod["metadata"]["name"]));
    let node = text(&pod["spec"]["nodeName"]);
    if part == Subresource::PortForward {
        return on_node(cache, pod, node, format!("/portForward/{namespace}/{name}{query}"));
    }
    let container = choose(pod, container)?;
    let verb = match part {
        Subresource::Log => "containerLogs",
        Subresource::Attach => "attach",
        _ => "exec",
    };
    on_node(cache, pod, node, format!("/{verb}/{namespace}/{name}/{container}{query}"))
}

fn on_node(cache: &Cache, pod: &Value, node: &str, path: String) -> Result<Target, StatusError> {
    if node.is_empty() {
        let name = text(&pod["metadata"]["name"]);
        return Err(StatusError::bad_request(format!("pod {name} does not have a host assigned")));
    }
    let (host, port) = node_address(cache, node)?;
    Ok(Target { host, port, path, trust: Trust::Node })
}

/// The container that is meant: the named one, the annotated default, or the only one.
fn choose(pod: &Value, asked: &str) -> Result<String, StatusError> {
    let names = |list: &str| -> Vec<String> {
        let all = pod["spec"][list].as_array().into_iter().flatten();
        all.map(|container| text(&container["name"]).to_owned()).collect()
    };
    let (containers, inits, ephemeral) = (names("containers"), names("initContainers"), names("ephemeralContainers"));
    let name = text(&pod["metadata"]["name"]);
    let annotated = text(&pod["metadata"]["annotations"]["kubectl.kubernetes.io/default-container"]);
    let known = |asked: &str| [&containers, &inits, &ephemeral].iter().any(|list| list.iter().any(|own| own == asked));
    if !asked.is_empty() {
        return if known(asked) {
            Ok(asked.to_owned())
        } else {
            Err(StatusError::bad_request(format!("container {asked} is not valid for pod {name}")))
        };
    }
    match containers.as_slice() {
        [only] => Ok(only.clone()),
        _ if known(annotated) => Ok(annotated.to_owned()),
        [] => Err(StatusError::bad_request(format!("a container name must be specified for pod {name}"))),
        many => {
            let mut message =
                format!("a container name must be specified for pod {name}, choose one of: [{}]", many.join(" "));
            if !inits.is_empty() {
                message.push_str(&format!(" or one of the init containers: [{}]", inits.join(" ")));
            }
            Err(StatusError::bad_request(message))
        }
    }
}

fn node_proxy(cache: &Cache, name: &str, path: &str) -> Result<Target, StatusError> {
    let (node, port) = name.rsplit_once(':').map_or((name, None), |(node, port)| (node, Some(port)));
    let (host, own) = node_address(cache, node)?;
    let port = port.filter(|port| !port.is_empty()).and_then(|port| port.parse().ok());
    let trust = if port.is_none_or(|port| port == own) { Trust::Node } else { Trust::Plain };
    Ok(Target { host, port: port.unwrap_or(own), path: rooted(path), trust })
}

fn node_address(cache: &Cache, node: &str) -> Result<(String, u16), StatusError> {
    let object = NODES.get(cache, "", node).ok_or_else(|| StatusError::not_found("", "nodes", node))?;
    let addresses = object["status"]["addresses"].as_array().into_iter().flatten();
    let internal = addresses.filter(|address| address["type"] == "InternalIP").map(|address| text(&address["address"]));
    let host = internal.map(str::to_owned).next();
    let host = host.ok_or_else(|| StatusError::internal(format!("no preferred addresses found; known addresses: [] of node {node}")))?;
    let port = object["status"]["daemonEndpoints"]["kubeletEndpoint"]["Port"].as_u64();
    Ok((host, port.and_then(|port| u16::try_from(port).ok()).unwrap_or(KUBELET_PORT)))
}

/// `scheme:name:port`, `name:port` or `name` (`utilnet.SplitSchemeNamePort`).
fn split(id: &str) -> Option<(&str, &str, &str)> {
    let parts: Vec<&str> = id.split(':').collect();
    let (scheme, name, port) = match parts.as_slice() {
        [name] => ("", *name, ""),
        [name, port] => ("", *name, *port),
        [scheme, name, port] => (*scheme, *name, *port),
        _ => return None,
    };
    (matches!(scheme, "" | "http" | "https") && !name.is_empty()).then_some((scheme, name, port))
}

fn trust_of(scheme: &str) -> Trust {
    if scheme == "https" { Trust::Any } else { Trust::Plain }
}

fn pod_proxy(cache: &Cache, namespace: &str, id: &str, path: &str) -> Result<Target, StatusError> {
    let (scheme, name, port) =
        split(id).ok_or_else(|| StatusError::bad_request(format!("invalid pod request {id:?}")))?;
    let pod = PODS.get(cache, namespace, name).ok_or_else(|| StatusError::not_found("", "pods", name))?;
    let containers = || pod["spec"]["containers"].as_array().into_iter().flatten();
    let ports = || containers().flat_map(|container| container["ports"].as_array().into_iter().flatten());
    let number = match port.parse::<u16>() {
        Ok(number) => Some(number),
        Err(_) if port.is_empty() => ports().find_map(|port| number(&port["containerPort"])).or(Some(80)),
        Err(_) => ports().find(|own| own["name"] == port).and_then(|own| number(&own["containerPort"])),
    };
    let host = text(&pod["status"]["podIP"]).to_owned();
    if host.is_empty() {
        return Err(StatusError::bad_request("address not allowed"));
    }
    let port = number.ok_or_else(|| no_service(&format!("no port {port:?} on pod {name:?}")))?;
    Ok(Target { host, port, path: rooted(path), trust: trust_of(scheme) })
}

fn service_proxy(cache: &Cache, namespace: &str, id: &str, path: &str) -> Result<Target, StatusError> {
    let (scheme, name, port) =
        split(id).ok_or_else(|| StatusError::bad_request(format!("invalid service request {id:?}")))?;
    let service = SERVICES.get(cache, namespace, name).ok_or_else(|| StatusError::not_found("", "services", name))?;
    let ports: Vec<&Value> = service["spec"]["ports"].as_array().into_iter().flatten().collect();
    let wanted = match (port, ports.as_slice()) {
        ("", [only]) => Some(*only),
        ("", many) => many.iter().find(|own| text(&own["name"]).is_empty()).copied(),
        (port, many) => many.iter().find(|own| own["name"] == port || own["port"].to_string() == port).copied(),
    };
    let wanted = wanted.ok_or_else(|| no_service(&format!("no service port {port:?} found for service {name:?}")))?;
    let slices = ENDPOINT_SLICES.list(cache, namespace);
    let own = slices.iter().filter(|slice| slice["metadata"]["labels"]["kubernetes.io/service-name"] == name);
    let candidates: Vec<(String, u16)> = own.flat_map(|slice| endpoints(slice, text(&wanted["name"]))).collect();
    let (host, port) = candidates
        .choose(&mut rand::rng())
        .cloned()
        .ok_or_else(|| no_service(&format!("no endpoints available for service {name:?}")))?;
    Ok(Target { host, port, path: rooted(path), trust: trust_of(scheme) })
}

/// The ready endpoints of a slice behind the Service port of that name.
fn endpoints(slice: &Arc<Value>, port: &str) -> Vec<(String, u16)> {
    let ports = slice["ports"].as_array().into_iter().flatten();
    let Some(port) = ports.filter(|own| text(&own["name"]) == port).find_map(|own| number(&own["port"])) else {
        return Vec::new();
    };
    let all = slice["endpoints"].as_array().into_iter().flatten();
    let ready = all.filter(|endpoint| endpoint["conditions"]["ready"] != false);
    ready.filter_map(|endpoint| Some((endpoint["addresses"][0].as_str()?.to_owned(), port))).collect()
}

fn no_service(message: &str) -> StatusError {
    StatusError::new(Reason::ServiceUnavailable, message)
}

fn rooted(path: &str) -> String {
    if path.starts_with('/') { path.to_owned() } else { format!("/{path}") }
}

fn number(value: &Value) -> Option<u16> {
    u16::try_from(value.as_u64()?).ok()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// TLS to a pod that serves it: upstream checks no certificate there either.
pub(super) fn trusting() -> Result<rustls::ClientConfig, rustls::Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anyone { provider }))
        .with_no_client_auth();
    Ok(config)
}

#[derive(Debug)]
struct Anyone {
    provider: Arc<rustls::crypto::CryptoProvider>,
}

impl rustls::client::danger::ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _certificate: &rustls_pki_types::CertificateDer<'_>,
        _intermediates: &[rustls_pki_types::CertificateDer<'_>],
        _name: &rustls_pki_types::ServerName<'_>,
        _ocsp: &[u8],
        _now: rustls_pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &rustls_pki_types::CertificateDer<'_>,
        signature: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &rustls_pki_types::CertificateDer<'_>,
        signature: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_container_is_chosen_in_upstreams_words() {
        let pod = |names: &[&str]| {
            let containers: Vec<Value> = names.iter().map(|name| json!({"name": name})).collect();
            json!({"metadata": {"name": "p"}, "spec": {"containers": containers}})
        };
        assert_eq!(choose(&pod(&["a"]), "").unwrap(), "a");
        assert_eq!(choose(&pod(&["a", "b"]), "b").unwrap(), "b");
        let many = choose(&pod(&["a", "b"]), "").unwrap_err().message;
        assert_eq!(many, "a container name must be specified for pod p, choose one of: [a b]");
        let wrong = choose(&pod(&["a"]), "x").unwrap_err().message;
        assert_eq!(wrong, "container x is not valid for pod p");
    }

    #[test]
    fn scheme_name_and_port_are_told_apart() {
        assert_eq!(split("web"), Some(("", "web", "")));
        assert_eq!(split("web:http"), Some(("", "web", "http")));
        assert_eq!(split("https:web:443"), Some(("https", "web", "443")));
        assert_eq!(split("ftp:web:1"), None);
    }
}
