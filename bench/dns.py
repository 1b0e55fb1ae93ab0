"""The cluster DNS beside servers of Debian with the same names."""

import contextlib
import re
import statistics
import tempfile

import peers
from lab import Cluster, cpu_seconds, memory, netns, process, row, run, services, succeeds, tool, until

ZONE = "svc.cluster.local"
COUNT = 200


def zone(addresses):
    head = f"$ORIGIN {ZONE}.\n$TTL 5\n@ IN SOA ns.dns hostmaster 1 7200 1800 86400 5\n@ IN NS ns.dns\nns.dns IN A 127.0.0.1\n"
    return head + "".join(f"{name}.default IN A {address}\n" for name, address in addresses.items())


def configurations(folder, addresses):
    """For each peer its configuration's text and the words that start it."""
    records = "".join(f'  local-data: "{name}.default.{ZONE}. 5 IN A {address}"\n' for name, address in addresses.items())
    return {
        "knot": (f'server:\n  rundir: "{folder}"\n  listen: 127.0.0.1@53\ndatabase:\n  storage: "{folder}/knot-db"\n'
                 f'zone:\n  - domain: {ZONE}\n    file: "{folder}/zone"\n    zonefile-sync: -1\n', ["knotd", "-c"]),
        "unbound": ("server:\n  interface: 127.0.0.1\n  access-control: 127.0.0.0/8 allow\n  username: \"\"\n  chroot: \"\"\n"
                    f"  directory: \"{folder}\"\n  pidfile: \"\"\n  use-syslog: no\n  do-daemonize: no\n  module-config: \"iterator\"\n  local-zone: \"{ZONE}.\" static\n"
                    f"{records}remote-control:\n  control-enable: no\n", ["unbound", "-d", "-c"]),
        "bind": (f'options {{ directory "{folder}"; pid-file none; listen-on {{ 127.0.0.1; }}; listen-on-v6 {{ none; }}; recursion no;\n'
                 f'session-keyfile none; }};\ncontrols {{ }};\nzone "{ZONE}" {{ type primary; file "{folder}/zone"; }};\n', ["named", "-g", "-c"]),
    }


@contextlib.contextmanager
def servers(folder, addresses):
    """Starts every peer on port 53 of a namespace of its own; gives where each is, and its process."""
    with open(f"{folder}/zone", "w", encoding="utf-8") as sink:
        sink.write(zone(addresses))
    known = configurations(folder, addresses)
    with contextlib.ExitStack() as stack:
        places, found = stack.enter_context(netns(*known)), {}
        for inside, (name, (text, (program, *words))) in zip(places, known.items()):
            with open(f"{folder}/{name}.conf", "w", encoding="utf-8") as sink:
                sink.write(text)
            command = [*inside, peers.command(program), *words, f"{folder}/{name}.conf"]
            child = stack.enter_context(process(*command, env=peers.environment()))
            until(name, lambda inside=inside: answers(inside, "127.0.0.1"))
            found[name] = (inside, child.pid, "127.0.0.1")
        yield found


def answers(inside, server):
    probe = [*inside, "dig", "+short", "+time=1", "+tries=1", f"@{server}", f"svc-0.default.{ZONE}", "A"]
    return succeeds(*probe) and run(*probe).strip() != ""


def load(inside, pid, server, names):
    """Queries a second and the server's CPU in microseconds a query, by dnsperf with one thread."""
    before = cpu_seconds(pid)
    output = run(*inside, "dnsperf", "-s", server, "-d", names, "-l", "3", "-T", "1", "-c", "4")
    completed = int(re.search(r"Queries completed:\s+(\d+)", output).group(1))
    if f"NOERROR {completed} " not in output:
        raise SystemExit(output)
    return float(re.search(r"Queries per second:\s+([0-9.]+)", output).group(1)), (cpu_seconds(pid) - before) / completed * 1e6


def bench_dns(rhumb):
    """CPU a query and queries a second by dnsperf (one thread, 4 clients), beside knot, unbound and bind, in turn."""
    program = tool(rhumb, "bench_net")
    with Cluster(rhumb, 1) as cluster, tempfile.TemporaryDirectory(prefix="rhumb-bench-") as folder:
        run("chmod", "755", folder)
        cluster.kubectl("create", "--validate=false", "-f", "-", input=services(COUNT, selector={"app": "web"}))
        listed = cluster.kubectl("get", "svc", "-o", "jsonpath={range .items[*]}{.metadata.name} {.spec.clusterIP}{'\\n'}{end}")
        addresses = dict(line.split() for line in listed.splitlines() if line.startswith("svc-"))
        names = f"{folder}/names"
        with open(names, "w", encoding="utf-8") as sink:
            sink.write("".join(f"{name}.default.{ZONE} A\n" for name in addresses))
        with servers(folder, addresses) as found:
            found = {"rhumb": (cluster.inside("n1"), cluster.pids()["n1"], "10.96.0.10"), **found}
            idle = {name: memory(pid) for name, (_, pid, _) in found.items()}
            rates, micros, tails, middles = ({name: [] for name in found} for _ in range(4))
            for _ in range(5):
                for name, (inside, pid, server) in found.items():
                    rate, cpu = load(inside, pid, server, names)
                    rates[name].append(rate)
                    micros[name].append(cpu)
                    words = run(*inside, program, "ask", f"{server}:53", f"svc-7.default.{ZONE}", 10000).split()
                    middles[name].append(float(words[1]))
                    tails[name].append(float(words[3]))
        for what, values, unit, target, digits in (
                ("cluster DNS: CPU a query", micros, "µs", f"≤ {statistics.median(micros['knot']):.2f} (knot's)", 2), ("cluster DNS: queries answered", rates, "/s", "-", 0),
                ("cluster DNS: one question after another, p50", middles, "µs", "-", 0),
                ("cluster DNS: one question after another, p99", tails, "µs", "≤ 200", 0)):
            row(what, values.pop("rhumb"), unit, target, digits, **values)
        row("memory with the cluster DNS: the whole node agent", [idle.pop("rhumb")], "MB", "-", 1, **{name: [size] for name, size in idle.items()})
