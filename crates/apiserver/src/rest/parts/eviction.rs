//! POST pods/x/eviction: deletes a pod when its disruption budgets allow. Upstream: `registry/core/pod/storage/eviction.go`.

use api::resource::{self, Subresource};
use api::selector::LabelSelector;
use api::{Reason, StatusError};
use bytes::Bytes;
use http::{HeaderMap, Response, StatusCode};
use serde_json::{Value, json};

use crate::decode::{self, Expected, FieldValidation};
use crate::registry::Target;
use crate::rest::Context;
use crate::rest::write::{options_from, write_options};
use crate::{Body, object, reply};

/// Answers an eviction.
pub(super) async fn create(
    context: &Context<'_>,
    headers: &HeaderMap,
    body: &Bytes,
) -> Result<Response<Body>, StatusError> {
    let expected = Expected { group: "policy", version: "v1", kind: "Eviction" };
    let decoded = decode::object(headers, body, expected, FieldValidation::Ignore)?;
    let info = context.info;
    let name = object::meta_str(&decoded.object, "name");
    if name != info.name {
        let message = format!("name in URL does not match name in Eviction object: {name:?}");
        return Err(StatusError::bad_request(message));
    }
    let mut options = options_from(context, &decoded.object["deleteOptions"])?;
    options.dry_run |= decode::dry_run(&info.query, "CreateOptions")?;
    let pod = context.registry.get(context.resource, &info.namespace, &info.name)?;
    let ignores_budget = object::is_deleting(&pod)
        || matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed" | "Pending"));
    if !ignores_budget {
        spend_budget(context, &pod, options.dry_run).await?;
    }
    if !options.dry_run && !object::is_deleting(&pod) {
        mark(context).await?;
    }
    context
        .registry
        .delete(context.user, context.resource, &info.namespace, &info.name, &options)
        .await?;
    let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201});
    Ok(reply::value(StatusCode::CREATED, context.accept, &status))
}

/// Takes one disruption from the pod's budget.
async fn spend_budget(
    context: &Context<'_>,
    pod: &Value,
    dry_run: bool,
) -> Result<(), StatusError> {
    let Some(budgets) = resource::find("policy", "v1", "poddisruptionbudgets") else {
        return Ok(());
    };
    let labels = &pod["metadata"]["labels"];
    let mut matching = context.registry.cache().list(budgets, &context.info.namespace);
    matching.retain(|budget| selects(&budget["spec"]["selector"], labels));
    let [budget] = &matching[..] else {
        return if matching.is_empty() {
            Ok(())
        } else {
            let message = "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.";
            Err(StatusError::new(Reason::InternalError, message))
        };
    };
    if ignores(budget, pod) {
        return Ok(());
    }
    let options = crate::WriteOptions { dry_run, ..write_options(context, "CreateOptions")? };
    let target = Target {
        user: context.user,
        resource: budgets,
        subresource: Some(Subresource::Status),
        namespace: &context.info.namespace,
        name: object::meta_str(budget, "name"),
    };
    let pod_name = context.info.name.as_str();
    context.registry.change(&target, &options, |budget| take_one(budget, pod_name)).await?;
    Ok(())
}

/// Whether a pod that is not ready goes without a disruption: always, or while the others are enough, as its budget
/// says (`unhealthyPodEvictionPolicy`).
fn ignores(budget: &Value, pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array().into_iter().flatten();
    let ready = conditions.into_iter().any(|one| one["type"] == "Ready" && one["status"] == "True");
    let number = |field: &str| budget["status"][field].as_i64().unwrap_or(0);
    let (healthy, desired) = (number("currentHealthy"), number("desiredHealthy"));
    !ready
        && (budget["spec"]["unhealthyPodEvictionPolicy"] == "AlwaysAllow"
            || (healthy >= desired && desired > 0))
}

/// Says on the pod why it goes: what becomes of its Job, for one, may depend on it.
async fn mark(context: &Context<'_>) -> Result<(), StatusError> {
    let options = write_options(context, "CreateOptions")?;
    let info = context.info;
    let target = Target {
        user: context.user,
        resource: context.resource,
        subresource: Some(Subresource::Status),
        namespace: &info.namespace,
        name: &info.name,
    };
    let marked = context.registry.change(&target, &options, |pod| {
        let mut new = pod.clone();
        let known = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let mut conditions: Vec<Value> =
            known.into_iter().filter(|one| one["type"] != "DisruptionTarget").collect();
        conditions.push(json!({
            "type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI",
            "message": "Eviction API: evicting", "lastProbeTime": null,
            "lastTransitionTime": object::timestamp(jiff::Timestamp::now()),
        }));
        new["status"]["conditions"] = conditions.into();
        Ok(new)
    });
    marked.await.map(drop)
}

fn take_one(budget: &Value, pod_name: &str) -> Result<Value, StatusError> {
    let name = object::meta_str(budget, "name");
    let number = |field: &str| budget["status"][field].as_i64().unwrap_or(0);
    if number("observedGeneration") < object::meta(budget)["generation"].as_i64().unwrap_or(0) {
        let cause = format!("The disruption budget {name} is still being processed by the server.");
        return Err(too_many(&cause, 10));
    }
    if number("disruptionsAllowed") <= 0 {
        let cause = format!(
            "The disruption budget {name} needs {} healthy pods and has {} currently",
            number("desiredHealthy"),
            number("currentHealthy")
        );
        return Err(too_many(&cause, 0));
    }
    let mut new = budget.clone();
    new["status"]["disruptionsAllowed"] = (number("disruptionsAllowed") - 1).into();
    new["status"]["disruptedPods"][pod_name] = object::timestamp(jiff::Timestamp::now()).into();
    Ok(new)
}

/// 429 in upstream's words.
fn too_many(cause: &str, retry_after_seconds: u64) -> StatusError {
    let message = "Cannot evict pod as it would violate the pod's disruption budget.";
    let mut error = StatusError::new(Reason::TooManyRequests, message);
    error.details = json!({"causes": [{"reason": "DisruptionBudget", "message": cause}]});
    if retry_after_seconds > 0 {
        error.details["retryAfterSeconds"] = retry_after_seconds.into();
    }
    error
}

/// Whether a `metav1.LabelSelector` selects labels; an empty one selects all, a missing one none.
fn selects(selector: &Value, labels: &Value) -> bool {
    let parsed = serde_json::from_value::<api::meta::LabelSelector>(selector.clone()).ok();
    parsed
        .and_then(|selector| LabelSelector::of(&selector).ok())
        .is_some_and(|selector| selector.matches_value(labels))
}
