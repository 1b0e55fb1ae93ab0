//! Priorities and default tolerations of pods (`Priority`, `DefaultTolerationSeconds`).

use api::StatusError;
use serde_json::{Value, json};

use super::Request;
use super::service_accounts::push;
use crate::Cache;
use crate::lookup::{PRIORITY_CLASSES, array, text};

/// Seconds that pods stay on a node that fell silent.
const TOLERATION_SECONDS: i64 = 300;
const NODE_TROUBLES: [&str; 2] = ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"];

pub(super) fn admit(
    cache: &Cache,
    request: &Request<'_>,
    pod: &mut Value,
) -> Result<(), StatusError> {
    prioritize(cache, request, pod)?;
    tolerate(pod);
    Ok(())
}

fn prioritize(cache: &Cache, request: &Request<'_>, pod: &mut Value) -> Result<(), StatusError> {
    let named = text(pod, "/spec/priorityClassName").to_owned();
    let class = if named.is_empty() {
        let classes = PRIORITY_CLASSES.list(cache, "");
        classes
            .into_iter()
            .filter(|class| class["globalDefault"] == true)
            .min_by_key(|class| class["value"].as_i64())
    } else {
        let class = PRIORITY_CLASSES.get(cache, "", &named);
        if class.is_none() {
            return Err(
                request.forbidden(pod, format!("no PriorityClass with name {named} was found"))
            );
        }
        class
    };
    let priority = class.as_ref().and_then(|class| class["value"].as_i64()).unwrap_or(0);
    let policy = class.as_ref().map_or("", |class| text(class, "/preemptionPolicy"));
    let policy = if policy.is_empty() { "PreemptLowerPriority" } else { policy };
    if let Some(given) = pod["spec"]["priority"].as_i64().filter(|given| *given != priority) {
        let why = format!(
            "the integer value of priority ({given}) must not be provided in pod spec; priority admission controller \
             computed {priority} from the given PriorityClass name"
        );
        return Err(request.forbidden(pod, why));
    }
    let given = text(pod, "/spec/preemptionPolicy");
    if !given.is_empty() && given != policy {
        let why = format!(
            "the string value of PreemptionPolicy ({given}) must not be provided in pod spec; priority admission \
             controller computed {policy} from the given PriorityClass name"
        );
        return Err(request.forbidden(pod, why));
    }
    if let Some(class) = class.as_ref().filter(|_| named.is_empty()) {
        pod["spec"]["priorityClassName"] = class["metadata"]["name"].clone();
    }
    pod["spec"]["priority"] = priority.into();
    pod["spec"]["preemptionPolicy"] = policy.into();
    Ok(())
}

/// Tolerations for a while of nodes in trouble, where the pod says nothing itself.
pub(super) fn tolerate(pod: &mut Value) {
    for key in NODE_TROUBLES {
        let own = array(pod, "/spec/tolerations").iter().any(|toleration| {
            ["", key].contains(&text(toleration, "/key"))
                && ["", "NoExecute"].contains(&text(toleration, "/effect"))
        });
        if !own {
            let toleration = json!({"key": key, "operator": "Exists", "effect": "NoExecute",
                "tolerationSeconds": TOLERATION_SECONDS});
            push(&mut pod["spec"], "tolerations", toleration);
        }
    }
}

/// Only one class is the default of the cluster.
pub(super) fn admit_class(
    cache: &Cache,
    request: &Request<'_>,
    class: &Value,
) -> Result<(), StatusError> {
    if !PRIORITY_CLASSES.is(request.resource) || class["globalDefault"] != true {
        return Ok(());
    }
    let name = text(class, "/metadata/name");
    let other = PRIORITY_CLASSES
        .list(cache, "")
        .into_iter()
        .find(|other| other["globalDefault"] == true && text(other, "/metadata/name") != name);
    match other {
        Some(other) => {
            let other = text(&other, "/metadata/name");
            let why = format!(
                "PriorityClass {other} is already marked as default. Only one default can exist"
            );
            Err(request.forbidden(class, why))
        }
        None => Ok(()),
    }
}
