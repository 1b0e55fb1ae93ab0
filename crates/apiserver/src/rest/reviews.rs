//! Reviews: questions to authentication and authorization; nothing is stored.
//! Upstream: `registry/authentication` and `registry/authorization`.

use api::StatusError;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use serde_json::{Value, json};

use super::Context;
use crate::auth::{Attributes, User};
use crate::decode::{self, Expected, FieldValidation};
use crate::{Body, object, reply};

/// Answers a POST of a review.
pub(super) fn create(
    context: &Context<'_>,
    headers: &HeaderMap,
    body: &Bytes,
) -> Result<Response<Body>, StatusError> {
    let validation = FieldValidation::parse(&context.info.query, "CreateOptions")?;
    let decoded = decode::object(headers, body, Expected::of(context.resource), validation)?;
    let mut review = decoded.object;
    let spec = review["spec"].clone();
    let status = match context.resource.plural {
        "selfsubjectreviews" => json!({"userInfo": user_value(context.user)}),
        "tokenreviews" => token_review(context, &spec),
        "selfsubjectaccessreviews" => access(context, context.user.clone(), &spec),
        "localsubjectaccessreviews" | "subjectaccessreviews" => {
            access(context, user_of(&spec), &spec)
        }
        // The rules are the authorizer's own; it is only asked about single requests.
        _ => json!({"resourceRules": [], "nonResourceRules": [], "incomplete": true}),
    };
    object::meta_mut(&mut review);
    review["status"] = status;
    let response = super::one(context, StatusCode::CREATED, &review)?;
    Ok(reply::with_warnings(response, &decoded.warnings))
}

/// `authentication/v1` UserInfo.
fn user_value(user: &User) -> Value {
    let mut value = json!({"username": user.name, "groups": user.groups});
    if !user.uid.is_empty() {
        value["uid"] = user.uid.clone().into();
    }
    if !user.extra.is_empty() {
        value["extra"] = json!(user.extra);
    }
    value
}

/// The user that a SubjectAccessReview asks about.
fn user_of(spec: &Value) -> User {
    let text = |field: &str| spec[field].as_str().unwrap_or("").to_owned();
    let groups = spec["groups"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .map(str::to_owned);
    User { name: text("user"), uid: text("uid"), groups: groups.collect(), ..User::default() }
}

fn access(context: &Context<'_>, user: User, spec: &Value) -> Value {
    let resource = &spec["resourceAttributes"];
    let of = |field: &str| resource[field].as_str().unwrap_or("").to_owned();
    let attributes = if resource.is_object() {
        Attributes {
            user,
            verb: of("verb"),
            group: of("group"),
            version: of("version"),
            resource: of("resource"),
            subresource: of("subresource"),
            namespace: of("namespace"),
            name: of("name"),
            path: String::new(),
        }
    } else {
        let of =
            |field: &str| spec["nonResourceAttributes"][field].as_str().unwrap_or("").to_owned();
        Attributes { user, verb: of("verb"), path: of("path"), ..Attributes::default() }
    };
    match context.authorizer.authorize(&attributes) {
        Ok(()) => json!({"allowed": true}),
        Err(reason) if reason.is_empty() => json!({"allowed": false}),
        Err(reason) => json!({"allowed": false, "reason": reason}),
    }
}

fn token_review(context: &Context<'_>, spec: &Value) -> Value {
    let token = spec["token"].as_str().unwrap_or("");
    let mut headers = HeaderMap::new();
    match HeaderValue::from_str(&format!("Bearer {token}")) {
        Ok(value) => headers.insert(header::AUTHORIZATION, value),
        Err(_not_a_token) => return json!({"user": {}, "error": "invalid bearer token"}),
    };
    match context.authenticator.authenticate(&[], &headers) {
        Ok(Some(user)) => {
            json!({"authenticated": true, "user": user_value(&user), "audiences": spec["audiences"]})
        }
        Ok(None) => json!({"user": {}}),
        Err(error) => json!({"user": {}, "error": error.message}),
    }
}
