//! Network, volumes and shim of a pod: made before its first container, taken down after its last.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use api::Kind;
use api::core::{Pod, PodStatus};
use client::EventKind;
use plan::pods::env::Subject;
use plan::pods::files;
use serde::{Deserialize, Serialize};

use super::context::{PodContext, is_host_network, net_request, with_ips};
use super::network::PodAttachment;
use super::paths::Paths;
use super::spec;
use super::volumes::{self, Mounter};

/// A pod that its object no longer describes gets this long to stop.
const ORPHAN_GRACE: Duration = Duration::from_secs(30);

/// What is kept on disk about a pod, for the agent's next life.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) uid: String,
    pub(super) netns: Option<PathBuf>,
    pub(super) ips: Vec<IpAddr>,
}

impl Record {
    pub(super) fn read(paths: &Paths, uid: &str) -> Option<Self> {
        serde_json::from_slice(&fs::read(paths.record(uid)).ok()?).ok()
    }

    fn write(&self, paths: &Paths) -> io::Result<()> {
        let path = paths.record(&self.uid);
        let fresh = path.with_extension("new");
        fs::write(&fresh, serde_json::to_vec(self).map_err(io::Error::other)?)?;
        fs::rename(fresh, path)
    }
}

/// Makes the pod's network and volumes and starts its shim. Idempotent. Failures are written as events.
pub(super) async fn prepare(
    context: &PodContext,
    pod: &Pod,
    status: &PodStatus,
) -> Result<PodAttachment, String> {
    let network = async {
        if is_host_network(pod) {
            let ips = context.agent.options.node_ips.clone();
            return Ok(PodAttachment { netns: PathBuf::new(), ips });
        }
        context.agent.options.network.add(&net_request(pod)).await.map_err(|error| {
            let message = format!("Failed to create pod sandbox: {error}");
            context.event(pod, None, EventKind::Warning, "FailedCreatePodSandBox", message.clone());
            message
        })
    };
    let files = async {
        fs::create_dir_all(context.agent.paths.pod(pod.uid()))
            .map_err(|error| error.to_string())?;
        let sources = context.sources(pod).await;
        let subject = Subject { pod, status };
        let mounter = Mounter {
            client: &context.agent.client,
            paths: &context.agent.paths,
            tokens: &context.tokens,
            subject,
            sources: &sources,
        };
        mounter.mount_all().await.inspect_err(|error| {
            context.event(pod, None, EventKind::Warning, "FailedMount", error.clone());
        })
    };
    let (attachment, mounted) = tokio::join!(network, files);
    let (attachment, mounted) = (attachment?, mounted?);
    *context.mounted.lock() = mounted;
    if needs_addresses(pod) {
        refresh(context, pod, &with_ips(status, &attachment.ips)).await?;
    }
    let run = async {
        write_files(context, pod, &attachment.ips).map_err(|error| error.to_string())?;
        let netns = (!is_host_network(pod)).then(|| attachment.netns.clone());
        let sandbox = spec::sandbox(pod, netns.clone(), &context.agent.options.cluster_domain);
        context.agent.runtime().run_pod(sandbox).await.map_err(|error| error.to_string())?;
        let record = Record {
            namespace: pod.namespace().to_owned(),
            name: pod.name().to_owned(),
            uid: pod.uid().to_owned(),
            netns,
            ips: attachment.ips.clone(),
        };
        record.write(&context.agent.paths).map_err(|error| error.to_string())
    };
    run.await.map_err(|error| {
        let message = format!("Failed to create pod sandbox: {error}");
        context.event(pod, None, EventKind::Warning, "FailedCreatePodSandBox", message.clone());
        message
    })?;
    Ok(attachment)
}

/// Whether a volume shows the pod's address, which is known only once the network is there.
fn needs_addresses(pod: &Pod) -> bool {
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    let mut downward = volumes.into_iter().filter(|volume| {
        let projected = volume.projected.iter().flat_map(|source| source.sources.iter().flatten());
        volume.downward_api.is_some()
            || projected.into_iter().any(|source| source.downward_api.is_some())
    });
    downward.next().is_some()
}

/// Writes the volumes again whose objects changed.
pub(super) async fn refresh(
    context: &PodContext,
    pod: &Pod,
    status: &PodStatus,
) -> Result<(), String> {
    let sources = context.sources(pod).await;
    let mounter = Mounter {
        client: &context.agent.client,
        paths: &context.agent.paths,
        tokens: &context.tokens,
        subject: Subject { pod, status },
        sources: &sources,
    };
    mounter.refresh().await
}

/// `/etc/hosts`, `/etc/hostname` and `/etc/resolv.conf`.
fn write_files(context: &PodContext, pod: &Pod, ips: &[IpAddr]) -> io::Result<()> {
    let agent = &context.agent;
    let domain = &agent.options.cluster_domain;
    let write = |name: &str, text: &str| {
        let path = agent.paths.file(pod.uid(), name);
        if fs::read_to_string(&path).is_ok_and(|before| before == text) {
            return Ok(());
        }
        fs::write(path, text)
    };
    let (hosts, hostname) = if is_host_network(pod) {
        let node = fs::read_to_string("/etc/hosts").unwrap_or_default();
        (files::hosts_of_node(pod, &node), spec::node_hostname())
    } else {
        (files::hosts(pod, ips, domain), files::uts_hostname(pod, domain))
    };
    write("etc-hosts", &hosts)?;
    write("hostname", &format!("{hostname}\n"))?;
    let dns = files::resolv_conf(pod, &agent.host_dns(), agent.options.dns_service_ip, domain);
    write("resolv.conf", &dns.render())
}

/// Ends the shim and gives network and volumes back; statuses and logs stay. Idempotent.
pub(super) async fn close(context: &PodContext) -> Result<(), String> {
    let agent = &context.agent;
    agent.runtime().stop_pod(&context.uid).await.map_err(|error| error.to_string())?;
    agent.options.network.del(&context.uid).await;
    agent.objects.release(&context.uid);
    volumes::unmount_all(&agent.paths, &context.uid).map_err(|error| error.to_string())
}

/// Removes everything that is left of the pod. Idempotent.
pub(super) async fn remove(context: &PodContext, logs: &Path) -> Result<(), String> {
    close(context).await?;
    let agent = &context.agent;
    agent.runtime().remove_pod(&context.uid).await.map_err(|error| error.to_string())?;
    for dir in [logs, &agent.paths.pod(&context.uid)] {
        match fs::remove_dir_all(dir) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.to_string()),
            _ => {}
        }
    }
    Ok(())
}

/// Stops and removes a pod that the API does not know (any more).
pub(super) async fn remove_orphan(context: &PodContext) -> Result<(), String> {
    let agent = &context.agent;
    let record = Record::read(&agent.paths, &context.uid).unwrap_or_default();
    let seen = agent.runtime().pod(&context.uid);
    let stops = seen.into_iter().flat_map(|pod| pod.containers).map(|container| async move {
        let _ = agent.runtime().stop_container(&container.id, ORPHAN_GRACE).await;
    });
    futures_util::future::join_all(stops).await;
    let mut pod = Pod::default();
    pod.metadata.namespace = Some(record.namespace);
    pod.metadata.name = Some(record.name);
    pod.metadata.uid = Some(context.uid.clone());
    remove(context, &agent.paths.logs(&pod)).await
}
