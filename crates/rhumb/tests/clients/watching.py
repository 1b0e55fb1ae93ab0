"""The official client watches: it resumes where it stopped, times out, and starts over when the server has forgotten."""

import threading
import time

from common import ApiException, check, client, eventually, namespace
from kubernetes import watch
from kubernetes.informer import ADDED, DELETED, MODIFIED, SharedInformer

SPACE = "py-watching"
LABEL = "watched=yes"


def put(core, name, value):
    body = {"metadata": {"name": name, "labels": {"watched": "yes"}}, "data": {"v": value}}
    return core.create_namespaced_config_map(SPACE, body)


def set_value(core, name, value):
    return core.patch_namespaced_config_map(name, SPACE, {"data": {"v": value}})


def events(core, until, **options):
    """Events of a watch until one is called `until`; each as (type, name, value)."""
    watcher, found = watch.Watch(), []
    for event in watcher.stream(core.list_namespaced_config_map, SPACE, label_selector=LABEL, **options):
        one = event["object"]
        found.append((event["type"], one.metadata.name, (one.data or {}).get("v")))
        if found[-1][:2] == until:
            watcher.stop()
    return found, watcher.resource_version


def resuming(core):
    put(core, "a", "1")
    listed = core.list_namespaced_config_map(SPACE, label_selector=LABEL)
    set_value(core, "a", "2")
    put(core, "b", "1")
    core.delete_namespaced_config_map("a", SPACE)
    found, version = events(core, ("DELETED", "a"), resource_version=listed.metadata.resource_version)
    check(found == [("MODIFIED", "a", "2"), ("ADDED", "b", "1"), ("DELETED", "a", "2")], "what came after the list", found)
    put(core, "c", "1")
    found, _ = events(core, ("ADDED", "c"), resource_version=version)
    check(found == [("ADDED", "c", "1")], "what came after the watch", found)
    found, _ = events(core, ("ADDED", "c"))
    check(found == [("ADDED", "b", "1"), ("ADDED", "c", "1")], "a watch from nowhere begins with what there is", found)


def selecting(core):
    """An object that leaves the selector is deleted for the watcher; one that enters it is added."""
    version = core.list_namespaced_config_map(SPACE).metadata.resource_version
    core.patch_namespaced_config_map("c", SPACE, {"metadata": {"labels": {"watched": "no"}}})
    core.patch_namespaced_config_map("c", SPACE, {"metadata": {"labels": {"watched": "yes"}}})
    found, _ = events(core, ("ADDED", "c"), resource_version=version)
    check(found == [("DELETED", "c", "1"), ("ADDED", "c", "1")], "leaving and entering", found)


def timing_out(core):
    began = time.monotonic()
    version = core.list_namespaced_config_map(SPACE).metadata.resource_version
    found, _ = events(core, None, resource_version=version, timeout_seconds=1)
    check(found == [] and time.monotonic() - began < 30, "the server ends the watch", found)


def bookmarks(core):
    """The list of a watch: all that there is, then a bookmark that says so."""
    watcher = watch.Watch()
    kinds = []
    for event in watcher.stream(core.list_namespaced_config_map, SPACE, label_selector=LABEL, send_initial_events=True,
                                allow_watch_bookmarks=True, resource_version_match="NotOlderThan", resource_version=""):
        kinds.append(event["type"])
        if event["type"] == "BOOKMARK":
            notes = event["raw_object"]["metadata"]["annotations"]
            check(notes["k8s.io/initial-events-end"] == "true", "the bookmark ends the list", event["raw_object"])
            watcher.stop()
    check(kinds == ["ADDED", "ADDED", "BOOKMARK"], "a list as a watch", kinds)


def forgotten(core):
    """410 for a revision whose changes are no longer kept: the reader lists again."""
    old = core.list_namespaced_config_map(SPACE).metadata.resource_version
    big = "x" * 900_000
    for number in range(24):
        set_value(core, "b", f"{number}{big}")
    set_value(core, "b", "small")
    try:
        for _ in watch.Watch().stream(core.list_namespaced_config_map, SPACE, resource_version=old, timeout_seconds=5):
            check(False, "an event came from a forgotten revision")
    except ApiException as error:
        check(error.status == 410 and error.reason.startswith("Expired: too old resource version"), "410", error)
    else:
        check(False, "the watch was not refused")


def informing(core):
    """An informer that is stopped while its revision is forgotten lists again and misses nothing."""
    seen, lock = [], threading.Lock()

    def note(kind):
        def handler(one):
            with lock:
                seen.append((kind, one.metadata.name))
        return handler

    informer = SharedInformer(core.list_namespaced_config_map, namespace=SPACE, label_selector=LABEL)
    for kind in (ADDED, MODIFIED, DELETED):
        informer.add_event_handler(kind, note(kind))
    informer.start()
    eventually("the cache is filled", lambda: set(informer.cache.list_keys()) == {f"{SPACE}/b", f"{SPACE}/c"})
    put(core, "d", "1")
    eventually("an addition is seen", lambda: (ADDED, "d") in seen)
    informer.stop()
    core.delete_namespaced_config_map("c", SPACE)
    put(core, "e", "1")
    forgotten(core)
    informer.start()
    expected = {f"{SPACE}/{name}" for name in "bde"}
    eventually("the cache is right again", lambda: set(informer.cache.list_keys()) == expected)
    set_value(core, "e", "2")
    eventually("and follows", lambda: informer.cache.get_by_key(f"{SPACE}/e").data["v"] == "2")
    informer.stop()
    check((DELETED, "c") in seen and seen.count((ADDED, "e")) == 1, "deletion and addition are told once", seen)


def pods_of_a_deployment():
    """A watch of everything, across namespaces, told by field."""
    core = client.CoreV1Api()
    watcher = watch.Watch()
    for event in watcher.stream(core.list_namespace, field_selector=f"metadata.name={SPACE}", timeout_seconds=30):
        check(event["object"].status.phase == "Active", "the namespace alone", event)
        watcher.stop()


def main():
    core = namespace(SPACE)
    for theme in (resuming, selecting, timing_out, bookmarks, forgotten, informing):
        theme(core)
        print(f"{theme.__name__}: well", flush=True)
    pods_of_a_deployment()
    core.delete_namespace(SPACE)


main()
