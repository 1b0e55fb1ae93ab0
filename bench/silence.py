"""A node's power cut under load: when the last new connection was sent to it, and what it costs that nodes watch each other."""

import ctypes
import pathlib
import re
import socket
import sys
import threading
import time

from lab import Cluster, row, run, until

RUNS = 5
#: From linux/sched.h; Python has it since 3.12. A network namespace is each thread's own.
CLONE_NEWNET = 0x40000000
#: Between two connections; after how long one that is made was tried again, which the kernel does after one second and after three:
#: its first try went to the dead node; and after how long one that is not made is lost.
PAUSE_S, RETRIED_S, PATIENCE_S = 0.004, 0.9, 3.5

WEB = """
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: web}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec: {containers: [{name: web, image: 'nginx:stable', imagePullPolicy: IfNotPresent}]}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{port: 80, targetPort: 80}]}
"""


class Knocks(threading.Thread):
    """New connections at a steady pace from a namespace, whatever became of those before."""

    def __init__(self, netns, to):
        super().__init__(daemon=True)
        self.netns, self.to, self.late, self.lost, self.made, self.ended = netns, to, [], [], 0, False
        self.start()

    def run(self):
        with open(self.netns, encoding="utf-8") as namespace:
            if ctypes.CDLL(None).setns(namespace.fileno(), CLONE_NEWNET) != 0:
                sys.exit(f"cannot enter {self.netns}")
        waiting = []
        while not self.ended or waiting:
            if not self.ended:
                one = socket.socket()
                one.setblocking(False)
                one.connect_ex(self.to)
                waiting.append((time.monotonic(), one))
            waiting = [(at, one) for at, one in waiting if not self.settled(at, one)]
            time.sleep(PAUSE_S)

    def settled(self, at, one):
        try:
            one.getpeername()
        except OSError:
            if time.monotonic() - at < PATIENCE_S:
                return False
            self.lost.append(at)
        else:
            self.made += 1
            if time.monotonic() - at > RETRIED_S:
                self.late.append(at)
        one.close()
        return True

    def end(self):
        self.ended = True
        self.join()


def figure(cluster, node, name):
    """A figure of a node's agent."""
    text = run(*cluster.inside(node), "curl", "-sS", "http://127.0.0.1:10249/metrics")
    return int(re.search(rf"^rhumb_liveness_{name} (\d+)$", text, re.M).group(1))


def bench_silence(rhumb):
    """Dead nodes: last new connection sent to a node without power, and the cost of watching, three nodes."""
    last, back, late, lost = [], [], [], []
    with Cluster(rhumb, 3) as cluster:
        cluster.images("nginx")
        cluster.kubectl("apply", "-f", "-", input=WEB)
        cluster.kubectl("rollout", "status", "daemonset/web", "--timeout=60s")
        address = cluster.kubectl("get", "service", "web", "-o", "jsonpath={.spec.clusterIP}")
        nodes = ["n1", "n2", "n3"]
        until("every node watches", lambda: all(figure(cluster, node, "watched_nodes") == 2 for node in nodes))
        time.sleep(2)
        before, began = figure(cluster, "n1", "sent_bytes_total"), time.monotonic()
        messages = figure(cluster, "n1", "sent_messages_total")
        time.sleep(10)
        took = time.monotonic() - began
        around = 28 * (figure(cluster, "n1", "sent_messages_total") - messages)
        cost = (figure(cluster, "n1", "sent_bytes_total") - before + around) / took
        for _ in range(RUNS):
            knocks = [Knocks(f"/run/netns/rhumb-{cluster.name}-{node}", (address, 80)) for node in nodes[:2]]
            time.sleep(0.5)
            # The link first: nothing that the node still says gets out. Both times have the command's own in them.
            cut = time.monotonic()
            cluster.call("node", "cut", "n3")
            cluster.call("node", "stop", "n3")
            time.sleep(2)
            for one in knocks:
                one.end()
            cluster.call("node", "start", "n3")
            mended = time.monotonic()
            cluster.call("node", "mend", "n3")
            until("the node is used again", lambda: all(figure(cluster, node, "silent_nodes") == 0 for node in nodes[:2]))
            back.append((time.monotonic() - mended) * 1000)
            gone = [at for one in knocks for at in one.late + one.lost if at >= cut]
            last.append((max(gone) - cut) * 1000 if gone else 0)
            late.append(len(gone))
            lost.append(sum(len(one.lost) for one in knocks))
            # Falls that come soon after each other make the way back longer: each run is to be a first one.
            time.sleep(61)
    row("power cut of a node: last new connection sent to it, 3 nodes, 2 clients", last, "ms", "≤ 1,000", 0)
    row("connections whose first try went to it", late, "", "-", 0)
    row("connections lost", lost, "", "-", 0)
    row("link back: used again by all", back, "ms", "-", 0)
    row("watching, bytes a second and node, 3 nodes, with IP and UDP", [cost], "B/s", "-", 0)


if __name__ == "__main__":
    bench_silence(str(pathlib.Path(sys.argv[1])))
