"""Programming the proxy's rules, beside the tools that kube-proxy's modes drive, with a chain for each Service."""

import json
import statistics
import subprocess
import tempfile
import time

import peers
import rules
from lab import ebpf_place, netns, row, run, tool

# Services, endpoints of each, rounds; peers' rounds (a peer that needs minutes is asked once).
SIZES = [(10, 4, 5, 3), (1000, 4, 5, 3), (10_000, 4, 5, 1), (40_000, 4, 3, 0), (5000, 50, 3, 1)]
PATIENCE = 180
PEERS = {
    "iptables-nft": (["iptables-nft-restore"], ["iptables-nft-restore", "--noflush"], rules.iptables, rules.iptables_change),
    "iptables-legacy": (["iptables-legacy-restore"], ["iptables-legacy-restore", "--noflush"], rules.iptables, rules.iptables_change),
    "nft -f": (["nft", "-f"], ["nft", "-f"], rules.nft, rules.nft_change),
}


def timed(inside, words, text):
    """Seconds that a tool needs for a rule set from a file; nothing when it needs more than the patience."""
    with tempfile.NamedTemporaryFile("w", prefix="rhumb-bench-") as source:
        source.write(text)
        source.flush()
        begun = time.monotonic()
        try:
            run(*inside, peers.command(words[0]), *words[1:], source.name, env=peers.environment(), timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            return None
        return time.monotonic() - begun


def peer(name, services, endpoints):
    """Seconds for the first programming, and the median of single changes in milliseconds."""
    first, again, whole, change = PEERS[name]
    with netns("rules") as (inside,):
        loaded = timed(inside, first, whole(services, endpoints))
        if loaded is None:
            return None
        number = services // 2
        changes = [timed(inside, again, change(number, rules.pods(number, endpoints - attempt % 2))) for attempt in range(5)]
        return loaded, statistics.median(changes) * 1000


def bench_proxy(rhumb):
    """Objects in memory until the kernel has everything, one changed endpoint, takeover after a restart, memory."""
    program = tool(rhumb, "bench_proxy")
    for services, endpoints, rounds, peer_rounds in SIZES:
        own, led, others, late = [], [], {name: [] for name in PEERS}, []
        chained = {"nft": [], "legacy": []}
        for attempt in range(max(rounds, peer_rounds)):
            if attempt < rounds:
                with netns("rules") as (inside,):
                    own.append(json.loads(run(*inside, program, "measure", services, endpoints)))
                with netns("rules") as (inside,), ebpf_place("rules", program) as (pins, group, _):
                    led.append(json.loads(run(*inside, program, "ebpf", "measure", services, endpoints, pins, group)))
            for backend, found in chained.items() if attempt < 1 and services <= 1000 else ():
                with netns("rules") as (inside,):
                    found.append(json.loads(run(*inside, program, "iptables", backend, "measure", services, endpoints)))
            for name in PEERS if attempt < peer_rounds else ():
                found = peer(name, services, endpoints)
                others[name].append(found) if found else late.append(name)
        if late:
            print(f"more than {PATIENCE} s, ended: {', '.join(late)}")
        what = f"{services:,} Services × {endpoints}"
        loaded = {name: [found[0] for found in several] for name, several in others.items()}
        changed = {name: [found[1] for found in several] for name, several in others.items()}
        target = {10_000: "≤ 0.15", 5000: "≤ 2"}.get(services, "-")
        row(f"{what}: plan and load everything", [found["load"] for found in own], "s", target, 4, **loaded)
        row(f"{what}: of that, CPU time", [found["load_cpu"] for found in own], "s", "-", 4)
        row(f"{what}: one endpoint changes, p50", [found["change"] * 1000 for found in own], "ms", "≤ 0.3", 3, **changed)
        row(f"{what}: CPU for that change", [found["change_cpu"] * 1000 for found in own], "ms", "≤ 2", 3)
        row(f"{what}: take over after a restart", [found["takeover"] for found in own], "s", "-", 4)
        row(f"{what}: memory added", [found["memory_kib"] / 1000 for found in own], "MB", "≤ 60" if services == 10_000 else "-", 1)
        what += ", mode ebpf (nftables underneath)"
        row(f"{what}: plan and load everything", [found["load"] for found in led], "s", target, 4, nftables=[found["load"] for found in own])
        row(f"{what}: one endpoint changes, p50", [found["change"] * 1000 for found in led], "ms", "≤ 0.3", 3, nftables=[found["change"] * 1000 for found in own])
        row(f"{what}: CPU for that change", [found["change_cpu"] * 1000 for found in led], "ms", "≤ 2", 3)
        row(f"{what}: take over after a restart", [found["takeover"] for found in led], "s", "-", 4)
        row(f"{what}: memory added", [found["memory_kib"] / 1000 for found in led], "MB", "≤ 60" if services == 10_000 else "-", 1)
        for backend, found in chained.items():
            if found:
                name = f"iptables-{backend}"
                also = f"{services:,} Services × {endpoints}, mode iptables ({backend})"
                row(f"{also}: plan and load everything", [one["load"] for one in found], "s", "-", 4, **{f"{name}-restore": loaded[name]})
                row(f"{also}: one endpoint changes, p50", [one["change"] * 1000 for one in found], "ms", "-", 3, **{f"{name}-restore": changed[name]})
