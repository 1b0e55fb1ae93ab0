"""The API: the control plane alone, in a namespace of its own, with real load over TLS.

`wrk` asks for GET and LIST; `bench_api` creates and watches, at less cost to itself than a script. Both share the cores with
the server, so the server's own CPU time a request is told too.
"""

import contextlib
import itertools
import os
import re
import statistics
import sys
import tempfile
import time

import peers
from lab import Cluster, cpu_seconds, netns, process, row, run, services, succeeds, tool, until

WATCHERS = 500
# Every run of puts has keys of its own.
SERIES = itertools.count(10)


class ControlPlane(Cluster):
    """`rhumb server` on the loopback of a namespace."""

    def __init__(self, rhumb, folder, inside):
        self.rhumb, self.folder, self.at = rhumb, folder, inside
        self.kubeconfig = f"{folder}/kubeconfig"

    def kubectl(self, *args, **options):
        return run(*self.at, "kubectl", "--kubeconfig", self.kubeconfig, *args, **options)

    def load(self, program, what, *args):
        """Runs `bench_api`; gives its figures by name."""
        output = run(*self.at, program, what, "127.0.0.1:6443", f"{self.folder}/ca", f"{self.folder}/token", *args)
        words = output.split()
        return {name: float(value) for name, value in zip(words[::2], words[1::2])}


@contextlib.contextmanager
def control_plane(rhumb):
    with tempfile.TemporaryDirectory(prefix="rhumb-bench-") as folder, netns("api") as (inside,):
        server = [*inside, rhumb, "server", "--server-dir", f"{folder}/server", "--advertise-address", "127.0.0.1",
                  "--admin-kubeconfig", f"{folder}/kubeconfig"]
        with process(*server) as child:
            plane = ControlPlane(rhumb, folder, inside)
            plane.pid = child.pid
            until("the API", lambda: succeeds(*inside, "kubectl", "--kubeconfig", plane.kubeconfig, "get", "ns", "kube-system"))
            for file, text in (("token", plane.token()), ("ca", authority(plane))):
                with open(f"{folder}/{file}", "w", encoding="utf-8") as sink:
                    sink.write(text)
            yield plane


def authority(plane):
    return plane.kubectl("get", "configmap", "kube-root-ca.crt", "-n", "kube-system", "-o", "jsonpath={.data.ca\\.crt}")


def wrk(inside, url, connections, *args, seconds=4):
    """Requests a second and the median latency in milliseconds."""
    output = run(*inside, "wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency", *args, url)
    if "Non-2xx" in output:
        sys.exit(output)
    latency = re.search(r"50%\s+([0-9.]+)(us|ms|s)", output)
    scale = {"us": 0.001, "ms": 1, "s": 1000}[latency.group(2)]
    count = int(re.search(r"(\d+) requests in", output).group(1))
    return float(re.search(r"Requests/sec:\s+([0-9.]+)", output).group(1)), float(latency.group(1)) * scale, count


def asked(plane, what, path, connections, target, latency_target, *headers):
    """GETs one path; the rate, the latency, and the server's CPU a request."""
    token = open(f"{plane.folder}/token", encoding="utf-8").read()
    found = []
    for _ in range(5):
        before = cpu_seconds(plane.pid)
        headed = [word for header in (f"Authorization: Bearer {token}", *headers) for word in ("-H", header)]
        rate, latency, count = wrk(plane.at, f"https://127.0.0.1:6443{path}", connections, *headed)
        found.append((rate, latency, (cpu_seconds(plane.pid) - before) / count * 1e6))
    row(what, [rate for rate, _, _ in found], "/s", target, 0)
    row(f"{what}: latency p50", [latency for _, latency, _ in found], "ms", latency_target, 3)
    row(f"{what}: the server's CPU", [cpu for _, _, cpu in found], "µs a request", "-", 1)


PUT = """
local n = %d
request = function()
  n = n + 1
  return wrk.format("POST", nil, {["Content-Type"] = "application/json"}, string.format('{"key":"%%08d","value":"%s"}', n))
end
"""


@contextlib.contextmanager
def etcd(folder, inside):
    """etcd of Debian on the same disk, alone."""
    with process(*inside, peers.command("etcd"), "--data-dir", f"{folder}/etcd", env=peers.environment()) as child:
        until("etcd", lambda: succeeds(*inside, "curl", "-sf", "http://127.0.0.1:2379/health"))
        yield child


def etcd_puts(folder, inside, clients):
    """Puts of 912 bytes a second through etcd's HTTP gateway."""
    with open(f"{folder}/put.lua", "w", encoding="utf-8") as script:
        script.write(PUT % (next(SERIES) * 1_000_000, "A" * 1216))
    return wrk(inside, "http://127.0.0.1:2379/v3/kv/put", clients, "-s", f"{folder}/put.lua", seconds=3)[0]


def syncs(folder):
    """Writes of 1 kB with fdatasync into a file that has its size already, a second: what the disk allows one writer."""
    blocks = 16_384
    with open(f"{folder}/sync", "wb", buffering=0) as sink:
        sink.write(b"x" * 1024 * blocks)
        os.fsync(sink.fileno())
        count, begun = 0, time.monotonic()
        while time.monotonic() - begun < 2:
            os.pwrite(sink.fileno(), b"y" * 1024, count % blocks * 1024)
            os.fdatasync(sink.fileno())
            count += 1
        return count / (time.monotonic() - begun)


def revision(plane):
    found = plane.kubectl("get", "--raw", "/api/v1/namespaces/default/services?limit=1")
    return re.search(r'"resourceVersion":\s*"(\d+)"', found).group(1)


def quiet(plane):
    """Waits until nobody writes any more: controllers follow what was made."""
    before = None
    while before != (before := revision(plane)):
        time.sleep(1)


def bench_create(rhumb):
    """Creates of Services, on disk before they are answered, by 1 and 8 clients; beside them etcd's puts and the bare disk."""
    program = tool(rhumb, "bench_api")
    with control_plane(rhumb) as plane, etcd(plane.folder, plane.at):
        version = run(peers.command("etcd"), "--version", env=peers.environment()).splitlines()[0]
        print(f"the peer is {version} of Debian, by its HTTP gateway")
        for what, kind in (("Service of type ExternalName", "create-external"), ("Service with a ClusterIP", "create")):
            for clients, target in ((1, "≥ 3,700"), (8, "≥ 5,700")):
                created(plane, program, f"create a {what}, {clients} client{'s' * (clients > 1)}", kind, clients, target)


def created(plane, program, what, kind, clients, target):
    rates, puts, disk, cpu, latency = [], [], [], [], []
    for attempt in range(5):
        quiet(plane)
        before = cpu_seconds(plane.pid)
        found = plane.load(program, kind, clients, 3, f"{kind}-{clients}-{attempt}")
        rates.append(found["count"] / found["seconds"])
        latency.append(found["p50-ms"])
        cpu.append((cpu_seconds(plane.pid) - before) / found["count"] * 1e6)
        quiet(plane)
        puts.append(etcd_puts(plane.folder, plane.at, clients))
        disk.append(syncs(plane.folder))
    row(what, rates, "/s", target, 0, etcd_put=puts, one_writer_with_fdatasync=disk)
    row(f"{what}: latency p50", latency, "ms", "-", 2)
    row(f"{what}: the server's CPU", cpu, "µs a request", "-", 0)


def bench_read(rhumb):
    """GET of a Service by 1 and 32 clients and LIST of 1,000 Services, as JSON and as protobuf where it is spoken."""
    with control_plane(rhumb) as plane:
        plane.kubectl("create", "--validate=false", "-f", "-", input=services(1000, selector={"app": "web"}))
        time.sleep(3)
        path = "/api/v1/namespaces/default/services"
        asked(plane, "GET a Service, 1 client", f"{path}/svc-1", 1, "≥ 15,100", "-")
        asked(plane, "GET a Service, 32 clients", f"{path}/svc-1", 32, "≥ 46,800", "-")
        size = len(plane.kubectl("get", "--raw", path)) // 1000
        asked(plane, f"LIST 1,000 Services ({size} kB), 1 client", path, 1, "≥ 1,820", "-")
        kind = "application/vnd.kubernetes.protobuf"
        token = open(f"{plane.folder}/token", encoding="utf-8").read()
        answer = run(*plane.at, "curl", "-sk", "-o", "/dev/null", "-w", "%{content_type}", "-H", f"Accept: {kind}, application/json",
                     "-H", f"Authorization: Bearer {token}", f"https://127.0.0.1:6443{path}")
        if answer.startswith(kind):
            asked(plane, "LIST 1,000 Services, protobuf, 1 client", path, 1, "≥ 1,820", "-", f"Accept: {kind}")


def bench_watch(rhumb):
    """The delay from a write's sending to its event at each of 500 watchers, each on a TLS connection of its own."""
    program = tool(rhumb, "bench_api")
    with control_plane(rhumb) as plane:
        middle, tail, answer, cpu = [], [], [], []
        for attempt in range(5):
            quiet(plane)
            since = revision(plane)
            before = cpu_seconds(plane.pid)
            found = plane.load(program, "watch", WATCHERS, 50, f"w{attempt}", since)
            cpu.append((cpu_seconds(plane.pid) - before) / 50 / WATCHERS * 1e6)
            middle.append(found["p50-ms"])
            tail.append(found["p99-ms"])
            answer.append(found["answer-p50-ms"])
        row(f"write sent → event at {WATCHERS} watchers, p50", middle, "ms", "≤ 2", 2)
        row(f"write sent → event at {WATCHERS} watchers, p99", tail, "ms", "≤ 8", 2)
        row("of that, until the write is answered, p50", answer, "ms", "-", 2)
        row("the server's CPU, with its 500 handshakes", cpu, "µs an event and watcher", "-", 1)
        print(f"best of the runs: p50 {min(middle):.2f} ms, p99 {min(tail):.2f} ms; median of p50 {statistics.median(middle):.2f} ms")
