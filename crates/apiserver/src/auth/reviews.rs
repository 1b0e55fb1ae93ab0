//! Questions about identity and rights, answered and never stored: TokenReview, SelfSubjectReview,
//! SubjectAccessReview and its siblings, SelfSubjectRulesReview.
//!
//! Upstream counterpart: `pkg/registry/authentication` and `pkg/registry/authorization`.

use api::StatusError;
use api::resource::{FieldError, Resource};
use serde_json::{Value, json};

use super::{Attributes, Authenticator, Authorizer, User};
use crate::Registry;
use crate::lookup::{text, texts};

/// Answers a POST of a review: the object with its status.
///
/// # Errors
/// 422 for reviews that ask nothing; 404 for kinds that are no reviews.
pub(crate) fn create(
    (authenticator, authorizer): (&Authenticator, &Authorizer),
    user: &User,
    resource: &Resource,
    namespace: &str,
    mut review: Value,
) -> Result<Value, StatusError> {
    let status = match resource.kind {
        "SelfSubjectReview" => json!({"userInfo": user.to_value()}),
        "TokenReview" => authenticator.review(&review)?,
        "SelfSubjectAccessReview" => {
            access(authorizer, user.clone(), &check_spec(resource, &review, false)?)
        }
        "SubjectAccessReview" | "LocalSubjectAccessReview" => {
            let spec = check_spec(resource, &review, true)?;
            check_namespace(resource, &spec, namespace)?;
            access(authorizer, subject(&spec), &spec)
        }
        "SelfSubjectRulesReview" => rules(authorizer, user, text(&review, "/spec/namespace"))?,
        _ => return Err(StatusError::not_found(resource.group, resource.plural, "")),
    };
    review["kind"] = resource.kind.into();
    review["apiVersion"] = resource.api_version().into();
    if !review["metadata"].is_object() {
        review["metadata"] = json!({"creationTimestamp": null});
    }
    review["status"] = status;
    Ok(review)
}

impl Authenticator {
    /// The status of a TokenReview.
    fn review(&self, review: &Value) -> Result<Value, StatusError> {
        let token = text(review, "/spec/token");
        if token.is_empty() {
            return Err(StatusError::bad_request(
                "token is required for TokenReview in authentication",
            ));
        }
        let named = texts(review, "/spec/audiences");
        let audiences =
            if named.is_empty() { vec![self.tokens.issuer().to_owned()] } else { named };
        let registry: &Registry = &self.registry;
        Ok(
            match self.tokens.authenticate(
                registry.cache(),
                token,
                &audiences,
                jiff::Timestamp::now(),
            ) {
                Ok((user, audiences)) => {
                    json!({"authenticated": true, "user": user.to_value(), "audiences": audiences})
                }
                Err(error) => {
                    json!({"user": {}, "error": format!("[invalid bearer token, {error}]")})
                }
            },
        )
    }
}

/// The `spec` when it asks exactly one thing about somebody.
fn check_spec(resource: &Resource, review: &Value, of_subject: bool) -> Result<Value, StatusError> {
    let spec = &review["spec"];
    let (by_resource, by_path) =
        (spec["resourceAttributes"].is_object(), spec["nonResourceAttributes"].is_object());
    let mut errors = Vec::new();
    if by_resource == by_path {
        let field =
            if by_resource { "spec.nonResourceAttributes" } else { "spec.resourceAttributes" };
        let why = if by_resource {
            "cannot be specified in combination with resourceAttributes"
        } else {
            "exactly one of nonResourceAttributes or resourceAttributes must be specified"
        };
        errors.push(FieldError::invalid(field, &spec["nonResourceAttributes"], why));
    }
    if of_subject && text(spec, "/user").is_empty() && texts(spec, "/groups").is_empty() {
        let why = "at least one of user or group must be specified";
        errors.push(FieldError::invalid("spec.user", &"".into(), why));
    }
    if errors.is_empty() {
        Ok(spec.clone())
    } else {
        Err(StatusError::invalid(resource.group, resource.kind, "", &errors))
    }
}

/// A LocalSubjectAccessReview asks about its own namespace.
fn check_namespace(resource: &Resource, spec: &Value, namespace: &str) -> Result<(), StatusError> {
    let asked = text(spec, "/resourceAttributes/namespace");
    if resource.kind == "LocalSubjectAccessReview" && asked != namespace {
        let message =
            format!("spec.resourceAttributes.namespace must match namespace: {namespace}");
        return Err(StatusError::bad_request(message));
    }
    Ok(())
}

fn subject(spec: &Value) -> User {
    let extra = spec["extra"].as_object().into_iter().flatten();
    User {
        name: text(spec, "/user").to_owned(),
        uid: text(spec, "/uid").to_owned(),
        groups: texts(spec, "/groups"),
        extra: extra.map(|(key, values)| (key.clone(), texts(values, ""))).collect(),
    }
}

fn access(authorizer: &Authorizer, user: User, spec: &Value) -> Value {
    let part = |field: &str| text(spec, &format!("/resourceAttributes/{field}")).to_owned();
    let path = text(spec, "/nonResourceAttributes/path");
    let asked = if spec["resourceAttributes"].is_object() {
        Attributes {
            user,
            verb: part("verb"),
            group: part("group"),
            version: part("version"),
            resource: part("resource"),
            subresource: part("subresource"),
            namespace: part("namespace"),
            name: part("name"),
            path: String::new(),
        }
    } else {
        let verb = text(spec, "/nonResourceAttributes/verb").to_owned();
        Attributes { user, verb, path: path.to_owned(), ..Attributes::default() }
    };
    match authorizer.authorize(&asked) {
        Ok(()) => json!({"allowed": true}),
        Err(reason) if reason.is_empty() => json!({"allowed": false}),
        Err(reason) => json!({"allowed": false, "reason": reason}),
    }
}

fn rules(authorizer: &Authorizer, user: &User, namespace: &str) -> Result<Value, StatusError> {
    if namespace.is_empty() {
        return Err(StatusError::bad_request("no namespace on request"));
    }
    let (rules, errors) = authorizer.index().rules(user, namespace);
    let (mut of_resources, mut of_paths) = (Vec::new(), Vec::new());
    for rule in rules {
        if !rule.resources.is_empty() {
            let mut value =
                json!({"verbs": rule.verbs, "apiGroups": rule.groups, "resources": rule.resources});
            if !rule.names.is_empty() {
                value["resourceNames"] = rule.names.into();
            }
            of_resources.push(value);
        } else if !rule.paths.is_empty() {
            of_paths.push(json!({"verbs": rule.verbs, "nonResourceURLs": rule.paths}));
        }
    }
    let mut status =
        json!({"resourceRules": of_resources, "nonResourceRules": of_paths, "incomplete": false});
    if !errors.is_empty() {
        status["evaluationError"] = errors.join(", ").into();
    }
    Ok(status)
}
