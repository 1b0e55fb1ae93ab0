//! Subresources: parts of an object with doors of their own.

mod eviction;
mod scale;

use api::StatusError;
use api::resource::Subresource;
use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use serde_json::{Value, json};

use super::write::write_options;
use super::{Context, list, patch, write};
use crate::decode::{self, Expected, FieldValidation};
use crate::registry::Target;
use crate::{Body, WriteOptions, object, read_body, reply};

pub(super) use scale::patch as patch_scale;

/// Answers a request for a subresource.
pub(super) async fn respond(
    context: &Context<'_>,
    part: Subresource,
    request: Request<Body>,
) -> Result<Response<Body>, StatusError> {
    if super::is_streamed(part) {
        return crate::proxy::respond(context, part, request).await;
    }
    let (head, body) = request.into_parts();
    let body = read_body(body).await?;
    let headers = &head.headers;
    match (part, context.info.verb) {
        (Subresource::Status, "get") => list::get(context).await,
        (Subresource::Status, "update") => write::update(context, Some(part), headers, &body).await,
        (Subresource::Status | Subresource::Scale, "patch") => {
            patch::patch(context, Some(part), headers, &body).await
        }
        (Subresource::Scale, "get") => scale::get(context),
        (Subresource::Scale, "update") => scale::update(context, headers, &body).await,
        (Subresource::Finalize, "update") => finalize(context, headers, &body).await,
        (Subresource::Binding, "create") => bind(context, headers, &body).await,
        (Subresource::Eviction, "create") => eviction::create(context, headers, &body).await,
        (Subresource::Token, "create") => token(context, headers, &body).await,
        _ => Err(reply::method_not_allowed()),
    }
}

/// PUT namespaces/x/finalize: sets `spec.finalizers` and nothing else.
async fn finalize(
    context: &Context<'_>,
    headers: &HeaderMap,
    body: &Bytes,
) -> Result<Response<Body>, StatusError> {
    let options = write_options(context, "UpdateOptions")?;
    let decoded =
        decode::object(headers, body, Expected::of(context.resource), FieldValidation::Ignore)?;
    let finalizers = decoded.object["spec"]["finalizers"].clone();
    let revision = object::meta(&decoded.object)["resourceVersion"].clone();
    let written = change(context, Subresource::Finalize, &options, |old| {
        let mut new = old.clone();
        if revision.is_string() {
            object::meta_mut(&mut new).insert("resourceVersion".to_owned(), revision.clone());
        }
        match finalizers.as_array().filter(|list| !list.is_empty()) {
            Some(list) => new["spec"]["finalizers"] = json!(list),
            None => {
                if let Some(spec) = new["spec"].as_object_mut() {
                    spec.remove("finalizers");
                }
            }
        }
        Ok(new)
    })
    .await?;
    write::written_reply(context, written, Vec::new())
}

/// Changes the object of the request through one of its doors.
pub(super) async fn change(
    context: &Context<'_>,
    part: Subresource,
    options: &WriteOptions,
    change: impl FnMut(&Value) -> Result<Value, StatusError>,
) -> Result<crate::Written, StatusError> {
    let target = Target {
        user: context.user,
        resource: context.resource,
        subresource: Some(part),
        namespace: &context.info.namespace,
        name: &context.info.name,
    };
    context.registry.change(&target, options, change).await
}

/// POST bindings: the pod is named in the body.
pub(super) async fn bind_any(
    context: &Context<'_>,
    headers: &HeaderMap,
    body: &Bytes,
) -> Result<Response<Body>, StatusError> {
    let expected = Expected { group: "", version: "v1", kind: "Binding" };
    let decoded = decode::object(headers, body, expected, FieldValidation::Ignore)?;
    let pods = api::resource::find("", "v1", "pods").ok_or_else(reply::method_not_allowed)?;
    let info = crate::RequestInfo {
        name: object::meta_str(&decoded.object, "name").to_owned(),
        ..context.info.clone()
    };
    let context = Context { info: &info, resource: pods, ..*context };
    bind(&context, headers, body).await
}

/// POST pods/x/binding: gives a pod its node.
async fn bind(
    context: &Context<'_>,
    headers: &HeaderMap,
    body: &Bytes,
) -> Result<Response<Body>, StatusError> {
    let name = context.info.name.as_str();
    let options = write_options(context, "CreateOptions")?;
    let expected = Expected { group: "", version: "v1", kind: "Binding" };
    let decoded = decode::object(headers, body, expected, FieldValidation::Ignore)?;
    let binding = decoded.object;
    let bound = object::meta_str(&binding, "name");
    if !bound.is_empty() && bound != name {
        let message =
            format!("the name of the object ({bound}) does not match the name on the URL ({name})");
        return Err(StatusError::bad_request(message));
    }
    check_binding(&binding)?;
    let node = binding["target"]["name"].as_str().unwrap_or("").to_owned();
    change(context, Subresource::Binding, &options, |pod| assign(pod, name, &node, &binding))
        .await?;
    Ok(reply::value(StatusCode::CREATED, context.accept, &success()))
}

fn success() -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201})
}

fn check_binding(binding: &Value) -> Result<(), StatusError> {
    use api::resource::FieldError;
    let mut errors = Vec::new();
    let target = &binding["target"];
    if !matches!(target["kind"].as_str(), None | Some("" | "Node")) {
        errors.push(FieldError::unsupported("target.kind", &target["kind"], &["Node", "<empty>"]));
    }
    if target["name"].as_str().unwrap_or("").is_empty() {
        errors.push(FieldError::required("target.name", ""));
    }
    if errors.is_empty() { Ok(()) } else { Err(StatusError::invalid("", "Binding", "", &errors)) }
}

/// The pod on its node, with the condition that says so.
fn assign(pod: &Value, name: &str, node: &str, binding: &Value) -> Result<Value, StatusError> {
    let refuse = |why: String| Err(StatusError::conflict("", "pods/binding", name, why));
    if object::is_deleting(pod) {
        return refuse(format!("pod {name} is being deleted, cannot be assigned to a host"));
    }
    if let Some(present) = pod["spec"]["nodeName"].as_str().filter(|present| !present.is_empty()) {
        return refuse(format!("pod {name} is already assigned to node {present:?}"));
    }
    if pod["spec"]["schedulingGates"].as_array().is_some_and(|gates| !gates.is_empty()) {
        return refuse(format!("pod {name} has non-empty .spec.schedulingGates"));
    }
    let mut pod = pod.clone();
    pod["spec"]["nodeName"] = node.into();
    if let Some(annotations) = object::meta(binding)["annotations"].as_object() {
        for (key, value) in annotations {
            pod["metadata"]["annotations"][key] = value.clone();
        }
    }
    let condition = json!({"type": "PodScheduled", "status": "True", "lastProbeTime": null,
        "lastTransitionTime": object::timestamp(jiff::Timestamp::now())});
    if !pod["status"]["conditions"].is_array() {
        pod["status"]["conditions"] = json!([]);
    }
    if let Some(conditions) = pod["status"]["conditions"].as_array_mut() {
        conditions.retain(|condition| condition["type"] != "PodScheduled");
        conditions.push(condition);
    }
    Ok(pod)
}

/// POST serviceaccounts/x/token.
async fn token(
    context: &Context<'_>,
    headers: &HeaderMap,
    body: &Bytes,
) -> Result<Response<Body>, StatusError> {
    let expected = Expected { group: "authentication.k8s.io", version: "v1", kind: "TokenRequest" };
    let decoded = decode::object(headers, body, expected, FieldValidation::Ignore)?;
    let account = (context.info.namespace.as_str(), context.info.name.as_str());
    let tokens = context.authenticator.tokens();
    let request = tokens.issue(context.registry.cache(), context.user, account, decoded.object)?;
    Ok(reply::value(StatusCode::CREATED, context.accept, &request))
}
