"""What a connection through a Service costs: a pod, a node that forwards and has the rules, and pods that answer.

Three namespaces for each way of having rules: a client, a node, a server with four addresses, linked as pods are. *Direct* is
the same three without any rule, in turn to the same four addresses; *pod address* is the node of mode nftables, past the
Service. Modes are Rhumb's, loaded by its proxy; peers are the tools that kube-proxy's modes drive, with its chains. Every
server has two listeners for each address. Connects and round trips are timed one after another; new connections are of eight
clients at once, and the CPU for one is the whole machine's. The ways take turns, and each round's figures are divided by its
own *direct*.
"""

import contextlib
import tempfile
import time

import peers
import rules
from lab import ebpf_place, machine_busy, netns, process, row, run, succeeds, tool, until

CLIENT, NODE, SERVERS = "10.191.1.2", "10.191.1.1", [f"10.191.2.{host}" for host in range(2, 6)]
CONNECTS = 4000
CLIENTS = 8
ROUNDS = 7
MODES = ("nftables", "ebpf", "iptables nft", "iptables legacy")
PEERS = {
    "iptables-nft": (["iptables-nft-restore"], rules.iptables),
    "iptables-legacy": (["iptables-legacy-restore"], rules.iptables),
    "nft-chains": (["nft", "-f"], rules.nft),
}
CONNECT, RATE, WORK, ROUND, BULK = "TCP connect p50", "new connections", "CPU for a connection", "round trip p50", "throughput"
# Of each, the unit and the targets of modes, relative to direct.
TARGETS = {
    CONNECT: ("µs", {"nftables": "≤ 1.25", "ebpf": "≤ 1.05"}),
    RATE: ("/s", {"nftables": "≥ 0.85", "ebpf": "≥ 0.95"}),
    WORK: ("µs", {}),
    ROUND: ("µs", {}),
    BULK: ("MB/s", {}),
}


@contextlib.contextmanager
def triple(name, client_link="pod-c"):
    """A client, a node and a server, linked as pods are; gives the words to run in each."""
    with netns(f"{name}-c", f"{name}-n", f"{name}-s") as (client, node, server):
        node_name = node[1].rsplit("/", 1)[1]
        for side, inside in (("c", client), ("s", server)):
            there, link = inside[1].rsplit("/", 1)[1], client_link if side == "c" else "pod-s"
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
    """TCP connect, new connections, round trips and throughput through a ClusterIP in every mode, relative to direct in the same round."""
    program, proxy = tool(rhumb, "bench_net"), tool(rhumb, "bench_proxy")
    for services in (10, 1000, 10_000):
        with contextlib.ExitStack() as stack:
            ways = {name: stack.enter_context(triple(f"way{number}")) for number, name in enumerate(("direct", *MODES, *PEERS))}
            run(*ways["nftables"][1], proxy, "load", services, *SERVERS)
            for backend in ("nft", "legacy"):
                run(*ways[f"iptables {backend}"][1], proxy, "iptables", backend, "load", services, *SERVERS, env=peers.environment())
            pins, group, inside = stack.enter_context(ebpf_place("connect", proxy))
            client, node, server = ways["ebpf"]
            run(*node, proxy, "ebpf", "load", services, pins, group, client[1].split("=", 1)[1], CLIENT, *SERVERS)
            ways["ebpf"] = ([*client, *inside], node, server)
            for name, (words, make) in PEERS.items():
                load_tool(ways[name][1], words, make(services, 4, SERVERS))
            measure(services, ways, program)


def per_connection(words):
    """Connections a second, and the machine's work for one, in microseconds: of both ends and all between."""
    begun, busy = time.monotonic(), machine_busy()
    rate = float(run(*words).split()[1])
    return rate, (machine_busy() - busy) * 1e6 / (rate * (time.monotonic() - begun))


def measure_new(found, ways, places, program):
    """Connects one after another, and connections of several clients at once, from each place in turn."""
    with answering(ways, [program, "serve", *(f"{address}:8080" for address in SERVERS)]):
        for client, at in places.values():
            run(*client, program, "connect", 500, *at)
        for _ in range(ROUNDS):
            for name, (client, at) in places.items():
                found[CONNECT][name].append(float(run(*client, program, "connect", CONNECTS, *at).split()[1]))
            for name, (client, at) in places.items():
                rate, work = per_connection([*client, program, "rate", CLIENTS, 1000, *at])
                found[RATE][name].append(rate)
                found[WORK][name].append(work)


def measure(services, ways, program):
    found = {what: {name: [] for name in [*ways, "pod address"]} for what in TARGETS}
    direct = [f"{address}:8080" for address in SERVERS]
    service = [f"{rules.service(services // 2)}:80"]
    places = {name: (client, direct if name == "direct" else service) for name, (client, *_) in ways.items()}
    places["pod address"] = (ways["nftables"][0], direct)
    measure_new(found, ways, places, program)
    with answering(ways, [program, "echo", *direct]):
        for _ in range(ROUNDS):
            for name, (client, at) in places.items():
                found[ROUND][name].append(float(run(*client, program, "rounds", CONNECTS, at[0]).split()[1]))
    with answering(ways, ["python3", "-c", SWALLOW]):
        for _ in range(ROUNDS):
            for name, (client, at) in places.items():
                found[BULK][name].append(float(run(*client, program, "bulk", at[0], 1).split()[1]))
    for what, values in found.items():
        tell(f"{services:,} Services", what, values)


def tell(where, what, found):
    """A row for each mode: its ratios to direct, beside those of the peers; and what direct was."""
    unit, targets = TARGETS[what]
    ratios = {name: [value / base for value, base in zip(values, found["direct"])] for name, values in found.items()}
    others = {name: ratios[name] for name in ("pod address", *PEERS)}
    for mode in MODES:
        row(f"{where}, {mode}: {what}, relative to direct", ratios[mode], "×", targets.get(mode, "-"), 2, **others)
        others = {}
    row(f"{where}: {what}, direct", found["direct"], unit, "-", 1)


def bench_outside(rhumb):
    """TCP connect and new connections of a client outside through a node port, masqueraded, beside direct in the same round."""
    program, proxy = tool(rhumb, "bench_net"), tool(rhumb, "bench_proxy")
    with contextlib.ExitStack() as stack:
        ways = {name: stack.enter_context(triple(f"out{number}", "wan")) for number, name in enumerate(("direct", "nftables", "ebpf"))}
        pins, group, _ = stack.enter_context(ebpf_place("outside", proxy))
        for mode in ("nftables", "ebpf"):
            run(*ways[mode][1], proxy, "outside", mode, 1000, pins, group, NODE, *SERVERS)
        direct, port = [f"{address}:8080" for address in SERVERS], [f"{NODE}:30080"]
        places = {name: (client, direct if name == "direct" else port) for name, (client, *_) in ways.items()}
        found = {what: {name: [] for name in ways} for what in (CONNECT, RATE, WORK)}
        measure_new(found, ways, places, program)
    for what, values in found.items():
        ratios = {name: [value / base for value, base in zip(values[name], values["direct"])] for name in ("nftables", "ebpf")}
        row(f"node port from outside, ebpf: {what}, relative to direct", ratios["ebpf"], "×", "-", 2, nftables=ratios["nftables"])
        row(f"node port from outside: {what}, direct", values["direct"], TARGETS[what][0], "-", 1)
