//! The agent's side of pods: starts shims, asks them, keeps what they report (upstream: CRI `RuntimeService`).

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::broadcast;

use crate::error::RuntimeError;
use crate::exec::{Attach, Exec, ExecOutput, ExecSpec};
use crate::image::ImageStore;
use crate::pod::{ContainerSpec, ContainerStatus, PodSandbox, PodStats, PodStatus};

/// How to open a runtime.
#[derive(Clone, Debug)]
pub struct Options {
    /// Directory of this node's pods; exclusive to one agent.
    pub state_dir: PathBuf,
    /// Control group under which pods are made, such as `rhumb/node-1`; relative to the mounts' roots.
    pub cgroup_parent: String,
    /// Where containers' file systems come from.
    pub images: ImageStore,
    /// Program and leading arguments of the shim; the default is `/proc/self/exe shim`.
    pub shim: Vec<String>,
}

impl Options {
    /// Options with the default shim command.
    #[must_use]
    pub fn new(
        state_dir: impl Into<PathBuf>,
        cgroup_parent: impl Into<String>,
        images: ImageStore,
    ) -> Self {
        Self {
            state_dir: state_dir.into(),
            cgroup_parent: cgroup_parent.into(),
            images,
            shim: vec!["/proc/self/exe".into(), "shim".into()],
        }
    }
}

/// The pods of this node. Cheap to clone. Dropping it stops nothing.
#[derive(Clone, Debug)]
pub struct Runtime {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    options: Options,
    events: broadcast::Sender<String>,
}

impl Runtime {
    /// Opens the state directory and finds the pods that run there since before.
    ///
    /// # Errors
    /// When the directory cannot be made or read.
    pub async fn open(options: Options) -> Result<Self, RuntimeError> {
        Ok(Self { inner: Arc::new(Inner { options, events: broadcast::channel(1024).0 }) })
    }

    /// The images.
    #[must_use]
    pub fn images(&self) -> &ImageStore {
        &self.inner.options.images
    }

    /// UIDs of pods in which something changed. A lagging receiver should look at all pods.
    #[must_use]
    pub fn events(&self) -> broadcast::Receiver<String> {
        self.inner.events.subscribe()
    }

    /// All pods, by UID.
    #[must_use]
    pub fn pods(&self) -> Vec<PodStatus> {
        Vec::new()
    }

    /// One pod.
    #[must_use]
    pub fn pod(&self, uid: &str) -> Option<PodStatus> {
        let _ = uid;
        None
    }

    /// One container.
    #[must_use]
    pub fn container(&self, id: &str) -> Option<ContainerStatus> {
        let _ = id;
        None
    }

    /// Starts the pod's shim and namespaces. Done already: does nothing.
    ///
    /// # Errors
    /// When the shim cannot start (such as a network namespace that does not exist).
    pub async fn run_pod(&self, pod: PodSandbox) -> Result<(), RuntimeError> {
        let _ = pod;
        Ok(())
    }

    /// Kills all containers and ends the shim; statuses and logs stay. Idempotent.
    ///
    /// # Errors
    /// When something does not end.
    pub async fn stop_pod(&self, uid: &str) -> Result<(), RuntimeError> {
        let _ = uid;
        Ok(())
    }

    /// Stops the pod and removes its directory, mounts and control groups. Logs are the caller's. Idempotent.
    ///
    /// # Errors
    /// When something cannot be removed.
    pub async fn remove_pod(&self, uid: &str) -> Result<(), RuntimeError> {
        let _ = uid;
        Ok(())
    }

    /// Makes a container (file system, control group, namespaces, waiting process); returns its id.
    ///
    /// # Errors
    /// When the pod or image is missing, or it cannot be made, in the words that users of containerd see.
    pub async fn create_container(&self, spec: ContainerSpec) -> Result<String, RuntimeError> {
        Err(RuntimeError::PodNotFound(spec.pod_uid))
    }

    /// Starts the process of a created container.
    ///
    /// # Errors
    /// When it does not exist or was started before.
    pub async fn start_container(&self, id: &str) -> Result<(), RuntimeError> {
        Err(RuntimeError::ContainerNotFound(id.into()))
    }

    /// Sends a signal to a container's first process; nothing when it ended.
    ///
    /// # Errors
    /// When it does not exist.
    pub async fn signal_container(&self, id: &str, signal: i32) -> Result<(), RuntimeError> {
        let _ = signal;
        Err(RuntimeError::ContainerNotFound(id.into()))
    }

    /// Sends the image's stop signal (SIGTERM by default), waits up to `grace`, kills, and waits for the end.
    ///
    /// # Errors
    /// When it does not exist or does not end.
    pub async fn stop_container(&self, id: &str, grace: Duration) -> Result<(), RuntimeError> {
        let _ = grace;
        Err(RuntimeError::ContainerNotFound(id.into()))
    }

    /// Kills it when it runs and removes it; its log stays. Idempotent.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub async fn remove_container(&self, id: &str) -> Result<(), RuntimeError> {
        let _ = id;
        Ok(())
    }

    /// Waits until the container has ended; returns its status.
    ///
    /// # Errors
    /// When it does not exist or is removed meanwhile.
    pub async fn wait_container(&self, id: &str) -> Result<ContainerStatus, RuntimeError> {
        Err(RuntimeError::ContainerNotFound(id.into()))
    }

    /// Runs a command in a running container.
    ///
    /// # Errors
    /// When it does not run, or the command cannot be executed (`Refused`, in runc's words).
    pub async fn exec(&self, id: &str, spec: ExecSpec) -> Result<Exec, RuntimeError> {
        let _ = spec;
        Err(RuntimeError::ContainerNotFound(id.into()))
    }

    /// Runs a command to its end, for probes and hooks; at most 1 MiB of each output is kept.
    ///
    /// # Errors
    /// As [`Runtime::exec`], and [`RuntimeError::Timeout`], after which the process is killed.
    pub async fn exec_sync(
        &self,
        id: &str,
        argv: Vec<String>,
        timeout: Duration,
    ) -> Result<ExecOutput, RuntimeError> {
        let _ = (argv, timeout);
        Err(RuntimeError::ContainerNotFound(id.into()))
    }

    /// Joins the stdio of a running container.
    ///
    /// # Errors
    /// When it does not run.
    pub async fn attach(&self, id: &str, stdin: bool) -> Result<Attach, RuntimeError> {
        let _ = stdin;
        Err(RuntimeError::ContainerNotFound(id.into()))
    }

    /// What the pod uses now; None without a control group.
    #[must_use]
    pub fn pod_stats(&self, uid: &str) -> Option<PodStats> {
        let _ = uid;
        None
    }

    /// What the container uses now.
    #[must_use]
    pub fn container_stats(&self, id: &str) -> Option<PodStats> {
        let _ = id;
        None
    }
}
