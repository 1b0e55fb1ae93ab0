"""The official client in a pod: the API's address from the environment, the token and the authority from files.

Arguments: the folder with `token`, `ca.crt` and `namespace`, the API's host and its port.
"""

import sys

from common import check, client, eventually, refused
from kubernetes import watch
from kubernetes.config.incluster_config import InClusterConfigLoader


def main():
    folder, host, port = sys.argv[1:]
    InClusterConfigLoader(token_filename=f"{folder}/token", cert_filename=f"{folder}/ca.crt", environ={
        "KUBERNETES_SERVICE_HOST": host, "KUBERNETES_SERVICE_PORT": port}).load_and_set()
    with open(f"{folder}/namespace", encoding="utf-8") as file:
        space = file.read()
    check(space == "default" and host == "10.96.0.1", "where it is", space, host)
    core = client.CoreV1Api()
    check([one.metadata.name for one in core.list_namespaced_service(space).items] == ["kubernetes"], "it may list")
    body = refused(403, "Forbidden", core.list_namespaced_secret, space)
    check(body["message"].startswith(
        'secrets is forbidden: User "system:serviceaccount:default:default" cannot list resource "secrets"'), "why not", body)
    refused(403, "Forbidden", core.list_service_for_all_namespaces)
    reconcile(core, space)
    review = client.AuthorizationV1Api().create_self_subject_rules_review({"spec": {"namespace": space}}).status
    check(any("services" in (rule.resources or []) for rule in review.resource_rules), "it can ask what it may", review)


def reconcile(core, space):
    """A small operator: for each ConfigMap with a label there is a Service of its name."""
    version = core.list_namespaced_config_map(space, label_selector="exposed").metadata.resource_version
    for name in ("one", "two"):
        core.create_namespaced_config_map(space, {"metadata": {"name": name, "labels": {"exposed": "yes"}}})
    core.delete_namespaced_config_map("one", space)
    watcher = watch.Watch()
    for event in watcher.stream(core.list_namespaced_config_map, space, label_selector="exposed", resource_version=version):
        one = event["object"]
        if event["type"] == "ADDED":
            core.create_namespaced_service(space, {
                "metadata": {"name": one.metadata.name, "labels": {"made-by": "operator"}, "ownerReferences": [{
                    "apiVersion": "v1", "kind": "ConfigMap", "name": one.metadata.name, "uid": one.metadata.uid}]},
                "spec": {"ports": [{"port": 80}]}})
        if event["type"] == "DELETED":
            watcher.stop()

    def made():
        return [one.metadata.name for one in core.list_namespaced_service(space, label_selector="made-by=operator").items]

    eventually("what is owned goes with its owner", lambda: made() == ["two"])


main()
