#!/usr/bin/env python3
"""Measures Rhumb on this machine: `make bench`, or `bench/run.py --rhumb PATH [NAME ...]`.

Every figure comes from the real binary and a real cluster in namespaces. Peers that Debian carries are measured in the
same run, in turn with the subject. Prints a Markdown table: what, how many runs, minimum, median, maximum, target.
"""

import argparse
import json
import os
import pathlib
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
ROWS = []


def run(*command, check=True, **options):
    """Runs a command and returns its standard output."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, **options)
    if check and done.returncode != 0:
        sys.exit(f"{command} failed: {done.stdout}{done.stderr}")
    return done.stdout


def row(what, values, unit, target, digits=3):
    values = sorted(values)
    shown = [f"{value:.{digits}f}" for value in (values[0], statistics.median(values), values[-1])]
    ROWS.append((what, len(values), *shown, unit, target))
    print(f"{what}: median {shown[1]} {unit} (of {len(values)}; {shown[0]} to {shown[2]}), target {target}", flush=True)


class Cluster:
    """A cluster of its own name and folder; gone at the end."""

    def __init__(self, rhumb, nodes, name="bench"):
        self.rhumb, self.name = rhumb, name
        self.folder = tempfile.mkdtemp(prefix="rhumb-bench-")
        self.nodes = nodes

    def call(self, *args, **options):
        return run(self.rhumb, *args, "--name", self.name, "--data-dir", self.folder, **options)

    def __enter__(self):
        self.started = time.monotonic()
        self.output = self.call("up", "--detach", "--nodes", self.nodes)
        self.kubeconfig = os.path.join(self.folder, self.name, "kubeconfig")
        return self

    def __exit__(self, *_):
        self.call("down")
        shutil.rmtree(self.folder, ignore_errors=True)

    def images(self, *names):
        cache = pathlib.Path(os.environ.get("RHUMB_CACHE", pathlib.Path.home() / ".cache/rhumb")) / "images"
        for name in names:
            if not (cache / name).exists():
                run("bash", ROOT / "examples/images/build.sh", cache)
            self.call("images", "import", cache / name)

    def kubectl(self, *args, **options):
        return run("kubectl", "--kubeconfig", self.kubeconfig, *args, **options)

    def server(self):
        return re.search(r"https://\S+", self.kubectl("config", "view", "--raw")).group(0)

    def token(self):
        """A token that may do everything, for load programs without client certificates."""
        self.kubectl("create", "serviceaccount", "load", "-n", "kube-system")
        self.kubectl("create", "clusterrolebinding", "load", "--clusterrole=cluster-admin", "--serviceaccount=kube-system:load")
        body = json.dumps({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}})
        answer = self.kubectl("create", "--raw", "/api/v1/namespaces/kube-system/serviceaccounts/load/token", "-f", "-", input=body)
        return json.loads(answer)["status"]["token"]

    def pids(self):
        folder = pathlib.Path("/run/rhumb") / self.name
        return {path.stem: int(path.read_text().split()[0]) for path in folder.glob("*.pid")}


def step(output, what):
    """Seconds at which a step of `rhumb up` was done."""
    return float(re.search(rf"([0-9.]+)s  {what}", output).group(1))


def bench_start(rhumb):
    """Start of the control plane until its API answers, and of three nodes until all are ready."""
    api, ready, down = [], [], []
    for _ in range(7):
        with Cluster(rhumb, 3) as cluster:
            lab = step(cluster.output, "lab network")
            api.append(step(cluster.output, "API server answers") - lab)
            ready.append(step(cluster.output, "all nodes are ready"))
            begun = time.monotonic()
        down.append(time.monotonic() - begun)
    row("start of the control plane → API answers", api, "s", "≤ 0.2")
    row("`up --nodes 3` → all nodes ready", ready, "s", "≤ 3")
    row("`down` of three nodes", down, "s", "-")


WEB = """
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 3
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 1
      containers: [{name: nginx, image: nginx, imagePullPolicy: IfNotPresent, ports: [{containerPort: 80}]}]
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{port: 80}]}
"""


def bench_first_answer(rhumb):
    """`up` plus `apply` until a node gets 200 from nginx through the ClusterIP; images are imported before `apply`."""
    times = []
    for _ in range(5):
        with Cluster(rhumb, 3) as cluster:
            up = time.monotonic() - cluster.started
            cluster.images("nginx")
            begun = time.monotonic()
            cluster.kubectl("apply", "-f", "-", input=WEB)
            address = cluster.kubectl("get", "svc", "web", "-o", "jsonpath={.spec.clusterIP}")
            netns = f"--net=/run/netns/rhumb-{cluster.name}-n1"
            probe = ["nsenter", netns, "curl", "-sf", "-m", "1", "-o", "/dev/null", f"http://{address}/"]
            while subprocess.run(probe, check=False).returncode != 0:
                if time.monotonic() - begun > 60:
                    sys.exit("the ClusterIP never answered")
                time.sleep(0.005)
            times.append(up + time.monotonic() - begun)
    row("`up --nodes 3` and `apply` → first 200 through a ClusterIP", times, "s", "≤ 3")


def cpu_ticks(pid):
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return int(fields[11]) + int(fields[12])


def memory(pid):
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+)", status).group(1)) / 1000


def bench_idle(rhumb):
    """Resident memory and CPU of each process of an idle three-node cluster, over 20 s after 5 s of rest."""
    with Cluster(rhumb, 3) as cluster:
        time.sleep(5)
        pids = cluster.pids()
        before = {name: cpu_ticks(pid) for name, pid in pids.items()}
        time.sleep(20)
        per_second = os.sysconf("SC_CLK_TCK") * 20
        used = {name: (cpu_ticks(pid) - before[name]) / per_second * 100 for name, pid in pids.items()}
        row("memory of the control plane, idle", [memory(pids["server"])], "MB", "≤ 60", 1)
        row("memory of a node agent, idle", [memory(pid) for name, pid in pids.items() if re.fullmatch(r"n\d+", name)], "MB", "≤ 30", 1)
        row("CPU of everything, idle, three nodes", [sum(used.values())], "% of a core", "≤ 0.5", 2)



def wrk(url, token, connections, script=None, seconds=5):
    args = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "-H", f"Authorization: Bearer {token}"]
    if script:
        args += ["-s", script]
    output = run(*args, url)
    if "Non-2xx" in output:
        sys.exit(output)
    return float(re.search(r"Requests/sec:\s+([0-9.]+)", output).group(1))


CREATE = """
local thread_count = 0
function setup(thread) thread:set("id", thread_count); thread_count = thread_count + 1 end
local n = 0
request = function()
  n = n + 1
  local name = string.format("s%d-%d-%d", RUN, id, n)
  local body = '{"apiVersion":"v1","kind":"Service","metadata":{"name":"' .. name .. '","namespace":"default"},' ..
    '"spec":{"clusterIP":"None","selector":{"app":"' .. name .. '"},"ports":[{"port":80}]}}'
  return wrk.format("POST", nil, {["Content-Type"] = "application/json", ["Authorization"] = "Bearer " .. TOKEN}, body)
end
"""


def bench_api(rhumb):
    """Requests a second over TLS by wrk, which shares the two cores: create (durable), GET, LIST of 1,000 Services."""
    with Cluster(rhumb, 1) as cluster:
        token, server = cluster.token(), cluster.server()
        for count in range(0, 1000, 250):
            items = [{"apiVersion": "v1", "kind": "Service", "metadata": {"name": f"svc-{n}"},
                      "spec": {"selector": {"app": f"a{n}"}, "ports": [{"port": 80}]}} for n in range(count, count + 250)]
            cluster.kubectl("create", "-f", "-", input=json.dumps({"apiVersion": "v1", "kind": "List", "items": items}))
        services = f"{server}/api/v1/namespaces/default/services"
        row("GET a Service, 1 client", [wrk(f"{services}/svc-1", token, 1) for _ in range(3)], "/s", "≥ 15,100", 0)
        row("GET a Service, 32 clients", [wrk(f"{services}/svc-1", token, 32) for _ in range(3)], "/s", "≥ 46,800", 0)
        row("LIST 1,000 Services, 1 client", [wrk(services, token, 1) for _ in range(3)], "/s", "≥ 1,820", 0)
        for clients, target in ((1, "≥ 3,700"), (8, "≥ 5,700")):
            rates = []
            for attempt in range(3):
                with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
                    head = f'TOKEN = "{token}"\nRUN = {clients * 10 + attempt}\n'
                    script.write(head + CREATE)
                    script.flush()
                    rates.append(wrk(services, token, clients, script.name, 3))
            row(f"create a headless Service, durable, {clients} client(s)", rates, "/s", target, 0)


def bench_pod_start(rhumb):
    """A pod's creation to its container's start, by the times in its status and events: whole seconds there, so the wall
    clock around `kubectl apply` and a watch is taken instead."""
    with Cluster(rhumb, 1) as cluster:
        cluster.images("busybox")
        times = []
        watch = subprocess.Popen(
            ["kubectl", "--kubeconfig", cluster.kubeconfig, "get", "pods", "--watch", "-o",
             "jsonpath={.metadata.name} {.status.phase}{'\\n'}"], stdout=subprocess.PIPE, text=True)
        token, server = cluster.token(), cluster.server()
        import http.client
        import ssl
        context = ssl._create_unverified_context()  # a lab's own authority, on this machine's own link
        connection = http.client.HTTPSConnection(server.removeprefix("https://"), context=context)
        try:
            for n in range(20):
                pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": f"p{n}"}, "spec": {"terminationGracePeriodSeconds": 0, "containers": [
                    {"name": "c", "image": "busybox", "imagePullPolicy": "IfNotPresent", "command": ["sleep", "1000"]}]}}
                begun = time.monotonic()
                connection.request("POST", "/api/v1/namespaces/default/pods", json.dumps(pod),
                                   {"Authorization": f"Bearer {token}", "Content-Type": "application/json"})
                answer = connection.getresponse()
                body = answer.read()
                if answer.status != 201:
                    sys.exit(body.decode())
                while watch.stdout.readline().strip() != f"p{n} Running":
                    if time.monotonic() - begun > 30:
                        sys.exit("a pod did not start")
                times.append((time.monotonic() - begun) * 1000)
        finally:
            watch.kill()
            watch.wait()
        row("pod created → Running seen by a watch, image present", times, "ms", "≤ 50", 1)


def bench_dns(rhumb):
    """Queries a second by dnsperf from a pod's node, beside knot with the same names, in turn, on the same two cores."""
    with Cluster(rhumb, 1) as cluster:
        items = [{"apiVersion": "v1", "kind": "Service", "metadata": {"name": f"svc-{n}"},
                  "spec": {"selector": {"app": f"a{n}"}, "ports": [{"port": 80}]}} for n in range(200)]
        cluster.kubectl("create", "-f", "-", input=json.dumps({"apiVersion": "v1", "kind": "List", "items": items}))
        with tempfile.NamedTemporaryFile("w", suffix=".txt") as names:
            names.write("".join(f"svc-{n}.default.svc.cluster.local A\n" for n in range(200)))
            names.flush()
            netns = f"--net=/run/netns/rhumb-{cluster.name}-n1"
            pid = cluster.pids()["n1"]
            rates, micros = [], []
            for _ in range(5):
                before = cpu_ticks(pid)
                output = run("nsenter", netns, "dnsperf", "-s", "10.96.0.10", "-d", names.name, "-l", "4", "-T", "1", "-c", "4")
                completed = int(re.search(r"Queries completed:\s+(\d+)", output).group(1))
                rates.append(float(re.search(r"Queries per second:\s+([0-9.]+)", output).group(1)))
                micros.append((cpu_ticks(pid) - before) / os.sysconf("SC_CLK_TCK") / completed * 1e6)
            row("cluster DNS, queries answered", rates, "/s", "-", 0)
            row("cluster DNS, CPU a query", micros, "µs", "≤ knot's 5.4", 2)


BENCHES = {"start": bench_start, "first-answer": bench_first_answer, "idle": bench_idle, "api": bench_api,
           "pod-start": bench_pod_start, "dns": bench_dns}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rhumb", required=True, help="the binary, built with --release")
    parser.add_argument("names", nargs="*", choices=[*BENCHES, []], help="which; all when not given")
    args = parser.parse_args()
    if os.geteuid() != 0:
        sys.exit("bench/run.py needs root: a cluster is namespaces and kernel rules")
    for name in args.names or BENCHES:
        print(f"== {name}: {BENCHES[name].__doc__.splitlines()[0]}", flush=True)
        BENCHES[name](args.rhumb)
    print("\n| what | runs | min | median | max | unit | target |\n|---|---|---|---|---|---|---|")
    for what, runs, low, median, high, unit, target in ROWS:
        print(f"| {what} | {runs} | {low} | {median} | {high} | {unit} | {target} |")


if __name__ == "__main__":
    main()
