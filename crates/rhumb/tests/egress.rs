//! `--egress`: pods reach what lies beyond this machine under its address, names too; without it nothing gets out.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use testkit::lab::Lab;

const BINARY: &str = env!("CARGO_BIN_EXE_rhumb");

const FORWARD: &str = "/proc/sys/net/ipv4/ip_forward";

/// Beyond the machine: a web server that says who asks, and a resolver that knows one answer.
const BEYOND: &str = r#"
import http.server, socket, threading

def names():
    server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.bind(("203.0.113.2", 53))
    while True:
        query, asker = server.recvfrom(512)
        end = query.index(b"\0", 12) + 5
        answer = b"\xc0\x0c\x00\x01\x00\x01\x00\x00\x00\x3c\x00\x04" + bytes([203, 0, 113, 2])
        server.sendto(query[:2] + b"\x81\x80\x00\x01\x00\x01\x00\x00\x00\x00" + query[12:end] + answer, asker)

class Who(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(self.client_address[0].encode())

threading.Thread(target=names, daemon=True).start()
http.server.HTTPServer(("203.0.113.2", 80), Who).serve_forever()
"#;

/// Two namespaces: one stands for the machine, one for the network beyond it. Both go with the test.
struct World {
    name: String,
    beyond: Option<Child>,
}

fn run(program: &str, args: &[&str]) -> Result<String> {
    let output = Command::new(program).args(args).output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program} {args:?}: {said}");
    Ok(String::from_utf8(output.stdout)?)
}

impl World {
    fn new() -> Result<Self> {
        let name = format!("egress{}", std::process::id());
        let mut world = Self { name, beyond: None };
        let (host, beyond) = (world.netns("host"), world.netns("beyond"));
        for netns in [&host, &beyond] {
            run("ip", &["netns", "add", netns])?;
            run("ip", &["-n", netns, "link", "set", "lo", "up"])?;
        }
        let link = ["link", "add", "out", "type", "veth", "peer", "name", "in", "netns"];
        run("ip", &[&["-n", &host], &link[..], &[beyond.as_str()]].concat())?;
        for (netns, link, address) in
            [(&host, "out", "203.0.113.1/24"), (&beyond, "in", "203.0.113.2/24")]
        {
            run("ip", &["-n", netns, "address", "add", address, "dev", link])?;
            run("ip", &["-n", netns, "link", "set", link, "up"])?;
        }
        run("ip", &["-n", &host, "route", "add", "default", "via", "203.0.113.2"])?;
        world.on_host(&["sh", "-c", &format!("echo 0 > {FORWARD}")])?;
        let mut server = Command::new("ip");
        server.args(["netns", "exec", &beyond, "python3", "-c", BEYOND]);
        world.beyond = Some(server.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?);
        Ok(world)
    }

    fn netns(&self, part: &str) -> String {
        format!("{}-{part}", self.name)
    }

    fn host(&self) -> PathBuf {
        Path::new("/run/netns").join(self.netns("host"))
    }

    fn on_host(&self, command: &[&str]) -> Result<String> {
        let host = self.netns("host");
        run("ip", &[&["netns", "exec", &host], command].concat())
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if let Some(mut server) = self.beyond.take() {
            let _ = server.kill();
            let _ = server.wait();
        }
        for part in ["host", "beyond"] {
            let _ = run("ip", &["netns", "delete", &self.netns(part)]);
        }
    }
}

const POD: &str = r"
apiVersion: v1
kind: Pod
metadata: {name: web, labels: {app: web}}
spec: {containers: [{name: web, image: 'mycompany/web-app:latest'}]}
";

#[test]
fn pods_reach_out_only_when_asked() -> Result<()> {
    let world = World::new()?;
    let resolvers = tempfile::NamedTempFile::new()?;
    fs::write(resolvers.path(), "nameserver 203.0.113.2\n")?;
    let ask = ["curl", "-s", "-m", "2", "http://203.0.113.2/"];

    let closed = Lab::up_on(&world.host(), BINARY, &["web-app"], &[])?;
    closed.apply(POD)?;
    closed.ready("app=web", 1)?;
    ensure!(closed.from_pod("web", &ask).is_err(), "a closed lab lets pods out");
    drop(closed);

    let path = resolvers.path().to_str().context("a path is text")?;
    let flags = ["--nodes", "2", "--egress", "--resolv-conf", path];
    let open = Lab::up_on(&world.host(), BINARY, &["web-app"], &flags)?;
    open.apply(POD)?;
    open.ready("app=web", 1)?;
    let who = open.eventually("a pod reaches out", || open.from_pod("web", &ask))?;
    ensure!(who == "203.0.113.1", "beyond the machine, the machine is seen, not {who}");
    let dig = ["dig", "@10.96.0.10", "+short", "+time=2", "+tries=1", "www.example.com"];
    let found = open.from_pod("web", &dig)?;
    ensure!(found.trim() == "203.0.113.2", "names are asked of the resolvers: {found}");
    let inside = open.from_pod(
        "web",
        &["dig", "@10.96.0.10", "+short", "kubernetes.default.svc.cluster.local"],
    )?;
    ensure!(inside.trim() == "10.96.0.1", "the cluster's own names stay its own: {inside}");
    drop(open);

    let tables = world.on_host(&["nft", "list", "tables"])?;
    ensure!(!tables.contains("rhumb"), "a table stays: {tables}");
    let forwards = world.on_host(&["cat", FORWARD])?;
    ensure!(forwards.trim() == "0", "the machine still forwards");
    Ok(())
}
