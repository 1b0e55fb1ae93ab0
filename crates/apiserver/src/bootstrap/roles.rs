//! The roles and bindings that every cluster begins with.
//!
//! Upstream counterpart: `plugin/pkg/auth/authorizer/rbac/bootstrappolicy`. `system:node` is bound to `system:nodes`
//! here: there is no node authorizer.

use serde_json::{Value, json};

const RBAC: &str = "rbac.authorization.k8s.io";
const READ: &str = "get list watch";
const WRITE: &str = "create delete deletecollection patch update";
const ALL: &str = "create delete deletecollection get list patch update watch";
const HEALTH_PATHS: &str = "/healthz /livez /readyz /version /version/";

/// Verbs, API group (`core` for the nameless one) and resources; or verbs, `path` and paths. Words stand apart.
type Rule = (&'static str, &'static str, &'static str);

/// Roles with rules of their own: name, what role they are part of, rules.
const ROLES: [(&str, &str, &[Rule]); 16] = [
    ("cluster-admin", "", &[("*", "*", "*"), ("*", "path", "*")]),
    (
        "system:discovery",
        "",
        &[(
            "get",
            "path",
            "/api /api/* /apis /apis/* /healthz /livez /openapi /openapi/* /readyz /version /version/",
        )],
    ),
    ("system:public-info-viewer", "", &[("get", "path", HEALTH_PATHS)]),
    (
        "system:basic-user",
        "",
        &[
            ("create", "authorization.k8s.io", "selfsubjectaccessreviews selfsubjectrulesreviews"),
            ("create", "authentication.k8s.io", "selfsubjectreviews"),
        ],
    ),
    (
        "system:monitoring",
        "",
        &[(
            "get",
            "path",
            "/healthz /healthz/* /livez /livez/* /metrics /metrics/slis /readyz /readyz/*",
        )],
    ),
    (
        "system:service-account-issuer-discovery",
        "",
        &[(
            "get",
            "path",
            "/.well-known/openid-configuration /.well-known/openid-configuration/ /openid/v1/jwks /openid/v1/jwks/",
        )],
    ),
    (
        "system:auth-delegator",
        "",
        &[
            ("create", "authentication.k8s.io", "tokenreviews"),
            ("create", "authorization.k8s.io", "subjectaccessreviews"),
        ],
    ),
    ("system:aggregate-to-admin", "admin", ADMIN),
    ("system:aggregate-to-edit", "edit", EDIT),
    ("system:aggregate-to-view", "view", VIEW),
    ("system:node", "", NODE),
    ("system:node-proxier", "", PROXIER),
    (
        "system:kube-dns",
        "",
        &[
            ("list watch", "core", "endpoints services"),
            ("list watch", "discovery.k8s.io", "endpointslices"),
        ],
    ),
    (
        "system:kubelet-api-admin",
        "",
        &[
            ("get list watch proxy", "core", "nodes"),
            ("*", "core", "nodes/log nodes/metrics nodes/proxy nodes/stats"),
        ],
    ),
    (
        "system:persistent-volume-provisioner",
        "",
        &[
            ("get list watch create delete", "core", "persistentvolumes"),
            ("get list watch update", "core", "persistentvolumeclaims"),
            (READ, "storage.k8s.io", "storageclasses"),
            ("watch create update patch", "core", "events"),
        ],
    ),
    (
        "system:node-problem-detector",
        "",
        &[("get", "core", "nodes"), ("patch", "core", "nodes/status")],
    ),
];

const ADMIN: &[Rule] = &[
    ("create", "authorization.k8s.io", "localsubjectaccessreviews"),
    (ALL, RBAC, "rolebindings roles"),
];

const EDIT: &[Rule] = &[
    (READ, "core", "pods/attach pods/exec pods/portforward pods/proxy secrets services/proxy"),
    ("impersonate", "core", "serviceaccounts"),
    (WRITE, "core", "pods pods/attach pods/exec pods/portforward pods/proxy"),
    ("create", "core", "pods/eviction serviceaccounts/token"),
    (
        WRITE,
        "core",
        "configmaps events persistentvolumeclaims replicationcontrollers replicationcontrollers/scale secrets \
         serviceaccounts services services/proxy",
    ),
    (
        WRITE,
        "apps",
        "daemonsets deployments deployments/rollback deployments/scale replicasets replicasets/scale statefulsets \
         statefulsets/scale",
    ),
    (WRITE, "autoscaling", "horizontalpodautoscalers"),
    (WRITE, "batch", "cronjobs jobs"),
    (WRITE, "policy", "poddisruptionbudgets"),
    (WRITE, "networking.k8s.io", "ingresses networkpolicies"),
    (ALL, "coordination.k8s.io", "leases"),
];

const VIEW: &[Rule] = &[
    (
        READ,
        "core",
        "configmaps endpoints persistentvolumeclaims persistentvolumeclaims/status pods replicationcontrollers \
         replicationcontrollers/scale serviceaccounts services services/status",
    ),
    (
        READ,
        "core",
        "bindings events limitranges namespaces/status pods/log pods/status replicationcontrollers/status \
         resourcequotas resourcequotas/status namespaces",
    ),
    (READ, "discovery.k8s.io", "endpointslices"),
    (
        READ,
        "apps",
        "controllerrevisions daemonsets daemonsets/status deployments deployments/scale deployments/status replicasets \
         replicasets/scale replicasets/status statefulsets statefulsets/scale statefulsets/status",
    ),
    (READ, "autoscaling", "horizontalpodautoscalers horizontalpodautoscalers/status"),
    (READ, "batch", "cronjobs cronjobs/status jobs jobs/status"),
    (READ, "policy", "poddisruptionbudgets poddisruptionbudgets/status"),
    (READ, "networking.k8s.io", "ingresses ingresses/status networkpolicies"),
];

const NODE: &[Rule] = &[
    ("create", "authentication.k8s.io", "tokenreviews"),
    ("create", "authorization.k8s.io", "localsubjectaccessreviews subjectaccessreviews"),
    (
        READ,
        "core",
        "configmaps endpoints namespaces persistentvolumeclaims persistentvolumes secrets serviceaccounts services",
    ),
    ("create get list watch patch update", "core", "nodes"),
    ("patch update", "core", "nodes/status services/status persistentvolumeclaims/status"),
    ("create delete get list watch", "core", "pods"),
    ("patch update", "core", "pods/status"),
    ("create", "core", "pods/eviction serviceaccounts/token"),
    ("create patch update", "core", "events"),
    ("create patch update", "events.k8s.io", "events"),
    ("create delete get list patch update watch", "coordination.k8s.io", "leases"),
    (READ, "discovery.k8s.io", "endpointslices"),
    (
        READ,
        "networking.k8s.io",
        "networkpolicies ingresses ingressclasses servicecidrs ipaddresses",
    ),
    (READ, "storage.k8s.io", "storageclasses volumeattachments csidrivers csinodes"),
    (READ, "node.k8s.io", "runtimeclasses"),
];

const PROXIER: &[Rule] = &[
    ("list watch", "core", "endpoints services"),
    (READ, "core", "nodes"),
    ("create patch update", "core", "events"),
    ("create patch update", "events.k8s.io", "events"),
    ("list watch", "discovery.k8s.io", "endpointslices"),
    ("list watch", "networking.k8s.io", "servicecidrs"),
];

/// Roles made of others: name, what role they are part of themselves.
const AGGREGATED: [(&str, &str); 3] = [("admin", ""), ("edit", "admin"), ("view", "edit")];

/// Bindings of roles of the same name unless one is given: name, role, kind and name of the subject.
const BINDINGS: [(&str, &str, &str); 10] = [
    ("cluster-admin", "Group", "system:masters"),
    ("system:monitoring", "Group", "system:monitoring"),
    ("system:discovery", "Group", "system:authenticated"),
    ("system:basic-user", "Group", "system:authenticated"),
    ("system:public-info-viewer", "Group", "system:authenticated system:unauthenticated"),
    ("system:service-account-issuer-discovery", "Group", "system:serviceaccounts"),
    ("system:node", "Group", "system:nodes"),
    ("system:node-proxier", "User", "system:kube-proxy"),
    ("system:kube-dns", "ServiceAccount", "kube-dns"),
    ("system:kubelet-api-admin", "User", "kube-apiserver-kubelet-client"),
];

/// The ClusterRoles.
pub(super) fn roles() -> Vec<Value> {
    let own = ROLES.iter().map(|(name, part_of, rules)| {
        let mut role = meta(name, part_of);
        role["rules"] = rules.iter().map(rule).collect();
        role
    });
    let aggregated = AGGREGATED.iter().map(|(name, part_of)| {
        let mut role = meta(name, part_of);
        let label = format!("rbac.authorization.k8s.io/aggregate-to-{name}");
        role["aggregationRule"] =
            json!({"clusterRoleSelectors": [{"matchLabels": {label: "true"}}]});
        role["rules"] = parts(name).into_iter().flat_map(|rules| rules.iter().map(rule)).collect();
        role
    });
    own.chain(aggregated).collect()
}

/// The ClusterRoleBindings.
pub(super) fn bindings() -> Vec<Value> {
    let binding = |(name, kind, subjects): &(&str, &str, &str)| {
        let mut binding = meta(name, "");
        binding["roleRef"] = json!({"apiGroup": RBAC, "kind": "ClusterRole", "name": name});
        let subject = |subject: &str| match *kind {
            "ServiceAccount" => json!({"kind": kind, "name": subject, "namespace": "kube-system"}),
            _ => json!({"apiGroup": RBAC, "kind": kind, "name": subject}),
        };
        binding["subjects"] = subjects.split(' ').map(subject).collect();
        binding
    };
    BINDINGS.iter().map(binding).collect()
}

/// The rules that a made role has: those of its parts, in steps.
fn parts(name: &str) -> Vec<&'static [Rule]> {
    match name {
        "admin" => vec![ADMIN, EDIT, VIEW],
        "edit" => vec![EDIT, VIEW],
        _ => vec![VIEW],
    }
}

fn meta(name: &str, part_of: &str) -> Value {
    let mut object = json!({"metadata": {
        "name": name,
        "labels": {"kubernetes.io/bootstrapping": "rbac-defaults"},
        "annotations": {"rbac.authorization.kubernetes.io/autoupdate": "true"},
    }});
    if !part_of.is_empty() {
        object["metadata"]["labels"][format!("rbac.authorization.k8s.io/aggregate-to-{part_of}")] =
            "true".into();
    }
    object
}

fn rule((verbs, group, things): &Rule) -> Value {
    let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    match *group {
        "path" => json!({"verbs": words(verbs), "nonResourceURLs": words(things)}),
        group => {
            let group = if group == "core" { "" } else { group };
            json!({"verbs": words(verbs), "apiGroups": [group], "resources": words(things)})
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_binding_names_a_role() {
        let roles = roles();
        for binding in bindings() {
            assert!(
                roles.iter().any(|role| role["metadata"]["name"] == binding["roleRef"]["name"]),
                "{binding}"
            );
        }
    }

    #[test]
    fn made_roles_are_labelled_for_each_other() {
        let roles = roles();
        let labels = |name: &str| {
            let role = roles.iter().find(|role| role["metadata"]["name"] == name);
            role.map(|role| role["metadata"]["labels"].clone()).unwrap_or_default()
        };
        assert_eq!(labels("edit")["rbac.authorization.k8s.io/aggregate-to-admin"], "true");
        assert_eq!(labels("view")["rbac.authorization.k8s.io/aggregate-to-edit"], "true");
    }
}
