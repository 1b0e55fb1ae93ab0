//! What the workers of all pods share, and what the operations of one pod share.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use api::Kind;
use api::core::{Container, ObjectReference, Pod, PodStatus, Service};
use client::{Client, EventKind, Recorder, Reflector};
use parking_lot::Mutex;
use plan::pods::env::Sources;
use plan::pods::files::Dns;
use runtime::Runtime;
use tokio::sync::OnceCell;

use crate::guard::Outcome;

use super::Options;
use super::machine::Machine;
use super::network::{HostPort, PodNetRequest};
use super::objects::{ObjectCache, Waker};
use super::paths::Paths;
use super::tokens::Tokens;
use super::volumes::Mounted;

/// What the workers of all pods share.
pub(super) struct Agent {
    pub(super) options: Options,
    pub(super) client: Client,
    pub(super) recorder: Recorder,
    pub(super) services: Reflector<Service>,
    pub(super) objects: ObjectCache,
    pub(super) paths: Paths,
    pub(super) machine: Machine,
}

impl Agent {
    pub(super) fn runtime(&self) -> &Runtime {
        &self.options.runtime
    }

    /// The node's own `resolv.conf`.
    pub(super) fn host_dns(&self) -> Dns {
        let text = std::fs::read_to_string(&self.options.resolv_conf).unwrap_or_default();
        Dns::parse(&text)
    }
}

/// What the operations of one pod share.
pub(super) struct PodContext {
    pub(super) agent: Arc<Agent>,
    pub(super) uid: String,
    pub(super) waker: Waker,
    pub(super) tokens: Tokens,
    pub(super) mounted: Mutex<Mounted>,
    /// Whether the guard has let the pod go.
    left: OnceCell<()>,
}

impl PodContext {
    pub(super) fn new(agent: &Arc<Agent>, uid: &str) -> Arc<Self> {
        Arc::new(Self {
            agent: Arc::clone(agent),
            uid: uid.to_owned(),
            waker: Waker::default(),
            tokens: Tokens::default(),
            mounted: Mutex::default(),
            left: OnceCell::new(),
        })
    }

    /// Everything that the pod's environment and volumes come from, as it is now.
    pub(super) async fn sources(&self, pod: &Pod) -> Sources {
        let (config_maps, secrets) = self.agent.objects.of(pod, &self.waker).await;
        self.agent.services.synced().await;
        Sources {
            config_maps,
            secrets,
            services: self.agent.services.view().objects.clone(),
            allocatable: self.agent.machine.resources(&self.agent.options),
        }
    }

    /// Waits, once for all containers, until no node sends the pod new connections; at most a share of `grace`.
    pub(super) async fn leave(&self, pod: &Pod, grace: Duration) {
        let Some(guard) = &self.agent.options.guard else { return };
        let wait = async {
            let Some(outcome) = guard.left(pod, plan::guard::budget(pod, grace)).await else {
                return;
            };
            let (kind, reason, message) = told(&outcome);
            self.agent.recorder.event_of_controlled(pod, kind, reason, message);
        };
        self.left.get_or_init(|| wait).await;
    }

    /// An event about the pod, or about one of its containers.
    pub(super) fn event(
        &self,
        pod: &Pod,
        container: Option<&str>,
        kind: EventKind,
        reason: &str,
        message: String,
    ) {
        let recorder = &self.agent.recorder;
        match container {
            None => recorder.event(pod, kind, reason, message),
            Some(name) => recorder.event_at(part(pod, name), kind, reason, message),
        }
    }
}

/// What the event says of a pod that goes.
fn told(outcome: &Outcome) -> (EventKind, &'static str, String) {
    let (nodes, took) = (outcome.nodes, outcome.took.as_millis());
    if outcome.is_complete() {
        let message =
            format!("{nodes} of {nodes} nodes send no new connections here after {took} ms");
        return (EventKind::Normal, plan::rollout::STOPPED, message);
    }
    let why = if outcome.settled {
        format!("not confirmed by {}", outcome.missing.join(", "))
    } else {
        "no other endpoint of its Services is ready, or they do not follow".to_owned()
    };
    let message = format!("Ends after {took} ms although new connections may still come: {why}");
    (EventKind::Warning, plan::rollout::NOT_STOPPED, message)
}

/// A reference to one container of a pod: `spec.containers{web}`.
fn part(pod: &Pod, container: &str) -> ObjectReference {
    let spec = pod.spec.as_ref();
    let mut inits = spec.into_iter().flat_map(|spec| spec.init_containers.iter().flatten());
    let list =
        if inits.any(|init| init.name == container) { "initContainers" } else { "containers" };
    ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Pod".to_owned()),
        namespace: Some(pod.namespace().to_owned()),
        name: Some(pod.name().to_owned()),
        uid: Some(pod.uid().to_owned()),
        resource_version: pod.meta().resource_version.clone(),
        field_path: Some(format!("spec.{list}{{{container}}}")),
    }
}

/// Whether the pod lives in the node's own network namespace.
pub(super) fn is_host_network(pod: &Pod) -> bool {
    pod.spec.as_ref().and_then(|spec| spec.host_network).unwrap_or(false)
}

/// What the pod network is asked for.
pub(super) fn net_request(pod: &Pod) -> PodNetRequest {
    let containers = pod.spec.iter().flat_map(|spec| {
        let sidecars = spec.init_containers.iter().flatten();
        spec.containers.iter().chain(sidecars.filter(|init| plan::pods::is_sidecar(init)))
    });
    let ports = containers.flat_map(|container| container.ports.iter().flatten());
    let host_ports = ports
        .filter_map(|port| {
            let any = |ip: &IpAddr| !ip.is_unspecified();
            Some(HostPort {
                protocol: port.protocol.clone().unwrap_or_else(|| "TCP".to_owned()),
                host_port: u16::try_from(port.host_port?).ok().filter(|port| *port > 0)?,
                container_port: u16::try_from(port.container_port).ok()?,
                host_ip: port.host_ip.as_deref().and_then(|ip| ip.parse().ok()).filter(any),
            })
        })
        .collect();
    PodNetRequest {
        namespace: pod.namespace().to_owned(),
        name: pod.name().to_owned(),
        uid: pod.uid().to_owned(),
        host_ports,
    }
}

/// A container of the pod by name, init containers among them.
pub(super) fn find<'a>(pod: &'a Pod, name: &str) -> Option<&'a Container> {
    plan::pods::env::find_container(pod, name).ok()
}

/// The status that the downward API shows: the one last computed, with the addresses as they are now.
pub(super) fn with_ips(status: &PodStatus, ips: &[IpAddr]) -> PodStatus {
    let texts: Vec<String> = ips.iter().map(ToString::to_string).collect();
    PodStatus {
        pod_ip: texts.first().cloned(),
        pod_ips: Some(texts.into_iter().map(|ip| api::core::PodIP { ip }).collect()),
        ..status.clone()
    }
}
