//! A virtual machine with Debian's kernel and nothing else, for what the kernel under the tests may lack: IPVS, SCTP, or
//! being an older one. It has no disk, no network to the outside, and ends with its command.
//!
//! qemu interprets the processor, so nothing is needed of the machine below, and everything takes about ten times as long.

mod archive;
mod closure;

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use crate::tools;
use archive::Archive;

const QEMU: &str = "qemu-system-x86_64";
/// Debian's kernel for virtual machines, unpacked.
const KERNEL: &str = "machine";
/// Modules of these folders are in the machine; the kernel loads them as it needs them.
const MODULES: [&str; 7] = [
    "kernel/arch/x86/crypto",
    "kernel/crypto",
    "kernel/lib",
    "kernel/net",
    "kernel/drivers/net",
    "kernel/drivers/char/hw_random",
    "kernel/drivers/virtio",
];
/// The word before a command's status in what the machine says last.
const STATUS: &str = "the command's status is ";
/// How long a machine may live, unless it is told otherwise.
const PATIENCE: Duration = Duration::from_secs(180);

/// What becomes the machine's first process.
const INIT: &str = r#"#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev /run /tmp /root /etc /var/run /bin/busybox.d
/bin/busybox --install -s /bin/busybox.d
export PATH=/usr/sbin:/usr/bin:/sbin:/bin:/bin/busybox.d HOME=/root
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /tmp
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t bpf bpf /sys/fs/bpf
mkdir -p /run/lock /run/netns
ln -sf /proc/mounts /etc/mtab
hostname machine
ip link set lo up
(sleep @PATIENCE@; poweroff -f) &
for module in @MODULES@; do modprobe "$module" || echo "there is no module $module"; done
cd /root
/bin/sh /command </dev/null
echo "@STATUS@$?"
poweroff -f
"#;

/// A machine to be: what is in it. Each [`Machine::run`] boots a new one.
#[derive(Clone, Debug)]
pub struct Machine {
    kernel: PathBuf,
    memory_mb: u32,
    patience: Duration,
    modules: Vec<String>,
    /// Path inside to path outside.
    files: BTreeMap<PathBuf, PathBuf>,
    variables: BTreeMap<String, String>,
}

/// How a command ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Its exit status.
    pub status: i32,
    /// What it and the kernel said.
    pub output: String,
}

impl Machine {
    /// A machine with a shell and busybox.
    ///
    /// # Errors
    /// When qemu, the kernel or busybox is not there: with the packages that have them.
    pub fn new() -> Result<Self> {
        ensure!(
            closure::find(QEMU).is_some(),
            "no virtual machine can run here: there is no {QEMU}; install Debian's package qemu-system-x86 (`make packages`)"
        );
        let kernel = tools::cache().join(KERNEL);
        ensure!(
            kernel.join("vmlinuz").exists(),
            "no virtual machine can run here: {} has no kernel; `make packages` unpacks Debian's package linux-image-cloud-amd64 there",
            kernel.display()
        );
        let machine = Self {
            kernel,
            memory_mb: 1024,
            patience: PATIENCE,
            modules: Vec::new(),
            files: BTreeMap::new(),
            variables: BTreeMap::new(),
        };
        // busybox's own shell would run its own `ip` before any other.
        machine.program("busybox")?.program("sh")
    }

    /// With so much memory, in MiB.
    #[must_use]
    pub fn memory_mb(self, memory_mb: u32) -> Self {
        Self { memory_mb, ..self }
    }

    /// Lives for so long at most.
    #[must_use]
    pub fn patience(self, patience: Duration) -> Self {
        Self { patience, ..self }
    }

    /// Loads a kernel module before the command runs. Most need no asking.
    #[must_use]
    pub fn module(mut self, name: &str) -> Self {
        self.modules.push(name.to_owned());
        self
    }

    /// With a program of this machine, in `/bin`, and the libraries that it needs.
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn program(self, name: &str) -> Result<Self> {
        let path = closure::find(name).with_context(|| format!("there is no program {name}"))?;
        self.executable(&path, &format!("/bin/{name}"))
    }

    /// With an executable, and the libraries that it needs.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn executable(mut self, path: &Path, inside: &str) -> Result<Self> {
        for library in closure::libraries(&[path.to_owned()])? {
            self.files.insert(library.clone(), library);
        }
        Ok(self.file(path, inside))
    }

    /// With a file.
    #[must_use]
    pub fn file(mut self, path: &Path, inside: &str) -> Self {
        self.files.insert(inside.into(), path.to_owned());
        self
    }

    /// With a folder of plug-ins, which no program names, and the libraries that they need.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn plugins(mut self, folder: &Path) -> Result<Self> {
        let plugins = files_below(folder)?;
        let libraries = closure::libraries(&plugins)?;
        self.files.extend(plugins.into_iter().chain(libraries).map(|file| (file.clone(), file)));
        Ok(self)
    }

    /// With iptables of both kinds and both families, and its plug-ins.
    ///
    /// # Errors
    /// When it is not installed.
    pub fn iptables(mut self) -> Result<Self> {
        for six in ["", "6"] {
            for verb in ["", "-save", "-restore"] {
                for flavor in ["nft", "legacy"] {
                    self = self.program(&format!("ip{six}tables-{flavor}{verb}"))?;
                }
            }
        }
        let folders = ["/usr/lib/x86_64-linux-gnu/xtables", "/usr/lib/xtables"].map(Path::new);
        let folder = folders.into_iter().find(|folder| folder.is_dir());
        self.plugins(folder.context("iptables has no folder of plug-ins")?)
    }

    /// With a variable in the environment of what it runs.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.variables.insert(name.to_owned(), value.to_owned());
        self
    }

    /// Runs one test of the calling test binary in the machine, one that is ignored outside. Answers what it said.
    ///
    /// # Errors
    /// When it fails, or no machine can run.
    pub fn run_test(self, name: &str) -> Result<String> {
        let folder = tempfile::tempdir()?;
        let test = folder.path().join("test");
        let strip = Command::new("strip")
            .arg("--strip-debug")
            .arg("-o")
            .arg(&test)
            .arg(std::env::current_exe()?)
            .status();
        ensure!(strip.is_ok_and(|status| status.success()), "strip failed (package binutils)");
        let machine = self.executable(&test, "/test")?;
        let command = format!("/test --exact {name} --ignored --nocapture --test-threads 1");
        let Outcome { status, output } = machine.run(&command)?;
        ensure!(status == 0, "{name} failed in the virtual machine:\n{output}");
        // A name that no test has is no failure to the test binary.
        ensure!(output.contains("1 passed"), "no test is called {name}:\n{output}");
        Ok(output)
    }

    /// Boots the machine, runs a shell command in it, and waits for its end.
    ///
    /// # Errors
    /// When the machine does not come to the command's end in time.
    pub fn run(&self, command: &str) -> Result<Outcome> {
        let folder = tempfile::Builder::new().prefix("rhumb-machine-").tempdir()?;
        let initrd = folder.path().join("initrd");
        self.pack(command)?.write(&initrd)?;
        let child = Command::new(QEMU)
            .args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"])
            .args(["-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-nic", "none"])
            .args(["-m", &self.memory_mb.to_string(), "-serial", "stdio"])
            .args(["-append", "console=ttyS0 quiet loglevel=4 panic=-1 mitigations=off"])
            .arg("-kernel")
            .arg(self.kernel.join("vmlinuz"))
            .arg("-initrd")
            .arg(&initrd)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        Running(child).outcome(self.patience)
    }

    fn pack(&self, command: &str) -> Result<Archive> {
        let init = INIT
            .replace("@PATIENCE@", &self.patience.as_secs().to_string())
            .replace("@MODULES@", &self.modules.join(" "))
            .replace("@STATUS@", STATUS);
        let mut archive = Archive::default();
        archive.file("/init", 0o755, init.as_bytes());
        let exports = self.variables.iter();
        let exports = exports
            .map(|(name, value)| format!("export {name}='{}'\n", value.replace('\'', r"'\''")));
        let command = exports.collect::<String>() + command;
        archive.file("/command", 0o644, command.as_bytes());
        // The kernel calls it by this name.
        archive.link("/sbin/modprobe", "/bin/busybox");
        for (inside, path) in &self.files {
            let bytes = fs::read(path).with_context(|| path.display().to_string())?;
            archive.file(inside.to_str().context("a path is text")?, 0o755, &bytes);
        }
        let modules = self.kernel.join("lib/modules");
        let version = fs::read_dir(&modules)?.next().context("the kernel has no modules")??.path();
        let mut files: Vec<PathBuf> =
            ["modules.dep", "modules.alias", "modules.symbols", "modules.builtin"]
                .map(|name| version.join(name))
                .into();
        for folder in MODULES.map(|name| version.join(name)) {
            files.extend(files_below(&folder).unwrap_or_default());
        }
        for path in files {
            let inside = Path::new("/").join(path.strip_prefix(&self.kernel)?);
            let bytes = fs::read(&path).with_context(|| path.display().to_string())?;
            archive.file(inside.to_str().context("a path is text")?, 0o644, &bytes);
        }
        Ok(archive)
    }
}

/// qemu's process; ended when nobody waits for it.
struct Running(Child);

impl Running {
    fn outcome(mut self, patience: Duration) -> Result<Outcome> {
        let (sender, lines) = mpsc::channel();
        let stdout = self.0.stdout.take().context("it was asked for")?;
        let mut stderr = self.0.stderr.take().context("it was asked for")?;
        let reader = std::thread::spawn(move || {
            for line in BufReader::new(stdout).split(b'\n').map_while(std::io::Result::ok) {
                let line = String::from_utf8_lossy(&line).trim_end_matches('\r').to_owned();
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        let (mut output, mut status, started) = (String::new(), None, Instant::now());
        let in_time = loop {
            match lines.recv_timeout(patience.saturating_sub(started.elapsed())) {
                Ok(line) => {
                    if let Some((_, number)) = line.split_once(STATUS) {
                        status = number.trim().parse().ok();
                        continue;
                    }
                    // Whoever waits sees how far it is.
                    let _ = writeln!(std::io::stderr(), "machine: {line}");
                    output.push_str(&line);
                    output.push('\n');
                }
                Err(mpsc::RecvTimeoutError::Disconnected) => break true,
                Err(mpsc::RecvTimeoutError::Timeout) => break false,
            }
        };
        if !in_time {
            bail!("the virtual machine did not end within {} s:\n{output}", patience.as_secs());
        }
        let _ = reader.join();
        if let Some(status) = status {
            return Ok(Outcome { status, output });
        }
        let mut said = String::new();
        stderr.read_to_string(&mut said)?;
        bail!("the virtual machine ended before its command did: {said}\n{output}")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn files_below(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let entries = fs::read_dir(folder).with_context(|| folder.display().to_string())?;
    for entry in entries {
        let path = entry?.path();
        if path.is_dir() {
            files.extend(files_below(&path)?);
        } else {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}
