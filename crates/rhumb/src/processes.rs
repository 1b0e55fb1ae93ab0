//! The processes of a cluster on this machine, remembered by number and start time in small files, so that another
//! `rhumb` finds them after a crash and never signals somebody else's.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result};
use kernel::netns;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::cluster::{Cluster, LabNode};
use crate::lab::netns_of;

/// How long a process may take to end before it is killed.
const GRACE: Duration = Duration::from_secs(10);

/// A running process that a file remembers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Running {
    pub(crate) pid: i32,
    start: u64,
}

impl Running {
    /// The process of this number, if there is one.
    pub(crate) fn of(pid: i32) -> Option<Self> {
        start_time(pid).map(|start| Self { pid, start })
    }

    /// Whether the number still is that process.
    pub(crate) fn is_alive(self) -> bool {
        start_time(self.pid) == Some(self.start)
    }

    /// Whether it was started with these arguments; the program itself may be another version by now. `None` while the
    /// process is just being started, or when it has ended.
    pub(crate) fn is_of(self, command: &Command) -> Option<bool> {
        let line = fs::read(format!("/proc/{}/cmdline", self.pid)).ok();
        let line = line.filter(|line| !line.is_empty())?;
        let given = line.split(|byte| *byte == 0).skip(1);
        let wanted = command.get_args().map(OsStr::as_encoded_bytes);
        // Every argument ends with a zero, the last one too.
        Some(given.eq(wanted.chain([&[][..]])))
    }

    /// Sends a signal, if the process is still there.
    pub(crate) fn signal(self, signal: Signal) {
        if self.is_alive() {
            // It may end between the look and the signal; then there is nothing to tell it.
            let _ = kill(Pid::from_raw(self.pid), signal);
        }
    }

    /// Asks to end, waits, then kills.
    pub(crate) fn stop(self) {
        self.signal(Signal::SIGTERM);
        let steps = GRACE.as_millis() / 10;
        if (0..steps).any(|_| {
            std::thread::sleep(Duration::from_millis(10));
            !self.is_alive()
        }) {
            return;
        }
        self.signal(Signal::SIGKILL);
        let _ = (0..100).any(|_| {
            std::thread::sleep(Duration::from_millis(10));
            !self.is_alive()
        });
    }
}

/// Start time in clock ticks since boot (field 22 of `/proc/PID/stat`); `None` for a zombie or nobody.
fn start_time(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    if matches!(fields.first(), Some(&"Z" | &"X")) {
        return None;
    }
    fields.get(19)?.parse().ok()
}

fn pid_file(cluster: &Cluster, process: &str) -> PathBuf {
    cluster.run_dir().join(format!("{process}.pid"))
}

/// Remembers a process.
pub(crate) fn remember(cluster: &Cluster, process: &str, pid: i32) -> Result<()> {
    let running = Running::of(pid).context("the process has ended already")?;
    fs::create_dir_all(cluster.run_dir())?;
    fs::write(pid_file(cluster, process), format!("{} {}", running.pid, running.start))?;
    Ok(())
}

/// The remembered process, if it still runs.
pub(crate) fn find(cluster: &Cluster, process: &str) -> Option<Running> {
    read(&pid_file(cluster, process)).filter(|running| running.is_alive())
}

fn read(path: &Path) -> Option<Running> {
    let text = fs::read_to_string(path).ok()?;
    let (pid, start) = text.trim().split_once(' ')?;
    Some(Running { pid: pid.parse().ok()?, start: start.parse().ok()? })
}

/// All remembered processes that still run, the supervisor first.
pub(crate) fn all(cluster: &Cluster) -> Vec<Running> {
    let entries = fs::read_dir(cluster.run_dir()).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "pid"));
    paths.sort_by_key(|path| path.file_stem().is_none_or(|stem| stem != "supervisor"));
    paths.iter().filter_map(|path| read(path)).filter(|running| running.is_alive()).collect()
}

/// The command line of the control plane.
pub(crate) fn server_command(cluster: &Cluster) -> Result<Command> {
    let (first, last) = cluster.load_balancer_pool();
    let mut command = Command::new(std::env::current_exe()?);
    command
        .arg("server")
        .args(["--server-dir".as_ref(), cluster.server_dir().as_os_str()])
        .args(["--admin-kubeconfig".as_ref(), cluster.kubeconfig().as_os_str()])
        .args(["--advertise-address", &cluster.server_address().to_string()])
        .args(["--api-port", &cluster.api_port.to_string()])
        .args(["--pod-cidr", &cluster.pod_cidr.to_string()])
        .args(["--service-cidr", &cluster.service_cidr.to_string()])
        .args(["--node-port-range", &cluster.node_port_range.to_string()])
        .args(["--dns-domain", &cluster.dns_domain])
        .args(["--volumes-dir".as_ref(), cluster.node_dir("{node}").join("volumes").as_os_str()])
        .args(["--load-balancer-pool", &format!("{first}-{last}")]);
    Ok(command)
}

/// The command line of a node's agent.
pub(crate) fn agent_command(cluster: &Cluster, node: &LabNode) -> Result<Command> {
    let dir = cluster.node_dir(&node.name);
    let mut command = Command::new(std::env::current_exe()?);
    command
        .arg("node")
        .args(["--kubeconfig".as_ref(), dir.join("kubeconfig").as_os_str()])
        .args(["--tls-cert-file".as_ref(), dir.join("kubelet.crt").as_os_str()])
        .args(["--tls-private-key-file".as_ref(), dir.join("kubelet.key").as_os_str()])
        .args(["--client-ca-file".as_ref(), dir.join("ca.crt").as_os_str()])
        .args(["--node-dir".as_ref(), dir.as_os_str()])
        .args(["--images-dir".as_ref(), cluster.images_dir().as_os_str()])
        .args(["--node-name", &node.name])
        .args(["--node-ip", &node.address.to_string()])
        .args(["--pod-cidr", &cluster.pod_cidr.to_string()])
        .args(["--service-cidr", &cluster.service_cidr.to_string()])
        .args(["--dns-domain", &cluster.dns_domain]);
    command.args(cluster.carry.flags()).args(cluster.proxy.flags()).args(cluster.watch.flags());
    for mirror in &cluster.registry_mirrors {
        command.args(["--registry-mirror", mirror]);
    }
    if let Some(resolvers) = &cluster.egress {
        command.args(["--resolv-conf".as_ref(), resolvers.as_os_str()]);
    }
    Ok(command)
}

/// Starts a process inside the namespace of a part of the lab, with its log in a file, and remembers it.
pub(crate) fn start(
    cluster: &Cluster,
    part: &str,
    mut command: Command,
) -> Result<std::process::Child> {
    let log = cluster.log(part);
    if let Some(parent) = log.parent() {
        fs::create_dir_all(parent)?;
    }
    let log = File::options()
        .create(true)
        .append(true)
        .open(&log)
        .with_context(|| format!("cannot write {}", log.display()))?;
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    // A process is born in the namespace of the thread that starts it.
    let child = netns::within(&netns_of(cluster, part), move || command.spawn())?;
    let child = child.with_context(|| format!("cannot start {part}"))?;
    remember(cluster, part, i32::try_from(child.id())?)?;
    Ok(child)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_known_by_number_and_start_time() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let running = Running::of(i32::try_from(child.id()).unwrap()).unwrap();
        assert!(running.is_alive());
        assert!(
            !Running { start: running.start + 1, ..running }.is_alive(),
            "another process of the same number"
        );
        let same = |arguments: &[&str]| {
            (0..1000).find_map(|_| {
                std::thread::sleep(Duration::from_millis(1));
                running.is_of(Command::new("elsewhere/sleep").args(arguments))
            })
        };
        assert_eq!(same(&["60"]), Some(true));
        assert_eq!([same(&["6"]), same(&["60", "60"]), same(&[])], [Some(false); 3]);
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!running.is_alive());
    }
}
