//! What a namespace may hold (`ResourceQuota`): how much each object counts for, which objects a quota is about, and
//! the status that tells it.
//!
//! Upstream counterparts: `pkg/quota/v1/evaluator/core` and `pkg/controller/resourcequota`. Admission counts by the
//! same rules, so what is refused is what the status shows.

use std::collections::BTreeMap;

use api::core::{ResourceQuota, ResourceQuotaStatus};
use api::{Kind, quantity};
use serde_json::{Value, json};

use crate::action::{Action, Plan};

mod pods;

pub use pods::{in_scopes, pod_resources};

/// Billionths by resource name, as quotas name them.
pub type Usage = BTreeMap<String, i128>;

const ONE: i128 = 1_000_000_000;
/// Kinds that are counted under their plain plural.
const COUNTED: [&str; 8] = [
    "pods",
    "services",
    "configmaps",
    "secrets",
    "persistentvolumeclaims",
    "replicationcontrollers",
    "resourcequotas",
    "endpoints",
];
/// What stands between a storage class's name and what is counted of it.
const OF_CLASS: &str = ".storageclass.storage.k8s.io/";

/// Objects of one namespace, as JSON, by their group and plural.
pub type Contents = BTreeMap<(String, String), Vec<Value>>;

/// Writes what is used into the status of `quota`; `contents` is what its namespace has of the kinds that it is about.
#[must_use]
pub fn plan(quota: &ResourceQuota, contents: &Contents) -> Plan {
    let mut plan = Plan::none();
    if quota.is_deleting() {
        return plan;
    }
    let value = json!(quota);
    let limits = hard(&value);
    let mut used: Usage = limits.keys().map(|resource| (resource.clone(), 0)).collect();
    for ((group, plural), objects) in contents {
        for object in objects.iter().filter(|object| in_scopes(&value, plural, object)) {
            for (resource, more) in usage(group, plural, object) {
                if let Some(sum) = used.get_mut(&resource) {
                    *sum += more;
                }
            }
        }
    }
    let used: BTreeMap<&String, String> =
        used.iter().map(|(resource, sum)| (resource, amount(resource, *sum))).collect();
    let status = json!({"hard": value["spec"]["hard"], "used": used});
    // Every amount was written by this module or accepted by the API.
    let Ok(status) = serde_json::from_value::<ResourceQuotaStatus>(status) else { return plan };
    if quota.status.as_ref() != Some(&status) {
        let mut changed = ResourceQuota::clone(quota);
        changed.status = Some(status);
        plan.push(Action::UpdateStatus(changed.into()));
    }
    plan
}

/// The limits of a quota.
#[must_use]
pub fn hard(quota: &Value) -> Usage {
    let limits = quota["spec"]["hard"].as_object().into_iter().flatten();
    limits.filter_map(|(resource, value)| Some((resource.clone(), nanos(value)?))).collect()
}

/// What one object counts for.
#[must_use]
pub fn usage(group: &str, plural: &str, object: &Value) -> Usage {
    let mut usage = Usage::new();
    let counted = if group.is_empty() {
        format!("count/{plural}")
    } else {
        format!("count/{plural}.{group}")
    };
    usage.insert(counted, ONE);
    if !group.is_empty() {
        return usage;
    }
    if COUNTED.contains(&plural) {
        usage.insert(plural.to_owned(), ONE);
    }
    match plural {
        "pods" => pods::count(object, &mut usage),
        "services" => count_service(object, &mut usage),
        "persistentvolumeclaims" => count_claim(object, &mut usage),
        _ => {}
    }
    usage
}

fn count_service(service: &Value, usage: &mut Usage) {
    let ports = service["spec"]["ports"].as_array().into_iter().flatten();
    let given = ports.filter(|port| port["nodePort"].as_u64().unwrap_or(0) > 0).count();
    usage.insert("services.nodeports".to_owned(), i128::try_from(given).unwrap_or(0) * ONE);
    let balanced = service["spec"]["type"] == "LoadBalancer";
    usage.insert("services.loadbalancers".to_owned(), i128::from(balanced) * ONE);
}

fn count_claim(claim: &Value, usage: &mut Usage) {
    let storage = nanos(&claim["spec"]["resources"]["requests"]["storage"]).unwrap_or(0);
    usage.insert("requests.storage".to_owned(), storage);
    if let Some(class) = claim["spec"]["storageClassName"].as_str() {
        usage.insert(format!("{class}{OF_CLASS}requests.storage"), storage);
        usage.insert(format!("{class}{OF_CLASS}persistentvolumeclaims"), ONE);
    }
}

/// Whether objects of the kind count for any of the limits.
#[must_use]
pub fn concerns(group: &str, plural: &str, hard: &Usage) -> bool {
    if !group.is_empty() {
        return hard.contains_key(&format!("count/{plural}.{group}"));
    }
    let counted = format!("count/{plural}");
    hard.keys().any(|name| match plural {
        _ if *name == counted || name == plural => true,
        "pods" => !name.starts_with("count/") && name != "requests.storage",
        "services" => name.starts_with("services."),
        "persistentvolumeclaims" => name == "requests.storage" || name.contains(OF_CLASS),
        _ => false,
    })
}

/// Billionths of a quantity.
#[must_use]
pub fn nanos(value: &Value) -> Option<i128> {
    let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    quantity::parse(&text).ok().filter(|_| !value.is_null()).map(quantity::Amount::nanos)
}

/// An amount as upstream writes it for the resource: bytes in powers of two, the rest in powers of ten.
#[must_use]
pub fn amount(resource: &str, nanos: i128) -> String {
    let units = nanos / ONE;
    let binary = (resource.contains("memory") || resource.contains("storage"))
        && units % 1024 == 0
        && units > 0;
    let text = if binary { format!("{}Ki", units / 1024) } else { format!("{nanos}n") };
    quantity::parse(&text).map_or(text, quantity::Amount::canonical)
}

#[cfg(test)]
mod tests;
