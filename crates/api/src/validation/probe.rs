//! Probes and lifecycle hooks of containers. Upstream: `validateProbe`, `validateHandler`.

use serde_json::{Value, json};

use super::at::At;
use super::names;
use crate::field::FieldError;

/// Checks the hooks and probes of a container that may have them.
pub(crate) fn lifecycle_and_probes(container: &At<'_>, grace: Option<i64>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for hook in ["postStart", "preStop"] {
        let hook = container.get("lifecycle").get(hook);
        if hook.is_set() {
            errors.extend(handler(&hook, &["exec", "httpGet", "tcpSocket", "sleep"], grace));
        }
    }
    for kind in ["livenessProbe", "readinessProbe", "startupProbe"] {
        let place = container.get(kind);
        if !place.is_set() {
            continue;
        }
        errors.extend(probe(&place, grace));
        let threshold = place.get("successThreshold");
        if kind != "readinessProbe" {
            if threshold.int().unwrap_or(0) != 1 {
                errors.push(threshold.invalid("must be 1"));
            }
        } else if place.get("terminationGracePeriodSeconds").is_set() {
            errors.push(
                place
                    .get("terminationGracePeriodSeconds")
                    .invalid("must not be set for readinessProbes"),
            );
        }
    }
    errors
}

fn probe(probe: &At<'_>, grace: Option<i64>) -> Vec<FieldError> {
    let mut errors = handler(probe, &["exec", "httpGet", "tcpSocket", "grpc"], grace);
    for field in [
        "initialDelaySeconds",
        "timeoutSeconds",
        "periodSeconds",
        "successThreshold",
        "failureThreshold",
    ] {
        errors.extend(probe.get(field).non_negative());
    }
    let own = probe.get("terminationGracePeriodSeconds");
    if own.int().is_some_and(|seconds| seconds <= 0) {
        errors.push(own.invalid("must be greater than 0"));
    }
    errors
}

fn handler(place: &At<'_>, kinds: &[&str], grace: Option<i64>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let mut found = 0;
    for kind in kinds {
        let action = place.get(kind);
        if !action.is_set() {
            continue;
        }
        found += 1;
        if found > 1 {
            errors.push(action.forbidden("may not specify more than 1 handler type"));
            continue;
        }
        match *kind {
            "exec" if action.get("command").is_empty() => {
                errors.push(action.get("command").required(""));
            }
            "httpGet" => errors.extend(http(&action)),
            "tcpSocket" | "grpc" => errors.extend(port_or_name(&action.get("port"))),
            "sleep" => errors.extend(sleep(&action, grace)),
            _ => {}
        }
    }
    if found == 0 {
        errors.push(place.required("must specify a handler type"));
    }
    errors
}

fn http(action: &At<'_>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if action.get("path").text().is_empty() {
        errors.push(action.get("path").required(""));
    }
    errors.extend(port_or_name(&action.get("port")));
    let scheme = action.get("scheme");
    if !["HTTP", "HTTPS"].contains(&scheme.text()) {
        errors.push(scheme.unsupported(&["HTTP", "HTTPS"]));
    }
    let headers = action.get("httpHeaders");
    for header in headers.items() {
        let name = header.value["name"].as_str().unwrap_or("");
        errors.extend(super::meta::named_invalid(&headers.path, name, names::header_name(name)));
    }
    errors
}

fn sleep(action: &At<'_>, grace: Option<i64>) -> Option<FieldError> {
    let (seconds, grace) = (action.get("seconds").int().unwrap_or(0), grace?);
    (seconds < 0 || seconds > grace).then(|| {
        let why =
            format!("must be non-negative and less than terminationGracePeriodSeconds ({grace})");
        FieldError::invalid(&*action.path, &json!(seconds), why)
    })
}

/// A port's number, or the name of one.
pub(crate) fn port_or_name(port: &At<'_>) -> Vec<FieldError> {
    match port.value {
        Value::String(name) => port.all_invalid(names::port_name(name)),
        other => {
            let number = other.as_i64().unwrap_or(0);
            let wrong = names::port_number(number);
            wrong
                .into_iter()
                .map(|why| FieldError::invalid(&*port.path, &json!(number), why))
                .collect()
        }
    }
}
