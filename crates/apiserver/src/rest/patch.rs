//! PATCH in its four kinds. Upstream: `handlers.PatchResource`.

use api::resource::{FieldError, Subresource};
use api::{Reason, StatusError};
use bytes::Bytes;
use http::{HeaderMap, Response};
use serde_json::Value;

use super::write::{write_options, written_reply};
use super::{Context, parts};
use crate::decode::{self, FieldValidation};
use crate::negotiate::{content_type, unsupported};
use crate::registry::Target;
use crate::{Body, WriteOptions, Written, object};

/// Content types of patches.
const PATCH_TYPES: [&str; 4] = [
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
    "application/apply-patch+yaml",
];

/// The kinds of patches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// RFC 6902.
    Json,
    /// RFC 7386.
    Merge,
    /// By the merge keys of the kind's fields.
    Strategic,
    /// Server-side apply.
    Apply,
}

/// A patch as it came.
pub(super) struct Patch {
    /// How it is applied.
    pub kind: Kind,
    /// The patch.
    pub value: Value,
    /// `force`: take fields from other managers.
    pub force: bool,
}

impl Patch {
    /// Reads the patch and its options.
    ///
    /// # Errors
    /// 415, 400 and 422 in upstream's words.
    pub(super) fn parse(
        context: &Context<'_>,
        headers: &HeaderMap,
        body: &Bytes,
    ) -> Result<Self, StatusError> {
        let kind = match content_type(headers) {
            "application/json-patch+json" => Kind::Json,
            "application/merge-patch+json" => Kind::Merge,
            "application/strategic-merge-patch+json" => Kind::Strategic,
            "application/apply-patch+yaml" => Kind::Apply,
            _ => return Err(unsupported(&PATCH_TYPES)),
        };
        let query = &context.info.query;
        let mut errors = Vec::new();
        if kind == Kind::Apply && query.get("fieldManager").is_empty() {
            errors.push(FieldError::required("fieldManager", "is required for apply patch"));
        }
        if kind != Kind::Apply && query.has("force") {
            errors.push(FieldError::forbidden("force", "may not be specified for non-apply patch"));
        }
        if !errors.is_empty() {
            return Err(StatusError::invalid("meta.k8s.io", "PatchOptions", "", &errors));
        }
        let value = if kind == Kind::Apply {
            let parsed = api::schema::parse_json(body)
                .map(|(value, _)| value)
                .or_else(|_error| decode::yaml(body));
            parsed.map_err(|error| {
                StatusError::bad_request(format!("error decoding YAML: {error}"))
            })?
        } else {
            let parsed = api::schema::parse_json(body).map(|(value, _)| value);
            parsed.map_err(|error| {
                StatusError::bad_request(format!("error decoding patch: {error}"))
            })?
        };
        Ok(Self { kind, value, force: query.flag("force") })
    }

    /// What an error about the patched object shows: for a strategic merge the patch as Go prints it, else the object.
    fn shown(&self, patched: &Value) -> String {
        match self.kind {
            Kind::Strategic => api::patch::go_text(&self.value),
            Kind::Json | Kind::Merge | Kind::Apply => patched.to_string(),
        }
    }

    /// The patched object, for the patches that need nothing but the object.
    ///
    /// # Errors
    /// As the patch's own rules say.
    pub(super) fn onto(&self, context: &Context<'_>, old: &Value) -> Result<Value, StatusError> {
        let resource = context.resource;
        match self.kind {
            Kind::Json => api::patch::json(old, &self.value),
            Kind::Merge => api::patch::merge(old, &self.value),
            Kind::Strategic | Kind::Apply => api::patch::strategic(
                resource.group,
                resource.version,
                resource.kind,
                old,
                &self.value,
            ),
        }
    }
}

/// Answers a PATCH of an object or its `subresource`.
pub(super) async fn patch(
    context: &Context<'_>,
    subresource: Option<Subresource>,
    headers: &HeaderMap,
    body: &Bytes,
) -> Result<Response<Body>, StatusError> {
    let validation = FieldValidation::parse(&context.info.query, "PatchOptions")?;
    let patch = Patch::parse(context, headers, body)?;
    let mut options = write_options(context, "PatchOptions")?;
    if subresource == Some(Subresource::Scale) {
        return parts::patch_scale(context, &patch, &options).await;
    }
    let info = context.info;
    let target = Target {
        user: context.user,
        resource: context.resource,
        subresource,
        namespace: &info.namespace,
        name: &info.name,
    };
    let mut warnings = Vec::new();
    if patch.kind == Kind::Apply {
        options.tracked = true;
        let written = apply(context, &target, &patch, &options, validation).await?;
        return written_reply(context, written.0, written.1);
    }
    let change = |old: &Value| {
        let new = patch.onto(context, old)?;
        warnings = decode::check_patched(context.resource, &new, validation, || patch.shown(&new))?;
        check_patched_name(context, &new)?;
        Ok(new)
    };
    let written = context.registry.change(&target, &options, change).await?;
    written_reply(context, written, warnings)
}

/// A patch may not rename.
fn check_patched_name(context: &Context<'_>, new: &Value) -> Result<(), StatusError> {
    let (name, wanted) = (object::meta_str(new, "name"), &context.info.name);
    if name == wanted {
        return Ok(());
    }
    Err(StatusError::bad_request(format!(
        "the name of the object ({name}) does not match the name on the URL ({wanted})"
    )))
}

/// Server-side apply: changes the object, or makes it.
async fn apply(
    context: &Context<'_>,
    target: &Target<'_>,
    patch: &Patch,
    options: &WriteOptions,
    validation: FieldValidation,
) -> Result<(Written, Vec<String>), StatusError> {
    let resource = context.resource;
    let mut applied = patch.value.clone();
    prepare_applied(context, &mut applied)?;
    let shown = || applied.to_string();
    let checked = decode::check_patched(resource, &applied, validation, shown);
    let warnings = checked.map_err(|error| match error.reason {
        Reason::Invalid => StatusError::bad_request(strict_cause(&error)),
        _ => error,
    })?;
    let door = target.subresource.map_or("", Subresource::name);
    let merge = |live: Option<&Value>| {
        let apply = api::apply::Context { force: patch.force, ..options.context(resource, door) };
        api::apply::apply(&apply, live, &applied)
    };
    let changed = context.registry.change(target, options, |old| merge(Some(old))).await;
    match changed {
        Err(error) if error.reason == Reason::NotFound && target.subresource.is_none() => {
            if !object::meta_str(&applied, "uid").is_empty() {
                let (group, plural) = (resource.group, resource.plural);
                let why = format!(
                    "uid mismatch: the provided object specified uid {}, and no existing object was found",
                    object::meta_str(&applied, "uid")
                );
                return Err(StatusError::conflict(group, plural, target.name, why));
            }
            let new = merge(None)?;
            let made = context
                .registry
                .create(context.user, resource, target.namespace, new, options)
                .await?;
            Ok((made, warnings))
        }
        changed => Ok((changed?, warnings)),
    }
}

/// The cause of a refused object, without the object itself.
fn strict_cause(error: &StatusError) -> String {
    error.message.split_once("strict decoding error: ").map_or_else(
        || error.message.clone(),
        |(_, cause)| format!("error decoding YAML: strict decoding error: {cause}"),
    )
}

/// Name and namespace of an applied configuration come from the path.
fn prepare_applied(context: &Context<'_>, applied: &mut Value) -> Result<(), StatusError> {
    if !applied.is_object() {
        return Err(StatusError::bad_request("error decoding YAML: the patch must be an object"));
    }
    let meta = object::meta_mut(applied);
    if meta.contains_key("managedFields")
        && meta["managedFields"].as_array().is_some_and(|list| !list.is_empty())
    {
        return Err(StatusError::bad_request("metadata.managedFields must be nil"));
    }
    meta.remove("managedFields");
    if !context.info.namespace.is_empty() {
        let namespace =
            meta.entry("namespace").or_insert_with(|| context.info.namespace.clone().into());
        if *namespace != context.info.namespace {
            let message = "the namespace of the provided object does not match the namespace sent on the request";
            return Err(StatusError::bad_request(message));
        }
    }
    meta.entry("name").or_insert_with(|| context.info.name.clone().into());
    check_patched_name(context, applied)
}
