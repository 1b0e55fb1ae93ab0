//! The store's disk is full, and has room again.

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use testkit::tools;

use super::BINARY;

/// The disk, in MiB: room for the first objects and some more.
const DISK_MIB: u32 = 24;
/// What one object of the test weighs, in bytes.
const WEIGHT: usize = 600_000;
/// Longest wait for anything.
const PATIENCE: Duration = Duration::from_secs(60);

/// A control plane whose data is on a small disk of its own.
struct Server {
    folder: tempfile::TempDir,
    port: u16,
    process: Option<Child>,
}

impl Server {
    fn new() -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("rhumb-test-").tempdir()?;
        // Free a moment ago: nobody else takes ports on this machine's loopback so fast.
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let server = Self { folder, port, process: None };
        fs::create_dir_all(server.disk())?;
        let size = format!("size={DISK_MIB}m");
        let disk = server.disk();
        let disk = disk.to_str().context("a path is text")?;
        let mount = ["-t", "tmpfs", "-o", &size, "none", disk];
        ensure!(Command::new("mount").args(mount).status()?.success(), "no disk");
        Ok(server)
    }

    fn disk(&self) -> std::path::PathBuf {
        self.folder.path().join("disk")
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join(name)
    }

    fn start(&mut self) -> Result<()> {
        let log = fs::File::create(self.path("log"))?;
        let process = Command::new(BINARY)
            .args(["server", "--advertise-address", "127.0.0.1"])
            .args(["--api-port", &self.port.to_string(), "--server-dir"])
            .arg(self.disk())
            .arg("--admin-kubeconfig")
            .arg(self.path("kubeconfig"))
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()?;
        self.process = Some(process);
        eventually("the API answers", || self.kubectl(&["get", "--raw", "/readyz"]).map(drop))
    }

    fn kill(&mut self) -> Result<()> {
        if let Some(mut process) = self.process.take() {
            process.kill()?;
            process.wait()?;
        }
        Ok(())
    }

    fn command(&self, args: &[&str]) -> Result<Command> {
        let mut command = Command::new(tools::kubectl()?);
        command.args(args).env("KUBECONFIG", self.path("kubeconfig"));
        command.env("HOME", self.folder.path()).stdin(Stdio::null());
        Ok(command)
    }

    fn output(&self, args: &[&str]) -> Result<Output> {
        Ok(self.command(args)?.output()?)
    }

    fn kubectl(&self, args: &[&str]) -> Result<String> {
        let output = self.output(args)?;
        let error = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{args:?}: {error}");
        Ok(String::from_utf8(output.stdout)?)
    }

    /// Makes a heavy object; what kubectl says when it is refused.
    fn write(&self, number: usize) -> Result<Option<String>> {
        let (name, file) = (format!("weight-{number}"), self.path("weight"));
        fs::write(&file, vec![b'a' + u8::try_from(number % 26)?; WEIGHT])?;
        let from = format!("--from-file=weight={}", file.display());
        let output = self.output(&["create", "configmap", &name, &from])?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        Ok((!output.status.success()).then_some(said))
    }

    fn weights(&self) -> Result<Vec<String>> {
        let all = self.kubectl(&["get", "configmaps", "-o", "name"])?;
        let names = all.lines().filter_map(|line| line.strip_prefix("configmap/weight-"));
        let mut names: Vec<String> = names.map(str::to_owned).collect();
        names.sort();
        Ok(names)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = fs::read_to_string(self.path("log")).unwrap_or_default();
            let _ = std::io::Write::write_all(&mut std::io::stderr(), log.as_bytes());
        }
        let _ = self.kill();
        let _ = Command::new("umount").arg(self.disk()).status();
    }
}

fn eventually<T>(what: &str, mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match attempt() {
            Ok(value) => return Ok(value),
            Err(error) if Instant::now() > deadline => return Err(error.context(what.to_owned())),
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}

/// Takes all that is left of a disk.
fn fill(disk: &Path) -> Result<()> {
    let mut file = fs::File::create(disk.join("filler"))?;
    let block = vec![0_u8; 64 << 10];
    while std::io::Write::write_all(&mut file, &block).is_ok() {}
    Ok(())
}

/// Writes until the disk has no room; the numbers of what was acknowledged.
fn until_full(server: &Server) -> Result<Vec<String>> {
    let mut acknowledged = server.weights()?;
    for number in 0..200 {
        match server.write(number)? {
            None => acknowledged.push(number.to_string()),
            Some(said) => {
                let wanted = "etcdserver: mvcc: database space exceeded";
                ensure!(said.contains(wanted), "{said}");
                acknowledged.sort();
                return Ok(acknowledged);
            }
        }
    }
    anyhow::bail!("the disk is never full")
}

#[test]
fn a_full_disk_refuses_writes_and_loses_nothing() -> Result<()> {
    let mut server = Server::new()?;
    server.start()?;
    eventually("the namespace is complete", || {
        server.kubectl(&["get", "configmap", "kube-root-ca.crt"]).map(drop)
    })?;
    let watched = server.path("watched");
    let mut watch = server
        .command(&["get", "configmaps", "--watch", "-o", "name"])?
        .stdout(fs::File::create(&watched)?)
        .spawn()?;
    for number in [700, 701] {
        ensure!(server.write(number)?.is_none(), "there is room");
    }
    fill(&server.disk())?;
    let result = full(&mut server, &watched);
    watch.kill()?;
    watch.wait()?;
    result
}

fn full(server: &mut Server, watched: &Path) -> Result<()> {
    let mut acknowledged = until_full(server)?;
    ensure!(server.weights()? == acknowledged, "reads go on, of what was acknowledged");
    ensure!(server.write(500)?.is_some(), "still full");
    fs::remove_file(server.disk().join("filler"))?;
    eventually("writes go on when there is room", || {
        ensure!(server.write(900)?.is_none(), "still refused");
        Ok(())
    })?;
    acknowledged.push("900".to_owned());
    acknowledged.sort();
    eventually("the watch went on too", || {
        ensure!(fs::read_to_string(watched)?.contains("configmap/weight-900"), "not seen");
        Ok(())
    })?;
    ensure!(server.weights()? == acknowledged, "nothing that was refused is there");
    server.kill()?;
    server.start()?;
    ensure!(server.weights()? == acknowledged, "nothing acknowledged is lost");
    Ok(())
}
