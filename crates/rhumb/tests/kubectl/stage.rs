//! Where one kubectl plays: a namespace, a node, a folder with files, and itself first in the path.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use testkit::lab::Lab;
use testkit::tools::{self, Kubectl};

use crate::transcript::{self, Step};

/// How long a repeated step may take to answer as wanted.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long one command may take, seconds.
const LIMIT: &str = "40";
/// Failures after which a transcript is given up: what follows would only repeat them.
const ENOUGH: usize = 10;

/// Lines of an answer that a failure shows.
const SHOWN: usize = 60;

/// One kubectl's place.
#[derive(Debug)]
pub(crate) struct Stage<'a> {
    kubectl: &'a Kubectl,
    namespace: String,
    node: String,
    folder: PathBuf,
}

impl<'a> Stage<'a> {
    /// A folder, a kubeconfig and a namespace for a kubectl, which may do as it likes with `node`.
    ///
    /// # Errors
    /// When kubectl cannot make its namespace.
    pub(crate) fn new(lab: &Lab, kubectl: &'a Kubectl, node: &str) -> Result<Self> {
        let namespace = format!("k{}", kubectl.minor());
        let folder = lab.dir().join("kubectl").join(&namespace);
        let stage = Self { kubectl, namespace, node: node.to_owned(), folder };
        fs::create_dir_all(stage.path("bin"))?;
        std::os::unix::fs::symlink(&kubectl.path, stage.path("bin/kubectl"))?;
        fs::copy(lab.kubeconfig(), stage.path("kubeconfig"))?;
        let files = tools::repository().join("crates/rhumb/tests/kubectl/files");
        for file in fs::read_dir(files)? {
            let file = file?;
            fs::copy(file.path(), stage.path("").join(file.file_name()))?;
        }
        let prepare =
            "kubectl create namespace $NS && kubectl config set-context --current --namespace=$NS";
        let (code, lines) = stage.run(prepare)?;
        ensure!(code == 0, "{lines:?}");
        Ok(stage)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Plays a transcript; the failures.
    ///
    /// # Errors
    /// When there is no shell.
    pub(crate) fn play(&self, name: &str, text: &str) -> Result<Vec<String>> {
        let mut failures = Vec::new();
        for step in transcript::steps(text, self.kubectl) {
            if failures.len() == ENOUGH {
                break;
            }
            if let Some(failure) = self.take(&step)? {
                let version = &self.kubectl.version;
                let place = format!("kubectl {version}, {name}:{}", step.line);
                failures.push(format!("{place}\n  $ {}\n{failure}", step.command));
            }
        }
        Ok(failures)
    }

    /// One step; what is wrong with its answer.
    fn take(&self, step: &Step) -> Result<Option<String>> {
        let deadline = Instant::now() + PATIENCE;
        let fill =
            |line: &String| line.replace("$NS", &self.namespace).replace("$NODE", &self.node);
        let wanted: Vec<String> = step.wanted.iter().map(fill).collect();
        loop {
            let (code, lines) = self.run(&step.command)?;
            if code == step.code && transcript::matches(&wanted, &lines) {
                return Ok(None);
            }
            if !step.repeats || Instant::now() > deadline {
                return Ok(Some(format!(
                    "--- wanted (exit {})\n{}\n--- printed (exit {code})\n{}",
                    step.code,
                    wanted.join("\n"),
                    lines[..lines.len().min(SHOWN)].join("\n")
                )));
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Runs a command of a shell in the folder; its exit code and what it printed, without blank lines.
    fn run(&self, command: &str) -> Result<(i32, Vec<String>)> {
        let path = std::env::var("PATH").unwrap_or_default();
        let output = Command::new("timeout")
            .args(["-k", "1", LIMIT, "bash", "-c", &format!("exec 2>&1\n{command}")])
            .current_dir(&self.folder)
            .env("PATH", format!("{}:{path}", self.path("bin").display()))
            .env("HOME", &self.folder)
            .env("KUBECONFIG", self.path("kubeconfig"))
            .env("NS", &self.namespace)
            .env("NODE", &self.node)
            .stdin(Stdio::null())
            .output()?;
        let text = String::from_utf8_lossy(&output.stdout).replace('\r', "");
        let lines = text.lines().filter(|line| !line.trim().is_empty()).map(str::to_owned);
        Ok((output.status.code().unwrap_or(-1), lines.collect()))
    }
}
