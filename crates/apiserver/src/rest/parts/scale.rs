//! The `scale` subresource: `autoscaling/v1` Scale over `spec.replicas`. Upstream: `registry/apps/*/storage`.

use api::StatusError;
use api::resource::{FieldError, Resource, Subresource};
use bytes::Bytes;
use http::{HeaderMap, Response, StatusCode};
use serde_json::{Value, json};

use super::change;
use crate::decode::{self, Expected, FieldValidation};
use crate::rest::Context;
use crate::rest::patch::{Kind, Patch};
use crate::rest::write::write_options;
use crate::{Body, WriteOptions, object, reply};

/// The Scale of an object.
fn scale_of(resource: &Resource, workload: &Value) -> Value {
    let meta = object::meta(workload);
    let mut scale = json!({
        "kind": "Scale",
        "apiVersion": "autoscaling/v1",
        "metadata": {
            "name": meta["name"], "namespace": meta["namespace"], "uid": meta["uid"],
            "resourceVersion": meta["resourceVersion"], "creationTimestamp": meta["creationTimestamp"],
        },
        "spec": {"replicas": workload["spec"]["replicas"].as_i64().unwrap_or(0)},
        "status": {"replicas": workload["status"]["replicas"].as_i64().unwrap_or(0)},
    });
    let selector = selector_text(resource, &workload["spec"]["selector"]);
    if !selector.is_empty() {
        scale["status"]["selector"] = selector.into();
    }
    scale
}

/// A selector in its text form.
fn selector_text(resource: &Resource, selector: &Value) -> String {
    let labels = if resource.plural == "replicationcontrollers" {
        selector
    } else {
        &selector["matchLabels"]
    };
    let mut terms: Vec<String> = labels
        .as_object()
        .into_iter()
        .flatten()
        .map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or("")))
        .collect();
    for expression in selector["matchExpressions"].as_array().into_iter().flatten() {
        let key = expression["key"].as_str().unwrap_or("");
        let mut values: Vec<&str> = expression["values"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        values.sort_unstable();
        let values = values.join(",");
        match expression["operator"].as_str() {
            Some("In") => terms.push(format!("{key} in ({values})")),
            Some("NotIn") => terms.push(format!("{key} notin ({values})")),
            Some("Exists") => terms.push(key.to_owned()),
            Some("DoesNotExist") => terms.push(format!("!{key}")),
            _ => {}
        }
    }
    terms.sort_unstable();
    terms.join(",")
}

/// GET x/scale.
pub(super) fn get(context: &Context<'_>) -> Result<Response<Body>, StatusError> {
    let found =
        context.registry.get(context.resource, &context.info.namespace, &context.info.name)?;
    Ok(reply::value(StatusCode::OK, context.accept, &scale_of(context.resource, &found)))
}

/// PUT x/scale.
pub(super) async fn update(
    context: &Context<'_>,
    headers: &HeaderMap,
    body: &Bytes,
) -> Result<Response<Body>, StatusError> {
    let options = write_options(context, "UpdateOptions")?;
    let expected = Expected { group: "autoscaling", version: "v1", kind: "Scale" };
    let decoded = decode::object(headers, body, expected, FieldValidation::Ignore)?;
    let name = object::meta_str(&decoded.object, "name");
    if !name.is_empty() && name != context.info.name {
        return Err(StatusError::bad_request(format!(
            "the name of the object ({name}) does not match the name on the URL ({})",
            context.info.name
        )));
    }
    set(context, &options, |_present| Ok(decoded.object.clone())).await
}

/// PATCH x/scale.
pub(in crate::rest) async fn patch(
    context: &Context<'_>,
    patch: &Patch,
    options: &WriteOptions,
) -> Result<Response<Body>, StatusError> {
    set(context, options, |present| match patch.kind {
        Kind::Json => api::patch::json(present, &patch.value),
        // A Scale has no lists, so that all other kinds of patches mean the same.
        _ => api::patch::merge(present, &patch.value),
    })
    .await
}

async fn set(
    context: &Context<'_>,
    options: &WriteOptions,
    mut wanted: impl FnMut(&Value) -> Result<Value, StatusError>,
) -> Result<Response<Body>, StatusError> {
    let resource = context.resource;
    let written = change(context, Subresource::Scale, options, |old| {
        let scale = wanted(&scale_of(resource, old))?;
        let replicas = scale["spec"]["replicas"].as_i64().unwrap_or(0);
        if replicas < 0 {
            let why = "must be greater than or equal to 0";
            let error = FieldError::invalid("spec.replicas", &replicas.into(), why);
            return Err(StatusError::invalid("autoscaling", "Scale", &context.info.name, &[error]));
        }
        let mut new = old.clone();
        new["spec"]["replicas"] = replicas.into();
        let revision = object::meta_str(&scale, "resourceVersion");
        if !revision.is_empty() {
            object::meta_mut(&mut new).insert("resourceVersion".to_owned(), revision.into());
        }
        Ok(new)
    })
    .await?;
    Ok(reply::value(StatusCode::OK, context.accept, &scale_of(resource, &written.object)))
}
