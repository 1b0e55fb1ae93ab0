//! A cluster for one test: the real binary, nodes in namespaces, real containers; gone when the test ends.

use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;
use tempfile::TempDir;

use crate::tools;

/// How long anything may take to become true before the test fails.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(50);

/// A running cluster.
#[derive(Debug)]
pub struct Lab {
    binary: PathBuf,
    kubectl: PathBuf,
    name: String,
    data: TempDir,
    /// The namespace that stands for the machine; none is the machine itself.
    host: Option<PathBuf>,
    /// Takes the cluster down when its standard input ends: when this is dropped, or this process dies.
    undertaker: Option<Child>,
}

impl Lab {
    /// Brings a cluster up with the binary at `binary`, which tests get from Cargo, and images of `examples/images`.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn up(binary: &str, nodes: u32, images: &[&str]) -> Result<Self> {
        Self::up_with(binary, images, None, &["--nodes", &nodes.to_string()])
    }

    /// As [`Lab::up`], with flags of `rhumb up` instead of a number of nodes.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn up_flagged(binary: &str, images: &[&str], flags: &[&str]) -> Result<Self> {
        Self::up_with(binary, images, None, flags)
    }

    /// Brings a cluster up on a machine that is the network namespace at `host`, with more flags for `rhumb up`.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn up_on(host: &Path, binary: &str, images: &[&str], flags: &[&str]) -> Result<Self> {
        Self::up_with(binary, images, Some(host.to_owned()), flags)
    }

    fn up_with(
        binary: &str,
        images: &[&str],
        host: Option<PathBuf>,
        flags: &[&str],
    ) -> Result<Self> {
        let data = tempfile::Builder::new().prefix("rhumb-test-").tempdir()?;
        let name = format!("t{}", std::process::id());
        let (binary, kubectl) = (binary.into(), tools::kubectl()?);
        let mut lab = Self { binary, kubectl, name, data, host, undertaker: None };
        lab.undertaker = Some(lab.undertaker()?);
        lab.rhumb(&[&["up", "--detach"], flags].concat())?;
        for image in images {
            let path = tools::image(image)?;
            lab.rhumb(&["images", "import", path.to_str().context("a path is text")?])?;
        }
        Ok(lab)
    }

    /// In a process group of its own, for whoever ends a test ends its group.
    fn undertaker(&self) -> Result<Child> {
        let script = "cat; \"$@\"; rm -rf \"$data\"";
        let mut command = self.command(Path::new("sh"));
        command.args(["-c", script, "sh"]).arg(&self.binary);
        command.args(["down", "--name", &self.name, "--data-dir"]).arg(self.data.path());
        command.env("data", self.data.path()).process_group(0);
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        Ok(command.spawn()?)
    }

    /// The cluster's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The folder with everything the cluster keeps.
    #[must_use]
    pub fn dir(&self) -> PathBuf {
        self.data.path().join(&self.name)
    }

    /// The administrator's kubeconfig.
    #[must_use]
    pub fn kubeconfig(&self) -> PathBuf {
        self.dir().join("kubeconfig")
    }

    /// Runs `rhumb` on this cluster; its standard output.
    ///
    /// # Errors
    /// When it fails, with what it said.
    pub fn rhumb(&self, args: &[&str]) -> Result<String> {
        let mut command = self.command(&self.binary);
        command.args(args).args(["--name", &self.name, "--data-dir"]).arg(self.data.path());
        text(&output(&mut command)?, args)
    }

    /// A program on the cluster's machine.
    fn command(&self, program: &Path) -> Command {
        let Some(host) = &self.host else { return Command::new(program) };
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", host.display())).arg(program);
        command
    }

    /// Runs kubectl; its standard output.
    ///
    /// # Errors
    /// When it fails, with what it said.
    pub fn kubectl(&self, args: &[&str]) -> Result<String> {
        text(&self.kubectl_output(args)?, args)
    }

    /// Runs kubectl, whether it succeeds or not.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn kubectl_output(&self, args: &[&str]) -> Result<Output> {
        output(&mut self.kubectl_command(args))
    }

    /// A kubectl command on this cluster, for tests that stream or use another kubectl.
    #[must_use]
    pub fn kubectl_command(&self, args: &[&str]) -> Command {
        self.kubectl_command_of(&self.kubectl, args)
    }

    /// A command of the kubectl at `path`.
    #[must_use]
    pub fn kubectl_command_of(&self, path: &Path, args: &[&str]) -> Command {
        let mut command = self.command(path);
        command.env("KUBECONFIG", self.kubeconfig()).env("HOME", self.data.path()).args(args);
        command
    }

    /// What kubectl says when it must fail.
    ///
    /// # Errors
    /// When it succeeds.
    pub fn refusal(&self, args: &[&str]) -> Result<String> {
        let output = self.kubectl_output(args)?;
        ensure!(!output.status.success(), "kubectl {args:?} succeeded");
        Ok(String::from_utf8_lossy(&output.stderr).into_owned())
    }

    /// Applies a manifest.
    ///
    /// # Errors
    /// When kubectl refuses it.
    pub fn apply(&self, manifest: &str) -> Result<String> {
        let file = self.data.path().join("manifest.yaml");
        fs::write(&file, manifest)?;
        self.kubectl(&["apply", "-f", file.to_str().context("a path is text")?])
    }

    /// Applies the manifests of a folder of `examples/`.
    ///
    /// # Errors
    /// When kubectl refuses one.
    pub fn apply_example(&self, name: &str) -> Result<String> {
        let folder = tools::repository().join("examples").join(name);
        self.kubectl(&["apply", "-f", folder.to_str().context("a path is text")?])
    }

    /// Objects as JSON: `get(&["pods", "-l", "app=web"])`.
    ///
    /// # Errors
    /// When kubectl fails.
    pub fn get(&self, args: &[&str]) -> Result<Value> {
        let args: Vec<&str> =
            ["get"].into_iter().chain(args.iter().copied()).chain(["-o", "json"]).collect();
        Ok(serde_json::from_str(&self.kubectl(&args)?)?)
    }

    /// One value by jsonpath, as text.
    ///
    /// # Errors
    /// When kubectl fails.
    pub fn value(&self, object: &str, path: &str) -> Result<String> {
        self.kubectl(&["get", object, "-o", &format!("jsonpath={path}")])
    }

    /// Runs a command in a pod; its standard output.
    ///
    /// # Errors
    /// When it fails.
    pub fn exec(&self, pod: &str, command: &[&str]) -> Result<String> {
        let args: Vec<&str> =
            ["exec", pod, "--"].into_iter().chain(command.iter().copied()).collect();
        self.kubectl(&args)
    }

    /// Runs a command in the namespace of a part of the lab: `client`, `server` or a node.
    ///
    /// # Errors
    /// When it fails.
    pub fn within(&self, part: &str, command: &[&str]) -> Result<String> {
        let netns = format!("--net=/run/netns/rhumb-{}-{part}", self.name);
        let mut all = Command::new("nsenter");
        all.arg(netns).args(command);
        text(&output(&mut all)?, command)
    }

    /// Runs a command of this machine in a pod's network namespace.
    ///
    /// # Errors
    /// When the pod has none or the command fails.
    pub fn from_pod(&self, pod: &str, command: &[&str]) -> Result<String> {
        let mut all = Command::new("nsenter");
        all.arg(format!("--net={}", self.pod_netns(pod)?.display())).args(command);
        text(&output(&mut all)?, command)
    }

    /// The file of a pod's network namespace.
    ///
    /// # Errors
    /// When there is no such pod.
    pub fn pod_netns(&self, pod: &str) -> Result<PathBuf> {
        let found = self.get(&["pod", pod])?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let (uid, node) = (text(&found["metadata"]["uid"]), text(&found["spec"]["nodeName"]));
        Ok(self.dir().join("nodes").join(node).join("podnet").join(format!("{uid}.netns")))
    }

    /// Tries until it succeeds.
    ///
    /// # Errors
    /// The last failure, after a minute.
    pub fn eventually<T>(&self, what: &str, mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match attempt() {
                Ok(value) => return Ok(value),
                Err(error) if Instant::now() > deadline => {
                    return Err(error.context(format!("never came true: {what}")));
                }
                Err(_) => std::thread::sleep(LOOK),
            }
        }
    }

    /// Waits until pods with a label are ready.
    ///
    /// # Errors
    /// When they are not, after a minute.
    pub fn ready(&self, label: &str, count: usize) -> Result<()> {
        self.eventually(&format!("{count} pods with {label} are ready"), || {
            let pods = self.get(&["pods", "-l", label])?;
            let ready = |pod: &&Value| {
                let conditions = pod["status"]["conditions"].as_array();
                let is_deleting = pod["metadata"].get("deletionTimestamp").is_some();
                let is_ready = |c: &Value| c["type"] == "Ready" && c["status"] == "True";
                !is_deleting && conditions.is_some_and(|all| all.iter().any(is_ready))
            };
            let found = pods["items"].as_array().into_iter().flatten().filter(ready).count();
            ensure!(
                found == count,
                "{found} are ready: {}",
                self.kubectl(&["get", "pods", "-o", "wide"])?
            );
            Ok(())
        })
    }

    /// The number of a remembered process: `supervisor`, `server` or a node.
    ///
    /// # Errors
    /// When it does not run.
    pub fn pid(&self, process: &str) -> Result<i32> {
        let file = Path::new("/run/rhumb").join(&self.name).join(format!("{process}.pid"));
        let text =
            fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        Ok(text.split(' ').next().unwrap_or_default().parse()?)
    }

    /// Everything that the cluster would leave on this machine: namespaces, links, mounts and processes of its name.
    ///
    /// # Errors
    /// When the machine cannot be looked at.
    pub fn traces(&self) -> Result<Vec<String>> {
        let mut found = Vec::new();
        let own = format!("rhumb-{}", self.name);
        for entry in fs::read_dir("/run/netns").into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name == own || name.starts_with(&format!("{own}-")) {
                found.push(format!("namespace {name}"));
            }
        }
        let link = format!("rh-{}", self.name);
        if Path::new("/sys/class/net").join(&link).exists() {
            found.push(format!("link {link}"));
        }
        let data = self.data.path().to_string_lossy().into_owned();
        let mounts = fs::read_to_string("/proc/self/mounts")?;
        found.extend(
            mounts.lines().filter(|line| line.contains(&data)).map(|line| format!("mount {line}")),
        );
        // The one that waits for the end of the test names the cluster, too.
        let own = self.undertaker.as_ref().map(|undertaker| undertaker.id().to_string());
        for entry in fs::read_dir("/proc")?.flatten() {
            if own.as_deref().is_some_and(|own| entry.file_name() == own) {
                continue;
            }
            let command = fs::read_to_string(entry.path().join("cmdline")).unwrap_or_default();
            if command.contains(&data) {
                found.push(format!("process {}", command.replace('\0', " ")));
            }
        }
        Ok(found)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // What a failed test leaves to read is on the standard error of the test.
            for part in ["server", "n1"] {
                let log = fs::read_to_string(self.dir().join("logs").join(format!("{part}.log")))
                    .unwrap_or_default();
                let lines: Vec<&str> = log.lines().rev().take(15).collect();
                let lines: Vec<&str> = lines.into_iter().rev().collect();
                let _ = std::io::Write::write_all(
                    &mut std::io::stderr(),
                    format!("--- {part}.log\n{}\n", lines.join("\n")).as_bytes(),
                );
            }
        }
        if let Some(mut undertaker) = self.undertaker.take() {
            // Ends its standard input first.
            let _ = undertaker.wait();
        }
    }
}

fn output(command: &mut Command) -> Result<Output> {
    command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start {:?}", command.get_program()))
}

fn text(output: &Output, what: &[&str]) -> Result<String> {
    if !output.status.success() {
        bail!(
            "{what:?} failed: {}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
