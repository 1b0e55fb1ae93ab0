//! Environment of containers: Service variables, `env`, `envFrom`, `$(VAR)`, the downward API.
//! Upstream: `pkg/kubelet/envvars`, `makeEnvironmentVariables`, `third_party/forked/golang/expansion`.

use std::collections::BTreeMap;
use std::sync::Arc;

use api::core::{
    ConfigMap, Container, EnvFromSource, EnvVarSource, Pod, PodStatus, Secret, Service,
};
use api::{Kind, Objects, Quantity};

use super::resources;

/// Objects that a pod's environment and volumes refer to.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// Config maps of the pod's namespace by name; absent ones do not exist.
    pub config_maps: BTreeMap<String, Arc<ConfigMap>>,
    /// Secrets of the pod's namespace by name.
    pub secrets: BTreeMap<String, Arc<Secret>>,
    /// All Services.
    pub services: Objects<Service>,
    /// The node's allocatable resources.
    pub allocatable: BTreeMap<String, Quantity>,
}

/// The pod as the downward API shows it.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    /// The object.
    pub pod: &'a Pod,
    /// Its status as the agent knows it now (addresses).
    pub status: &'a PodStatus,
}

/// The environment of `container`, later entries winning; an error is the message of `CreateContainerConfigError`.
///
/// # Errors
/// When a reference that is not optional leads nowhere.
pub fn container_env(
    subject: Subject<'_>,
    container: &Container,
    sources: &Sources,
) -> Result<Vec<(String, String)>, String> {
    let pod = subject.pod;
    let links = pod.spec.as_ref().and_then(|spec| spec.enable_service_links).unwrap_or(true);
    let services = service_env(&sources.services, pod.namespace(), links);
    let mut known: BTreeMap<String, String> = BTreeMap::new();
    let mut result: Vec<(String, String)> = services.clone().into_iter().collect();
    for source in container.env_from.iter().flatten() {
        for (key, value) in env_from(pod.namespace(), source, sources)? {
            known.insert(key.clone(), value.clone());
            result.push((key, value));
        }
    }
    for entry in container.env.iter().flatten() {
        let value = match (&entry.value, &entry.value_from) {
            (Some(text), _) if !text.is_empty() => {
                Some(expand(text, |name| known.get(name).or_else(|| services.get(name)).cloned()))
            }
            (_, Some(from)) => from_source(subject, container, from, sources)?,
            _ => Some(String::new()),
        };
        if let Some(value) = value {
            known.insert(entry.name.clone(), value.clone());
            result.push((entry.name.clone(), value));
        }
    }
    Ok(result)
}

/// Command and arguments with `$(VAR)` replaced from the container's environment.
#[must_use]
pub fn expand_all(texts: Option<&Vec<String>>, env: &[(String, String)]) -> Vec<String> {
    let lookup = |name: &str| env.iter().rev().find(|(key, _)| key == name).map(|(_, v)| v.clone());
    texts.into_iter().flatten().map(|text| expand(text, lookup)).collect()
}

/// Replaces `$(VAR)`; `$$` is a dollar sign; what is not known stays as it is.
#[must_use]
pub fn expand(text: &str, lookup: impl Fn(&str) -> Option<String>) -> String {
    let mut result = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        result.push_str(&rest[..at]);
        let after = &rest[at + 1..];
        if let Some(tail) = after.strip_prefix('$') {
            result.push('$');
            rest = tail;
        } else if let Some((name, tail)) = after.strip_prefix('(').and_then(|t| t.split_once(')')) {
            match lookup(name) {
                Some(value) => result.push_str(&value),
                None => {
                    result.push_str("$(");
                    result.push_str(name);
                    result.push(')');
                }
            }
            rest = tail;
        } else {
            result.push('$');
            rest = after;
        }
    }
    result.push_str(rest);
    result
}

/// Variables of the Services that a pod of `namespace` sees: all of its namespace when `links`, and `kubernetes` always.
#[must_use]
pub fn service_env(
    services: &Objects<Service>,
    namespace: &str,
    links: bool,
) -> BTreeMap<String, String> {
    let mut seen: BTreeMap<&str, &Service> = BTreeMap::new();
    for service in services.values() {
        let has_address = cluster_ip(service).is_some();
        let own = service.namespace() == namespace && links;
        let master = service.namespace() == "default" && service.name() == "kubernetes";
        if has_address && (own || (master && !seen.contains_key("kubernetes"))) {
            seen.insert(service.name(), service);
        }
    }
    let mut env = BTreeMap::new();
    for service in seen.into_values() {
        add_service(service, &mut env);
    }
    env
}

fn cluster_ip(service: &Service) -> Option<&str> {
    let spec = service.spec.as_ref()?;
    if spec.type_.as_deref() == Some("ExternalName") {
        return None;
    }
    spec.cluster_ip.as_deref().filter(|ip| !ip.is_empty() && *ip != "None")
}

fn add_service(service: &Service, env: &mut BTreeMap<String, String>) {
    let Some(ip) = cluster_ip(service) else { return };
    let ports = service.spec.as_ref().and_then(|spec| spec.ports.as_ref());
    let name = variable(service.name());
    env.insert(format!("{name}_SERVICE_HOST"), ip.to_owned());
    for (index, port) in ports.into_iter().flatten().enumerate() {
        let number = port.port.to_string();
        let protocol = port.protocol.as_deref().unwrap_or("TCP");
        let lower = protocol.to_ascii_lowercase();
        let host = if ip.contains(':') { format!("[{ip}]") } else { ip.to_owned() };
        let url = format!("{lower}://{host}:{number}");
        if index == 0 {
            env.insert(format!("{name}_SERVICE_PORT"), number.clone());
            env.insert(format!("{name}_PORT"), url.clone());
        }
        if let Some(port_name) = port.name.as_deref().filter(|name| !name.is_empty()) {
            env.insert(format!("{name}_SERVICE_PORT_{}", variable(port_name)), number.clone());
        }
        let prefix = format!("{name}_PORT_{number}_{}", protocol.to_ascii_uppercase());
        env.insert(format!("{prefix}_PROTO"), lower);
        env.insert(format!("{prefix}_PORT"), number);
        env.insert(format!("{prefix}_ADDR"), ip.to_owned());
        env.insert(prefix, url);
    }
}

fn variable(name: &str) -> String {
    name.replace('-', "_").to_ascii_uppercase()
}

fn env_from(
    namespace: &str,
    from: &EnvFromSource,
    sources: &Sources,
) -> Result<Vec<(String, String)>, String> {
    let prefix = from.prefix.as_deref().unwrap_or_default();
    let mut pairs: Vec<(String, String)> = Vec::new();
    if let Some(reference) = &from.config_map_ref {
        match sources.config_maps.get(&reference.name) {
            Some(map) => pairs.extend(map.data.clone().unwrap_or_default()),
            None if reference.optional == Some(true) => {}
            None => return Err(format!("configmap {:?} not found", reference.name)),
        }
    }
    if let Some(reference) = &from.secret_ref {
        match sources.secrets.get(&reference.name) {
            Some(secret) => {
                for (key, value) in secret.data.iter().flatten() {
                    pairs.push((key.clone(), String::from_utf8_lossy(&value.0).into_owned()));
                }
            }
            None if reference.optional == Some(true) => {}
            None => return Err(format!("secret {:?} not found", reference.name)),
        }
    }
    let _ = namespace;
    let named = pairs.into_iter().map(|(key, value)| (format!("{prefix}{key}"), value));
    Ok(named.filter(|(key, _)| !key.is_empty() && !key.contains('=')).collect())
}

/// The value of `valueFrom`; `None` when an optional reference leads nowhere.
fn from_source(
    subject: Subject<'_>,
    container: &Container,
    from: &EnvVarSource,
    sources: &Sources,
) -> Result<Option<String>, String> {
    let namespace = subject.pod.namespace();
    if let Some(reference) = &from.field_ref {
        return field(subject, &reference.field_path).map(Some);
    }
    if let Some(reference) = &from.resource_field_ref {
        let container = match reference.container_name.as_deref().filter(|name| !name.is_empty()) {
            Some(name) => find_container(subject.pod, name)?,
            None => container,
        };
        let divisor = reference.divisor.as_ref();
        let value =
            resources::field(container, &reference.resource, divisor, &sources.allocatable)?;
        return Ok(Some(value));
    }
    if let Some(reference) = &from.config_map_key_ref {
        let optional = reference.optional == Some(true);
        let map = sources.config_maps.get(&reference.name);
        let value = map.and_then(|map| map.data.as_ref()?.get(&reference.key).cloned());
        return match (map, value) {
            (_, Some(value)) => Ok(Some(value)),
            _ if optional => Ok(None),
            (None, None) => Err(format!("configmap {:?} not found", reference.name)),
            (Some(_), None) => Err(format!(
                "couldn't find key {} in ConfigMap {namespace}/{}",
                reference.key, reference.name
            )),
        };
    }
    if let Some(reference) = &from.secret_key_ref {
        let optional = reference.optional == Some(true);
        let secret = sources.secrets.get(&reference.name);
        let value = secret.and_then(|secret| secret.data.as_ref()?.get(&reference.key));
        return match (secret, value) {
            (_, Some(value)) => Ok(Some(String::from_utf8_lossy(&value.0).into_owned())),
            _ if optional => Ok(None),
            (None, None) => Err(format!("secret {:?} not found", reference.name)),
            (Some(_), None) => Err(format!(
                "couldn't find key {} in Secret {namespace}/{}",
                reference.key, reference.name
            )),
        };
    }
    Ok(Some(String::new()))
}

/// A container of the pod by name.
///
/// # Errors
/// When there is none.
pub fn find_container<'a>(pod: &'a Pod, name: &str) -> Result<&'a Container, String> {
    let spec = pod.spec.as_ref();
    let mut all = spec
        .iter()
        .flat_map(|spec| spec.containers.iter().chain(spec.init_containers.iter().flatten()));
    all.find(|container| container.name == name)
        .ok_or_else(|| format!("container {name} not found"))
}

/// The value of a `fieldRef`.
///
/// # Errors
/// When the path is unknown, in upstream's words.
pub fn field(subject: Subject<'_>, path: &str) -> Result<String, String> {
    let Subject { pod, status } = subject;
    let meta = pod.meta();
    let spec = pod.spec.as_ref();
    let text = |value: Option<&String>| value.cloned().unwrap_or_default();
    if let Some((map, key)) = path.strip_suffix("']").and_then(|path| path.split_once("['")) {
        return match map {
            "metadata.labels" => Ok(text(meta.labels.as_ref().and_then(|all| all.get(key)))),
            "metadata.annotations" => {
                Ok(text(meta.annotations.as_ref().and_then(|all| all.get(key))))
            }
            _ => Err(format!("fieldPath {path:?} does not support subscript")),
        };
    }
    Ok(match path {
        "metadata.name" => text(meta.name.as_ref()),
        "metadata.namespace" => text(meta.namespace.as_ref()),
        "metadata.uid" => text(meta.uid.as_ref()),
        "metadata.labels" => lines(meta.labels.as_ref()),
        "metadata.annotations" => lines(meta.annotations.as_ref()),
        "spec.nodeName" => text(spec.and_then(|spec| spec.node_name.as_ref())),
        "spec.serviceAccountName" => text(spec.and_then(|spec| spec.service_account_name.as_ref())),
        "status.hostIP" => text(status.host_ip.as_ref()),
        "status.podIP" => text(status.pod_ip.as_ref()),
        "status.hostIPs" => {
            let ips = status.host_ips.iter().flatten();
            ips.map(|ip| ip.ip.as_str()).collect::<Vec<_>>().join(",")
        }
        "status.podIPs" => {
            let ips = status.pod_ips.iter().flatten();
            ips.map(|ip| ip.ip.as_str()).collect::<Vec<_>>().join(",")
        }
        _ => return Err(format!("unsupported fieldPath: {path}")),
    })
}

/// Labels or annotations as files show them: `key="value"` lines, ordered.
fn lines(map: Option<&BTreeMap<String, String>>) -> String {
    let lines = map.into_iter().flatten().map(|(key, value)| format!("{key}={value:?}"));
    lines.collect::<Vec<_>>().join("\n")
}
