//! Control groups by path, in every mounted hierarchy, v1 and v2 alike (upstream: libcontainer/cgroups).

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::pod::{PodResources, PodStats};

/// Microseconds in a period when none is given (upstream's `cpu.cfs_period_us`).
const CPU_PERIOD_US: u64 = 100_000;
/// How often removal and killing are tried again: the kernel frees a dead process late.
const TRIES_MAX: u32 = 200;

/// A mounted hierarchy.
#[derive(Clone, Debug)]
struct Hierarchy {
    root: PathBuf,
    /// Empty for v2.
    controllers: Vec<String>,
}

/// A control group in all hierarchies.
#[derive(Clone, Debug)]
pub(crate) struct Cgroup {
    path: String,
}

fn hierarchies() -> &'static [Hierarchy] {
    static FOUND: OnceLock<Vec<Hierarchy>> = OnceLock::new();
    FOUND.get_or_init(|| {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let mut found: Vec<Hierarchy> = Vec::new();
        for line in mounts.lines() {
            let fields: Vec<&str> = line.split(' ').collect();
            let [_, root, kind, options, ..] = fields.as_slice() else { continue };
            let controllers = match *kind {
                "cgroup" => options.split(',').map(str::to_owned).collect(),
                "cgroup2" => Vec::new(),
                _ => continue,
            };
            if !found.iter().any(|one| one.root == Path::new(root)) {
                found.push(Hierarchy { root: root.into(), controllers });
            }
        }
        found
    })
}

/// Removes a control group such as `rhumb/n1` and those above it from all hierarchies, as far as nobody uses them.
pub fn forget_group(path: &str) {
    for hierarchy in hierarchies() {
        let mut group = Path::new(path);
        while let Some(above) = group.parent() {
            let removed = fs::remove_dir(hierarchy.root.join(group));
            if removed.is_err_and(|error| error.kind() != io::ErrorKind::NotFound) {
                break;
            }
            group = above;
        }
    }
}

impl Cgroup {
    /// The group of a path such as `/rhumb/pod1`.
    pub(crate) fn new(path: impl Into<String>) -> Self {
        Self { path: path.into() }
    }

    fn directory(&self, root: &Path) -> PathBuf {
        root.join(self.path.trim_start_matches('/'))
    }

    /// The directory of a v1 controller, or of the unified hierarchy when v1 does not have it.
    fn controller(&self, name: &str) -> Option<(PathBuf, bool)> {
        let all = hierarchies();
        let v1 = all.iter().find(|one| one.controllers.iter().any(|have| have == name));
        if let Some(one) = v1 {
            return Some((self.directory(&one.root), false));
        }
        let unified = all.iter().find(|one| one.controllers.is_empty())?;
        Some((self.directory(&unified.root), true))
    }

    /// Makes the group and sets its limits. A limit whose controller is missing is not an error.
    pub(crate) fn create(&self, limits: &PodResources) -> io::Result<()> {
        for controller in ["memory", "cpu", "pids"] {
            let Some((directory, unified)) = self.controller(controller) else { continue };
            if unified {
                self.enable(controller);
            }
            fs::create_dir_all(directory)?;
        }
        let period = if limits.cpu_period_us == 0 { CPU_PERIOD_US } else { limits.cpu_period_us };
        if limits.cpu_shares > 0 {
            let shares = limits.cpu_shares.clamp(2, 262_144);
            let weight = 1 + ((shares - 2) * 9999) / 262_142;
            self.set("cpu", "cpu.shares", &shares.to_string(), "cpu.weight", &weight.to_string());
        }
        if limits.cpu_quota_us > 0 {
            let quota = limits.cpu_quota_us.to_string();
            let both = format!("{quota} {period}");
            self.set("cpu", "cpu.cfs_period_us", &period.to_string(), "cpu.max", &both);
            self.set("cpu", "cpu.cfs_quota_us", &quota, "cpu.max", &both);
        }
        if limits.memory_limit_bytes > 0 {
            let bytes = limits.memory_limit_bytes.to_string();
            self.set("memory", "memory.limit_in_bytes", &bytes, "memory.max", &bytes);
        }
        if limits.pids_limit > 0 {
            let count = limits.pids_limit.to_string();
            self.set("pids", "pids.max", &count, "pids.max", &count);
        }
        Ok(())
    }

    /// Moves a process into it.
    pub(crate) fn add(&self, pid: i32) {
        for controller in ["memory", "cpu", "pids"] {
            if let Some((directory, _)) = self.controller(controller) {
                let _ = fs::write(directory.join("cgroup.procs"), pid.to_string());
            }
        }
    }

    /// Where v1 has the controllers, the unified hierarchy beside it says only whose a process is: eBPF programs know by it
    /// what to do with a socket. Moves the calling process there, and so all that it starts.
    pub(crate) fn join_beside(&self) {
        let Some(root) = beside() else { return };
        let directory = self.directory(root);
        let joined = fs::create_dir_all(&directory)
            .and_then(|()| fs::write(directory.join("cgroup.procs"), "0"));
        if let Err(error) = joined {
            tracing::warn!(path = %directory.display(), %error, "the pod is in no unified group");
        }
    }

    /// Moves the calling process out of it again, so that it can be removed.
    pub(crate) fn leave_beside() {
        if let Some(root) = beside() {
            let _ = fs::write(root.join("cgroup.procs"), "0");
        }
    }

    /// Lets v2 groups above this one hand the controller down.
    fn enable(&self, controller: &str) {
        let Some(unified) = hierarchies().iter().find(|one| one.controllers.is_empty()) else {
            return;
        };
        let mut directory = unified.root.clone();
        for part in self.path.trim_matches('/').split('/') {
            let _ = fs::write(directory.join("cgroup.subtree_control"), format!("+{controller}"));
            directory.push(part);
            let _ = fs::create_dir(&directory);
        }
    }

    fn set(&self, controller: &str, v1: &str, value1: &str, v2: &str, value2: &str) {
        let Some((directory, unified)) = self.controller(controller) else { return };
        let (file, value) = if unified { (v2, value2) } else { (v1, value1) };
        if let Err(error) = fs::write(directory.join(file), value) {
            tracing::warn!(path = %directory.join(file).display(), value, %error, "limit not set");
        }
    }

    /// Processes that the kernel killed in it for want of memory.
    pub(crate) fn oom_kills(&self) -> u64 {
        let Some((directory, unified)) = self.controller("memory") else { return 0 };
        let file = if unified { "memory.events" } else { "memory.oom_control" };
        field(&directory.join(file), "oom_kill")
    }

    /// Use of memory, CPU and processes; None when the group does not exist.
    pub(crate) fn stats(&self) -> Option<PodStats> {
        let (memory, unified) = self.controller("memory")?;
        let (usage, inactive) = if unified {
            ("memory.current", "inactive_file")
        } else {
            ("memory.usage_in_bytes", "total_inactive_file")
        };
        let used: u64 = number(&memory.join(usage))?;
        let cache = field(&memory.join("memory.stat"), inactive);
        let cpu_usage_ns = match self.controller("cpuacct") {
            Some((cpu, false)) => number(&cpu.join("cpuacct.usage")).unwrap_or(0),
            Some((cpu, true)) => field(&cpu.join("cpu.stat"), "usage_usec").saturating_mul(1000),
            None => 0,
        };
        let pids = self.controller("pids").and_then(|(pids, _)| number(&pids.join("pids.current")));
        Some(PodStats {
            memory_working_set_bytes: used.saturating_sub(cache),
            cpu_usage_ns,
            pids: pids.unwrap_or(0),
        })
    }

    /// Processes in it and in the groups below it.
    pub(crate) fn processes(&self) -> Vec<i32> {
        let mut found = Vec::new();
        for hierarchy in hierarchies() {
            collect(&self.directory(&hierarchy.root), &mut found);
        }
        found.sort_unstable();
        found.dedup();
        found
    }

    /// Sends SIGKILL to every process in it.
    pub(crate) fn kill(&self) {
        for pid in self.processes() {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }

    /// Removes it and all groups below it, killing what still runs there. True when nothing is left.
    pub(crate) fn remove(&self) -> bool {
        for _ in 0..TRIES_MAX {
            let mut left = false;
            for hierarchy in hierarchies() {
                left |= !remove_tree(&self.directory(&hierarchy.root));
            }
            if !left {
                return true;
            }
            self.kill();
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        false
    }
}

/// The unified hierarchy on a machine whose controllers are v1's.
fn beside() -> Option<&'static Path> {
    let all = hierarchies();
    let has_v1 = all.iter().any(|one| one.controllers.iter().any(|have| have == "memory"));
    let unified = all.iter().find(|one| one.controllers.is_empty())?;
    has_v1.then_some(unified.root.as_path())
}

fn number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// The number after a name in a file of `name number` lines; 0 when missing.
fn field(path: &Path, name: &str) -> u64 {
    let text = fs::read_to_string(path).unwrap_or_default();
    let mut lines = text.lines().filter_map(|line| line.split_once(' '));
    lines
        .find(|(key, _)| *key == name)
        .and_then(|(_, value)| value.trim().parse().ok())
        .unwrap_or(0)
}

fn children(directory: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    let directories =
        entries.flatten().filter(|one| one.file_type().is_ok_and(|kind| kind.is_dir()));
    directories.map(|one| one.path()).collect()
}

fn collect(directory: &Path, found: &mut Vec<i32>) {
    let text = fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
    found.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()).filter(|pid| *pid > 1));
    for child in children(directory) {
        collect(&child, found);
    }
}

fn remove_tree(directory: &Path) -> bool {
    if !directory.exists() {
        return true;
    }
    for child in children(directory) {
        remove_tree(&child);
    }
    fs::remove_dir(directory).is_ok() || !directory.exists()
}
