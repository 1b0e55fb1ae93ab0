//! What this server serves, told to clients: group lists, resource lists, and both at once (aggregated).
//! Upstream: `endpoints/discovery` and `endpoints/discovery/aggregated`.

use api::ResourceScope;
use api::resource::{RESOURCES, Resource, Subresource};
use http::{HeaderMap, Response, StatusCode, header};
use serde_json::{Value, json};

use crate::registry::api_version;
use crate::{Body, Config, object, reply};

/// Answers the paths of discovery; `None`: another path, or nothing of that name.
pub(crate) fn respond(path: &str, headers: &HeaderMap, config: &Config) -> Option<Response<Body>> {
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    let value = match parts[..] {
        ["api"] => return Some(root(headers, true, || core_versions(config))),
        ["apis"] => return Some(root(headers, false, group_list)),
        ["api", "v1"] => resource_list("", "v1")?,
        ["apis", group] => group_of(group)?,
        ["apis", group, version] => resource_list(group, version)?,
        _ => return None,
    };
    Some(reply::json_bytes(StatusCode::OK, object::encode(&value)))
}

/// `/api` and `/apis`: aggregated when the client takes that.
fn root(headers: &HeaderMap, core: bool, legacy: impl FnOnce() -> Value) -> Response<Body> {
    let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or("");
    let has = |range: &str, part: &str| range.split(';').any(|found| found.trim() == part);
    for range in accept.split(',').filter(|range| has(range, "as=APIGroupDiscoveryList")) {
        for (version, content_type) in [
            ("v2", "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"),
            (
                "v2beta1",
                "application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList",
            ),
        ] {
            if has(range, &format!("v={version}")) && has(range, "application/json") {
                let list = aggregated(core, version);
                return reply::reply(StatusCode::OK, content_type, object::encode(&list));
            }
        }
    }
    reply::json_bytes(StatusCode::OK, object::encode(&legacy()))
}

fn core_versions(config: &Config) -> Value {
    let address =
        std::net::SocketAddr::new(config.advertise_address, config.advertise_port).to_string();
    json!({"kind": "APIVersions", "versions": ["v1"],
        "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": address}]})
}

/// Named groups with their versions, in the order of the table.
fn groups() -> Vec<(&'static str, Vec<&'static str>)> {
    let mut groups: Vec<(&str, Vec<&str>)> = Vec::new();
    for resource in RESOURCES.iter().filter(|resource| !resource.group.is_empty()) {
        match groups.iter_mut().find(|(group, _)| *group == resource.group) {
            Some((_, versions)) if versions.contains(&resource.version) => {}
            Some((_, versions)) => versions.push(resource.version),
            None => groups.push((resource.group, vec![resource.version])),
        }
    }
    groups
}

fn group_value(group: &str, versions: &[&str]) -> Value {
    let versions: Vec<Value> = versions
        .iter()
        .map(|version| json!({"groupVersion": format!("{group}/{version}"), "version": version}))
        .collect();
    json!({"name": group, "versions": versions, "preferredVersion": versions[0]})
}

fn group_list() -> Value {
    let groups: Vec<Value> =
        groups().iter().map(|(group, versions)| group_value(group, versions)).collect();
    json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
}

fn group_of(group: &str) -> Option<Value> {
    let groups = groups();
    let (group, versions) = groups.iter().find(|(name, _)| *name == group)?;
    let mut value = group_value(group, versions);
    value["kind"] = "APIGroup".into();
    value["apiVersion"] = "v1".into();
    Some(value)
}

fn served<'a>(group: &'a str, version: &'a str) -> impl Iterator<Item = &'static Resource> + 'a {
    RESOURCES.iter().filter(move |resource| resource.group == group && resource.version == version)
}

fn resource_list(group: &str, version: &str) -> Option<Value> {
    let mut list = Vec::new();
    for resource in served(group, version) {
        let namespaced = resource.scope == ResourceScope::Namespaced;
        let mut entry = json!({"name": resource.plural, "singularName": resource.singular, "namespaced": namespaced,
            "kind": resource.kind, "verbs": resource.verbs});
        if !resource.short_names.is_empty() {
            entry["shortNames"] = json!(resource.short_names);
        }
        if !resource.categories.is_empty() {
            entry["categories"] = json!(resource.categories);
        }
        list.push(entry);
        for part in resource.subresources {
            let (kind, verbs) = subresource(resource, *part);
            let mut entry = json!({"name": format!("{}/{}", resource.plural, part.name()), "singularName": "",
                "namespaced": namespaced, "kind": kind.kind, "verbs": verbs});
            if (kind.group, kind.version) != (group, version) {
                entry["group"] = kind.group.into();
                entry["version"] = kind.version.into();
            }
            list.push(entry);
        }
    }
    let first = served(group, version).next()?;
    Some(
        json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": api_version(first), "resources": list}),
    )
}

/// The kind of a subresource's body.
struct PartKind {
    group: &'static str,
    version: &'static str,
    kind: &'static str,
}

fn subresource(
    resource: &'static Resource,
    part: Subresource,
) -> (PartKind, &'static [&'static str]) {
    let own = |kind| PartKind { group: resource.group, version: resource.version, kind };
    let of = |group, version, kind| PartKind { group, version, kind };
    match part {
        Subresource::Status => (own(resource.kind), &["get", "patch", "update"]),
        Subresource::Scale => (of("autoscaling", "v1", "Scale"), &["get", "patch", "update"]),
        Subresource::Binding => (own("Binding"), &["create"]),
        Subresource::Eviction => (of("policy", "v1", "Eviction"), &["create"]),
        Subresource::Token => (of("authentication.k8s.io", "v1", "TokenRequest"), &["create"]),
        Subresource::Finalize => (own(resource.kind), &["update"]),
        Subresource::Log => (own(resource.kind), &["get"]),
        Subresource::Exec => (own("PodExecOptions"), &["create", "get"]),
        Subresource::Attach => (own("PodAttachOptions"), &["create", "get"]),
        Subresource::PortForward => (own("PodPortForwardOptions"), &["create", "get"]),
        Subresource::Proxy => {
            let kind = match resource.plural {
                "pods" => "PodProxyOptions",
                "services" => "ServiceProxyOptions",
                _ => "NodeProxyOptions",
            };
            (own(kind), &["create", "delete", "get", "patch", "update"])
        }
    }
}

/// All groups, versions and resources in one answer.
fn aggregated(core: bool, version: &str) -> Value {
    let groups = if core { vec![("", vec!["v1"])] } else { groups() };
    let items: Vec<Value> = groups
        .iter()
        .map(|(group, versions)| {
            let versions: Vec<Value> = versions
                .iter()
                .map(|version| {
                    let resources: Vec<Value> =
                        served(group, version).map(aggregated_resource).collect();
                    json!({"version": version, "freshness": "Current", "resources": resources})
                })
                .collect();
            let mut meta = json!({"creationTimestamp": null});
            if !group.is_empty() {
                meta["name"] = (*group).into();
            }
            json!({"metadata": meta, "versions": versions})
        })
        .collect();
    json!({"kind": "APIGroupDiscoveryList", "apiVersion": format!("apidiscovery.k8s.io/{version}"), "metadata": {},
        "items": items})
}

fn aggregated_resource(resource: &'static Resource) -> Value {
    let kind =
        |kind: &PartKind| json!({"group": kind.group, "version": kind.version, "kind": kind.kind});
    let scope = if resource.scope == ResourceScope::Namespaced { "Namespaced" } else { "Cluster" };
    let own = PartKind { group: resource.group, version: resource.version, kind: resource.kind };
    let mut entry = json!({"resource": resource.plural, "responseKind": kind(&own), "scope": scope,
        "singularResource": resource.singular, "verbs": resource.verbs});
    if !resource.short_names.is_empty() {
        entry["shortNames"] = json!(resource.short_names);
    }
    if !resource.categories.is_empty() {
        entry["categories"] = json!(resource.categories);
    }
    let parts: Vec<Value> = resource
        .subresources
        .iter()
        .map(|part| {
            let (part_kind, verbs) = subresource(resource, *part);
            json!({"subresource": part.name(), "responseKind": kind(&part_kind), "verbs": verbs})
        })
        .collect();
    if !parts.is_empty() {
        entry["subresources"] = parts.into();
    }
    entry
}
