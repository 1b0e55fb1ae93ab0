//! POST, PUT and DELETE of objects. Upstream: `handlers.CreateResource`, `UpdateResource`, `DeleteResource`.

use api::resource::{FieldError, Subresource};
use api::{ResourceScope, StatusError};
use bytes::Bytes;
use http::{HeaderMap, Response, StatusCode};
use serde_json::{Value, json};

use super::{Context, list, one};
use crate::decode::{self, Expected, FieldValidation};
use crate::negotiate::Form;
use crate::registry::api_version;
use crate::{Body, DeleteOptions, WriteOptions, Written, object, reply};

/// Answers a POST to a collection.
pub(super) async fn create(
    context: &Context<'_>,
    headers: &HeaderMap,
    body: &Bytes,
) -> Result<Response<Body>, StatusError> {
    let validation = FieldValidation::parse(&context.info.query, "CreateOptions")?;
    let options = write_options(context, "CreateOptions")?;
    let mut decoded = decode::object(headers, body, Expected::of(context.resource), validation)?;
    check_namespace(context, &mut decoded.object)?;
    let written = context
        .registry
        .create(context.user, context.resource, &context.info.namespace, decoded.object, &options)
        .await?;
    written_reply(context, written, decoded.warnings)
}

/// Answers a PUT of an object or its `subresource`.
pub(super) async fn update(
    context: &Context<'_>,
    subresource: Option<Subresource>,
    headers: &HeaderMap,
    body: &Bytes,
) -> Result<Response<Body>, StatusError> {
    let validation = FieldValidation::parse(&context.info.query, "UpdateOptions")?;
    let options = write_options(context, "UpdateOptions")?;
    let mut decoded = decode::object(headers, body, Expected::of(context.resource), validation)?;
    check_name(context, &decoded.object)?;
    check_namespace(context, &mut decoded.object)?;
    let written = context
        .registry
        .update(context.user, context.resource, subresource, decoded.object, &options)
        .await?;
    written_reply(context, written, decoded.warnings)
}

/// An object after a write, with its warnings.
pub(super) fn written_reply(
    context: &Context<'_>,
    written: Written,
    mut warnings: Vec<String>,
) -> Result<Response<Body>, StatusError> {
    let status = if written.created { StatusCode::CREATED } else { StatusCode::OK };
    warnings.extend(written.warnings);
    Ok(reply::with_warnings(one(context, status, &written.object)?, &warnings))
}

/// Who writes and whether it is real; `kind` is what errors name.
pub(super) fn write_options(
    context: &Context<'_>,
    kind: &str,
) -> Result<WriteOptions, StatusError> {
    let manager = context.info.query.get("fieldManager");
    let field_manager =
        if manager.is_empty() { context.info.agent.clone() } else { manager.to_owned() };
    Ok(WriteOptions {
        field_manager,
        dry_run: decode::dry_run(&context.info.query, kind)?,
        tracked: false,
    })
}

/// The object's namespace is the path's, or missing.
fn check_namespace(context: &Context<'_>, object: &mut Value) -> Result<(), StatusError> {
    let namespace = object::meta_str(object, "namespace");
    if context.resource.scope == ResourceScope::Cluster {
        object::meta_mut(object).remove("namespace");
        return Ok(());
    }
    if !namespace.is_empty() && namespace != context.info.namespace {
        let message =
            "the namespace of the provided object does not match the namespace sent on the request";
        return Err(StatusError::bad_request(message));
    }
    object::meta_mut(object).insert("namespace".to_owned(), context.info.namespace.clone().into());
    Ok(())
}

fn check_name(context: &Context<'_>, object: &Value) -> Result<(), StatusError> {
    let (name, wanted) = (object::meta_str(object, "name"), &context.info.name);
    if name.is_empty() {
        return Err(StatusError::bad_request(format!(
            "the name of the object ({wanted} based on URL) was undeterminable: name must be provided"
        )));
    }
    if name != wanted {
        return Err(StatusError::bad_request(format!(
            "the name of the object ({name}) does not match the name on the URL ({wanted})"
        )));
    }
    Ok(())
}

/// Answers a DELETE of one object.
pub(super) async fn delete(
    context: &Context<'_>,
    headers: &HeaderMap,
    body: &Bytes,
) -> Result<Response<Body>, StatusError> {
    let options = delete_options(context, headers, body)?;
    let resource = context.resource;
    let info = context.info;
    let written = context
        .registry
        .delete(context.user, resource, &info.namespace, &info.name, &options)
        .await?;
    let response = if written.deleted && !returns_deleted(context) {
        let mut details = json!({"name": info.name, "kind": resource.plural});
        if !resource.group.is_empty() {
            details["group"] = resource.group.into();
        }
        let uid = object::meta_str(&written.object, "uid");
        if !uid.is_empty() {
            details["uid"] = uid.into();
        }
        reply::value(StatusCode::OK, context.accept, &reply::success(&details))
    } else {
        one(context, StatusCode::OK, &written.object)?
    };
    Ok(reply::with_warnings(response, &written.warnings))
}

/// Kinds whose DELETE answers with the object (`ReturnDeletedObject`).
fn returns_deleted(context: &Context<'_>) -> bool {
    let resource = context.resource;
    resource.group.is_empty()
        && matches!(
            resource.plural,
            "pods"
                | "services"
                | "serviceaccounts"
                | "podtemplates"
                | "persistentvolumes"
                | "persistentvolumeclaims"
                | "resourcequotas"
        )
}

/// Answers a DELETE of a collection with the list of what was deleted.
pub(super) async fn delete_collection(
    context: &Context<'_>,
    headers: &HeaderMap,
    body: &Bytes,
) -> Result<Response<Body>, StatusError> {
    let options = delete_options(context, headers, body)?;
    let resource = context.resource;
    let mut items = Vec::new();
    for item in list::selected(context)? {
        let (namespace, name) =
            (object::meta_str(&item, "namespace"), object::meta_str(&item, "name"));
        match context.registry.delete(context.user, resource, namespace, name, &options).await {
            Ok(written) => items.push(object::as_item(Value::clone(&written.object))),
            // Somebody else deleted it first.
            Err(error) if error.reason == api::Reason::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    let revision = context.registry.cache().revision().to_string();
    let list = json!({"kind": format!("{}List", resource.kind), "apiVersion": api_version(resource),
        "metadata": {"resourceVersion": revision}, "items": items});
    let accept = crate::negotiate::Accept { form: Form::Plain, ..context.accept };
    Ok(reply::value(StatusCode::OK, accept, &list))
}

/// `DeleteOptions` of the body, or of the query.
pub(super) fn delete_options(
    context: &Context<'_>,
    headers: &HeaderMap,
    body: &Bytes,
) -> Result<DeleteOptions, StatusError> {
    let decoded = if body.is_empty() {
        json!({})
    } else {
        let mut body = body_value(headers, body)?;
        if body["kind"] != "DeleteOptions" && !body["kind"].is_null() {
            body = json!({});
        }
        body
    };
    options_from(context, &decoded)
}

/// The options of a decoded `DeleteOptions`, completed by the query.
pub(super) fn options_from(
    context: &Context<'_>,
    decoded: &Value,
) -> Result<DeleteOptions, StatusError> {
    let query = &context.info.query;
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let mut options = DeleteOptions {
        grace_period_seconds: decoded["gracePeriodSeconds"].as_i64(),
        uid: text(&decoded["preconditions"]["uid"]),
        resource_version: text(&decoded["preconditions"]["resourceVersion"]),
        propagation_policy: text(&decoded["propagationPolicy"]),
        dry_run: decoded["dryRun"].as_array().is_some_and(|list| !list.is_empty())
            || decode::dry_run(query, "DeleteOptions")?,
    };
    if let Ok(seconds) = query.get("gracePeriodSeconds").parse() {
        options.grace_period_seconds.get_or_insert(seconds);
    }
    if query.has("propagationPolicy") {
        options.propagation_policy.get_or_insert_with(|| query.get("propagationPolicy").to_owned());
    }
    let orphan = decoded["orphanDependents"]
        .as_bool()
        .or_else(|| query.has("orphanDependents").then(|| query.flag("orphanDependents")));
    if let Some(orphan) = orphan {
        options
            .propagation_policy
            .get_or_insert_with(|| if orphan { "Orphan" } else { "Background" }.to_owned());
    }
    let known = |policy: &&str| matches!(*policy, "Orphan" | "Background" | "Foreground");
    if let Some(policy) = options.propagation_policy.as_deref().filter(|policy| !known(policy)) {
        let supported = ["Foreground", "Background", "Orphan"];
        let error = FieldError::unsupported("propagationPolicy", &policy.into(), &supported);
        return Err(StatusError::invalid("meta.k8s.io", "DeleteOptions", "", &[error]));
    }
    Ok(options)
}

fn body_value(headers: &HeaderMap, body: &Bytes) -> Result<Value, StatusError> {
    let bad = |error: String| {
        StatusError::bad_request(format!("couldn't get version/kind; json parse error: {error}"))
    };
    match crate::negotiate::content(headers)? {
        crate::negotiate::Content::Json => {
            api::schema::parse_json(body).map(|(value, _)| value).map_err(bad)
        }
        crate::negotiate::Content::Yaml => decode::yaml(body).map_err(bad),
        crate::negotiate::Content::Protobuf => {
            api::protobuf::decode(body).map_err(StatusError::bad_request)
        }
    }
}
