"""The dynamic client knows kinds by what the server tells of them."""

import tempfile

from common import check, client, namespace
from kubernetes import dynamic
from kubernetes.dynamic.exceptions import ConflictError, NotFoundError, ResourceNotFoundError

SPACE = "py-discovered"


def main():
    namespace(SPACE)
    with tempfile.NamedTemporaryFile() as cache:
        found = dynamic.DynamicClient(client.ApiClient(), cache_file=f"{cache.name}.json")
    version = client.VersionApi().get_code()
    check(version.major == "1" and int(version.minor.rstrip("+")) >= 30, "a version", version)
    kinds = {(one.group_version, one.kind) for many in found.resources.search() for one in
             (many if isinstance(many, list) else [many])}
    for wanted in [("v1", "Service"), ("v1", "Pod"), ("apps/v1", "Deployment"), ("discovery.k8s.io/v1", "EndpointSlice"),
                   ("networking.k8s.io/v1", "Ingress"), ("networking.k8s.io/v1", "NetworkPolicy"), ("batch/v1", "Job"),
                   ("rbac.authorization.k8s.io/v1", "Role"), ("storage.k8s.io/v1", "StorageClass")]:
        check(wanted in kinds, f"{wanted} is discovered", sorted(kinds))
    services = found.resources.get(api_version="v1", kind="Service")
    check(services.namespaced and "svc" in services.short_names and "status" in services.subresources, "what it is")
    body = {"kind": "Service", "apiVersion": "v1", "metadata": {"name": "web"}, "spec": {
        "selector": {"app": "web"}, "ports": [{"name": "http", "port": 80, "targetPort": "web"}]}}
    made = services.create(body=body, namespace=SPACE)
    check(made.spec.ports[0].targetPort == "web" and made.spec.clusterIP, "made", made)
    try:
        services.create(body=body, namespace=SPACE)
    except ConflictError as error:
        check("already exists" in error.summary() and error.status == 409, "told", error.summary())
    else:
        check(False, "was made twice")
    applied = services.server_side_apply(body={**body, "spec": {"sessionAffinity": "ClientIP"}}, namespace=SPACE,
                                         field_manager="dynamic", force_conflicts=True)
    check(applied.spec.sessionAffinity == "ClientIP" and applied.spec.ports[0].port == 80, "applied", applied)
    patched = services.patch(body={"metadata": {"annotations": {"a": "b"}}}, name="web", namespace=SPACE,
                             content_type="application/merge-patch+json")
    check(patched.metadata.annotations.a == "b", "patched", patched)
    listed = services.get(namespace=SPACE)
    check([one.metadata.name for one in listed.items] == ["web"], "listed", listed)
    services.delete(name="web", namespace=SPACE)
    for event in services.watch(namespace=SPACE, timeout=30, resource_version=listed.metadata.resourceVersion):
        check(event["type"] == "DELETED" and event["object"].metadata.name == "web", "watched", event)
        break
    for kind, wanted in [("Nothing", ResourceNotFoundError), ("Service", NotFoundError)]:
        try:
            found.resources.get(api_version="v1", kind=kind).get(name="web", namespace=SPACE)
        except wanted:
            continue
        check(False, f"{kind} was found")
    client.CoreV1Api().delete_namespace(SPACE)


main()
