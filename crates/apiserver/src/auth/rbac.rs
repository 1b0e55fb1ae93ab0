//! Role based access control over the stored roles and bindings, compiled once per change of any of them.
//!
//! Upstream counterpart: `plugin/pkg/auth/authorizer/rbac` and `pkg/registry/rbac/validation`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use parking_lot::Mutex;
use serde_json::Value;

use super::{Attributes, MASTERS, User};
use crate::Cache;
use crate::lookup::{
    CLUSTER_ROLE_BINDINGS, CLUSTER_ROLES, ROLE_BINDINGS, ROLES, array, text, texts,
};

/// What one rule of a role allows. `*` in a list means everything.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rule {
    /// Verbs.
    pub verbs: Vec<String>,
    /// API groups; empty string: core.
    pub groups: Vec<String>,
    /// Plurals, with `/subresource` for parts.
    pub resources: Vec<String>,
    /// Only objects of these names; empty: all.
    pub names: Vec<String>,
    /// Paths; `/x/*` covers all below.
    pub paths: Vec<String>,
}

impl Rule {
    /// Reads `rbac/v1.PolicyRule`.
    #[must_use]
    pub fn parse(value: &Value) -> Self {
        Self {
            verbs: texts(value, "/verbs"),
            groups: texts(value, "/apiGroups"),
            resources: texts(value, "/resources"),
            names: texts(value, "/resourceNames"),
            paths: texts(value, "/nonResourceURLs"),
        }
    }

    /// Whether the rule allows what is asked.
    #[must_use]
    pub fn allows(&self, asked: &Attributes) -> bool {
        if !has(&self.verbs, &asked.verb) {
            return false;
        }
        if asked.resource.is_empty() {
            return self.allows_path(&asked.path);
        }
        has(&self.groups, &asked.group)
            && self.allows_resource(&asked.resource, &asked.subresource)
            && (self.names.is_empty() || self.names.contains(&asked.name))
    }

    fn allows_resource(&self, resource: &str, subresource: &str) -> bool {
        self.resources.iter().any(|own| match own.split_once('/') {
            _ if own == "*" => true,
            Some((plural, part)) => {
                part == subresource
                    && !subresource.is_empty()
                    && (plural == resource || plural == "*")
            }
            None => own == resource && subresource.is_empty(),
        })
    }

    fn allows_path(&self, path: &str) -> bool {
        self.paths.iter().any(|own| {
            own == "*"
                || own == path
                || own.strip_suffix('*').is_some_and(|prefix| path.starts_with(prefix))
        })
    }
}

fn has(list: &[String], wanted: &str) -> bool {
    list.iter().any(|own| own == "*" || own == wanted)
}

/// The rules of one binding's role; an error when the role is missing.
type Granted = Result<Arc<[Rule]>, String>;

/// Bindings of one scope by who is bound.
#[derive(Default)]
struct Bindings {
    users: BTreeMap<String, Vec<Granted>>,
    groups: BTreeMap<String, Vec<Granted>>,
}

impl Bindings {
    fn add(&mut self, binding: &Value, granted: &Granted) {
        let namespace = text(binding, "/metadata/namespace");
        for subject in array(binding, "/subjects") {
            let name = text(subject, "/name");
            match text(subject, "/kind") {
                "User" => self.users.entry(name.to_owned()).or_default().push(granted.clone()),
                "Group" => self.groups.entry(name.to_owned()).or_default().push(granted.clone()),
                "ServiceAccount" => {
                    let own = text(subject, "/namespace");
                    let own = if own.is_empty() { namespace } else { own };
                    let user = format!("system:serviceaccount:{own}:{name}");
                    self.users.entry(user).or_default().push(granted.clone());
                }
                _ => {}
            }
        }
    }

    fn of<'a>(&'a self, user: &'a User) -> impl Iterator<Item = &'a Granted> {
        let by_group = user.groups.iter().filter_map(|group| self.groups.get(group));
        self.users.get(&user.name).into_iter().chain(by_group).flatten()
    }
}

/// Roles and bindings compiled for questions.
pub(crate) struct Index {
    cluster: Bindings,
    namespaced: BTreeMap<String, Bindings>,
}

impl Index {
    /// Compiles what the cache holds.
    pub(crate) fn build(cache: &Cache) -> Self {
        let objects = |row: crate::lookup::Row| row.list(cache, "");
        let roles = |row| {
            let list = objects(row);
            list.iter().map(|role| (role_key(role), Arc::clone(role))).collect::<BTreeMap<_, _>>()
        };
        Self::compile(
            &roles(CLUSTER_ROLES),
            &roles(ROLES),
            &objects(CLUSTER_ROLE_BINDINGS),
            &objects(ROLE_BINDINGS),
        )
    }

    fn compile(
        cluster_roles: &BTreeMap<(String, String), Arc<Value>>,
        roles: &BTreeMap<(String, String), Arc<Value>>,
        cluster_bindings: &[Arc<Value>],
        bindings: &[Arc<Value>],
    ) -> Self {
        let cluster_rules: BTreeMap<&str, Arc<[Rule]>> = cluster_roles
            .iter()
            .map(|((_, name), role)| {
                (name.as_str(), resolve(role, cluster_roles, &mut BTreeSet::new()).into())
            })
            .collect();
        let role_rules: BTreeMap<_, Arc<[Rule]>> =
            roles.iter().map(|(key, role)| (key.clone(), own_rules(role).collect())).collect();
        let granted = |binding: &Value| -> Granted {
            let name = text(binding, "/roleRef/name");
            let (kind, found) = if text(binding, "/roleRef/kind") == "ClusterRole" {
                ("clusterrole", cluster_rules.get(name))
            } else {
                let namespace = text(binding, "/metadata/namespace").to_owned();
                ("role", role_rules.get(&(namespace, name.to_owned())))
            };
            found
                .cloned()
                .ok_or_else(|| format!("{kind}.rbac.authorization.k8s.io {name:?} not found"))
        };
        let mut index = Self { cluster: Bindings::default(), namespaced: BTreeMap::new() };
        for binding in cluster_bindings {
            index.cluster.add(binding, &granted(binding));
        }
        for binding in bindings {
            let namespace = text(binding, "/metadata/namespace").to_owned();
            index.namespaced.entry(namespace).or_default().add(binding, &granted(binding));
        }
        index
    }

    fn granted<'a>(&'a self, user: &'a User, namespace: &str) -> impl Iterator<Item = &'a Granted> {
        let local = if namespace.is_empty() { None } else { self.namespaced.get(namespace) };
        self.cluster.of(user).chain(local.into_iter().flat_map(|bindings| bindings.of(user)))
    }

    /// The rules that a user has in a namespace, or in the whole cluster when it is empty; and roles that are missing.
    pub(crate) fn rules(&self, user: &User, namespace: &str) -> (Vec<Rule>, Vec<String>) {
        let (mut rules, mut errors) = (Vec::new(), Vec::new());
        if user.is_in(MASTERS) {
            let all = || vec!["*".to_owned()];
            rules.push(Rule { verbs: all(), groups: all(), resources: all(), ..Rule::default() });
            rules.push(Rule { verbs: all(), paths: all(), ..Rule::default() });
        }
        for granted in self.granted(user, namespace) {
            match granted {
                Ok(more) => rules.extend(more.iter().cloned()),
                Err(error) => errors.push(error.clone()),
            }
        }
        (rules, errors)
    }

    /// Whether the user may do it.
    ///
    /// # Errors
    /// The reason why not; empty unless roles are missing.
    pub(crate) fn authorize(&self, asked: &Attributes) -> Result<(), String> {
        let mut errors = Vec::new();
        for granted in self.granted(&asked.user, &asked.namespace) {
            match granted {
                Ok(rules) if rules.iter().any(|rule| rule.allows(asked)) => return Ok(()),
                Ok(_) => {}
                Err(error) => errors.push(error.clone()),
            }
        }
        Err(match errors.as_slice() {
            [] => String::new(),
            [one] => format!("RBAC: {one}"),
            many => format!("RBAC: [{}]", many.join(", ")),
        })
    }
}

fn role_key(role: &Value) -> (String, String) {
    (text(role, "/metadata/namespace").to_owned(), text(role, "/metadata/name").to_owned())
}

fn own_rules(role: &Value) -> impl Iterator<Item = Rule> + '_ {
    array(role, "/rules").iter().map(Rule::parse)
}

/// The rules of a ClusterRole with those that it aggregates.
fn resolve(
    role: &Value,
    roles: &BTreeMap<(String, String), Arc<Value>>,
    seen: &mut BTreeSet<String>,
) -> Vec<Rule> {
    let selectors = array(role, "/aggregationRule/clusterRoleSelectors");
    if selectors.is_empty() {
        return own_rules(role).collect();
    }
    seen.insert(text(role, "/metadata/name").to_owned());
    let mut rules = Vec::new();
    for ((_, name), other) in roles {
        if !seen.contains(name)
            && selectors.iter().any(|selector| selects(selector, &other["metadata"]["labels"]))
        {
            for rule in resolve(other, roles, seen) {
                if !rules.contains(&rule) {
                    rules.push(rule);
                }
            }
        }
    }
    rules
}

/// Whether a `metav1.LabelSelector` matches labels; an empty one matches everything.
fn selects(selector: &Value, labels: &Value) -> bool {
    let equal = selector["matchLabels"].as_object();
    let equal =
        equal.is_none_or(|wanted| wanted.iter().all(|(key, value)| labels.get(key) == Some(value)));
    equal
        && array(selector, "/matchExpressions").iter().all(|expression| {
            let label = labels.get(text(expression, "/key"));
            let listed = label.is_some_and(|label| array(expression, "/values").contains(label));
            match text(expression, "/operator") {
                "In" => listed,
                "NotIn" => !listed,
                "Exists" => label.is_some(),
                "DoesNotExist" => label.is_none(),
                _ => false,
            }
        })
}

/// An index and the revisions of what it was compiled from.
type Compiled = Option<([u64; 4], Arc<Index>)>;

/// Decides who may do what.
pub struct Authorizer {
    cache: Arc<Cache>,
    compiled: Mutex<Compiled>,
}

impl Authorizer {
    /// An authorizer over the stored roles and bindings.
    #[must_use]
    pub fn new(cache: Arc<Cache>) -> Self {
        Self { cache, compiled: Mutex::new(None) }
    }

    /// Roles and bindings as of now.
    pub(crate) fn index(&self) -> Arc<Index> {
        let rows = [CLUSTER_ROLES, ROLES, CLUSTER_ROLE_BINDINGS, ROLE_BINDINGS];
        let revisions = rows.map(|row| row.revision(&self.cache));
        let mut compiled = self.compiled.lock();
        if let Some((_, index)) = compiled.as_ref().filter(|(of, _)| *of == revisions) {
            return Arc::clone(index);
        }
        // Read after the revisions: what changed in between makes the next question compile again.
        let index = Arc::new(Index::build(&self.cache));
        *compiled = Some((revisions, Arc::clone(&index)));
        index
    }

    /// Whether the request may go on.
    ///
    /// # Errors
    /// The reason why not; may be empty.
    pub fn authorize(&self, attributes: &Attributes) -> Result<(), String> {
        if attributes.user.is_in(MASTERS) {
            return Ok(());
        }
        self.index().authorize(attributes)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use serde_json::json;

    fn mk_index(
        cluster_roles: &[Value],
        roles: &[Value],
        cluster_bindings: &[Value],
        bindings: &[Value],
    ) -> Index {
        let by_name = |roles: &[Value]| {
            roles
                .iter()
                .map(|role| (role_key(role), Arc::new(role.clone())))
                .collect::<BTreeMap<_, _>>()
        };
        let list = |bindings: &[Value]| bindings.iter().cloned().map(Arc::new).collect::<Vec<_>>();
        Index::compile(
            &by_name(cluster_roles),
            &by_name(roles),
            &list(cluster_bindings),
            &list(bindings),
        )
    }

    fn mk_user(name: &str) -> User {
        User {
            name: name.to_owned(),
            groups: vec!["system:authenticated".to_owned()],
            ..User::default()
        }
    }

    fn ask(user: &User, verb: &str, resource: &str, namespace: &str, name: &str) -> Attributes {
        let (group, resource) = resource.split_once(':').unwrap_or(("", resource));
        let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
        Attributes {
            user: user.clone(),
            verb: verb.to_owned(),
            group: group.to_owned(),
            resource: resource.to_owned(),
            subresource: subresource.to_owned(),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            ..Attributes::default()
        }
    }

    fn rule(value: Value) -> Rule {
        Rule::parse(&value)
    }

    #[test]
    fn rules_follow_the_table() {
        let user = mk_user("a");
        let pods =
            json!({"verbs": ["get", "list"], "apiGroups": [""], "resources": ["pods", "pods/log"]});
        let named = json!({"verbs": ["*"], "apiGroups": ["apps"], "resources": ["*"], "resourceNames": ["web"]});
        let scale = json!({"verbs": ["update"], "apiGroups": ["*"], "resources": ["*/scale"]});
        for (rule_value, verb, resource, name, allowed) in [
            (&pods, "get", "pods", "x", true),
            (&pods, "list", "pods", "", true),
            (&pods, "get", "pods/log", "x", true),
            (&pods, "get", "pods/exec", "x", false),
            (&pods, "delete", "pods", "x", false),
            (&pods, "get", "apps:pods", "x", false),
            (&named, "delete", "apps:deployments", "web", true),
            (&named, "delete", "apps:deployments", "db", false),
            (&named, "list", "apps:deployments", "", false),
            (&named, "patch", "apps:deployments/scale", "web", true),
            (&scale, "update", "apps:deployments/scale", "web", true),
            (&scale, "update", "apps:deployments", "web", false),
        ] {
            let asked = ask(&user, verb, resource, "default", name);
            assert_eq!(
                rule(rule_value.clone()).allows(&asked),
                allowed,
                "{verb} {resource} {name:?}"
            );
        }
    }

    #[test]
    fn paths_match_whole_or_by_prefix() {
        let paths = rule(json!({"verbs": ["get"], "nonResourceURLs": ["/healthz", "/api/*"]}));
        for (path, allowed) in
            [("/healthz", true), ("/healthz/x", false), ("/api/v1", true), ("/apis", false)]
        {
            let asked = Attributes {
                verb: "get".to_owned(),
                path: path.to_owned(),
                ..Attributes::default()
            };
            assert_eq!(paths.allows(&asked), allowed, "{path}");
        }
    }

    #[test]
    fn bindings_grant_within_their_scope() {
        let reader = json!({"metadata": {"name": "reader"},
            "rules": [{"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]}]});
        let local = json!({"metadata": {"namespace": "a", "name": "b"},
            "roleRef": {"kind": "ClusterRole", "name": "reader"},
            "subjects": [{"kind": "ServiceAccount", "name": "sa"}, {"kind": "User", "name": "u"}]});
        let index = mk_index(std::slice::from_ref(&reader), &[], &[], &[local]);
        for user in ["u", "system:serviceaccount:a:sa"] {
            assert_eq!(index.authorize(&ask(&mk_user(user), "get", "pods", "a", "x")), Ok(()));
            assert_eq!(
                index.authorize(&ask(&mk_user(user), "get", "pods", "b", "x")),
                Err(String::new())
            );
            assert_eq!(
                index.authorize(&ask(&mk_user(user), "get", "pods", "", "")),
                Err(String::new())
            );
        }
        let wide = json!({"metadata": {"name": "b"}, "roleRef": {"kind": "ClusterRole", "name": "reader"},
            "subjects": [{"kind": "Group", "name": "system:authenticated"}]});
        let index = mk_index(&[reader], &[], &[wide], &[]);
        assert_eq!(index.authorize(&ask(&mk_user("anyone"), "get", "pods", "z", "x")), Ok(()));
    }

    #[test]
    fn missing_roles_are_named_in_the_reason() {
        let binding = json!({"metadata": {"namespace": "a", "name": "b"}, "roleRef": {"kind": "Role", "name": "gone"},
            "subjects": [{"kind": "User", "name": "u"}]});
        let index = mk_index(&[], &[], &[], &[binding]);
        let refused = index.authorize(&ask(&mk_user("u"), "get", "pods", "a", "x"));
        assert_eq!(
            refused,
            Err("RBAC: role.rbac.authorization.k8s.io \"gone\" not found".to_owned())
        );
    }

    #[test]
    fn aggregated_roles_take_the_rules_of_others_also_in_steps() {
        let base = json!({"metadata": {"name": "base", "labels": {"to": "edit"}},
            "rules": [{"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]}]});
        let edit = json!({"metadata": {"name": "edit", "labels": {"to": "admin"}},
            "aggregationRule": {"clusterRoleSelectors": [{"matchLabels": {"to": "edit"}}]}});
        let admin = json!({"metadata": {"name": "admin"},
            "aggregationRule": {"clusterRoleSelectors": [{"matchLabels": {"to": "admin"}}]}});
        let binding = json!({"metadata": {"name": "b"}, "roleRef": {"kind": "ClusterRole", "name": "admin"},
            "subjects": [{"kind": "User", "name": "u"}]});
        let index = mk_index(&[base, edit, admin], &[], &[binding], &[]);
        assert_eq!(index.authorize(&ask(&mk_user("u"), "get", "pods", "a", "x")), Ok(()));
    }
}
