//! Nobody grants more than they have: the check on writes of roles and bindings.
//!
//! Upstream counterpart: `pkg/registry/rbac/*/policybased` and `pkg/registry/rbac/validation.Covers`.

use std::collections::{BTreeMap, BTreeSet};

use api::StatusError;
use api::resource::Resource;
use serde_json::Value;

use super::rbac::{Index, Rule};
use super::{Attributes, MASTERS, User};
use crate::Cache;
use crate::lookup::{CLUSTER_ROLE_BINDINGS, CLUSTER_ROLES, ROLE_BINDINGS, ROLES, array, text};

/// Refuses a role or binding that grants what `user` does not hold; other kinds pass.
///
/// # Errors
/// 403 in upstream's words.
pub(crate) fn check(
    cache: &Cache,
    user: &User,
    resource: &Resource,
    old: Option<&Value>,
    new: &Value,
) -> Result<(), StatusError> {
    let role = ROLES.is(resource) || CLUSTER_ROLES.is(resource);
    let binding = ROLE_BINDINGS.is(resource) || CLUSTER_ROLE_BINDINGS.is(resource);
    if !(role || binding) || user.is_in(MASTERS) {
        return Ok(());
    }
    let same = |fields: &[&str]| {
        old.is_some_and(|old| fields.iter().all(|field| old.get(field) == new.get(field)))
    };
    if same(&["rules", "aggregationRule", "roleRef", "subjects"]) {
        return Ok(());
    }
    let (namespace, name) = (text(new, "/metadata/namespace"), text(new, "/metadata/name"));
    let index = Index::build(cache);
    let asked = |verb: &str, plural: &str, name: &str| Attributes {
        user: user.clone(),
        verb: verb.to_owned(),
        group: resource.group.to_owned(),
        version: resource.version.to_owned(),
        resource: plural.to_owned(),
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        ..Attributes::default()
    };
    let rules: Vec<Rule> = if role {
        if index.authorize(&asked("escalate", resource.plural, name)).is_ok() {
            return Ok(());
        }
        let aggregates = !array(new, "/aggregationRule/clusterRoleSelectors").is_empty();
        let all = || vec!["*".to_owned()];
        let everything = Rule { verbs: all(), groups: all(), resources: all(), ..Rule::default() };
        if aggregates {
            vec![everything]
        } else {
            array(new, "/rules").iter().map(Rule::parse).collect()
        }
    } else {
        let target = text(new, "/roleRef/name");
        let row = if text(new, "/roleRef/kind") == "ClusterRole" { CLUSTER_ROLES } else { ROLES };
        let plural = row.resource().map_or("roles", |resource| resource.plural);
        if index.authorize(&asked("bind", plural, target)).is_ok() {
            return Ok(());
        }
        let within = if row == ROLES { namespace } else { "" };
        let found = row.get(cache, within, target);
        let Some(found) = found else {
            return Err(StatusError::not_found(resource.group, plural, target));
        };
        array(&found, "/rules").iter().map(Rule::parse).collect()
    };
    let (held, errors) = index.rules(user, namespace);
    let missing = uncovered(&held, &rules);
    if missing.is_empty() {
        return Ok(());
    }
    let lines: Vec<String> = missing.iter().map(describe).collect();
    let mut why = format!(
        "user {:?} (groups={}) is attempting to grant RBAC permissions not currently held:\n{}",
        user.name,
        quoted(&user.groups),
        lines.join("\n")
    );
    if !errors.is_empty() {
        why.push_str(&format!("; resolution errors: [{}]", errors.join(", ")));
    }
    Err(StatusError::forbidden(resource.group, resource.plural, name, why))
}

/// The parts of `wanted` that no rule of `held` covers, put together by what they are about.
fn uncovered(held: &[Rule], wanted: &[Rule]) -> Vec<Rule> {
    let mut missing: BTreeMap<Rule, BTreeSet<String>> = BTreeMap::new();
    for part in wanted.iter().flat_map(parts) {
        if !held.iter().any(|rule| covers(rule, &part)) {
            let verbs = part.verbs.clone();
            missing.entry(Rule { verbs: Vec::new(), ..part }).or_default().extend(verbs);
        }
    }
    missing
        .into_iter()
        .map(|(rule, verbs)| Rule { verbs: verbs.into_iter().collect(), ..rule })
        .collect()
}

/// A rule as rules of one verb about one thing each.
fn parts(rule: &Rule) -> Vec<Rule> {
    let mut parts = Vec::new();
    for verb in &rule.verbs {
        let one = Rule { verbs: vec![verb.clone()], ..Rule::default() };
        for path in &rule.paths {
            parts.push(Rule { paths: vec![path.clone()], ..one.clone() });
        }
        for (group, resource) in
            rule.groups.iter().flat_map(|group| rule.resources.iter().map(move |r| (group, r)))
        {
            let one = Rule {
                groups: vec![group.clone()],
                resources: vec![resource.clone()],
                ..one.clone()
            };
            if rule.names.is_empty() {
                parts.push(one.clone());
            }
            parts.extend(
                rule.names.iter().map(|name| Rule { names: vec![name.clone()], ..one.clone() }),
            );
        }
    }
    parts
}

/// Whether a rule allows all that a part of one verb about one thing allows.
fn covers(rule: &Rule, part: &Rule) -> bool {
    let within = |own: &[String], wanted: &[String]| {
        wanted.iter().all(|wanted| own.iter().any(|own| own == "*" || own == wanted))
    };
    let resource = |wanted: &String| {
        let anywhere = wanted.split_once('/').map(|(_, part)| format!("*/{part}"));
        rule.resources
            .iter()
            .any(|own| own == "*" || own == wanted || Some(own) == anywhere.as_ref())
    };
    let path = |wanted: &String| {
        rule.paths.iter().any(|own| {
            own == wanted || own.strip_suffix('*').is_some_and(|prefix| wanted.starts_with(prefix))
        })
    };
    within(&rule.verbs, &part.verbs)
        && within(&rule.groups, &part.groups)
        && part.resources.iter().all(resource)
        && part.paths.iter().all(path)
        && (rule.names.is_empty() || (!part.names.is_empty() && within(&rule.names, &part.names)))
}

/// A rule as upstream prints it: `{APIGroups:[""], Resources:["pods"], Verbs:["get"]}`.
fn describe(rule: &Rule) -> String {
    let fields = [
        ("APIGroups", &rule.groups),
        ("Resources", &rule.resources),
        ("NonResourceURLs", &rule.paths),
        ("ResourceNames", &rule.names),
        ("Verbs", &rule.verbs),
    ];
    let fields: Vec<String> = fields
        .iter()
        .filter(|(_, list)| !list.is_empty())
        .map(|(name, list)| format!("{name}:{}", quoted(list)))
        .collect();
    format!("{{{}}}", fields.join(", "))
}

/// A list as Go's `%q` prints it.
fn quoted(list: &[String]) -> String {
    let list: Vec<String> = list.iter().map(|text| format!("{text:?}")).collect();
    format!("[{}]", list.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn rule(value: &Value) -> Rule {
        Rule::parse(value)
    }

    #[test]
    fn wider_rules_cover_narrower_ones() {
        let held = [
            rule(&json!({"verbs": ["get", "list"], "apiGroups": [""], "resources": ["*"]})),
            rule(&json!({"verbs": ["*"], "nonResourceURLs": ["/metrics/*"]})),
        ];
        let within = [
            rule(
                &json!({"verbs": ["get"], "apiGroups": [""], "resources": ["pods"], "resourceNames": ["a"]}),
            ),
            rule(&json!({"verbs": ["get"], "nonResourceURLs": ["/metrics/a"]})),
        ];
        assert!(uncovered(&held, &within).is_empty());
        let beyond = [rule(
            &json!({"verbs": ["get", "watch", "delete"], "apiGroups": [""], "resources": ["pods"]}),
        )];
        let missing = uncovered(&held, &beyond);
        assert_eq!(
            missing.iter().map(describe).collect::<Vec<_>>(),
            ["{APIGroups:[\"\"], Resources:[\"pods\"], Verbs:[\"delete\" \"watch\"]}"]
        );
    }

    #[test]
    fn a_rule_for_names_does_not_cover_all_names() {
        let held = [rule(
            &json!({"verbs": ["get"], "apiGroups": [""], "resources": ["pods"], "resourceNames": ["a"]}),
        )];
        let wanted = [rule(&json!({"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]}))];
        assert_eq!(uncovered(&held, &wanted).len(), 1);
    }
}
