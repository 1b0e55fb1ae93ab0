//! Where a pod's files are on the node. Upstream: `/var/lib/kubelet/pods` and `/var/log/pods`.

use std::path::{Path, PathBuf};

use api::Kind;
use api::core::Pod;

/// The directories of one agent, under its data directory.
#[derive(Clone, Debug)]
pub(super) struct Paths {
    root: PathBuf,
}

impl Paths {
    pub(super) fn new(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    /// All pods' directories, named by uid.
    pub(super) fn pods(&self) -> PathBuf {
        self.root.join("kubelet/pods")
    }

    pub(super) fn pod(&self, uid: &str) -> PathBuf {
        self.pods().join(uid)
    }

    /// What the agent must know about a pod after a restart.
    pub(super) fn record(&self, uid: &str) -> PathBuf {
        self.pod(uid).join("record.json")
    }

    pub(super) fn volumes(&self, uid: &str) -> PathBuf {
        self.pod(uid).join("volumes")
    }

    pub(super) fn volume(&self, uid: &str, plugin: &str, name: &str) -> PathBuf {
        self.volumes(uid).join(format!("kubernetes.io~{plugin}")).join(name)
    }

    /// A file such as `etc-hosts` that is mounted into every container.
    pub(super) fn file(&self, uid: &str, name: &str) -> PathBuf {
        self.pod(uid).join(name)
    }

    /// Where one run of a container leaves its termination message.
    pub(super) fn termination(&self, uid: &str, container: &str, attempt: u32) -> PathBuf {
        self.pod(uid).join("containers").join(container).join(attempt.to_string())
    }

    /// All logs of a pod.
    pub(super) fn logs(&self, pod: &Pod) -> PathBuf {
        let name = format!("{}_{}_{}", pod.namespace(), pod.name(), pod.uid());
        self.root.join("log/pods").join(name)
    }

    /// The log of one run of a container.
    pub(super) fn log(&self, pod: &Pod, container: &str, attempt: u32) -> PathBuf {
        self.logs(pod).join(container).join(format!("{attempt}.log"))
    }
}
