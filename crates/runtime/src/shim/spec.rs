//! The OCI runtime configuration of a container (upstream: containerd's `pkg/cri/opts`, runtime-spec).

use std::collections::BTreeMap;
use std::fs;

use serde_json::{Value, json};

use super::protocol::{ExecRequest, RootImage};
use super::users::User;
use crate::pod::{ContainerSpec, PodSandbox, Propagation, Security};

/// Search path when the image sets none (containerd's default).
const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Capabilities of a container that asks for nothing (containerd's `defaultUnixCaps`).
const DEFAULT_CAPABILITIES: [&str; 14] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
];
/// All capabilities by number (capability.h).
const CAPABILITIES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];
/// Paths hidden from unprivileged containers (containerd's defaults).
const MASKED_PATHS: [&str; 11] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];
/// Paths that unprivileged containers cannot write.
const READ_ONLY_PATHS: [&str; 5] =
    ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Everything the configuration is made from.
pub(crate) struct Parts<'a> {
    pub(crate) sandbox: &'a PodSandbox,
    pub(crate) spec: &'a ContainerSpec,
    pub(crate) image: &'a RootImage,
    pub(crate) user: &'a User,
    pub(crate) cgroup: &'a str,
    /// Mounted root file system.
    pub(crate) root: &'a str,
    /// Directory shared as /dev/shm.
    pub(crate) shm: &'a str,
    /// A process whose pid namespace is the pod's.
    pub(crate) pid_namespace: Option<String>,
    /// What the kernel let us set.
    pub(crate) oom_score_adj: i32,
}

/// The command line: the pod's words over the image's (Kubernetes' table of command and args).
pub(crate) fn arguments(spec: &ContainerSpec, image: &RootImage) -> Vec<String> {
    if !spec.command.is_empty() {
        return [spec.command.clone(), spec.args.clone()].concat();
    }
    let args = if spec.args.is_empty() { &image.config.cmd } else { &spec.args };
    [image.config.entrypoint.clone(), args.clone()].concat()
}

/// The working directory, absolute.
pub(crate) fn working_directory(spec: &ContainerSpec, image: &RootImage) -> String {
    let wished = [&spec.working_dir, &image.config.working_dir];
    wished.into_iter().find(|one| one.starts_with('/')).map_or_else(|| "/".into(), Clone::clone)
}

/// The contents of `config.json`.
pub(crate) fn config(parts: &Parts<'_>) -> Value {
    let security = &parts.spec.security;
    let mut process = process(parts);
    if parts.spec.tty {
        process["terminal"] = json!(true);
    }
    let hidden = !security.privileged && !security.unmasked_proc;
    let mut namespaces = vec![json!({"type": "mount"})];
    if !parts.sandbox.host_pid {
        namespaces.push(match &parts.pid_namespace {
            Some(path) => json!({"type": "pid", "path": path}),
            None => json!({"type": "pid"}),
        });
    }
    let propagation = parts.spec.mounts.iter().map(|mount| mount.propagation);
    let propagation = match propagation.max_by_key(|one| rank(*one)) {
        Some(Propagation::Bidirectional) => "shared",
        Some(Propagation::HostToContainer) => "slave",
        _ => "private",
    };
    json!({
        "ociVersion": "1.0.2",
        "process": process,
        "root": {"path": parts.root, "readonly": security.read_only_root},
        "mounts": mounts(parts),
        "linux": {
            "cgroupsPath": parts.cgroup,
            "namespaces": namespaces,
            "resources": resources(parts),
            "rootfsPropagation": propagation,
            "maskedPaths": if hidden { json!(MASKED_PATHS) } else { json!([]) },
            "readonlyPaths": if hidden { json!(READ_ONLY_PATHS) } else { json!([]) },
        },
    })
}

/// The process of an exec, like the container's own but for what was asked.
pub(crate) fn exec_process(container: &Value, exec: &ExecRequest, user: Option<&User>) -> Value {
    let mut process = container["process"].clone();
    process["args"] = json!(exec.argv);
    process["terminal"] = json!(exec.tty);
    if let Some(cwd) = &exec.cwd {
        process["cwd"] = json!(cwd);
    }
    if let Some(user) = user {
        process["user"] = json!({"uid": user.uid, "gid": user.gid, "additionalGids": user.groups});
    }
    let mut env: Vec<String> = serde_json::from_value(process["env"].clone()).unwrap_or_default();
    if exec.tty && !env.iter().any(|one| one.starts_with("TERM=")) {
        env.push("TERM=xterm".into());
    }
    env.extend(exec.env.iter().map(|(name, value)| format!("{name}={value}")));
    process["env"] = json!(last_wins(env));
    process
}

fn rank(propagation: Propagation) -> u8 {
    match propagation {
        Propagation::Private => 0,
        Propagation::HostToContainer => 1,
        Propagation::Bidirectional => 2,
    }
}

fn process(parts: &Parts<'_>) -> Value {
    let user = parts.user;
    let mut env = vec![DEFAULT_PATH.to_owned()];
    env.push(format!("HOSTNAME={}", parts.sandbox.hostname));
    env.push(format!("HOME={}", user.home));
    if parts.spec.tty {
        env.push("TERM=xterm".into());
    }
    env.extend(parts.image.config.env.iter().cloned());
    env.extend(parts.spec.env.iter().map(|(name, value)| format!("{name}={value}")));
    let capabilities = capabilities(&parts.spec.security);
    json!({
        "user": {"uid": user.uid, "gid": user.gid, "additionalGids": user.groups},
        "args": arguments(parts.spec, parts.image),
        "env": last_wins(env),
        "cwd": working_directory(parts.spec, parts.image),
        "noNewPrivileges": parts.spec.security.no_new_privileges,
        "oomScoreAdj": parts.oom_score_adj,
        "capabilities": {
            "bounding": capabilities,
            "effective": capabilities,
            "permitted": capabilities,
        },
    })
}

/// Each name once, with its last value, in the order of first mention.
fn last_wins(env: Vec<String>) -> Vec<String> {
    let mut order: Vec<String> = Vec::new();
    let mut values: BTreeMap<String, String> = BTreeMap::new();
    for entry in env {
        let name = entry.split('=').next().unwrap_or_default().to_owned();
        if name.is_empty() || entry.contains('\0') {
            continue;
        }
        if values.insert(name.clone(), entry).is_none() {
            order.push(name);
        }
    }
    order.into_iter().filter_map(|name| values.remove(&name)).collect()
}

/// Capabilities that the agent itself has, by name without prefix.
fn own_capabilities() -> Vec<&'static str> {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("CapPrm:"));
    let bits = line.and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok()).unwrap_or(0);
    let named = CAPABILITIES.iter().enumerate();
    named.filter(|(bit, _)| bits >> bit & 1 == 1).map(|(_, name)| *name).collect()
}

/// Names with prefix, never more than the agent has.
fn capabilities(security: &Security) -> Vec<String> {
    let own = own_capabilities();
    let bare = |name: &String| name.to_uppercase().trim_start_matches("CAP_").to_owned();
    let add: Vec<String> = security.add_capabilities.iter().map(bare).collect();
    let drop: Vec<String> = security.drop_capabilities.iter().map(bare).collect();
    let has = |list: &[String], name: &str| list.iter().any(|one| one == name);
    let kept = own.into_iter().filter(|name| {
        if security.privileged {
            return true;
        }
        let default = DEFAULT_CAPABILITIES.contains(name) || has(&add, "ALL");
        let base = default && !has(&drop, "ALL");
        (base && !has(&drop, name)) || has(&add, name) || (has(&add, "ALL") && !has(&drop, name))
    });
    kept.map(|name| format!("CAP_{name}")).collect()
}

fn mounts(parts: &Parts<'_>) -> Vec<Value> {
    let security = &parts.spec.security;
    let sys = if security.privileged { "rw" } else { "ro" };
    let mut all = vec![
        json!({"destination": "/proc", "type": "proc", "source": "proc",
            "options": ["nosuid", "noexec", "nodev"]}),
        json!({"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
            "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]}),
        json!({"destination": "/dev/pts", "type": "devpts", "source": "devpts",
            "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]}),
        json!({"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue",
            "options": ["nosuid", "noexec", "nodev"]}),
        json!({"destination": "/sys", "type": "sysfs", "source": "sysfs",
            "options": ["nosuid", "noexec", "nodev", sys]}),
        json!({"destination": "/dev/shm", "type": "bind", "source": parts.shm,
            "options": ["rbind", "rprivate", "rw"]}),
    ];
    let mut wished = parts.spec.mounts.clone();
    wished.sort_by_key(|mount| mount.container_path.components().count());
    all.retain(|one| !wished.iter().any(|mount| one["destination"] == json!(mount.container_path)));
    for mount in wished {
        let propagation = match mount.propagation {
            Propagation::Private => "rprivate",
            Propagation::HostToContainer => "rslave",
            Propagation::Bidirectional => "rshared",
        };
        let access = if mount.read_only { "ro" } else { "rw" };
        all.push(json!({"destination": mount.container_path, "type": "bind",
            "source": mount.host_path, "options": ["rbind", propagation, access]}));
    }
    all
}

fn resources(parts: &Parts<'_>) -> Value {
    let limits = &parts.spec.resources;
    let mut cpu = json!({"shares": limits.cpu_shares.clamp(2, 262_144)});
    if limits.cpu_quota_us > 0 {
        cpu["quota"] = json!(limits.cpu_quota_us);
        let period = if limits.cpu_period_us == 0 { 100_000 } else { limits.cpu_period_us };
        cpu["period"] = json!(period);
    }
    let mut all = json!({"cpu": cpu, "devices": [
        {"allow": parts.spec.security.privileged, "access": "rwm"},
    ]});
    if limits.memory_limit_bytes > 0 {
        all["memory"] = json!({"limit": limits.memory_limit_bytes});
    }
    if limits.pids_limit > 0 {
        all["pids"] = json!({"limit": limits.pids_limit});
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::ImageConfig;

    fn image(entrypoint: &[&str], cmd: &[&str]) -> RootImage {
        let words = |list: &[&str]| list.iter().map(ToString::to_string).collect();
        let config = ImageConfig {
            entrypoint: words(entrypoint),
            cmd: words(cmd),
            ..ImageConfig::default()
        };
        RootImage { config, ..RootImage::default() }
    }

    #[test]
    fn command_replaces_entrypoint_and_args_replace_cmd() {
        let image = image(&["ep"], &["cmd"]);
        let with = |command: &[&str], args: &[&str]| ContainerSpec {
            command: command.iter().map(ToString::to_string).collect(),
            args: args.iter().map(ToString::to_string).collect(),
            ..ContainerSpec::default()
        };
        assert_eq!(arguments(&with(&[], &[]), &image), ["ep", "cmd"]);
        assert_eq!(arguments(&with(&["c"], &[]), &image), ["c"]);
        assert_eq!(arguments(&with(&[], &["a"]), &image), ["ep", "a"]);
        assert_eq!(arguments(&with(&["c"], &["a"]), &image), ["c", "a"]);
    }

    #[test]
    fn last_value_of_a_variable_wins_in_its_first_place() {
        let env = ["A=1", "B=2", "A=3", "=x"].map(str::to_owned).to_vec();
        assert_eq!(last_wins(env), ["A=3", "B=2"]);
    }

    #[test]
    fn dropping_all_leaves_what_is_added() {
        let security = Security {
            drop_capabilities: vec!["ALL".into()],
            add_capabilities: vec!["NET_BIND_SERVICE".into()],
            ..Security::default()
        };
        assert_eq!(capabilities(&security), ["CAP_NET_BIND_SERVICE"]);
    }
}
