"""The official client makes, reads, lists, changes and deletes objects, and understands what it is refused."""

from ipaddress import ip_address, ip_network

from common import ApiException, check, client, eventually, namespace, pod, refused, utils

SPACE = "py-objects"

DEPLOYMENT = {
    "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"},
    "spec": {"replicas": 1, "selector": {"matchLabels": {"app": "web"}},
             "template": {"metadata": {"labels": {"app": "web"}},
                          "spec": {"containers": [{"name": "web", "image": "mycompany/web-app:latest",
                                                   "ports": [{"containerPort": 8080}]}]}}}}


def services(core):
    port = client.V1ServicePort(port=80, target_port=8080, protocol="TCP")
    made = core.create_namespaced_service(SPACE, client.V1Service(
        metadata=client.V1ObjectMeta(name="web"), spec=client.V1ServiceSpec(selector={"app": "web"}, ports=[port])))
    check(ip_address(made.spec.cluster_ip) in ip_network("10.96.0.0/12"), "an address is allocated", made.spec)
    check(made.spec.type == "ClusterIP" and made.spec.session_affinity == "None", "defaults are filled in", made.spec)
    check(made.spec.ip_families == ["IPv4"] and made.spec.ports[0].target_port == 8080, "ports as sent", made.spec)
    made.spec.type = "NodePort"
    changed = core.replace_namespaced_service("web", SPACE, made)
    check(30000 <= changed.spec.ports[0].node_port <= 32767, "a node port is allocated", changed.spec)
    body = refused(409, "Conflict", core.replace_namespaced_service, "web", SPACE, made)
    check("the object has been modified" in body["message"], "the conflict is told", body)
    changed.spec.cluster_ip = "10.96.0.77"
    changed.spec.cluster_ips = ["10.96.0.77"]
    body = refused(422, "Invalid", core.replace_namespaced_service, "web", SPACE, changed)
    check(body["details"]["causes"][0]["field"].startswith("spec.clusterIP"), "the field is named", body)
    body = refused(409, "AlreadyExists", core.create_namespaced_service, SPACE, {"metadata": {"name": "web"}, "spec": {
        "ports": [{"port": 1}]}})
    check(body["message"] == 'services "web" already exists', "upstream's sentence", body)
    body = refused(422, "Invalid", core.create_namespaced_service, SPACE, {"metadata": {"name": "none"}, "spec": {}})
    check(body["details"]["causes"][0]["field"] == "spec.ports", "ports are required", body)
    gone = core.delete_namespaced_service("web", SPACE)
    check(gone is not None, "deletion answers")
    body = refused(404, "NotFound", core.read_namespaced_service, "web", SPACE)
    check(body["message"] == 'services "web" not found', "upstream's sentence", body)
    check(body["details"] == {"name": "web", "kind": "services"}, "details", body)


def lists(core):
    for number in range(25):
        core.create_namespaced_config_map(SPACE, {
            "metadata": {"name": f"c{number:02}", "labels": {"parity": "odd" if number % 2 else "even", "page": "yes"}},
            "data": {"number": str(number)}})
    found, token, sizes, versions = [], None, [], set()
    while True:
        page = core.list_namespaced_config_map(SPACE, label_selector="page=yes", limit=10, _continue=token)
        found += [one.metadata.name for one in page.items]
        sizes.append(len(page.items))
        versions.add(page.metadata.resource_version)
        token = page.metadata._continue
        if token is None or token == "":
            break
        check(page.metadata.remaining_item_count is None, "a selector hides how many remain", page.metadata)
    check(found == [f"c{number:02}" for number in range(25)], "every object once, in order", found)
    check(sizes == [10, 10, 5] and len(versions) == 1, "one snapshot in three pages", sizes, versions)
    first = core.list_namespaced_config_map(SPACE, limit=2)
    check(first.metadata.remaining_item_count == 24, "24 remain: 25 and kube-root-ca.crt less two", first.metadata)
    refused(400, "BadRequest", core.list_namespaced_config_map, SPACE, limit=2, _continue="nonsense")

    def names(**selectors):
        return {one.metadata.name for one in core.list_namespaced_config_map(SPACE, **selectors).items}

    check(len(names(label_selector="parity=odd")) == 12, "equality")
    check(len(names(label_selector="parity in (odd,even)")) == 25, "sets")
    check(len(names(label_selector="page,parity!=odd")) == 13, "presence and inequality")
    check(len(names(label_selector="!page")) == 1, "absence: kube-root-ca.crt alone")
    check(names(field_selector="metadata.name=c07") == {"c07"}, "by field")
    refused(400, "BadRequest", core.list_namespaced_config_map, SPACE, label_selector="a in (")
    refused(400, "BadRequest", core.list_namespaced_config_map, SPACE, field_selector="data.number=7")
    everywhere = core.list_config_map_for_all_namespaces(field_selector="metadata.name=c07")
    check([one.metadata.namespace for one in everywhere.items] == [SPACE], "all namespaces", everywhere.items)
    core.delete_collection_namespaced_config_map(SPACE, label_selector="parity=odd")
    check(len(names(label_selector="page")) == 13, "a collection is deleted by its selector")


def patches(core):
    core.create_namespaced_config_map(SPACE, {"metadata": {"name": "p", "labels": {"a": "1"}}, "data": {"x": "1", "y": "2"}})

    def patched(body, kind):
        return core.patch_namespaced_config_map("p", SPACE, body, _content_type=kind)

    changed = patched([{"op": "test", "path": "/data/x", "value": "1"}, {"op": "replace", "path": "/data/x", "value": "9"},
                       {"op": "remove", "path": "/data/y"}], "application/json-patch+json")
    check(changed.data == {"x": "9"}, "JSON patch", changed.data)
    refused(422, "Invalid", patched, [{"op": "test", "path": "/data/x", "value": "1"}], "application/json-patch+json")
    changed = patched({"data": {"x": None, "z": "3"}}, "application/merge-patch+json")
    check(changed.data == {"z": "3"}, "merge patch", changed.data)
    changed = patched({"metadata": {"labels": {"b": "2"}}}, "application/strategic-merge-patch+json")
    check(changed.metadata.labels == {"a": "1", "b": "2"}, "strategic merge patch", changed.metadata.labels)
    before = changed.metadata.resource_version
    changed = patched({"metadata": {"labels": {"b": "2"}}}, "application/strategic-merge-patch+json")
    check(changed.metadata.resource_version == before, "a patch that changes nothing writes nothing")
    stale = {"metadata": {"resourceVersion": "1"}, "data": {"z": "4"}}
    refused(409, "Conflict", patched, stale, "application/merge-patch+json")
    dry = core.patch_namespaced_config_map("p", SPACE, {"data": {"z": "5"}}, dry_run="All")
    check(dry.data["z"] == "5" and core.read_namespaced_config_map("p", SPACE).data["z"] == "3", "dry run keeps nothing")


def applies(core):
    def applied(manager, data, **options):
        body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "applied"}, "data": data}
        return core.patch_namespaced_config_map("applied", SPACE, body, field_manager=manager,
                                                _content_type="application/apply-patch+yaml", **options)

    made = applied("alice", {"a": "1", "b": "1"})
    owners = {one.manager: one.operation for one in made.metadata.managed_fields}
    check(owners == {"alice": "Apply"}, "the fields have an owner", owners)
    check(applied("bob", {"c": "1"}).data == {"a": "1", "b": "1", "c": "1"}, "two owners side by side")
    body = refused(409, "Conflict", applied, "bob", {"a": "2", "c": "1"})
    check(body["message"] == 'Apply failed with 1 conflict: conflict with "alice": .data.a', "upstream's sentence", body)
    forced = applied("bob", {"a": "2", "c": "1"}, force=True)
    check(forced.data["a"] == "2", "force takes the field", forced.data)
    left = applied("alice", {"b": "1"})
    check(left.data == {"a": "2", "b": "1", "c": "1"}, "what another took stays", left.data)
    left = applied("alice", {})
    check(left.data == {"a": "2", "c": "1"}, "what its only owner leaves out goes", left.data)


def subresources(core):
    apps = client.AppsV1Api()
    apps.create_namespaced_deployment(SPACE, DEPLOYMENT)
    scale = apps.read_namespaced_deployment_scale("web", SPACE)
    check(scale.kind == "Scale" and scale.spec.replicas == 1, "scale is read", scale)
    scale.spec.replicas, scale.metadata.resource_version = 2, None
    apps.replace_namespaced_deployment_scale("web", SPACE, scale)
    apps.patch_namespaced_deployment_scale("web", SPACE, {"spec": {"replicas": 3}})

    def available():
        status = apps.read_namespaced_deployment_status("web", SPACE).status
        return status.available_replicas == 3 and status

    status = eventually("three are available", available)
    check({c.type: c.status for c in status.conditions}["Available"] == "True", "conditions", status.conditions)
    check(apps.read_namespaced_deployment_scale("web", SPACE).status.selector == "app=web", "the selector as text")
    core.patch_namespaced_pod_status(
        core.list_namespaced_pod(SPACE, label_selector="app=web").items[0].metadata.name, SPACE,
        {"status": {"conditions": [{"type": "example.com/Checked", "status": "True"}]}})
    checked = [one for one in core.list_namespaced_pod(SPACE).items
               if any(c.type == "example.com/Checked" for c in one.status.conditions)]
    check(len(checked) == 1, "a condition of one's own is kept")
    evictions(core)
    token = core.create_namespaced_service_account_token("default", SPACE, client.AuthenticationV1TokenRequest(
        spec=client.V1TokenRequestSpec(audiences=[], expiration_seconds=3600))).status
    check(token.token.count(".") == 2 and token.expiration_timestamp is not None, "a token", token)
    review = client.AuthenticationV1Api().create_token_review({"spec": {"token": token.token}}).status
    check(review.authenticated and review.user.username == f"system:serviceaccount:{SPACE}:default", "it is known", review)
    access = client.AuthorizationV1Api().create_self_subject_access_review(
        {"spec": {"resourceAttributes": {"verb": "create", "resource": "pods", "namespace": SPACE}}})
    check(access.status.allowed, "the administrator may", access.status)
    apps.delete_namespaced_deployment("web", SPACE, propagation_policy="Foreground")
    eventually("the Deployment and its pods are gone", lambda: not apps.list_namespaced_deployment(SPACE).items
               and not core.list_namespaced_pod(SPACE, label_selector="app=web").items)


def evictions(core):
    """What a budget allows is reckoned from its pods, and spent by an eviction."""
    policy = client.PolicyV1Api()
    policy.create_namespaced_pod_disruption_budget(SPACE, {
        "metadata": {"name": "web"}, "spec": {"minAvailable": 3, "selector": {"matchLabels": {"app": "web"}}}})

    def reckoned(allowed):
        status = policy.read_namespaced_pod_disruption_budget("web", SPACE).status
        return status and status.current_healthy == 3 and status.disruptions_allowed == allowed

    name = core.list_namespaced_pod(SPACE, label_selector="app=web").items[0].metadata.name
    eviction = {"metadata": {"name": name, "namespace": SPACE}, "deleteOptions": {"gracePeriodSeconds": 0}}
    eventually("nothing may be disrupted", lambda: reckoned(0))
    body = refused(429, "TooManyRequests", core.create_namespaced_pod_eviction, name, SPACE, eviction)
    check("would violate the pod's disruption budget" in body["message"], "upstream's sentence", body)
    policy.patch_namespaced_pod_disruption_budget("web", SPACE, {"spec": {"minAvailable": 2}})
    eventually("one pod may be disrupted", lambda: reckoned(1))
    core.create_namespaced_pod_eviction(name, SPACE, eviction)
    eventually("the pod is gone", lambda: name not in {
        one.metadata.name for one in core.list_namespaced_pod(SPACE).items if not one.metadata.deletion_timestamp})
    eventually("its successor may be disrupted", lambda: reckoned(1))


def yaml_files(core):
    manifests = [DEPLOYMENT, {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "from-yaml"},
                              "spec": {"selector": {"app": "web"}, "ports": [{"port": 80}]}}]
    utils.create_from_yaml(client.ApiClient(), yaml_objects=manifests, namespace=SPACE)
    check(core.read_namespaced_service("from-yaml", SPACE).spec.ports[0].port == 80, "made from a file")
    try:
        utils.create_from_yaml(client.ApiClient(), yaml_objects=manifests[1:], namespace=SPACE)
    except utils.FailToCreateError as error:
        check(error.api_exceptions[0].status == 409, "the second time is told", error)
    else:
        check(False, "the second time was not refused")
    utils.create_from_yaml(client.ApiClient(), yaml_objects=manifests[1:], namespace=SPACE, apply=True)


def misuse(core):
    body = refused(422, "Invalid", core.create_namespaced_pod, SPACE, pod("Not_A_Name", "true"))
    check(body["details"]["causes"][0]["field"] == "metadata.name", "the field is named", body)
    body = refused(404, "NotFound", core.create_namespaced_config_map, "nowhere", {"metadata": {"name": "x"}})
    check(body["message"] == 'namespaces "nowhere" not found', "upstream's sentence", body)
    body = refused(422, "Invalid", core.create_namespaced_config_map, SPACE, {"data": {}})
    check("name or generateName is required" in body["message"], "a name is needed", body)
    made = core.create_namespaced_config_map(SPACE, {"metadata": {"generateName": "made-"}})
    check(made.metadata.name.startswith("made-") and len(made.metadata.name) == 10, "a name is made", made.metadata)


def main():
    core = namespace(SPACE)
    for theme in (services, lists, patches, applies, subresources, yaml_files, misuse):
        theme(core)
        print(f"{theme.__name__}: well", flush=True)
    core.delete_namespace(SPACE)
    eventually("the namespace is gone", lambda: SPACE not in {one.metadata.name for one in core.list_namespace().items})


main()
