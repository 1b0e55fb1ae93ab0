//! What node agents may write (`NodeRestriction`), and new nodes that are not ready yet (`TaintNodesByCondition`).

use api::StatusError;
use api::resource::Subresource;
use serde_json::{Value, json};

use super::{Operation, Request, refuse};
use crate::Cache;
use crate::lookup::{NODES, PODS, array, text};

const NOT_READY: &str = "node.kubernetes.io/not-ready";
const LEASES: (&str, &str) = ("coordination.k8s.io", "leases");

pub(super) fn admit(
    _cache: &Cache,
    request: &Request<'_>,
    new: &mut Value,
) -> Result<(), StatusError> {
    if let Some(node) = request.user.node() {
        restrict(node, request, new)?;
    }
    if NODES.is(request.resource) && request.creates() {
        let tainted = array(new, "/spec/taints").iter().any(|taint| taint["key"] == NOT_READY);
        if !tainted {
            if !new["spec"]["taints"].is_array() {
                new["spec"]["taints"] = json!([]);
            }
            if let Some(taints) = new["spec"]["taints"].as_array_mut() {
                taints.push(json!({"key": NOT_READY, "effect": "NoSchedule"}));
            }
        }
    }
    Ok(())
}

fn restrict(node: &str, request: &Request<'_>, new: &Value) -> Result<(), StatusError> {
    let object = if new.is_null() { request.old.unwrap_or(new) } else { new };
    let name = text(object, "/metadata/name");
    let refused = |why: String| Err(request.forbidden(object, why));
    if NODES.is(request.resource) {
        if name != node {
            return refused(format!("node {node:?} is not allowed to modify node {name:?}"));
        }
    } else if (request.resource.group, request.resource.plural) == LEASES {
        let what = "can only access leases in the \"kube-node-lease\" system namespace";
        if text(object, "/metadata/namespace") != "kube-node-lease" {
            return Err(refuse(what));
        }
        if name != node {
            return Err(refuse(
                "can only access node lease with the same name as the requesting node",
            ));
        }
    } else if PODS.is(request.resource) {
        return restrict_pod(node, request, object);
    }
    Ok(())
}

fn restrict_pod(node: &str, request: &Request<'_>, object: &Value) -> Result<(), StatusError> {
    let of = |pod: &Value| text(pod, "/spec/nodeName").to_owned();
    let refused = |why: String| Err(request.forbidden(object, why));
    match (request.operation, request.subresource) {
        (Operation::Create, None)
            if object["metadata"]["annotations"]["kubernetes.io/config.mirror"].is_null() =>
        {
            return refused(format!(
                "pod does not have \"kubernetes.io/config.mirror\" annotation, node {node:?} can only create mirror pods"
            ));
        }
        (Operation::Delete, _) if of(object) != node => {
            return refused(format!(
                "node {node:?} can only delete pods with spec.nodeName set to itself"
            ));
        }
        (Operation::Update, Some(Subresource::Status))
            if request.old.is_some_and(|old| of(old) != node) =>
        {
            return refused(format!(
                "node {node:?} can only update pod status for pods with spec.nodeName set to itself"
            ));
        }
        _ => {}
    }
    Ok(())
}
