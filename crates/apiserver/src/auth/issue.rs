//! The `token` part of ServiceAccounts: TokenRequest.
//!
//! Upstream counterpart: `pkg/registry/core/serviceaccount/storage/token.go`.

use api::StatusError;
use api::resource::FieldError;
use jiff::ToSpan;
use serde_json::{Value, json};

use super::tokens::{Claims, Reference};
use super::{Tokens, User};
use crate::lookup::{NODES, PODS, Row, SECRETS, SERVICE_ACCOUNTS, text, texts};
use crate::{Cache, object};

/// Seconds that a token is valid when the request names none.
const EXPIRATION_SECONDS: i64 = 3600;
/// Shortest validity in seconds.
const EXPIRATION_SECONDS_MIN: i64 = 600;
/// Longest validity in seconds.
const EXPIRATION_SECONDS_MAX: i64 = 1 << 32;
const GROUP: &str = "authentication.k8s.io";

impl Tokens {
    /// Answers a TokenRequest for the account `name`: the request with its status.
    ///
    /// # Errors
    /// The Status that upstream answers.
    pub(crate) fn issue(
        &self,
        cache: &Cache,
        user: &User,
        (namespace, name): (&str, &str),
        mut request: Value,
    ) -> Result<Value, StatusError> {
        let account = SERVICE_ACCOUNTS
            .get(cache, namespace, name)
            .ok_or_else(|| StatusError::not_found("", "serviceaccounts", name))?;
        let named = text(&request, "/metadata/name");
        if !named.is_empty() && named != name {
            let message = format!(
                "the name of the object ({named}) does not match the name on the URL ({name})"
            );
            return Err(StatusError::bad_request(message));
        }
        let seconds = request["spec"]["expirationSeconds"].as_i64().unwrap_or(EXPIRATION_SECONDS);
        check_seconds(seconds)?;
        let mut audiences = texts(&request, "/spec/audiences");
        if audiences.is_empty() {
            audiences.push(self.issuer().to_owned());
        }
        let now = jiff::Timestamp::now();
        let mut claims = Claims {
            namespace: namespace.to_owned(),
            account: Reference::of(&account),
            audiences: audiences.clone(),
            issued: now.as_second(),
            expires: now.as_second().saturating_add(seconds),
            id: uuid::Uuid::new_v4().to_string(),
            ..Claims::default()
        };
        bind(cache, &mut claims, &request["spec"]["boundObjectRef"])?;
        restrict_node(user, &claims, name)?;
        let token = self.sign(&claims)?;
        let until = now.saturating_add(seconds.seconds()).unwrap_or(jiff::Timestamp::MAX);
        request["kind"] = "TokenRequest".into();
        request["apiVersion"] = "authentication.k8s.io/v1".into();
        request["metadata"] = json!({"name": name, "namespace": namespace, "creationTimestamp": object::timestamp(now)});
        request["spec"]["audiences"] = json!(audiences);
        request["spec"]["expirationSeconds"] = seconds.into();
        if request["spec"].get("boundObjectRef").is_none() {
            request["spec"]["boundObjectRef"] = Value::Null;
        }
        request["status"] =
            json!({"token": token, "expirationTimestamp": object::timestamp(until)});
        Ok(request)
    }
}

fn check_seconds(seconds: i64) -> Result<(), StatusError> {
    let why = if seconds < EXPIRATION_SECONDS_MIN {
        "may not specify a duration less than 10 minutes"
    } else if seconds > EXPIRATION_SECONDS_MAX {
        "may not specify a duration larger than 2^32 seconds"
    } else {
        return Ok(());
    };
    let error = FieldError::invalid("spec.expirationSeconds", &seconds.into(), why);
    Err(StatusError::invalid(GROUP, "TokenRequest", "", &[error]))
}

/// Binds the token to an object: it dies with it.
fn bind(cache: &Cache, claims: &mut Claims, wanted: &Value) -> Result<(), StatusError> {
    if !wanted.is_object() {
        return Ok(());
    }
    let (name, uid) = (text(wanted, "/name"), text(wanted, "/uid"));
    let namespace = claims.namespace.clone();
    let (version, kind) = (text(wanted, "/apiVersion"), text(wanted, "/kind"));
    let found = |row: Row, namespace: &str, plural: &str| {
        row.get(cache, namespace, name).ok_or_else(|| StatusError::not_found("", plural, name))
    };
    let (plural, bound) = match (version, kind) {
        ("v1", "Pod") => {
            let pod = found(PODS, &namespace, "pods")?;
            if text(&pod, "/spec/serviceAccountName") != claims.account.name {
                let message = format!(
                    "cannot bind token for serviceaccount {:?} to pod running with different serviceaccount name.",
                    claims.account.name
                );
                return Err(StatusError::bad_request(message));
            }
            claims.pod = Some(Reference::of(&pod));
            let node = text(&pod, "/spec/nodeName");
            if !node.is_empty() {
                let known = NODES.get(cache, "", node).map(|node| Reference::of(&node));
                claims.node =
                    Some(known.unwrap_or(Reference { name: node.to_owned(), uid: String::new() }));
            }
            ("pods", Reference::of(&pod))
        }
        ("v1", "Secret") => {
            let secret = Reference::of(&*found(SECRETS, &namespace, "secrets")?);
            claims.secret = Some(secret.clone());
            ("secrets", secret)
        }
        ("v1", "Node") => {
            let node = Reference::of(&*found(NODES, "", "nodes")?);
            claims.node = Some(node.clone());
            ("nodes", node)
        }
        _ => {
            let (group, version) = version.split_once('/').unwrap_or(("", version));
            let message =
                format!("cannot bind token to object of type {group}/{version}, Kind={kind}");
            return Err(StatusError::bad_request(message));
        }
    };
    if !uid.is_empty() && uid != bound.uid {
        let why = format!(
            "the UID in the bound object reference ({uid}) does not match the UID in record. The object might have \
             been deleted and then recreated"
        );
        return Err(StatusError::conflict("", plural, name, why));
    }
    Ok(())
}

/// A node agent gets tokens of pods that run on it, and no others.
fn restrict_node(user: &User, claims: &Claims, name: &str) -> Result<(), StatusError> {
    let Some(node) = user.node() else { return Ok(()) };
    let refuse = |why: &str| Err(StatusError::forbidden("", "serviceaccounts", name, why));
    if claims.pod.is_none() {
        return refuse("node requested token not bound to a pod");
    }
    if claims.node.as_ref().is_none_or(|own| own.name != node) {
        return refuse("node requested token bound to a pod scheduled on a different node");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn validity_has_bounds() {
        check_seconds(600).unwrap();
        check_seconds(1 << 32).unwrap();
        assert_eq!(
            check_seconds(599).unwrap_err().message,
            "TokenRequest.authentication.k8s.io \"\" is invalid: spec.expirationSeconds: Invalid value: 599: may not \
             specify a duration less than 10 minutes"
        );
        check_seconds((1 << 32) + 1).unwrap_err();
    }

    #[test]
    fn nodes_get_tokens_of_their_own_pods_only() {
        let node = User {
            name: "system:node:a".to_owned(),
            groups: vec!["system:nodes".to_owned()],
            ..User::default()
        };
        let mut claims = Claims::default();
        restrict_node(&User::default(), &claims, "x").unwrap();
        restrict_node(&node, &claims, "x").unwrap_err();
        claims.pod = Some(Reference::default());
        claims.node = Some(Reference { name: "a".to_owned(), uid: String::new() });
        restrict_node(&node, &claims, "x").unwrap();
        claims.node = Some(Reference { name: "b".to_owned(), uid: String::new() });
        restrict_node(&node, &claims, "x").unwrap_err();
    }
}
