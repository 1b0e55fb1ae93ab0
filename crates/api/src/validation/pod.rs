//! Pods and pod templates. Upstream: `ValidatePodCreate`, `ValidatePodSpec`, `ValidatePodUpdate`.

mod change;
mod warnings;

pub(crate) use change::{difference, status, update};
pub(crate) use warnings::{of_cron_job, of_template, of_workload, warnings};

use serde_json::Value;

use super::at::At;
use super::container::{self, Context};
use super::{affinity, meta, names, volume};
use crate::field::FieldError;

/// Checks a new pod.
pub(crate) fn create(pod: &Value) -> Vec<FieldError> {
    let mut errors = meta::create(pod, true, meta::SUBDOMAIN);
    errors.extend(whole(pod));
    let spec = At::root(pod).get("spec");
    if !spec.get("ephemeralContainers").is_empty() {
        errors.push(spec.get("ephemeralContainers").forbidden("cannot be set on create"));
    }
    if !spec.get("nodeName").text().is_empty() && !spec.get("schedulingGates").is_empty() {
        errors.push(
            spec.get("nodeName")
                .forbidden("cannot be set until all schedulingGates have been cleared"),
        );
    }
    errors
}

/// What holds for pods at all times.
fn whole(pod: &Value) -> Vec<FieldError> {
    let root = At::root(pod);
    let mut errors = pod_annotations(&root.get("metadata.annotations"));
    errors.extend(spec(&root.get("spec")));
    if root.get("spec.serviceAccountName").text().is_empty() {
        let tokens = root.get("spec.volumes");
        for volume in tokens.items() {
            for source in volume.get("projected.sources").items() {
                if source.get("serviceAccountToken").is_set() {
                    errors.push(
                        source
                            .get("serviceAccountToken")
                            .forbidden("must not be specified when serviceAccountName is not set"),
                    );
                }
            }
        }
    }
    errors
}

fn pod_annotations(annotations: &At<'_>) -> Vec<FieldError> {
    const COST: &str = "controller.kubernetes.io/pod-deletion-cost";
    let Some(cost) = annotations.value.get(COST) else { return Vec::new() };
    let good = cost.as_str().is_some_and(|text| text.parse::<i32>().is_ok());
    if good {
        return Vec::new();
    }
    vec![FieldError::invalid(
        format!("{}[{COST}]", annotations.path),
        cost,
        "must be a 32bit integer",
    )]
}

/// Checks a pod template.
pub(crate) fn template(template: &At<'_>) -> Vec<FieldError> {
    let mut errors = meta::labels(&template.get("metadata.labels"))
        .into_iter()
        .map(|mut error| {
            error.field = template.child("labels");
            error
        })
        .collect::<Vec<_>>();
    let annotations = template.get("metadata.annotations");
    for (key, _) in annotations.entries() {
        let wrong = names::label_key(&key.to_lowercase());
        errors.extend(meta::named_invalid(&template.child("annotations"), key, wrong));
    }
    errors.extend(pod_annotations(&At::named(annotations.value, template.child("annotations"))));
    errors.extend(spec(&template.get("spec")));
    let ephemeral = template.get("spec.ephemeralContainers");
    if !ephemeral.is_empty() {
        errors.push(ephemeral.forbidden("ephemeral containers not allowed in pod template"));
    }
    errors
}

/// Checks what pods and templates share.
pub(crate) fn spec(spec: &At<'_>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let grace = spec.get("terminationGracePeriodSeconds");
    if !grace.is_set() {
        errors.push(grace.required(""));
    }
    let (volumes, wrong) = volume::volumes(&spec.get("volumes"));
    errors.extend(wrong);
    let claims = spec.get("resourceClaims");
    let claims = claims.items().filter_map(|claim| claim.value["name"].as_str()).collect();
    let context = Context { volumes, grace: grace.int(), claims };
    let containers = spec.get("containers");
    errors.extend(container::containers(&containers, &context));
    errors.extend(container::init_containers(&spec.get("initContainers"), &containers, &context));
    errors.extend(host_network_ports(spec));
    errors.extend(spec.get("restartPolicy").one_of(&["Always", "OnFailure", "Never"]));
    errors.extend(spec.get("dnsPolicy").one_of(&[
        "ClusterFirstWithHostNet",
        "ClusterFirst",
        "Default",
        "None",
    ]));
    errors.extend(meta::labels(&spec.get("nodeSelector")));
    errors.extend(security(&spec.get("securityContext"), spec));
    errors.extend(affinity::affinity(&spec.get("affinity")));
    errors.extend(dns(spec));
    for gate in spec.get("readinessGates").items() {
        let kind = gate.get("conditionType");
        errors.extend(meta::named_invalid(&kind.path, kind.text(), names::label_key(kind.text())));
    }
    errors.extend(scheduling_gates(&spec.get("schedulingGates")));
    errors.extend(affinity::spread(&spec.get("topologySpreadConstraints")));
    errors.extend(simple_names(spec));
    errors.extend(deadline(&spec.get("activeDeadlineSeconds")));
    errors.extend(affinity::tolerations(&spec.get("tolerations")));
    errors.extend(host_aliases(&spec.get("hostAliases")));
    errors
}

fn host_network_ports(spec: &At<'_>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if !spec.get("hostNetwork").is_true() {
        return errors;
    }
    for container in spec.get("containers").items() {
        for port in container.get("ports").items() {
            let host = port.get("hostPort");
            let number = host.int().unwrap_or(0);
            if number != 0 && host.value != port.get("containerPort").value {
                errors.push(host.invalid("must match `containerPort` when `hostNetwork` is true"));
            }
        }
    }
    errors
}

/// Kernel parameters: dotted or slashed names, each once.
fn sysctls(list: &At<'_>) -> Vec<FieldError> {
    const RULE: &str = r"must have at most 253 characters and match regex ^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$";
    let mut errors = Vec::new();
    let mut seen = Vec::new();
    for sysctl in list.items() {
        let name = sysctl.get("name");
        if name.text().is_empty() {
            errors.push(name.required(""));
        } else if !names::is_sysctl(name.text()) {
            errors.push(name.invalid(RULE));
        } else if seen.contains(&name.text()) {
            errors.push(name.duplicate());
        }
        seen.push(name.text());
    }
    errors
}

fn scheduling_gates(list: &At<'_>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let mut seen = Vec::new();
    for gate in list.items() {
        let name = gate.value["name"].as_str().unwrap_or("");
        errors.extend(meta::named_invalid(&gate.path, name, names::label_key(name)));
        if seen.contains(&name) {
            errors.push(FieldError::duplicate(&*gate.path, &name.into()));
        }
        seen.push(name);
    }
    errors
}

fn simple_names(spec: &At<'_>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for (field, rule) in [
        ("serviceAccountName", meta::SUBDOMAIN),
        ("nodeName", meta::SUBDOMAIN),
        ("hostname", meta::LABEL),
        ("subdomain", meta::LABEL),
        ("priorityClassName", meta::SUBDOMAIN),
        ("runtimeClassName", meta::SUBDOMAIN),
    ] {
        let field = spec.get(field);
        if !field.text().is_empty() {
            errors.extend(field.all_invalid(rule(field.text())));
        }
    }
    let policy = spec.get("preemptionPolicy");
    if policy.is_set() {
        errors.extend(policy.one_of(&["PreemptLowerPriority", "Never"]));
    }
    errors
}

fn deadline(field: &At<'_>) -> Vec<FieldError> {
    field.int().map_or_else(Vec::new, |seconds| {
        field.all_invalid(names::in_range(seconds, 1, i64::from(i32::MAX)))
    })
}

fn host_aliases(list: &At<'_>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for alias in list.items() {
        let ip = alias.get("ip");
        errors.extend(meta::named_invalid(&ip.path, ip.text(), names::ip(ip.text())));
        for host in alias.get("hostnames").items() {
            errors.extend(host.all_invalid(names::dns1123_subdomain(host.text())));
        }
    }
    errors
}

fn security(context: &At<'_>, spec: &At<'_>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for field in ["fsGroup", "runAsUser", "runAsGroup"] {
        let field = context.get(field);
        if let Some(id) = field.int() {
            errors.extend(field.all_invalid(names::in_range(id, 0, i64::from(i32::MAX))));
        }
    }
    for group in context.get("supplementalGroups").items() {
        let id = group.int().unwrap_or(0);
        errors.extend(group.all_invalid(names::in_range(id, 0, i64::from(i32::MAX))));
    }
    let shared = spec.get("shareProcessNamespace");
    if shared.is_true() && spec.get("hostPID").is_true() {
        errors.push(FieldError::invalid(
            context.child("shareProcessNamespace"),
            shared.value,
            "ShareProcessNamespace and HostPID cannot both be enabled",
        ));
    }
    let policy = context.get("fsGroupChangePolicy");
    if policy.is_set() && !["Always", "OnRootMismatch"].contains(&policy.text()) {
        errors.push(policy.unsupported(&["Always", "OnRootMismatch"]));
    }
    errors.extend(sysctls(&context.get("sysctls")));
    errors.extend(container::seccomp(&context.get("seccompProfile")));
    errors
}

fn dns(spec: &At<'_>) -> Vec<FieldError> {
    const SERVERS_MAX: usize = 3;
    const SEARCHES_MAX: usize = 32;
    const SEARCH_CHARACTERS_MAX: usize = 2048;
    let config = spec.get("dnsConfig");
    let (servers, searches) = (config.get("nameservers"), config.get("searches"));
    if spec.get("dnsPolicy").text() == "None" {
        if !config.is_set() {
            return vec![config.required("must provide `dnsConfig` when `dnsPolicy` is None")];
        }
        if servers.is_empty() {
            return vec![
                servers
                    .required("must provide at least one DNS nameserver when `dnsPolicy` is None"),
            ];
        }
    }
    let mut errors = Vec::new();
    if servers.len() > SERVERS_MAX {
        errors.push(servers.invalid(format!("must not have more than {SERVERS_MAX} nameservers")));
    }
    for server in servers.items() {
        errors.extend(server.all_invalid(names::ip(server.text())));
    }
    if searches.len() > SEARCHES_MAX {
        errors
            .push(searches.invalid(format!("must not have more than {SEARCHES_MAX} search paths")));
    }
    let length: usize = searches.items().map(|search| search.text().len()).sum();
    if length + searches.len().saturating_sub(1) > SEARCH_CHARACTERS_MAX {
        errors.push(searches.invalid(format!(
            "must not have more than {SEARCH_CHARACTERS_MAX} characters (including spaces) in the search list"
        )));
    }
    for search in searches.items() {
        let domain = search.text().strip_suffix('.').unwrap_or(search.text());
        if search.text() != "." {
            let wrong = names::search_domain(domain);
            errors.extend(meta::named_invalid(&search.path, domain, wrong));
        }
    }
    for option in config.get("options").items() {
        if option.get("name").text().is_empty() {
            errors.push(option.required("must not be empty"));
        }
    }
    errors
}
