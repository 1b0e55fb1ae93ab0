//! The same in other modes, by the proxy itself.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use api::Kind;
use api::core::Service;
use client::Reconcile;
use kernel::bpf::{self, Place};
use kernel::netns;
use node::proxy::{Health, Proxy};
use plan::proxy::{Dirty, EbpfPlace, IptablesBackend, Mode, Settings, Snapshot};
use serde_json::json;
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{CHANGES, busy, median, resident_kib, service, settings, slice, snapshot, with_middle};

/// Where each takes a second.
const SLOW_CHANGES: u32 = 8;

/// `measure SERVICES ENDPOINTS PINS GROUP`, `load SERVICES PINS GROUP NAMESPACE ADDRESS ENDPOINT…` for a client, or
/// `leave PINS`.
pub(super) fn ebpf(arguments: &[String]) -> anyhow::Result<()> {
    let Some((what, rest)) = arguments.split_first() else {
        anyhow::bail!("which: measure, load or leave");
    };
    match (what.as_str(), rest) {
        ("measure", [services, endpoints, pins, group]) => {
            measure((services.parse()?, endpoints.parse()?), CHANGES, &programs(pins, group)?)
        }
        ("load", [services, pins, group, namespace, address, endpoints @ ..]) => {
            let client = (Path::new(namespace), address.parse()?);
            load(&with_middle(services.parse()?, endpoints)?, &programs(pins, group)?, Some(client))
        }
        ("leave", [pins]) => Ok(bpf::remove(Path::new(pins))?),
        _ => anyhow::bail!("{arguments:?} is not understood"),
    }
}

/// `nft` or `legacy`, then `measure SERVICES ENDPOINTS` or `load SERVICES ENDPOINT…`.
pub(super) fn iptables(arguments: &[String]) -> anyhow::Result<()> {
    let [backend, what, services, rest @ ..] = arguments else {
        anyhow::bail!("nft or legacy; measure or load; how many Services");
    };
    let iptables = match backend.as_str() {
        "nft" => IptablesBackend::Nft,
        _ => IptablesBackend::Legacy,
    };
    let settings = Settings { mode: Mode::Iptables, iptables, ..settings()? };
    match (what.as_str(), rest) {
        ("measure", [endpoints]) => {
            measure((services.parse()?, endpoints.parse()?), SLOW_CHANGES, &settings)
        }
        ("load", endpoints) => load(&with_middle(services.parse()?, endpoints)?, &settings, None),
        _ => anyhow::bail!("{arguments:?} is not understood"),
    }
}

/// `MODE SERVICES PINS GROUP NODE ENDPOINT…`: the Service in the middle has node port 30080 at this node's address.
pub(super) fn outside(arguments: &[String]) -> anyhow::Result<()> {
    let [mode, services, pins, group, node, endpoints @ ..] = arguments else {
        anyhow::bail!("which mode, how many Services, pins, group, the node's address, endpoints");
    };
    let mode = if mode == "ebpf" { Mode::Ebpf } else { Mode::Nftables };
    let services = services.parse()?;
    let mut snapshot = with_middle(services, endpoints)?;
    let mut middle = serde_json::to_value(service(services / 2)?)?;
    middle["spec"]["type"] = "NodePort".into();
    middle["spec"]["ports"][0]["nodePort"] = 30080.into();
    let middle: Service = serde_json::from_value(middle)?;
    snapshot.services.insert(middle.object_name(), Arc::new(middle));
    snapshot.node = Some(Arc::new(serde_json::from_value(json!({
        "apiVersion": "v1", "kind": "Node", "metadata": { "name": "n1" },
        "status": { "addresses": [{ "type": "InternalIP", "address": node }] },
    }))?));
    // The client is no pod.
    let pod_cidrs = vec!["10.191.2.0/24".parse()?];
    load(&snapshot, &Settings { mode, pod_cidrs, ..programs(pins, group)? }, None)
}

fn programs(pins: &str, group: &str) -> anyhow::Result<Settings> {
    let ebpf = EbpfPlace { pins: pins.into(), cgroup: group.to_owned() };
    Ok(Settings { mode: Mode::Ebpf, ebpf, ebpf_links: true, ..settings()? })
}

/// A proxy of the namespace that this runs in.
struct Agent {
    runtime: Runtime,
    proxy: Proxy,
}

impl Agent {
    fn new(settings: &Settings) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let guard = runtime.enter();
        let health = Health::start("127.0.0.1:0".parse()?, CancellationToken::new());
        let proxy = Proxy::open(settings.clone(), health)?;
        drop(guard);
        Ok(Self { runtime, proxy })
    }

    fn apply(&mut self, snapshot: &Snapshot) -> anyhow::Result<()> {
        let plan = self.proxy.plan(snapshot, &());
        self.runtime.block_on(self.proxy.apply(&(), plan))?;
        Ok(())
    }
}

/// With a client, if sockets in its namespace are to be led.
fn load(
    snapshot: &Snapshot,
    settings: &Settings,
    client: Option<(&Path, Ipv4Addr)>,
) -> anyhow::Result<()> {
    let mut pods = BTreeMap::new();
    if let Some((namespace, address)) = client {
        let cookie = netns::within(namespace, bpf::netns_cookie)??;
        pods.insert(cookie, Place::Pod(Some(address), None));
    }
    let (_keep, namespaces) = watch::channel(Arc::new(pods));
    let mut agent = Agent::new(settings)?;
    agent.proxy.follow(namespaces);
    agent.apply(snapshot)
}

#[expect(clippy::print_stdout, reason = "a benchmark's output")]
fn measure(
    (services, endpoints): (u32, u32),
    changes: u32,
    settings: &Settings,
) -> anyhow::Result<()> {
    let mut snapshot = snapshot(services, endpoints)?;
    let objects = resident_kib();
    let mut agent = Agent::new(settings)?;
    let (start, before) = (Instant::now(), busy());
    agent.apply(&snapshot)?;
    let (loaded, cpu) = (start.elapsed(), busy() - before);
    let memory = resident_kib().saturating_sub(objects);
    let (mut times, mut change_cpu) = (Vec::new(), Duration::ZERO);
    for round in 0..changes {
        let number = round * 7919 % services;
        let count = if round % 2 == 0 { endpoints - 1 } else { endpoints };
        let slice = slice(number, count, round)?;
        let (start, before) = (Instant::now(), busy());
        snapshot.dirty = Some(Dirty { slices: [slice.object_name()].into(), ..Dirty::default() });
        snapshot.slices.insert(slice.object_name(), Arc::new(slice));
        agent.apply(&snapshot)?;
        times.push(start.elapsed());
        // What is left over goes.
        snapshot.dirty = Some(Dirty::default());
        agent.apply(&snapshot)?;
        change_cpu += busy() - before;
    }
    drop(agent);
    snapshot.dirty = None;
    let mut next = Agent::new(settings)?;
    let start = Instant::now();
    next.apply(&snapshot)?;
    let line = json!({
        "load": loaded.as_secs_f64(), "load_cpu": cpu.as_secs_f64(),
        "change": median(times).as_secs_f64(),
        "change_cpu": change_cpu.as_secs_f64() / f64::from(changes),
        "takeover": start.elapsed().as_secs_f64(), "memory_kib": memory,
    });
    println!("{line}");
    Ok(())
}
