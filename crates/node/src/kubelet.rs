//! The node agent: registers the node and runs its pods. Upstream counterpart: the kubelet.
//!
//! One task for each pod (`worker`) asks the pure `plan::pods::plan` what to do next and reports the pod's status.
//! Pods outlive the agent: at its start it finds those that run and takes them over.

mod atomic;
mod context;
mod handle;
mod handlers;
mod images;
mod machine;
pub mod network;
mod objects;
mod operations;
mod paths;
mod prober;
mod registration;
mod report;
mod runs;
mod sandbox;
mod spec;
mod start;
mod tokens;
mod volumes;
mod worker;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use api::Kind;
use api::core::{Pod, Service, Taint};
use client::{Client, ListParams, Recorder, Reflector};
use runtime::Runtime;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

pub use handle::{ContainerLookup, KubeletHandle, LookupError, PodLookup};
pub use network::{HostPort, PodAttachment, PodNetRequest, PodNetwork};

use crate::guard::Guard;
use context::{Agent, PodContext};
use machine::Machine;
use objects::{ObjectCache, Waker};
use paths::Paths;
use worker::{Input, Worker};

/// Upstream's default for the number of pods of a node.
pub const PODS_MAX: u32 = 110;
/// The port of the kubelet's API.
pub const PORT: u16 = 10250;

/// How a node agent runs.
#[derive(Clone)]
pub struct Options {
    /// The Node's name.
    pub node_name: String,
    /// The node's addresses, the first of the primary family.
    pub node_ips: Vec<IpAddr>,
    /// Where pods, logs and volumes live; exclusive to one agent.
    pub data_dir: PathBuf,
    /// The cluster DNS Service's address; without it pods use the node's resolvers.
    pub dns_service_ip: Option<IpAddr>,
    /// Usually `cluster.local`.
    pub cluster_domain: String,
    /// Labels of the Node beside the well-known ones.
    pub labels: BTreeMap<String, String>,
    /// Taints of the Node when it registers for the first time.
    pub taints: Vec<Taint>,
    /// The pod network of this node.
    pub network: Arc<dyn PodNetwork>,
    /// The container runtime, opened (with its images and mirrors) by the caller.
    pub runtime: Runtime,
    /// The node's own `resolv.conf`.
    pub resolv_conf: PathBuf,
    /// How many pods the node takes; see [`PODS_MAX`].
    pub pods_max: u32,
    /// Where the kubelet's API listens; see [`PORT`].
    pub port: u16,
    /// When a pull fails but the image is present, use it: for clusters without a registry, where `imagePullPolicy:
    /// Always` (the default for `:latest`) could never be met. Upstream fails instead.
    pub use_present_images: bool,
    /// Waits for the proxies of all nodes when a pod comes or goes; without it nobody waits.
    pub guard: Option<Guard>,
    /// What the stream server looks pods up in.
    pub handle: KubeletHandle,
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options").field("node_name", &self.node_name).finish_non_exhaustive()
    }
}

/// Why the agent cannot start.
#[derive(Debug, thiserror::Error)]
pub enum KubeletError {
    /// The data directory cannot be made.
    #[error("cannot make the data directory {path}")]
    DataDir {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// Runs the agent until `shutdown`. Containers keep running afterwards.
///
/// # Errors
/// When the data directory cannot be made; everything else is retried.
pub async fn run(
    options: Options,
    client: Client,
    shutdown: CancellationToken,
) -> Result<(), KubeletError> {
    let paths = Paths::new(&options.data_dir);
    std::fs::create_dir_all(paths.pods())
        .map_err(|source| KubeletError::DataDir { path: paths.pods(), source })?;
    let client = client.component("kubelet");
    let recorder = Recorder::new(&client, "kubelet", &options.node_name);
    let machine = Machine::look(&options.data_dir);
    let selector = format!("spec.nodeName={}", options.node_name);
    let pods: Reflector<Pod> = Reflector::start(&client, ListParams::fields(selector));
    let agent = Arc::new(Agent {
        services: Reflector::<Service>::start(&client, ListParams::default()),
        objects: ObjectCache::new(client.clone()),
        client: client.clone(),
        recorder: recorder.clone(),
        paths,
        machine: machine.clone(),
        options: options.clone(),
    });
    let registration = registration::keep(client, recorder, options, machine, shutdown.clone());
    let dispatch = Dispatch { agent, pods, workers: BTreeMap::new(), tasks: JoinSet::new() };
    tokio::join!(Box::pin(registration), Box::pin(dispatch.run(shutdown)));
    Ok(())
}

/// A pod's worker as the dispatcher knows it.
struct Handle {
    input: watch::Sender<Input>,
    waker: Waker,
}

/// Gives every pod its worker and tells the workers what changed.
struct Dispatch {
    agent: Arc<Agent>,
    pods: Reflector<Pod>,
    workers: BTreeMap<String, Handle>,
    tasks: JoinSet<String>,
}

impl Dispatch {
    async fn run(mut self, shutdown: CancellationToken) {
        let changed = Arc::new(Notify::new());
        let mut events = self.agent.runtime().events();
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = self.pods.synced() => {}
        }
        let wake = Arc::clone(&changed);
        self.pods.listen(move |_| wake.notify_one());
        self.sync();
        self.remove_orphans();
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = changed.notified() => self.sync(),
                event = events.recv() => match event {
                    Ok(uid) => {
                        if let Some(worker) = self.workers.get(&uid) {
                            worker.waker.wake();
                        }
                    }
                    Err(RecvError::Lagged(_)) => {
                        self.workers.values().for_each(|worker| worker.waker.wake());
                    }
                    Err(RecvError::Closed) => return,
                },
                Some(ended) = self.tasks.join_next() => match ended {
                    Ok(uid) => {
                        self.workers.remove(&uid);
                        self.sync();
                    }
                    Err(error) => {
                        let error: &(dyn std::error::Error + 'static) = &error;
                        tracing::error!(component = "kubelet", error, "the worker of a pod failed");
                    }
                },
            }
        }
    }

    /// Compares pods and workers: new pods get a worker, changed pods are passed on, gone pods are ended.
    fn sync(&mut self) {
        let view = self.pods.view();
        let mut present = BTreeSet::new();
        for pod in view.objects.values() {
            present.insert(pod.uid().to_owned());
            match self.workers.get(pod.uid()) {
                Some(worker) => {
                    worker.input.send_if_modified(|input| {
                        let changed = input.pod.revision() != pod.revision();
                        if changed {
                            input.pod = Arc::clone(pod);
                        }
                        changed
                    });
                }
                None => self.spawn(pod),
            }
        }
        for (uid, worker) in &self.workers {
            if !present.contains(uid) {
                worker.input.send_if_modified(|input| !std::mem::replace(&mut input.gone, true));
            }
        }
    }

    fn spawn(&mut self, pod: &Arc<Pod>) {
        let uid = pod.uid().to_owned();
        let (input, receiver) = watch::channel(Input { pod: Arc::clone(pod), gone: false });
        let context = PodContext::new(&self.agent, &uid);
        let waker = context.waker.clone();
        let handle = self.agent.options.handle.clone();
        let worker = Worker::new(&self.agent, handle, context, receiver);
        let name = uid.clone();
        self.tasks.spawn(async move {
            Box::pin(worker.run()).await;
            name
        });
        self.workers.insert(uid, Handle { input, waker });
    }

    /// Removes pods that were deleted while the agent was away. Only called after the first complete list.
    fn remove_orphans(&self) {
        let mut left: BTreeSet<String> =
            self.agent.runtime().pods().into_iter().map(|pod| pod.sandbox.uid).collect();
        let dirs = std::fs::read_dir(self.agent.paths.pods()).into_iter().flatten().flatten();
        left.extend(dirs.map(|entry| entry.file_name().to_string_lossy().into_owned()));
        for uid in left.into_iter().filter(|uid| !self.workers.contains_key(uid)) {
            let context = PodContext::new(&self.agent, &uid);
            tokio::spawn(async move {
                if let Err(error) = Box::pin(sandbox::remove_orphan(&context)).await {
                    tracing::warn!(component = "kubelet", uid, error, "orphaned pod not removed");
                }
            });
        }
    }
}
