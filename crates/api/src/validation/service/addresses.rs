//! `clusterIP`, `clusterIPs`, `ipFamilies` and `ipFamilyPolicy`, alone and against each other.

use std::net::IpAddr;

use serde_json::{Value, json};

use super::super::at::At;
use super::super::names;
use super::is_headless;
use crate::field::FieldError;

/// What messages show of an unset list.
fn shown(list: &At<'_>) -> Value {
    list.value.clone()
}

/// Checks the fields of one state.
pub(super) fn related_fields(service: &Value) -> Vec<FieldError> {
    let spec = At::root(service).get("spec");
    if spec.get("type").text() == "ExternalName" {
        return Vec::new();
    }
    let mut errors = Vec::new();
    let (ip, ips) = (spec.get("clusterIP"), spec.get("clusterIPs"));
    if ip.text().is_empty() {
        if !ips.is_empty() {
            errors.push(ips.invalid("must be empty when `clusterIP` is not specified"));
        }
    } else if ips.is_empty() {
        errors.push(ips.required(""));
    } else if ips.value[0] != *ip.value {
        errors.push(ips.invalid("first value must match `clusterIP`"));
    }
    errors.extend(families(&spec));
    let wrong = address_errors(&ips);
    let stop = !wrong.is_empty();
    errors.extend(wrong);
    if ips.len() > 2 {
        errors.push(ips.invalid("may only hold up to 2 values"));
    }
    if stop {
        return errors;
    }
    if ips.len() > 1 {
        let six = ips.items().filter(|ip| ip.text().contains(':')).count();
        if six == 0 || six == ips.len() {
            errors.push(ips.invalid("may specify no more than one IP for each IP family"));
        }
    }
    if !is_headless(service) {
        errors.extend(mismatches(&ips, &spec.get("ipFamilies")));
    }
    errors
}

fn families(spec: &At<'_>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let mut seen = Vec::new();
    for family in spec.get("ipFamilies").items() {
        if !["IPv4", "IPv6"].contains(&family.text()) {
            errors.push(family.unsupported(&["IPv4", "IPv6"]));
        }
        if seen.contains(&family.text()) {
            errors.push(family.duplicate());
        }
        seen.push(family.text());
    }
    const POLICIES: &[&str] = &["PreferDualStack", "RequireDualStack", "SingleStack"];
    let policy = spec.get("ipFamilyPolicy");
    if policy.is_set() && !POLICIES.contains(&policy.text()) {
        errors.push(policy.unsupported(POLICIES));
    }
    errors
}

fn address_errors(ips: &At<'_>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for (index, ip) in ips.items().enumerate() {
        if index == 0 && ip.text() == "None" {
            if ips.len() > 1 {
                errors.push(ips.invalid("'None' must be the first and only value"));
            }
            continue;
        }
        errors.extend(ip.all_invalid(names::ip(ip.text())));
    }
    errors
}

fn mismatches(ips: &At<'_>, families: &At<'_>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for (index, (ip, family)) in ips.items().zip(families.items()).enumerate() {
        let six = matches!(ip.text().parse(), Ok(IpAddr::V6(_)));
        let expected = match (family.text(), six) {
            ("IPv4", true) => "an IPv4",
            ("IPv6", false) => "an IPv6",
            _ => continue,
        };
        errors.push(
            ip.invalid(format!("expected {expected} value as indicated by `ipFamilies[{index}]`")),
        );
    }
    errors
}

/// Checks changes of addresses and families.
pub(super) fn changes(new: &Value, old: &Value) -> Vec<FieldError> {
    if [new, old].iter().any(|service| service["spec"]["type"] == "ExternalName") {
        return Vec::new();
    }
    let mut errors = Vec::new();
    if !(is_headless(new) && is_headless(old)) {
        errors.extend(list_change(new, old, "clusterIPs", "clusterIP"));
    }
    if !is_headless(new) && !is_headless(old) {
        errors.extend(list_change(new, old, "ipFamilies", "ipFamily"));
    }
    errors
}

fn list_change(new: &Value, old: &Value, field: &str, singular: &str) -> Vec<FieldError> {
    let spec = At::root(new).get("spec");
    let (list, before) = (spec.get(field), At::root(old).get("spec").get(field));
    let wrong = |index: usize, why: &str| {
        FieldError::invalid(format!("{}[{index}]", list.path), &shown(&list), why)
    };
    let mut errors = Vec::new();
    if list.len() == before.len() {
        for (index, (after, earlier)) in list.items().zip(before.items()).enumerate() {
            if after.value != earlier.value {
                let index = if field == "clusterIPs" { index } else { 0 };
                errors.push(wrong(index, "may not change once set"));
            }
        }
        return errors;
    }
    let released = list.len() < before.len();
    if released && list.is_empty() {
        errors.push(wrong(0, &format!("primary {singular} can not be unset")));
    }
    let both = !list.is_empty() && !before.is_empty();
    if both && list.value[0] != before.value[0] {
        errors.push(wrong(0, "may not change once set"));
    }
    let policy = spec.get("ipFamilyPolicy");
    if released && list.len() == 1 && policy.value != &json!("SingleStack") {
        let why = format!("must be set to 'SingleStack' when releasing the secondary {singular}");
        errors.push(policy.invalid(why));
    }
    errors
}
