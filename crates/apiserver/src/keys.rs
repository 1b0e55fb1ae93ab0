//! Where objects are in the store: upstream's keys, which tools and backups know.

use api::ResourceScope;
use api::resource::Resource;

/// The root of all keys.
pub(crate) const ROOT: &str = "/registry/";

/// The prefix of a resource's keys, with the slash at its end.
pub(crate) fn prefix(resource: &Resource) -> String {
    let folder = match (resource.group, resource.plural) {
        ("", "services") => "services/specs",
        ("", "endpoints") => "services/endpoints",
        ("", "nodes") => "minions",
        ("", "replicationcontrollers") => "controllers",
        ("networking.k8s.io", "ingresses") => "ingress",
        ("apiextensions.k8s.io" | "apiregistration.k8s.io", plural) => {
            return format!("{ROOT}{}/{plural}/", resource.group);
        }
        // events.k8s.io shares the objects of the core group.
        (_, plural) => plural,
    };
    format!("{ROOT}{folder}/")
}

/// The key of an object.
pub(crate) fn key(resource: &Resource, namespace: &str, name: &str) -> String {
    let mut key = prefix(resource);
    if resource.scope == ResourceScope::Namespaced {
        key.push_str(namespace);
        key.push('/');
    }
    key.push_str(name);
    key
}
