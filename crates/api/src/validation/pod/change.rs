//! Changes of pods: what may change, and how it is said. Upstream: `ValidatePodUpdate`, `ValidatePodStatusUpdate`.

use serde_json::{Value, json};

use super::super::at::{At, immutable};
use super::super::{meta, names};
use super::whole;
use crate::field::FieldError;

/// Fields of a pod that may change.
const UPDATABLE: &str = "`spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";

/// Checks a change of a pod.
pub(crate) fn update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = meta::update(new, old);
    errors.extend(whole(new));
    let (spec, before) = (At::root(new).get("spec"), At::root(old).get("spec"));
    for list in ["containers", "initContainers"] {
        let (list, old_list) = (spec.get(list), before.get(list));
        if list.len() != old_list.len() {
            errors.push(list.forbidden("pod updates may not add or remove containers"));
            return errors;
        }
        for container in list.items() {
            let image = container.get("image");
            if image.text().trim().len() != image.text().len() {
                errors.push(image.invalid("must not have leading or trailing whitespace"));
            }
        }
    }
    let deadline =
        deadline(&spec.get("activeDeadlineSeconds"), &before.get("activeDeadlineSeconds"));
    let stop = deadline.as_ref().is_some_and(|(_, stop)| *stop);
    errors.extend(deadline.map(|(error, _)| error));
    if stop {
        return errors;
    }
    errors.extend(only_added_tolerations(&spec.get("tolerations"), &before.get("tolerations")));
    errors.extend(only_deleted_gates(&spec.get("schedulingGates"), &before.get("schedulingGates")));
    errors.extend(fixed(&spec, &before));
    errors
}

/// The rest of the spec stays as it is.
fn fixed(spec: &At<'_>, before: &At<'_>) -> Option<FieldError> {
    let mut munged = spec.value.clone();
    for list in ["containers", "initContainers"] {
        for (index, container) in before.get(list).items().enumerate() {
            munged[list][index]["image"] = container.value["image"].clone();
        }
    }
    let negative =
        before.value["terminationGracePeriodSeconds"].as_i64().is_some_and(|value| value < 0);
    let to_one = munged["terminationGracePeriodSeconds"] == json!(1);
    let mut restored = vec!["activeDeadlineSeconds", "schedulingGates", "tolerations"];
    if negative && to_one {
        restored.push("terminationGracePeriodSeconds");
    }
    if !before.get("schedulingGates").is_empty() {
        restored.extend(["nodeSelector", "affinity"]);
    }
    for field in restored {
        match before.value.get(field) {
            Some(value) => munged[field] = value.clone(),
            None => {
                munged.as_object_mut().map(|fields| fields.remove(field));
            }
        }
    }
    if munged == *before.value {
        return None;
    }
    let difference = difference(before.value, &munged);
    Some(spec.forbidden(format!(
        "pod updates may not change fields other than {UPDATABLE}\n{difference}"
    )))
}

/// The fields that differ, a line each (upstream prints Go structs here, in a form it does not promise).
pub(crate) fn difference(old: &Value, new: &Value) -> String {
    let mut text = String::new();
    let empty = serde_json::Map::new();
    let (old, new) = (old.as_object().unwrap_or(&empty), new.as_object().unwrap_or(&empty));
    let mut keys: Vec<&String> = old.keys().chain(new.keys()).collect();
    keys.sort();
    keys.dedup();
    for key in keys {
        let (before, after) = (old.get(key), new.get(key));
        if before == after {
            continue;
        }
        for (sign, value) in [('-', before), ('+', after)] {
            if let Some(value) = value {
                text.push_str(&format!("{sign} {key}: {value}\n"));
            }
        }
    }
    text
}

/// An error of the deadline, and whether it ends the check.
fn deadline(new: &At<'_>, old: &At<'_>) -> Option<(FieldError, bool)> {
    match (new.int(), old.int()) {
        (Some(seconds), before) => {
            let wrong = names::in_range(seconds, 0, i64::from(i32::MAX));
            if let Some(why) = wrong.into_iter().next() {
                return Some((new.invalid(why), true));
            }
            let grown = before.is_some_and(|before| before < seconds);
            grown.then(|| (new.invalid("must be less than or equal to previous value"), true))
        }
        (None, Some(_)) => {
            Some((new.invalid("must not update from a positive integer to nil value"), false))
        }
        (None, None) => None,
    }
}

fn only_added_tolerations(new: &At<'_>, old: &At<'_>) -> Option<FieldError> {
    let without_seconds = |toleration: &Value| {
        let mut toleration = toleration.clone();
        toleration.as_object_mut().map(|fields| fields.remove("tolerationSeconds"));
        toleration
    };
    let lost = old.items().any(|before| {
        new.items().all(|after| without_seconds(after.value) != without_seconds(before.value))
    });
    lost.then(|| {
        new.forbidden("existing toleration can not be modified except its tolerationSeconds")
    })
}

fn only_deleted_gates(new: &At<'_>, old: &At<'_>) -> Vec<FieldError> {
    new.items()
        .filter(|gate| old.items().all(|known| known.value != gate.value))
        .map(|gate| {
            let name = gate.get("name");
            new.forbidden(format!(
                "only deletion is allowed, but found new scheduling gate '{}'",
                name.text()
            ))
        })
        .collect()
}

/// Checks a change of a pod's status.
pub(crate) fn status(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = meta::update(new, old);
    let (root, before) = (At::root(new), At::root(old));
    let (status, old_status) = (root.get("status"), before.get("status"));
    let nominated = status.get("nominatedNodeName");
    if !nominated.text().is_empty() && nominated.value != old_status.get("nominatedNodeName").value
    {
        errors.extend(nominated.all_invalid(names::dns1123_subdomain(nominated.text())));
    }
    errors.extend(immutable(&status.get("qosClass"), &old_status.get("qosClass")));
    let policy = before.get("spec.restartPolicy");
    for list in ["containerStatuses", "initContainerStatuses"] {
        errors.extend(transitions(&status.get(list), &old_status.get(list), policy.text()));
    }
    errors.extend(ips(&status.get("podIPs")));
    errors
}

/// Without restarts, what has ended stays so.
fn transitions(new: &At<'_>, old: &At<'_>, policy: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if policy == "Always" {
        return errors;
    }
    for before in old.items() {
        let ended = before.get("state.terminated");
        let restarts = ended.get("exitCode").int().unwrap_or(0) != 0 && policy == "OnFailure";
        if !ended.is_set() || restarts {
            continue;
        }
        let risen = new.items().any(|after| {
            after.value["name"] == before.value["name"]
                && after.value["state"]["terminated"].is_null()
        });
        if risen {
            let path = format!("{}.state", before.path);
            errors.push(FieldError::forbidden(
                path,
                "may not be transitioned to non-terminated state",
            ));
        }
    }
    errors
}

fn ips(list: &At<'_>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let mut seen = Vec::new();
    for address in list.items() {
        let ip = address.value["ip"].as_str().unwrap_or("");
        errors.extend(meta::named_invalid(&address.path, ip, names::ip(ip)));
        if seen.contains(&ip) {
            errors.push(address.duplicate());
        }
        seen.push(ip);
    }
    let six = seen.iter().filter(|ip| ip.contains(':')).count();
    if seen.len() > 1 && (seen.len() > 2 || six != 1) {
        errors.push(list.invalid("may specify no more than one IP for each IP family"));
    }
    errors
}
