//! The agent's side of pods: starts shims, asks them, keeps what they report (upstream: CRI `RuntimeService`).

mod link;
mod operations;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{broadcast, watch};

use crate::cgroup::Cgroup;
use crate::error::RuntimeError;
use crate::image::ImageStore;
use crate::pod::{ContainerStatus, PodSandbox, PodStats, PodStatus};

/// Changes that a slow receiver may lag behind before it must look at all pods.
const EVENTS_MAX: usize = 1024;

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
    pods: Mutex<BTreeMap<String, Pod>>,
    /// One start or end of a pod at a time for each UID.
    changing: Mutex<BTreeMap<String, Arc<tokio::sync::Mutex<()>>>>,
}

/// A pod as this agent knows it.
#[derive(Debug)]
struct Pod {
    sandbox: PodSandbox,
    cgroup: String,
    containers: BTreeMap<String, ContainerStatus>,
    /// Number of the last change seen; None when the shim is gone.
    seen: watch::Sender<Option<u64>>,
}

impl Pod {
    fn status(&self) -> PodStatus {
        let mut containers: Vec<ContainerStatus> = self.containers.values().cloned().collect();
        containers.sort_by(|a, b| (&a.name, a.attempt, &a.id).cmp(&(&b.name, b.attempt, &b.id)));
        PodStatus { sandbox: self.sandbox.clone(), ready: self.seen.borrow().is_some(), containers }
    }
}

impl Inner {
    fn pods(&self) -> MutexGuard<'_, BTreeMap<String, Pod>> {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pods_dir(&self) -> PathBuf {
        self.options.state_dir.join("pods")
    }

    fn pod_dir(&self, uid: &str) -> PathBuf {
        self.pods_dir().join(uid)
    }

    fn changing(&self, uid: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut all = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|_, one| Arc::strong_count(one) > 1);
        Arc::clone(all.entry(uid.to_owned()).or_default())
    }

    fn tell(&self, uid: &str) {
        let _ = self.events.send(uid.to_owned()); // nobody listens: nobody is told
    }

    /// The pod of a container, and its status.
    fn find(&self, id: &str) -> Option<(String, ContainerStatus)> {
        let pods = self.pods();
        let found = pods.iter().find_map(|(uid, pod)| Some((uid, pod.containers.get(id)?)));
        found.map(|(uid, status)| (uid.clone(), status.clone()))
    }
}

impl Runtime {
    /// Opens the state directory and finds the pods that run there since before.
    ///
    /// # Errors
    /// When the directory cannot be made or read.
    pub async fn open(mut options: Options) -> Result<Self, RuntimeError> {
        let directory = options.state_dir.join("pods");
        let made = std::fs::create_dir_all(&directory)
            .and_then(|()| std::fs::canonicalize(&options.state_dir));
        options.state_dir = made.map_err(RuntimeError::state("create", &directory))?;
        let inner = Arc::new(Inner {
            options,
            events: broadcast::channel(EVENTS_MAX).0,
            pods: Mutex::default(),
            changing: Mutex::default(),
        });
        let entries = std::fs::read_dir(inner.pods_dir())
            .map_err(RuntimeError::state("read", inner.pods_dir()))?;
        for entry in entries.flatten() {
            link::adopt(&inner, &entry.file_name().to_string_lossy()).await;
        }
        Ok(Self { inner })
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
        self.inner.pods().values().map(Pod::status).collect()
    }

    /// One pod.
    #[must_use]
    pub fn pod(&self, uid: &str) -> Option<PodStatus> {
        self.inner.pods().get(uid).map(Pod::status)
    }

    /// One container.
    #[must_use]
    pub fn container(&self, id: &str) -> Option<ContainerStatus> {
        self.inner.find(id).map(|(_, status)| status)
    }

    /// What the pod uses now; None without a control group.
    #[must_use]
    pub fn pod_stats(&self, uid: &str) -> Option<PodStats> {
        let path = self.inner.pods().get(uid)?.cgroup.clone();
        Cgroup::new(path).stats()
    }

    /// What the container uses now.
    #[must_use]
    pub fn container_stats(&self, id: &str) -> Option<PodStats> {
        let (uid, _) = self.inner.find(id)?;
        let path = self.inner.pods().get(&uid)?.cgroup.clone();
        Cgroup::new(format!("{path}/{id}")).stats()
    }
}
