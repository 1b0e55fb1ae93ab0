//! Pods and containers as the runtime is asked for them and as it reports them (upstream: the messages of CRI).

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// What containers of one pod share. The caller makes the network namespace beforehand.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PodSandbox {
    /// UID of the pod; names its directory and control group.
    pub uid: String,
    /// Name of the pod.
    pub name: String,
    /// Namespace of the pod.
    pub namespace: String,
    /// Host name in the pod's UTS namespace.
    pub hostname: String,
    /// NIS domain name, empty for none (not the DNS domain).
    pub domainname: String,
    /// Bind-mounted network namespace to join; None stays in the agent's (host network).
    pub netns: Option<PathBuf>,
    /// The containers see each other's processes (`shareProcessNamespace`).
    pub share_pid: bool,
    /// Processes of the host are visible (`hostPID`).
    pub host_pid: bool,
    /// System V IPC and shared memory of the host (`hostIPC`).
    pub host_ipc: bool,
    /// `net.*` and IPC sysctls, written inside the pod's namespaces.
    pub sysctls: BTreeMap<String, String>,
    /// Limits of the whole pod.
    pub resources: PodResources,
    /// Labels, kept for the caller.
    pub labels: BTreeMap<String, String>,
    /// Annotations, kept for the caller.
    pub annotations: BTreeMap<String, String>,
}

/// Limits of the pod's control group; zero is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodResources {
    /// Relative weight of CPU (cgroup v1 `cpu.shares`).
    pub cpu_shares: u64,
    /// CPU time allowed per period, microseconds.
    pub cpu_quota_us: i64,
    /// Length of the period, microseconds; 0 is 100,000.
    pub cpu_period_us: u64,
    /// Memory, bytes.
    pub memory_limit_bytes: i64,
    /// Processes and threads.
    pub pids_limit: i64,
}

/// Limits of a container; the same shape as the pod's.
pub type Resources = PodResources;

/// How mounts made on one side show up on the other (`mountPropagation`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Propagation {
    /// Neither way (`None`).
    #[default]
    Private,
    /// Mounts of the host appear in the container.
    HostToContainer,
    /// Both ways; only for privileged containers.
    Bidirectional,
}

/// A file or directory of the host, seen in a container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// Existing file or directory on the host (subPath already resolved).
    pub host_path: PathBuf,
    /// Absolute path in the container; made when it does not exist.
    pub container_path: PathBuf,
    /// Writes fail with EROFS.
    pub read_only: bool,
    /// Propagation of mounts beneath it.
    pub propagation: Propagation,
}

/// Rights of a container's processes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Security {
    /// User id; None takes the image's `User`.
    pub run_as_user: Option<u32>,
    /// Group id; None takes the image's or the user's primary group.
    pub run_as_group: Option<u32>,
    /// `fsGroup` and `supplementalGroups`.
    pub supplemental_groups: Vec<u32>,
    /// Added capabilities, without `CAP_`; `ALL` for all.
    pub add_capabilities: Vec<String>,
    /// Dropped capabilities; `ALL` for all.
    pub drop_capabilities: Vec<String>,
    /// All devices, all of the agent's own capabilities, nothing masked.
    pub privileged: bool,
    /// Root file system cannot be written.
    pub read_only_root: bool,
    /// `allowPrivilegeEscalation: false`.
    pub no_new_privileges: bool,
    /// `procMount: Unmasked`.
    pub unmasked_proc: bool,
}

/// One container, as it is to be created.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ContainerSpec {
    /// UID of its pod, which must be running.
    pub pod_uid: String,
    /// Name in the pod.
    pub name: String,
    /// How many times a container of this name was made before in this pod.
    pub attempt: u32,
    /// Name, digest or id of an image of the store.
    pub image: String,
    /// Replaces the image's `Entrypoint` (and its `Cmd`) when not empty.
    pub command: Vec<String>,
    /// Replaces the image's `Cmd` when not empty.
    pub args: Vec<String>,
    /// Added to the image's environment, later ones win.
    pub env: Vec<(String, String)>,
    /// Replaces the image's working directory when not empty; made when it does not exist.
    pub working_dir: String,
    /// Files and directories of the host.
    pub mounts: Vec<Mount>,
    /// Limits.
    pub resources: Resources,
    /// Rights.
    pub security: Security,
    /// A pseudo-terminal for stdio.
    pub tty: bool,
    /// Keeps stdin open for `attach`; otherwise it is /dev/null.
    pub stdin: bool,
    /// Closes stdin when the first attached client's input ends.
    pub stdin_once: bool,
    /// Log file in CRI's format; its directory is made. None keeps no log.
    pub log_path: Option<PathBuf>,
    /// Wished `oom_score_adj`; raised to what the agent may set.
    pub oom_score_adj: i32,
    /// Labels, kept for the caller (such as the hash of the container's spec).
    pub labels: BTreeMap<String, String>,
}

/// Where a container is in its life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ContainerState {
    /// Made, its process not yet started.
    #[default]
    Created,
    /// Its process runs.
    Running,
    /// Its process ended.
    Exited,
}

/// A container as it is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ContainerStatus {
    /// Unique id: 64 hexadecimal digits (status.containerID is `rhumb://<id>`).
    pub id: String,
    /// UID of its pod.
    pub pod_uid: String,
    /// Name in the pod.
    pub name: String,
    /// Attempt, as created.
    pub attempt: u32,
    /// Image as asked for.
    pub image: String,
    /// Id of the image (`sha256:…`) that was used.
    pub image_id: String,
    /// Where it is.
    pub state: ContainerState,
    /// Process id on the host, 0 when it does not run.
    pub pid: i32,
    /// Exit code; 128 + signal when it was killed.
    pub exit_code: i32,
    /// Signal that killed it, 0 for none.
    pub signal: i32,
    /// The kernel killed it for its memory limit.
    pub oom_killed: bool,
    /// Why it could not start, or upstream's reason (`OOMKilled`, `Completed`, `Error`).
    pub reason: String,
    /// A sentence to the reason.
    pub message: String,
    /// When it was made.
    pub created_at: Option<jiff::Timestamp>,
    /// When its process started.
    pub started_at: Option<jiff::Timestamp>,
    /// When its process ended.
    pub finished_at: Option<jiff::Timestamp>,
    /// Log file, as created.
    pub log_path: Option<PathBuf>,
    /// Labels, as created.
    pub labels: BTreeMap<String, String>,
}

/// A pod as it is.
#[derive(Clone, Debug, PartialEq)]
pub struct PodStatus {
    /// As it was asked for.
    pub sandbox: PodSandbox,
    /// Its shim runs: new containers can be made.
    pub ready: bool,
    /// All attempts that were not removed, by name and attempt.
    pub containers: Vec<ContainerStatus>,
}

/// What a pod or container uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PodStats {
    /// Memory without inactive file cache, bytes.
    pub memory_working_set_bytes: u64,
    /// CPU time since the start, nanoseconds.
    pub cpu_usage_ns: u64,
    /// Processes and threads.
    pub pids: u64,
}
