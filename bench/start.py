"""Start of a cluster, its first answer, and what it uses when idle."""

import os
import re
import subprocess
import sys
import time

from lab import Cluster, cpu_ticks, memory, private, row


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


def bench_idle(rhumb):
    """Resident memory and CPU of each process of an idle three-node cluster, over 20 s after 5 s of rest."""
    with Cluster(rhumb, 3) as cluster:
        time.sleep(5)
        pids = cluster.pids()
        before = {name: cpu_ticks(pid) for name, pid in pids.items()}
        time.sleep(20)
        per_second = os.sysconf("SC_CLK_TCK") * 20
        used = {name: (cpu_ticks(pid) - before[name]) / per_second * 100 for name, pid in pids.items()}
        agents = [memory(pid) for name, pid in pids.items() if re.fullmatch(r"n\d+", name)]
        row("memory of the control plane, idle", [memory(pids["server"])], "MB", "≤ 60", 1)
        row("memory of a node agent, idle", agents, "MB", "≤ 30", 1)
        own = [private(pid) for name, pid in pids.items() if re.fullmatch(r"n\d+", name)]
        row("of that, not the binary's own pages, which all agents share", own, "MB", "-", 1)
        for name in sorted(pids.keys() - {"server"}):
            if not re.fullmatch(r"n\d+", name):
                row(f"memory of `{name}`, idle", [memory(pids[name])], "MB", "-", 1)
        for name in sorted(pids):
            row(f"CPU of `{name}`, idle", [used[name]], "% of a core", "-", 2)
        row("CPU of everything, idle, three nodes", [sum(used.values())], "% of a core", "≤ 0.5", 2)
