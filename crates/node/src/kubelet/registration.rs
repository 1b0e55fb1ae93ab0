//! The Node object and its Lease: made at start, kept fresh. Upstream: `kubelet_node_status.go`, `pkg/util/nodelease`.

use std::collections::BTreeMap;
use std::time::Duration;

use api::Kind;
use api::coordination::{Lease, LeaseSpec};
use api::core::{
    ContainerImage, DaemonEndpoint, Node, NodeAddress, NodeCondition, NodeDaemonEndpoints,
    NodeSpec, NodeStatus,
};
use api::meta::{MicroTime, ObjectMeta, OwnerReference, Time};
use client::{Client, Error, EventKind, Patch, Recorder};
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Options;
use super::machine::{Machine, architecture};

/// Where the leases of nodes live.
const LEASE_NAMESPACE: &str = "kube-node-lease";
/// A lease that is not renewed for this long means a dead node.
const LEASE_SECONDS: i32 = 40;
/// How often the lease is renewed (upstream: a quarter of its duration) and the status is compared with the API's.
const RENEW: Duration = Duration::from_secs(10);
/// Longest wait for an answer: a connection that died silently must not keep the node silent too (upstream's heartbeat
/// client waits as long as a lease lasts, at most 10 s for each try).
const ANSWER_MAX: Duration = Duration::from_secs(10);
/// How often the status is written even when it did not change.
const STATUS: Duration = Duration::from_secs(300);
/// How soon a failed write is tried again.
const RETRY: Duration = Duration::from_millis(200);
/// Upstream's `nodeStatusMaxImages`.
const IMAGES_MAX: usize = 50;

/// Registers the node and keeps lease and status fresh until `shutdown`.
pub(super) async fn keep(
    client: Client,
    recorder: Recorder,
    options: Options,
    machine: Machine,
    shutdown: CancellationToken,
) {
    let uid = loop {
        match tokio::time::timeout(ANSWER_MAX, register(&client, &options, &machine)).await {
            Ok(Ok(uid)) => break uid,
            Ok(Err(error)) => complain(&options.node_name, &error),
            Err(_elapsed) => {
                tracing::warn!(component = "kubelet", "the API server does not answer");
            }
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(RETRY) => {}
        }
    };
    // Upstream's kubelet refers to its node with the name as uid, and older kubectls look for that alone.
    let mut node = object(&options);
    node.metadata.uid = Some(options.node_name.clone());
    recorder.event(&node, EventKind::Normal, "Starting", "Starting kubelet.");
    let heartbeat = Heartbeat { client, options, machine, uid };
    let mut renew = tokio::time::interval(RENEW);
    renew.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut written = Instant::now();
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            _ = renew.tick() => {}
        }
        let forced = written.elapsed() >= STATUS;
        let beat = tokio::time::timeout(ANSWER_MAX, heartbeat.beat(forced)).await;
        match beat {
            Ok(Ok(true)) => written = Instant::now(),
            Ok(Ok(false)) => {}
            Ok(Err(error)) => {
                complain(&heartbeat.options.node_name, &error);
                renew.reset_after(RETRY);
            }
            Err(_elapsed) => {
                let node = heartbeat.options.node_name.as_str();
                tracing::warn!(component = "kubelet", node, "the API server does not answer");
                renew.reset_after(RETRY);
            }
        }
    }
}

/// What the node's own object and lease are kept with.
struct Heartbeat {
    client: Client,
    options: Options,
    machine: Machine,
    uid: String,
}

impl Heartbeat {
    /// Renews the lease, and writes the status when it must be, or when the API has another: somebody who took the node
    /// for dead wrote so there, and it is for the node to say that it lives. Whether the status was written.
    async fn beat(&self, forced: bool) -> Result<bool, Error> {
        let Self { client, options, machine, uid } = self;
        renew_lease(client, &options.node_name, uid).await?;
        let known: Node = client.get("", &options.node_name).await?;
        let status = status(options, machine, known.status.as_ref());
        let changed = differs(known.status.as_ref(), &status);
        if forced || changed {
            write_status(client, options, &status).await?;
        }
        Ok(forced || changed)
    }
}

/// Whether the status in the API says anything else than `now`, apart from the times of heartbeats.
fn differs(known: Option<&NodeStatus>, now: &NodeStatus) -> bool {
    let Some(known) = known else { return true };
    let timeless = |status: &NodeStatus| {
        let conditions = status.conditions.iter().flatten();
        let one = |condition: &NodeCondition| (condition.type_.clone(), condition.status.clone());
        conditions.map(one).collect::<BTreeMap<_, _>>()
    };
    let (have, want) = (timeless(known), timeless(now));
    want.iter().any(|(type_, status)| have.get(type_) != Some(status))
        || known.addresses != now.addresses
        || known.capacity != now.capacity
        || known.images != now.images
        || known.node_info != now.node_info
        || known.daemon_endpoints != now.daemon_endpoints
}

fn complain(node: &str, error: &Error) {
    let error: &(dyn std::error::Error + 'static) = error;
    tracing::warn!(component = "kubelet", node, error, "node status not written");
}

/// The Node object as this agent would make it.
fn object(options: &Options) -> Node {
    let mut labels = options.labels.clone();
    for prefix in ["kubernetes.io", "beta.kubernetes.io"] {
        labels.insert(format!("{prefix}/os"), "linux".to_owned());
        labels.insert(format!("{prefix}/arch"), architecture().to_owned());
    }
    labels.insert("kubernetes.io/hostname".to_owned(), options.node_name.clone());
    Node {
        metadata: ObjectMeta {
            name: Some(options.node_name.clone()),
            labels: Some(labels),
            ..ObjectMeta::default()
        },
        spec: Some(NodeSpec {
            taints: (!options.taints.is_empty()).then(|| options.taints.clone()),
            ..NodeSpec::default()
        }),
        status: None,
    }
}

/// Makes the Node, or brings the labels of the present one up to date; returns its uid.
async fn register(client: &Client, options: &Options, machine: &Machine) -> Result<String, Error> {
    let mut node = object(options);
    node.status = Some(status(options, machine, None));
    let known = match client.create(&node).await {
        Ok(created) => created,
        Err(error) if error.is_already_exists() => {
            let patch = json!({"metadata": {"labels": node.metadata.labels}});
            client.patch("", &options.node_name, &Patch::Merge(patch)).await?
        }
        Err(error) => return Err(error),
    };
    let status = status(options, machine, known.status.as_ref());
    write_status(client, options, &status).await?;
    renew_lease(client, &options.node_name, known.uid()).await?;
    Ok(known.uid().to_owned())
}

async fn write_status(
    client: &Client,
    options: &Options,
    status: &NodeStatus,
) -> Result<(), Error> {
    let patch = Patch::Strategic(json!({"status": status}));
    client.patch_status::<Node>("", &options.node_name, &patch).await.map(|_| ())
}

fn status(options: &Options, machine: &Machine, before: Option<&NodeStatus>) -> NodeStatus {
    let address = |type_: &str, address: String| NodeAddress { type_: type_.to_owned(), address };
    let ips = options.node_ips.iter().map(|ip| address("InternalIP", ip.to_string()));
    let name = address("Hostname", options.node_name.clone());
    let resources = machine.resources(options);
    NodeStatus {
        addresses: Some(ips.chain([name]).collect()),
        capacity: Some(resources.clone()),
        allocatable: Some(resources),
        conditions: Some(conditions(options, before)),
        daemon_endpoints: Some(NodeDaemonEndpoints {
            kubelet_endpoint: Some(DaemonEndpoint { port: i32::from(options.port) }),
        }),
        node_info: Some(machine.info.clone()),
        images: Some(images(options)),
        ..NodeStatus::default()
    }
}

fn images(options: &Options) -> Vec<ContainerImage> {
    let list = options.runtime.images().list().unwrap_or_default();
    let known = list.into_iter().map(|image| ContainerImage {
        names: Some(image.digests.into_iter().chain(image.names).collect()),
        size_bytes: i64::try_from(image.size_bytes).ok(),
    });
    known.take(IMAGES_MAX).collect()
}

/// Whether memory or disk run short: upstream's hard eviction thresholds (100 Mi, 10 percent).
fn pressures(options: &Options) -> (bool, bool) {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let available = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kibibytes: Option<u64> =
        available.and_then(|text| text.split_whitespace().next()?.parse().ok());
    let memory = kibibytes.is_some_and(|kibibytes| kibibytes < 100 * 1024);
    let disk = nix::sys::statvfs::statvfs(&options.data_dir)
        .is_ok_and(|disk| is_full(disk.blocks(), disk.blocks_free(), disk.blocks_available()));
    (memory, disk)
}

/// Whether less than a tenth of a disk is available (upstream: `nodefs.available<10%`). The whole is what can be used at
/// all, as df reckons: blocks that the file system keeps back are free but never available, and say nothing of pressure.
fn is_full(blocks: u64, free: u64, available: u64) -> bool {
    let usable = blocks.saturating_sub(free).saturating_add(available);
    available.saturating_mul(10) < usable
}

fn conditions(options: &Options, before: Option<&NodeStatus>) -> Vec<NodeCondition> {
    let (memory, disk) = pressures(options);
    let rows: [(&str, bool, &str, &str); 4] = [
        match memory {
            false => (
                "MemoryPressure",
                false,
                "KubeletHasSufficientMemory",
                "kubelet has sufficient memory available",
            ),
            true => (
                "MemoryPressure",
                true,
                "KubeletHasInsufficientMemory",
                "kubelet has insufficient memory available",
            ),
        },
        match disk {
            false => {
                ("DiskPressure", false, "KubeletHasNoDiskPressure", "kubelet has no disk pressure")
            }
            true => ("DiskPressure", true, "KubeletHasDiskPressure", "kubelet has disk pressure"),
        },
        ("PIDPressure", false, "KubeletHasSufficientPID", "kubelet has sufficient PID available"),
        ("Ready", true, "KubeletReady", "kubelet is posting ready status"),
    ];
    let now = Time(Timestamp::now());
    let known: BTreeMap<&str, &NodeCondition> = before
        .iter()
        .flat_map(|status| status.conditions.iter().flatten())
        .map(|condition| (condition.type_.as_str(), condition))
        .collect();
    rows.into_iter()
        .map(|(type_, holds, reason, message)| {
            let holds = if holds { "True" } else { "False" };
            let since = known
                .get(type_)
                .filter(|condition| condition.status == holds)
                .and_then(|condition| condition.last_transition_time.clone());
            NodeCondition {
                type_: type_.to_owned(),
                status: holds.to_owned(),
                reason: Some(reason.to_owned()),
                message: Some(message.to_owned()),
                last_heartbeat_time: Some(now.clone()),
                last_transition_time: Some(since.unwrap_or_else(|| now.clone())),
            }
        })
        .collect()
}

/// Renews the node's lease, and makes it when it is missing.
async fn renew_lease(client: &Client, node: &str, uid: &str) -> Result<(), Error> {
    let now = MicroTime(Timestamp::now());
    let patch: Value = json!({"spec": {"renewTime": now}});
    let answer =
        client.patch::<Lease>(LEASE_NAMESPACE, node, &Patch::Merge(patch)).await.map(|_| ());
    match answer {
        Err(error) if error.is_not_found() => {}
        other => return other,
    }
    let owner = OwnerReference {
        api_version: "v1".to_owned(),
        kind: "Node".to_owned(),
        name: node.to_owned(),
        uid: uid.to_owned(),
        ..OwnerReference::default()
    };
    let lease = Lease {
        metadata: ObjectMeta {
            namespace: Some(LEASE_NAMESPACE.to_owned()),
            name: Some(node.to_owned()),
            owner_references: Some(vec![owner]),
            ..ObjectMeta::default()
        },
        spec: Some(LeaseSpec {
            holder_identity: Some(node.to_owned()),
            lease_duration_seconds: Some(LEASE_SECONDS),
            renew_time: Some(now),
            ..LeaseSpec::default()
        }),
    };
    client.create(&lease).await.map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_said_counts_as_a_difference() {
        let said = |status: &str, at: &str| -> NodeStatus {
            serde_json::from_value(json!({
                "conditions": [{"type": "Ready", "status": status, "lastHeartbeatTime": at}],
                "capacity": {"cpu": "2"},
            }))
            .unwrap()
        };
        let now = said("True", "2026-01-01T00:00:10Z");
        assert!(!differs(Some(&said("True", "2026-01-01T00:00:00Z")), &now), "a newer heartbeat");
        assert!(differs(Some(&said("Unknown", "2026-01-01T00:00:00Z")), &now), "taken for dead");
        assert!(differs(None, &now));
        assert!(differs(Some(&NodeStatus::default()), &now));
    }

    #[test]
    fn blocks_that_are_kept_back_are_no_pressure() {
        assert!(!is_full(252, 186, 26), "most is kept back, and a third of the rest is available");
        assert!(is_full(252, 9, 9));
        assert!(!is_full(100, 10, 10));
        assert!(is_full(100, 14, 9), "five of a hundred are kept back, as ext4 does");
    }
}
