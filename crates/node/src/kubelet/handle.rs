//! What the stream server (logs, exec, attach, port-forward, `/pods`) may ask of the kubelet.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use api::core::{ContainerStatus, Pod, PodStatus};
use api::{Kind, Name};
use parking_lot::RwLock;

/// Why a pod or container cannot be served; the texts are the kubelet's own words.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LookupError {
    /// No such pod on this node: 404.
    #[error("pod does not exist")]
    NoPod,
    /// The pod has no container of that name: 404.
    #[error("container {container:?} not found in pod {pod:?}")]
    NoContainer {
        /// The name that was asked for.
        container: String,
        /// The pod's name.
        pod: String,
    },
    /// The container has not started (or not once before): 400.
    #[error("{0}")]
    NotStarted(String),
}

/// A container as the stream server needs it.
#[derive(Clone, Debug, PartialEq)]
pub struct ContainerLookup {
    /// The pod's uid.
    pub pod_uid: String,
    /// The runtime's id of the present run; `None` when none was created.
    pub container_id: Option<String>,
    /// Whether the present run is running.
    pub running: bool,
    /// The log file of the present run.
    pub log_path: Option<PathBuf>,
    /// `tty` of the container's spec.
    pub tty: bool,
    /// `stdin` of the container's spec.
    pub stdin: bool,
    /// The container's status as last computed.
    pub status: Option<ContainerStatus>,
}

/// A pod as the stream server needs it.
#[derive(Clone, Debug, PartialEq)]
pub struct PodLookup {
    /// The pod's uid.
    pub uid: String,
    /// The pod's network namespace; `None` for `hostNetwork` and before the sandbox exists.
    pub netns: Option<PathBuf>,
    /// The pod's addresses.
    pub ips: Vec<IpAddr>,
    /// The pod with its status as last computed.
    pub pod: Arc<Pod>,
}

/// One run of a container, as the worker publishes it.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct RunEntry {
    pub(crate) id: String,
    pub(crate) running: bool,
    pub(crate) log_path: PathBuf,
}

/// What a worker publishes about its pod.
#[derive(Clone, Debug, Default)]
pub(crate) struct PodEntry {
    pub(crate) pod: Arc<Pod>,
    pub(crate) status: PodStatus,
    pub(crate) netns: Option<PathBuf>,
    pub(crate) ips: Vec<IpAddr>,
    pub(crate) current: BTreeMap<String, RunEntry>,
    pub(crate) previous: BTreeMap<String, RunEntry>,
}

/// A cheap, shared view of the pods of this node.
#[derive(Clone, Debug, Default)]
pub struct KubeletHandle {
    pods: Arc<RwLock<BTreeMap<Name, PodEntry>>>,
}

impl KubeletHandle {
    /// A view without pods; give a clone to [`super::run`].
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    pub(crate) fn publish(&self, entry: PodEntry) {
        self.pods.write().insert(entry.pod.object_name(), entry);
    }

    pub(crate) fn forget(&self, name: &Name, uid: &str) {
        let mut pods = self.pods.write();
        if pods.get(name).is_some_and(|entry| entry.pod.uid() == uid) {
            pods.remove(name);
        }
    }

    /// All pods of this node by name, each with its status as last computed.
    #[must_use]
    pub fn pods(&self) -> Vec<Pod> {
        self.pods.read().values().map(with_status).collect()
    }

    /// One pod.
    ///
    /// # Errors
    /// [`LookupError::NoPod`].
    pub fn pod(&self, namespace: &str, name: &str) -> Result<PodLookup, LookupError> {
        let pods = self.pods.read();
        let entry = pods.get(&Name::new(namespace, name)).ok_or(LookupError::NoPod)?;
        Ok(PodLookup {
            uid: entry.pod.uid().to_owned(),
            netns: entry.netns.clone(),
            ips: entry.ips.clone(),
            pod: Arc::new(with_status(entry)),
        })
    }

    /// One container; an empty name means the pod's first.
    ///
    /// # Errors
    /// [`LookupError::NoPod`] and [`LookupError::NoContainer`].
    pub fn lookup(
        &self,
        namespace: &str,
        pod: &str,
        container: &str,
    ) -> Result<ContainerLookup, LookupError> {
        let pods = self.pods.read();
        let entry = pods.get(&Name::new(namespace, pod)).ok_or(LookupError::NoPod)?;
        let spec = entry.pod.spec.as_ref().ok_or(LookupError::NoPod)?;
        let all = || spec.containers.iter().chain(spec.init_containers.iter().flatten());
        let found = if container.is_empty() {
            spec.containers.first()
        } else {
            all().find(|known| known.name == container)
        };
        let found = found.ok_or_else(|| LookupError::NoContainer {
            container: container.to_owned(),
            pod: pod.to_owned(),
        })?;
        let current = entry.current.get(&found.name);
        Ok(ContainerLookup {
            pod_uid: entry.pod.uid().to_owned(),
            container_id: current.map(|run| run.id.clone()),
            running: current.is_some_and(|run| run.running),
            log_path: current.map(|run| run.log_path.clone()),
            tty: found.tty.unwrap_or(false),
            stdin: found.stdin.unwrap_or(false),
            status: container_status(&entry.status, &found.name).cloned(),
        })
    }

    /// The log file to read: of the present run, or of the one before it when `previous`.
    ///
    /// # Errors
    /// As [`KubeletHandle::lookup`], and [`LookupError::NotStarted`] when there is no such run.
    pub fn log_path(
        &self,
        namespace: &str,
        pod: &str,
        container: &str,
        previous: bool,
    ) -> Result<PathBuf, LookupError> {
        let found = self.lookup(namespace, pod, container)?;
        let pods = self.pods.read();
        let entry = pods.get(&Name::new(namespace, pod)).ok_or(LookupError::NoPod)?;
        let container = if container.is_empty() {
            entry.pod.spec.as_ref().and_then(|spec| spec.containers.first()).map_or("", |c| &c.name)
        } else {
            container
        };
        let before = entry.previous.get(container).map(|run| run.log_path.clone());
        if previous {
            return before.ok_or_else(|| {
                LookupError::NotStarted(format!(
                    "previous terminated container {container:?} in pod {pod:?} not found"
                ))
            });
        }
        found.log_path.or(before).ok_or_else(|| {
            let reason = found.status.as_ref().and_then(waiting_reason);
            LookupError::NotStarted(not_started(container, pod, reason))
        })
    }
}

fn with_status(entry: &PodEntry) -> Pod {
    Pod { status: Some(entry.status.clone()), ..(*entry.pod).clone() }
}

fn container_status<'a>(status: &'a PodStatus, name: &str) -> Option<&'a ContainerStatus> {
    let mut all = status
        .container_statuses
        .iter()
        .flatten()
        .chain(status.init_container_statuses.iter().flatten());
    all.find(|status| status.name == name)
}

fn waiting_reason(status: &ContainerStatus) -> Option<&str> {
    status.state.as_ref()?.waiting.as_ref()?.reason.as_deref()
}

fn not_started(container: &str, pod: &str, reason: Option<&str>) -> String {
    let head = format!("container {container:?} in pod {pod:?} is waiting to start");
    match reason {
        Some("ErrImagePull") => format!("{head}: image can't be pulled"),
        Some("ImagePullBackOff") => format!("{head}: trying and failing to pull image"),
        Some(reason) => format!("{head}: {reason}"),
        None => format!("{head} - no logs yet"),
    }
}
