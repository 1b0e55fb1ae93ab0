"""Pods: from the API's write to Running, from Ready to every node's rules, and requests while a Deployment rolls."""

import http.client
import json
import ssl
import subprocess
import sys
import tempfile
import threading
import time

import peers
from lab import Cluster, process, row, run, succeeds, tool, until


class Api:
    """Requests of a load's own, over one connection, and watches."""

    def __init__(self, cluster):
        self.token, self.server = cluster.token(), cluster.server().removeprefix("https://")
        self.connection = self.connect()

    def connect(self):
        context = ssl._create_unverified_context()  # a lab's own authority, on this machine's own link
        return http.client.HTTPSConnection(self.server, context=context)

    def call(self, connection, method, path, body=None):
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"}
        connection.request(method, path, json.dumps(body) if body else None, headers)
        return connection.getresponse()

    def create(self, path, body):
        answer = self.call(self.connection, "POST", path, body)
        text = answer.read()
        if answer.status != 201:
            sys.exit(text.decode())

    def watch(self, path, each):
        """Calls `each` with every event's object and the clock's time, in a thread of its own."""
        def follow():
            for line in self.call(self.connect(), "GET", path):
                each(json.loads(line)["object"], time.time())
        threading.Thread(target=follow, daemon=True).start()


def pod(name, image, **more):
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"pod": name}},
            "spec": {"terminationGracePeriodSeconds": 0, "containers": [
                {"name": "c", "image": image, "imagePullPolicy": "IfNotPresent", **more}]}}


class Containerd:
    """containerd and runc of Debian, with the same image, in folders of their own."""

    def __init__(self, folder, cluster):
        self.folder, self.environment = folder, peers.environment()
        self.socket = f"{folder}/containerd.sock"
        with open(f"{folder}/config.toml", "w", encoding="utf-8") as sink:
            sink.write(f'version = 2\nroot = "{folder}/root"\nstate = "{folder}/state"\ndisabled_plugins = ["io.containerd.grpc.v1.cri"]\n'
                       f'[grpc]\naddress = "{self.socket}"\n')
        self.image = cluster.image_folder("busybox")
        self.daemon = process(peers.command("containerd"), "-c", f"{folder}/config.toml", env=self.environment)

    def __enter__(self):
        self.daemon.__enter__()
        until("containerd", lambda: self.succeeds("version"))
        run("tar", "-C", self.image, "-cf", f"{self.folder}/image.tar", ".")
        self.ctr("images", "import", f"{self.folder}/image.tar")
        self.name = self.ctr("images", "ls", "-q").split()[0]
        return self

    def __exit__(self, *error):
        self.daemon.__exit__(*error)

    def words(self, *args):
        return [peers.command("ctr"), "--address", self.socket, *args]

    def succeeds(self, *args):
        return subprocess.run(self.words(*args), env=self.environment, capture_output=True, check=False).returncode == 0

    def ctr(self, *args):
        return run(*self.words(*args), env=self.environment)

    def start(self, number):
        """Milliseconds until `ctr` has started a container in namespaces of its own, and what `ctr` alone needs."""
        begun = time.monotonic()
        self.ctr("run", "-d", self.name, f"c{number}", "sleep", "1000")
        started = time.monotonic() - begun
        begun = time.monotonic()
        self.ctr("version")
        alone = time.monotonic() - begun
        self.ctr("task", "kill", "-s", "KILL", f"c{number}")
        until("the container's end", lambda: self.succeeds("task", "rm", f"c{number}"))
        self.ctr("container", "rm", f"c{number}")
        return started * 1000, alone * 1000


def bench_pod_start(rhumb):
    """The API's write to Running, as a watch sees it, image present; beside it a container started by containerd."""
    with Cluster(rhumb, 1) as cluster, tempfile.TemporaryDirectory(prefix="rhumb-bench-") as folder:
        cluster.images("busybox")
        api, running = Api(cluster), {}

        def seen(found, now):
            if found.get("status", {}).get("phase") == "Running":
                running.setdefault(found["metadata"]["name"], now)
        api.watch("/api/v1/namespaces/default/pods?watch=true", seen)
        own, other, alone = [], [], []
        with Containerd(folder, cluster) as containerd:
            for number in range(25):
                begun = time.time()
                api.create("/api/v1/namespaces/default/pods", pod(f"p{number}", "busybox", command=["sleep", "1000"]))
                until("a pod", lambda number=number: f"p{number}" in running)
                own.append((running[f"p{number}"] - begun) * 1000)
                started, bare = containerd.start(number)
                other.append(started)
                alone.append(bare)
        row("pod created → Running seen by a watch, image present", own, "ms", "≤ 50", 1, ctr_run=other, ctr_alone=alone)


def bench_ready(rhumb):
    """A pod's Ready in the API until each of three nodes connects through the ClusterIP, tried every half millisecond."""
    program, spread = tool(rhumb, "bench_net"), []
    with Cluster(rhumb, 3) as cluster:
        cluster.images("nginx")
        api, ready = Api(cluster), {}

        def seen(found, now):
            conditions = found.get("status", {}).get("conditions", [])
            if any(condition["type"] == "Ready" and condition["status"] == "True" for condition in conditions):
                ready.setdefault(found["metadata"]["name"], now)
        api.watch("/api/v1/namespaces/default/pods?watch=true", seen)
        for number in range(40):
            name, address = f"p{number}", f"10.96.77.{number + 1}"
            api.create("/api/v1/namespaces/default/services", {
                "apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
                "spec": {"clusterIP": address, "selector": {"pod": name}, "ports": [{"port": 80}]}})
            time.sleep(0.2)
            probes = [subprocess.Popen([*cluster.inside(f"n{node}"), program, "until", f"{address}:80"], stdout=subprocess.PIPE, text=True)
                      for node in (1, 2, 3)]
            probe = {"tcpSocket": {"port": 80}, "periodSeconds": 1}
            api.create("/api/v1/namespaces/default/pods", pod(name, "nginx", ports=[{"containerPort": 80}], readinessProbe=probe))
            answered = [int(probe.communicate()[0]) / 1e6 for probe in probes]
            until("Ready", lambda name=name: name in ready)
            spread.append((max(answered) - ready[name]) * 1000)
            cluster.kubectl("delete", "pod", name, "--wait=false")
    row("pod Ready seen by a watch → the last of three nodes forwards, p50", spread, "ms", "-", 1)
    tail = sorted(spread)[(len(spread) * 99 - 1) // 100]
    row(f"the same, p99 of {len(spread)} pods", [tail], "ms", "≤ 100", 1)


ROLL = """
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 30
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}, annotations: {rhumb.dev/rollout-guard: GUARD}}
    spec:
      terminationGracePeriodSeconds: 10
      containers:
      - {name: nginx, image: nginx, imagePullPolicy: IfNotPresent, ports: [{containerPort: 80}],
         readinessProbe: {tcpSocket: {port: 80}, periodSeconds: 1}}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {type: NodePort, selector: {app: web}, ports: [{port: 80, nodePort: 30080}]}
---
apiVersion: v1
kind: Pod
metadata: {name: inside}
spec: {containers: [{name: c, image: busybox, imagePullPolicy: IfNotPresent, command: [sleep, "100000"]}]}
"""
WANTED = 10_000
ROLLS = 10
WAYS = [("nftables", "5s"), ("iptables", "5s"), ("ebpf", "5s"), ("nftables", "off")]


def bench_rolling(rhumb):
    """Requests while thirty nginx on three nodes, without preStop hooks, are rolled ten times in each mode: how they end."""
    for mode, guard in WAYS:
        roll_in(rhumb, mode, guard)


def roll_in(rhumb, mode, guard):
    program, shown = tool(rhumb, "bench_net"), mode if guard != "off" else f"{mode} without the guard"
    with Cluster(rhumb, 3, flags=["--proxy-mode", mode]) as cluster:
        cluster.images("nginx", "busybox")
        cluster.kubectl("apply", "--validate=false", "-f", "-", input=ROLL.replace("GUARD", f"'{guard}'"))
        cluster.kubectl("rollout", "status", "deployment/web", "--timeout=120s")
        cluster.kubectl("wait", "--for=condition=Ready", "pod/inside", "--timeout=60s")
        address = cluster.kubectl("get", "svc", "web", "-o", "jsonpath={.spec.clusterIP}")
        node = cluster.kubectl("get", "node", "n2", "-o", "jsonpath={.status.addresses[0].address}")
        sources = {"a pod, ClusterIP": (cluster.inside_pod("inside"), f"{address}:80"),
                   "a node, ClusterIP": (cluster.inside("n1"), f"{address}:80"),
                   "outside, NodePort": (cluster.inside("client"), f"{node}:30080")}
        until("every way", lambda: all(succeeds(*inside, "curl", "-sf", "-m", "1", f"http://{at}/") for inside, at in sources.values()))
        loads = {name: subprocess.Popen([*inside, program, "requests", at, "2", "5"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
                 for name, (inside, at) in sources.items()}
        begun = time.monotonic()
        for _ in range(ROLLS):
            time.sleep(1.1)  # kubectl restarts once a second at most
            cluster.kubectl("rollout", "restart", "deployment/web")
            cluster.kubectl("rollout", "status", "deployment/web", "--timeout=180s")
        took, all_asked, all_lost = time.monotonic() - begun, 0, 0
        for name, load in loads.items():
            counts = json.loads(load.communicate("")[0])
            total, lost = sum(counts.values()), {kind: count for kind, count in counts.items() if kind != "ok"}
            all_asked, all_lost = all_asked + total, all_lost + sum(lost.values())
            print(f"  {name}: {total:,} requests, {lost or 'none lost'}")
        if all_asked < WANTED:
            print("fewer requests than wanted")
        target = "0 of ≥ 10,000" if guard != "off" else "-"
        row(f"{shown}: {ROLLS} rolling updates in {took:.0f} s, {all_asked:,} requests ({all_asked / took:.0f}/s): lost", [all_lost], "requests", target, 0)
