//! A pod's quality of service: `k8s.io/component-helpers`' `GetPodQOS`.

use serde_json::Value;

use crate::quantity;

/// `Guaranteed`, `Burstable` or `BestEffort` for a pod's spec.
#[must_use]
pub fn class(spec: &Value) -> &'static str {
    let lists =
        ["containers", "initContainers"].into_iter().filter_map(|list| spec[list].as_array());
    let containers: Vec<&Value> = lists.flatten().collect();
    let set =
        |container: &Value, kind: &str, name: &str| !container["resources"][kind][name].is_null();
    let any = |container: &&&Value| {
        ["requests", "limits"]
            .iter()
            .any(|kind| ["cpu", "memory"].iter().any(|name| set(container, kind, name)))
    };
    if containers.iter().find(any).is_none() {
        return "BestEffort";
    }
    let guaranteed = containers.iter().all(|container| {
        ["cpu", "memory"].iter().all(|name| {
            let (limit, request) = (
                &container["resources"]["limits"][name],
                &container["resources"]["requests"][name],
            );
            !limit.is_null() && (request.is_null() || same(limit, request))
        })
    });
    if guaranteed { "Guaranteed" } else { "Burstable" }
}

/// Whether two values are the same quantity, however they are written.
fn same(left: &Value, right: &Value) -> bool {
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    quantity::compare(&text(left), &text(right)).is_ok_and(std::cmp::Ordering::is_eq)
}
