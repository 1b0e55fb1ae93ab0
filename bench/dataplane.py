"""What a connection through a Service costs: a pod, a node that forwards and has the rules, and pods that answer.

Three namespaces for each way of having rules: a client, a node, a server with four addresses. *Direct* is the same three
without any rule, in turn to the same four addresses; *pod address* is the same node with Rhumb's rules, past the Service. *Mode ebpf* is the same with the programs at the client's sockets and at both links.
Every server has two listeners for each address. Connects are timed one after another; new connections a second are of
eight clients at once. The ways take turns, and each round's figures are divided by its own *direct*.
"""

import contextlib
import tempfile

import peers
import rules
from lab import ebpf_place, netns, process, row, run, succeeds, tool, until

CLIENT, SERVERS = "10.191.1.2", [f"10.191.2.{host}" for host in range(2, 6)]
CONNECTS = 4000
CLIENTS = 8
ROUNDS = 7


@contextlib.contextmanager
def triple(name):
    """A client, a node and a server, linked as pods are; gives the words to run in each."""
    with netns(f"{name}-c", f"{name}-n", f"{name}-s") as (client, node, server):
        node_name = node[1].rsplit("/", 1)[1]
        for side, inside in (("c", client), ("s", server)):
            there, link = inside[1].rsplit("/", 1)[1], f"pod-{side}"
            run("ip", "-n", node_name, "link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", there)
            run("ip", "-n", node_name, "link", "set", link, "up")
            run("ip", "-n", there, "link", "set", "eth0", "up")
            subnet = "10.191.1" if side == "c" else "10.191.2"
            run("ip", "-n", node_name, "addr", "add", f"{subnet}.1/24", "dev", link)
            for address in [CLIENT] if side == "c" else SERVERS:
                run("ip", "-n", there, "addr", "add", f"{address}/24", "dev", "eth0")
            run("ip", "-n", there, "route", "add", "default", "via", f"{subnet}.1")
        run(*node, "sysctl", "-qw", "net.ipv4.ip_forward=1")
        yield client, node, server


@contextlib.contextmanager
def answering(ways, words):
    """A server in every way's server namespace."""
    with contextlib.ExitStack() as stack:
        for client, _, server in ways.values():
            stack.enter_context(process(*server, *words))
            until("the server", lambda client=client: succeeds(*client, "bash", "-c", f"exec 3<>/dev/tcp/{SERVERS[0]}/8080"))
        yield


SWALLOW = """
import socket, threading
def swallow(stream):
    chunk = bytearray(1 << 18)
    while stream.recv_into(chunk): pass
listener = socket.create_server(("0.0.0.0", 8080))
while True: threading.Thread(target=swallow, args=[listener.accept()[0]], daemon=True).start()
"""


def load_tool(node, words, text):
    with tempfile.NamedTemporaryFile("w", prefix="rhumb-bench-") as source:
        source.write(text)
        source.flush()
        run(*node, peers.command(words[0]), *words[1:], source.name, env=peers.environment())


def bench_dataplane(rhumb):
    """TCP connect, new connections a second and throughput through a ClusterIP, relative to direct in the same round."""
    program, proxy = tool(rhumb, "bench_net"), tool(rhumb, "bench_proxy")
    for services in (10, 1000, 10_000):
        with contextlib.ExitStack() as stack:
            ways = {}
            for name in ("direct", "rhumb", "ebpf", "iptables-nft", "iptables-legacy", "nft-chains"):
                ways[name] = stack.enter_context(triple(name[:10]))
            run(*ways["rhumb"][1], proxy, "load", services, *SERVERS)
            pins, group, inside = stack.enter_context(ebpf_place("connect", proxy))
            client, node, server = ways["ebpf"]
            run(*node, proxy, "ebpf", "load", services, pins, group, client[1].split("=", 1)[1], CLIENT, *SERVERS)
            ways["ebpf"] = ([*client, *inside], node, server)
            load_tool(ways["iptables-nft"][1], ["iptables-nft-restore"], rules.iptables(services, 4, SERVERS))
            load_tool(ways["iptables-legacy"][1], ["iptables-legacy-restore"], rules.iptables(services, 4, SERVERS))
            load_tool(ways["nft-chains"][1], ["nft", "-f"], rules.nft(services, 4, SERVERS))
            measure(services, ways, program)


def measure(services, ways, program):
    latency, rate, bulk = ({name: [] for name in [*ways, "pod address"]} for _ in range(3))
    direct = [f"{address}:8080" for address in SERVERS]
    service = [f"{rules.service(services // 2)}:80"]
    places = {name: (client, direct if name == "direct" else service) for name, (client, *_) in ways.items()}
    places["pod address"] = (ways["rhumb"][0], direct)
    with answering(ways, [program, "serve", *direct]):
        for name, (client, at) in places.items():
            run(*client, program, "connect", 500, *at)
        for _ in range(ROUNDS):
            for name, (client, at) in places.items():
                latency[name].append(float(run(*client, program, "connect", CONNECTS, *at).split()[1]))
            for name, (client, at) in places.items():
                rate[name].append(float(run(*client, program, "rate", CLIENTS, 1000, *at).split()[1]))
    with answering(ways, ["python3", "-c", SWALLOW]):
        for _ in range(ROUNDS):
            for name, (client, at) in places.items():
                bulk[name].append(float(run(*client, program, "bulk", at[0], 1).split()[1]))
    for what, found, target, fast in (("TCP connect p50, relative to direct", latency, "≤ 1.25", "≤ 1.05"),
                                      ("new connections a second, relative to direct", rate, "≥ 0.85", "≥ 0.95"),
                                      ("throughput of one connection, relative to direct", bulk, "-", "-")):
        ratios = {name: [value / base for value, base in zip(values, found["direct"])] for name, values in found.items()}
        own, led = ratios.pop("rhumb"), ratios.pop("ebpf")
        ratios.pop("direct")
        row(f"{services:,} Services: {what}", own, "×", target, 2, **ratios)
        row(f"{services:,} Services, mode ebpf: {what}", led, "×", fast, 2, nftables=own)
    row(f"{services:,} Services: TCP connect p50", latency["rhumb"], "µs", "-", 1, direct=latency["direct"])
    row(f"{services:,} Services: new connections, {CLIENTS} clients", rate["rhumb"], "/s", "-", 0, direct=rate["direct"])
    row(f"{services:,} Services: throughput of one connection", bulk["rhumb"], "MB/s", "-", 0, direct=bulk["direct"])
