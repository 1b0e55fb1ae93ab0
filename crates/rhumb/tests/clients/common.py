"""What the scripts of this folder share: the clients of one namespace, checks that say what is wrong, bounded waiting."""

import sys
import time

from kubernetes import client, config, utils
from kubernetes.client.rest import ApiException

IMAGE = "tools:latest"
PATIENCE = 60


def check(holds, what, *seen):
    """Ends the script with a sentence when something is not as it must be."""
    if not holds:
        caller = sys._getframe(1)
        sys.exit(f"{caller.f_code.co_filename}:{caller.f_lineno}: {what}: {seen}")


def refused(status, reason, call, *args, **kwargs):
    """The body of the error that a call must end with."""
    import json
    try:
        answer = call(*args, **kwargs)
    except ApiException as error:
        body = json.loads(error.body)
        check(error.status == status, f"the status is {status}", error.status, body)
        check(body["kind"] == "Status" and body["status"] == "Failure", "the body is a Status", body)
        check(body["reason"] == reason and body["code"] == status, f"the reason is {reason}", body)
        return body
    caller = sys._getframe(1)
    sys.exit(f"{caller.f_code.co_filename}:{caller.f_lineno}: was not refused: {answer}")


def eventually(what, attempt):
    """The first true answer."""
    deadline = time.monotonic() + PATIENCE
    while True:
        found = attempt()
        if found:
            return found
        check(time.monotonic() < deadline, f"never came true: {what}", found)
        time.sleep(0.05)


def namespace(name):
    """Loads the kubeconfig and makes a namespace, with its ServiceAccount."""
    config.load_kube_config()
    core = client.CoreV1Api()
    core.create_namespace({"metadata": {"name": name}})

    def account():
        return [one for one in core.list_namespaced_service_account(name).items if one.metadata.name == "default"]

    eventually("the namespace has its ServiceAccount", account)
    return core


def pod(name, command, **spec):
    """A pod of one container that runs a line of shell."""
    container = {"name": "main", "image": IMAGE, "imagePullPolicy": "IfNotPresent", "command": ["sh", "-c", command]}
    container.update(spec.pop("container", {}))
    labels = spec.pop("labels", {"app": name})
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": labels},
            "spec": {"terminationGracePeriodSeconds": 0, "containers": [container], **spec}}


def running(core, space, name):
    """Waits until a pod is ready."""
    def ready():
        found = core.read_namespaced_pod(name, space)
        return any(c.type == "Ready" and c.status == "True" for c in found.status.conditions or []) and found

    return eventually(f"{name} is ready", ready)
