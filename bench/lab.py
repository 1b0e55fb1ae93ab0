"""What every benchmark uses: commands, clusters, namespaces, CPU and memory of processes, and the table of results."""

import contextlib
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


def spread(values, digits):
    """Median, and between which values it lies."""
    values = sorted(values)
    return f"{statistics.median(values):.{digits}f} ({values[0]:.{digits}f}-{values[-1]:.{digits}f})"


def missed(value, target):
    """Whether a target of the form `≤ 1.5`, `≥ 3,700` or `0 of …` is missed; others are for people to judge."""
    if target.startswith("0 of"):
        return value > 0
    found = re.match(r"([≤≥]) ([0-9.,]*[0-9])", target)
    if not found:
        return False
    bound = float(found.group(2).replace(",", ""))
    return value > bound if found.group(1) == "≤" else value < bound


def row(what, values, unit, target, digits=3, **peers):
    """A line of the table; `peers` are named lists of the same unit, of the same run. Ratios are of medians, Rhumb's first."""
    own = statistics.median(values)
    peers = {name.replace("_", " "): found for name, found in peers.items() if found}
    beside = ", ".join(f"{name} {spread(found, digits)}" for name, found in peers.items())
    ratios = ", ".join(f"{own / statistics.median(found):.2g} × {name}" for name, found in peers.items() if statistics.median(found))
    verdict = f"{target}: missed" if missed(own, target) else target
    ROWS.append((what, len(values), f"{spread(values, digits)} {unit}", verdict, beside or "-", ratios or "-"))
    print(f"{what}: {spread(values, digits)} {unit}, target {verdict}; {beside or 'no peer'}", flush=True)


def table():
    """The rows since the last call, in Markdown."""
    lines = ["| what | runs | median (min-max) | target | peers, same run | ratio |", "|---|---|---|---|---|---|"]
    lines += ["| " + " | ".join(str(part) for part in found) + " |" for found in ROWS]
    ROWS.clear()
    return "\n".join(lines)


@contextlib.contextmanager
def ebpf_place(name, proxy):
    """A folder for pins and a control group; gone at the end. Gives both, and words that run a command in the group."""
    with open("/proc/mounts", encoding="utf-8") as mounts:
        root = next(line.split()[1] for line in mounts if line.split()[2] == "cgroup2")
    folder, group = tempfile.mkdtemp(prefix="rhumb-bench-"), f"rhumb-bench-{os.getpid()}-{name}"
    pins = os.path.join(folder, "bpf")
    try:
        yield pins, group, ["sh", "-c", f'echo $$ > {root}/{group}/cgroup.procs; exec "$@"', "sh"]
    finally:
        run(proxy, "ebpf", "leave", pins)
        shutil.rmtree(folder)
        if os.path.isdir(f"{root}/{group}"):
            os.rmdir(f"{root}/{group}")


class Cluster:
    """A cluster of its own name and folder; gone at the end."""

    def __init__(self, rhumb, nodes, name="bench", flags=()):
        self.rhumb, self.name, self.flags = rhumb, name, flags
        self.folder = tempfile.mkdtemp(prefix="rhumb-bench-")
        self.nodes = nodes

    def call(self, *args, **options):
        return run(self.rhumb, *args, "--name", self.name, "--data-dir", self.folder, **options)

    def __enter__(self):
        self.started = time.monotonic()
        self.output = self.call("up", "--detach", "--nodes", self.nodes, *self.flags)
        self.kubeconfig = os.path.join(self.folder, self.name, "kubeconfig")
        return self

    def __exit__(self, *_):
        self.call("down")
        shutil.rmtree(self.folder, ignore_errors=True)

    @staticmethod
    def image_folder(name):
        """An image of the examples, built when it is not there yet."""
        cache = pathlib.Path(os.environ.get("RHUMB_CACHE", pathlib.Path.home() / ".cache/rhumb")) / "images"
        if not (cache / name).exists():
            run("bash", ROOT / "examples/images/build.sh", cache)
        return cache / name

    def images(self, *names):
        for name in names:
            self.call("images", "import", self.image_folder(name))

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

    def inside(self, host):
        """The words before a command that make it run on a node (`n1`), or on the client host outside (`client`)."""
        return ["nsenter", f"--net=/run/netns/rhumb-{self.name}-{host}"]

    def inside_pod(self, pod):
        uid = self.kubectl("get", "pod", pod, "-o", "jsonpath={.metadata.uid}")
        (found,) = pathlib.Path(self.folder, self.name).glob(f"nodes/*/podnet/{uid}.netns")
        return ["nsenter", f"--net={found}"]

    def pids(self):
        folder = pathlib.Path("/run/rhumb") / self.name
        return {path.stem: int(path.read_text().split()[0]) for path in folder.glob("*.pid")}


def cpu_ticks(pid):
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return int(fields[11]) + int(fields[12])


def memory(pid):
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+)", status).group(1)) / 1000


def private(pid):
    """Megabytes that are no pages of files."""
    rollup = pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text()
    return int(re.search(r"Anonymous:\s+(\d+)", rollup).group(1)) / 1000


def cpu_seconds(pid):
    return cpu_ticks(pid) / os.sysconf("SC_CLK_TCK")


def machine_busy():
    """Seconds that all processors together have worked, interrupts and other machines' share of ours included."""
    ticks = [int(word) for word in pathlib.Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:8]]
    return (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")


def tool(rhumb, name):
    """A load program of `crates/*/examples`, built beside the binary."""
    found = pathlib.Path(rhumb).resolve().parent / "examples" / name
    if not found.exists():
        sys.exit(f"{found} is missing: `cargo build --release -p client -p node --examples` makes it")
    return str(found)


def services(count, **spec):
    """A List of Services svc-0, svc-1, …"""
    items = [{"apiVersion": "v1", "kind": "Service", "metadata": {"name": f"svc-{n}", "namespace": "default"},
              "spec": {"ports": [{"port": 80}], **spec}} for n in range(count)]
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": items})


@contextlib.contextmanager
def netns(*suffixes):
    """Network namespaces that go at the end; gives the words before a command that make it run there, for each."""
    names = [f"rhumb-bench-{os.getpid()}-{suffix}" for suffix in suffixes]
    try:
        for name in names:
            run("ip", "netns", "add", name)
            run("ip", "-n", name, "link", "set", "lo", "up")
        yield [["nsenter", f"--net=/run/netns/{name}"] for name in names]
    finally:
        for name in names:
            run("ip", "netns", "del", name, check=False)


@contextlib.contextmanager
def process(*command, **options):
    """A process that is ended at the end."""
    child = subprocess.Popen([str(part) for part in command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **options)
    try:
        yield child
    finally:
        child.terminate()
        try:
            child.wait(10)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def until(what, condition, seconds=30):
    """Waits for a condition."""
    begun = time.monotonic()
    while not condition():
        if time.monotonic() - begun > seconds:
            sys.exit(f"{what}: not within {seconds} s")
        time.sleep(0.01)


def succeeds(*command):
    return subprocess.run([str(part) for part in command], check=False, capture_output=True).returncode == 0
