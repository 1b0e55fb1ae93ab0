//! A node's agent is killed again and again while Services change: its rules are right each time it is back, and
//! connections stay. With `RHUMB_KILLS=100` so often in every mode.

use std::net::SocketAddr;
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use testkit::lab::Lab;
use testkit::load::{Held, ask_each};

const BINARY: &str = env!("CARGO_BIN_EXE_rhumb");

const PODS: &str = r"
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
      containers:
      - {name: web, image: 'mycompany/web-app:latest', imagePullPolicy: IfNotPresent, ports: [{containerPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {type: NodePort, selector: {app: web}, ports: [{port: 80, targetPort: 8080, nodePort: 30080}]}
";
/// Whose processes eBPF programs lead.
const INSIDE: &str = r"
apiVersion: v1
kind: Pod
metadata: {name: inside, labels: {app: inside}}
spec:
  terminationGracePeriodSeconds: 0
  nodeName: n1
  containers: [{name: c, image: 'tools:latest', imagePullPolicy: IfNotPresent}]
";
/// Services whose one endpoint changes with every kill.
const SERVICES: usize = 20;
/// nginx ends a connection after 1,000 requests: far more than are asked in this time.
const PAUSE: Duration = Duration::from_millis(300);

/// Asks for `/` again and again over one connection, until it is lost.
const HOLD: &str = "
import socket, sys, time
one = socket.create_connection((sys.argv[1], 80), 5)
while True:
    one.sendall(b'GET / HTTP/1.1\\r\\nHost: load\\r\\n\\r\\n')
    if not one.recv(4096).startswith(b'HTTP/1.1 200'):
        sys.exit('it is lost')
    time.sleep(0.3)
";

/// A pod's name and address.
type Place = (String, String);

/// The agent of n1, started and killed by this test and nobody else.
struct Agent {
    words: Vec<std::ffi::OsString>,
    netns: PathBuf,
    child: Option<Child>,
}

impl Agent {
    /// Takes the agent over from the lab's supervisor, which is killed: the lab's processes do not depend on it.
    fn take_over(lab: &Lab) -> Result<Self> {
        kill(Pid::from_raw(lab.pid("supervisor")?), Signal::SIGKILL)?;
        let pid = lab.pid("n1")?;
        let line = std::fs::read(format!("/proc/{pid}/cmdline"))?;
        let words = line.split(|byte| *byte == 0).filter(|word| !word.is_empty());
        let words = words.map(|word| std::ffi::OsString::from_vec(word.to_vec())).collect();
        kill(Pid::from_raw(pid), Signal::SIGKILL)?;
        let netns = PathBuf::from(format!("/run/netns/rhumb-{}-n1", lab.name()));
        let mut agent = Self { words, netns, child: None };
        agent.start()?;
        Ok(agent)
    }

    fn start(&mut self) -> Result<()> {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.netns.display())).args(&self.words);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        self.child = Some(command.spawn()?);
        Ok(())
    }

    fn kill(&mut self) -> Result<()> {
        if let Some(mut child) = self.child.take() {
            child.kill()?;
            child.wait()?;
        }
        Ok(())
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.kill();
    }
}

/// Who asks the Services of n1.
enum Asker {
    /// The node itself.
    Node(PathBuf),
    /// A process like a pod's: in its network namespace and its control group.
    Pod { netns: PathBuf, group: PathBuf },
}

impl Asker {
    /// The pod `inside`.
    fn inside(lab: &Lab) -> Result<Self> {
        lab.apply(INSIDE)?;
        lab.ready("app=inside", 1)?;
        let netns = lab.pod_netns("inside")?;
        let mounts = std::fs::read_to_string("/proc/mounts")?;
        let words = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
        let mut roots =
            words.filter(|words| words[2] == "cgroup2").map(|words| words[1].to_owned());
        let root = roots.next_back().context("there is no unified hierarchy")?;
        let inode = std::fs::metadata(&netns)?.ino();
        let group = std::fs::read_dir("/proc")?.flatten().find_map(|process| {
            let own = std::fs::metadata(process.path().join("ns/net")).ok()?.ino();
            let groups = std::fs::read_to_string(process.path().join("cgroup")).ok()?;
            let group = groups.lines().find_map(|line| line.strip_prefix("0::/"))?;
            (own == inode && !group.is_empty()).then(|| Path::new(&root).join(group))
        });
        Ok(Self::Pod { netns, group: group.context("the pod has no process")? })
    }

    /// Answers with their heads, or what else became of each question.
    fn ask(&self, addresses: &[SocketAddr]) -> Result<Vec<Result<String>>> {
        if let Self::Node(netns) = self {
            return ask_each(netns, addresses);
        }
        let mut command = self.command(&["curl", "-si", "-m", "2", "-w", END])?;
        command.args(addresses.iter().map(|address| format!("http://{address}/")));
        let output = command.output()?.stdout;
        let all = String::from_utf8_lossy(&output);
        let all: Vec<_> = all.split(END).map(|one| Ok(one.to_owned())).collect();
        ensure!(all.len() > addresses.len(), "{} answers", all.len());
        Ok(all)
    }

    /// A command of its own.
    fn command(&self, words: &[&str]) -> Result<Command> {
        let Self::Pod { netns, group } = self else { bail!("the node's own are asked directly") };
        let mut command = Command::new("sh");
        command.args(["-c", "echo $$ > \"$0\"/cgroup.procs && exec \"$@\""]);
        command.arg(group).arg("nsenter").arg(format!("--net={}", netns.display())).args(words);
        Ok(command)
    }
}

/// After each answer.
const END: &str = "<end>";

/// A connection of a pod's process, which is gone when the connection is.
struct Led(Child);

impl Led {
    fn hold(asker: &Asker, to: SocketAddr) -> Result<Self> {
        let mut command = asker.command(&["python3", "-c", HOLD])?;
        Ok(Self(command.arg(to.ip().to_string()).stdin(Stdio::null()).spawn()?))
    }

    fn end(mut self) -> Result<()> {
        ensure!(self.0.try_wait()?.is_none(), "a connection that was led at its socket is lost");
        Ok(())
    }
}

impl Drop for Led {
    fn drop(&mut self) {
        let _ = self.0.kill().and_then(|()| self.0.wait());
    }
}

/// Fails unless eBPF programs of n1 have led a connection.
fn is_led(lab: &Lab) -> Result<()> {
    let text = lab.within("n1", &["curl", "-sf", "http://127.0.0.1:10249/metrics"])?;
    let name = "kubeproxy_ebpf_connections_total{ip_family=\"IPv4\"} ";
    let count = text.lines().find_map(|line| line.strip_prefix(name)).context("no count")?;
    ensure!(count.trim().parse::<u64>()? > 0, "none was");
    Ok(())
}

/// How often the agent is killed, where the environment does not say.
fn kills(few: u32) -> u32 {
    std::env::var("RHUMB_KILLS").ok().and_then(|text| text.parse().ok()).unwrap_or(few)
}

fn services() -> Value {
    let one = |number: usize| {
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": format!("turn-{number}")},
            "spec": {"ports": [{"port": 80, "targetPort": 8080}]}})
    };
    json!({"apiVersion": "v1", "kind": "List", "items": (0..SERVICES).map(one).collect::<Vec<_>>()})
}

/// Where Service `number` leads in a round.
fn place(places: &[Place], number: usize, round: u32) -> &Place {
    &places[(number + round as usize) % places.len()]
}

fn slices(places: &[Place], round: u32) -> Value {
    let one = |number: usize| {
        let (_, address) = place(places, number, round);
        json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"name": format!("turn-{number}"), "labels": {"kubernetes.io/service-name": format!("turn-{number}")}},
            "ports": [{"port": 8080}], "endpoints": [{"addresses": [address]}]})
    };
    json!({"apiVersion": "v1", "kind": "List", "items": (0..SERVICES).map(one).collect::<Vec<_>>()})
}

/// Fails unless every Service leads where it should in this round.
fn right(asker: &Asker, addresses: &[SocketAddr], places: &[Place], round: u32) -> Result<()> {
    for (number, answer) in asker.ask(addresses)?.into_iter().take(SERVICES).enumerate() {
        let (pod, _) = place(places, number, round);
        let answer = answer.with_context(|| format!("Service turn-{number}"))?;
        ensure!(answer.contains(pod.as_str()), "turn-{number} must lead to {pod}: {answer}");
    }
    Ok(())
}

#[test]
fn an_agent_killed_a_hundred_times_finds_its_way_back() -> Result<()> {
    kill_again_and_again("nftables", kills(100))
}

#[test]
fn an_agent_of_mode_iptables_that_is_killed_finds_its_way_back() -> Result<()> {
    kill_again_and_again("iptables", kills(10))
}

#[test]
fn an_agent_of_mode_ebpf_that_is_killed_finds_its_way_back() -> Result<()> {
    kill_again_and_again("ebpf", kills(10))
}

/// The pods, and the Services' addresses.
fn set_up(lab: &Lab) -> Result<(Vec<Place>, Vec<SocketAddr>)> {
    lab.apply(PODS)?;
    lab.ready("app=web", 3)?;
    lab.apply(&services().to_string())?;
    let found = lab.get(&["pods", "-l", "app=web"])?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let pods = found["items"].as_array().into_iter().flatten();
    let places: Vec<Place> =
        pods.map(|pod| (text(&pod["metadata"]["name"]), text(&pod["status"]["podIP"]))).collect();
    let addresses: Vec<SocketAddr> = (0..SERVICES)
        .map(|number| {
            let address = lab.value(&format!("svc/turn-{number}"), "{.spec.clusterIP}")?;
            Ok(format!("{address}:80").parse()?)
        })
        .collect::<Result<_>>()?;
    Ok((places, addresses))
}

#[expect(clippy::print_stderr, reason = "a figure that no test may demand")]
fn kill_again_and_again(mode: &str, kills: u32) -> Result<()> {
    let flags = ["--nodes", "2", "--proxy-mode", mode];
    let lab = Lab::up_flagged(BINARY, &["web-app", "tools"], &flags)?;
    let (places, addresses) = set_up(&lab)?;
    let namespace = |part: &str| PathBuf::from(format!("/run/netns/rhumb-{}-{part}", lab.name()));
    let node = namespace("n1");
    let asker = if mode == "ebpf" { Asker::inside(&lab)? } else { Asker::Node(node.clone()) };
    let round = |round| lab.apply(&slices(&places, round).to_string());
    round(0)?;
    lab.eventually("Services lead somewhere", || right(&asker, &addresses, &places, 0))?;

    let service: SocketAddr =
        format!("{}:80", lab.value("svc/web", "{.spec.clusterIP}")?).parse()?;
    let node_port: SocketAddr =
        format!("{}:30080", lab.value("node/n1", "{.status.addresses[0].address}")?).parse()?;
    let held = [
        ("from the node", Held::start(&node, service, PAUSE)?),
        ("from outside", Held::start(&namespace("client"), node_port, PAUSE)?),
    ];
    let led = (mode == "ebpf").then(|| Led::hold(&asker, service)).transpose()?;
    let mut agent = Agent::take_over(&lab)?;
    let mut slowest = Duration::ZERO;
    for number in 1..=kills {
        let manifest = slices(&places, number).to_string();
        let mut change = lab.kubectl_command(&["apply", "-f", "-"]);
        change.stdin(Stdio::piped()).stdout(Stdio::null());
        let mut change = change.spawn()?;
        let mut input = change.stdin.take().context("it was piped")?;
        std::io::Write::write_all(&mut input, manifest.as_bytes())?;
        drop(input);
        // Somewhere between the first of the changes and long after the last.
        std::thread::sleep(Duration::from_millis(u64::from(number * 37 % 250)));
        agent.kill()?;
        let begun = Instant::now();
        agent.start()?;
        ensure!(change.wait()?.success(), "the change was refused");
        lab.eventually(&format!("rules are right after kill {number}"), || {
            right(&asker, &addresses, &places, number)
        })?;
        slowest = slowest.max(begun.elapsed());
    }
    let slowest = slowest.as_millis();
    eprintln!("{mode}: {kills} kills; rules were right after {slowest} ms at most");
    if let Some(led) = led {
        led.end()?;
        lab.eventually("connections were led at their sockets", || is_led(&lab))?;
    }
    for (what, connection) in held {
        let answers = connection.end().with_context(|| format!("the connection {what}"))?;
        ensure!(answers > 0, "the connection {what} was not used");
    }
    Ok(())
}
