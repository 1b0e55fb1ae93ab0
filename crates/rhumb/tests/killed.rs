//! A node's agent is killed again and again while Services change: its rules are right each time it is back, and
//! connections stay.

use std::net::SocketAddr;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
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
const KILLS: u32 = 100;
/// Services whose one endpoint changes with every kill.
const SERVICES: usize = 20;
/// nginx ends a connection after 1,000 requests: far more than are asked in this time.
const PAUSE: Duration = Duration::from_millis(300);

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
fn right(netns: &Path, addresses: &[SocketAddr], places: &[Place], round: u32) -> Result<()> {
    for (number, answer) in ask_each(netns, addresses)?.into_iter().enumerate() {
        let (pod, _) = place(places, number, round);
        let answer = answer.with_context(|| format!("Service turn-{number}"))?;
        ensure!(answer.contains(pod.as_str()), "turn-{number} must lead to {pod}: {answer}");
    }
    Ok(())
}

#[expect(clippy::print_stderr, reason = "a figure that no test may demand")]
#[test]
fn an_agent_killed_a_hundred_times_finds_its_way_back() -> Result<()> {
    let lab = Lab::up(BINARY, 2, &["web-app"])?;
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
    let namespace = |part: &str| PathBuf::from(format!("/run/netns/rhumb-{}-{part}", lab.name()));
    let node = namespace("n1");
    let round = |round| lab.apply(&slices(&places, round).to_string());
    round(0)?;
    lab.eventually("Services lead somewhere", || right(&node, &addresses, &places, 0))?;

    let service: SocketAddr =
        format!("{}:80", lab.value("svc/web", "{.spec.clusterIP}")?).parse()?;
    let node_port: SocketAddr =
        format!("{}:30080", lab.value("node/n1", "{.status.addresses[0].address}")?).parse()?;
    let held = [
        ("from the node", Held::start(&node, service, PAUSE)?),
        ("from outside", Held::start(&namespace("client"), node_port, PAUSE)?),
    ];
    let mut agent = Agent::take_over(&lab)?;
    let mut slowest = Duration::ZERO;
    for number in 1..=KILLS {
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
        agent.start()?;
        ensure!(change.wait()?.success(), "the change was refused");
        let begun = Instant::now();
        lab.eventually(&format!("rules are right after kill {number}"), || {
            right(&node, &addresses, &places, number)
        })?;
        slowest = slowest.max(begun.elapsed());
    }
    eprintln!("{KILLS} kills; rules were right after {} ms at most", slowest.as_millis());
    for (what, connection) in held {
        let answers = connection.end().with_context(|| format!("the connection {what}"))?;
        ensure!(answers > 0, "the connection {what} was not used");
    }
    Ok(())
}
