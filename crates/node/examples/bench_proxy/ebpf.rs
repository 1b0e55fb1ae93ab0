//! The same in mode ebpf, by the proxy itself: rules and programs.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use api::Kind;
use client::Reconcile;
use kernel::bpf::{self, Place};
use kernel::netns;
use node::proxy::{Health, Proxy};
use plan::proxy::{Dirty, EbpfPlace, Mode, Settings, Snapshot};
use serde_json::json;
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{CHANGES, busy, median, resident_kib, settings, slice, snapshot, with_middle};

/// `measure SERVICES ENDPOINTS PINS GROUP`, `load SERVICES PINS GROUP NAMESPACE ADDRESS ENDPOINT…` for a client, or
/// `leave PINS`.
pub(super) fn run(arguments: &[String]) -> anyhow::Result<()> {
    let Some((what, rest)) = arguments.split_first() else {
        anyhow::bail!("which: measure, load or leave");
    };
    match (what.as_str(), rest) {
        ("measure", [services, endpoints, pins, group]) => {
            measure((services.parse()?, endpoints.parse()?), place(pins, group))
        }
        ("load", [services, pins, group, namespace, address, endpoints @ ..]) => {
            let client = (Path::new(namespace), address.parse()?);
            load(&with_middle(services.parse()?, endpoints)?, place(pins, group), client)
        }
        ("leave", [pins]) => Ok(bpf::remove(Path::new(pins))?),
        _ => anyhow::bail!("{arguments:?} is not understood"),
    }
}

fn place(pins: &str, group: &str) -> EbpfPlace {
    EbpfPlace { pins: pins.into(), cgroup: group.to_owned() }
}

/// A proxy of the namespace that this runs in.
struct Agent {
    runtime: Runtime,
    proxy: Proxy,
}

impl Agent {
    fn new(place: &EbpfPlace) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let guard = runtime.enter();
        let health = Health::start("127.0.0.1:0".parse()?, CancellationToken::new());
        let settings =
            Settings { mode: Mode::Ebpf, ebpf: place.clone(), ebpf_links: true, ..settings()? };
        let proxy = Proxy::open(settings, health)?;
        drop(guard);
        Ok(Self { runtime, proxy })
    }

    fn apply(&mut self, snapshot: &Snapshot) -> anyhow::Result<()> {
        let plan = self.proxy.plan(snapshot, &());
        self.runtime.block_on(self.proxy.apply(&(), plan))?;
        Ok(())
    }
}

fn load(
    snapshot: &Snapshot,
    place: EbpfPlace,
    (namespace, address): (&Path, Ipv4Addr),
) -> anyhow::Result<()> {
    let cookie = netns::within(namespace, bpf::netns_cookie)??;
    let pods = BTreeMap::from([(cookie, Place::Pod(Some(address), None))]);
    let (_keep, namespaces) = watch::channel(Arc::new(pods));
    let mut agent = Agent::new(&place)?;
    agent.proxy.follow(namespaces);
    agent.apply(snapshot)
}

#[expect(clippy::print_stdout, reason = "a benchmark's output")]
fn measure((services, endpoints): (u32, u32), place: EbpfPlace) -> anyhow::Result<()> {
    let mut snapshot = snapshot(services, endpoints)?;
    let objects = resident_kib();
    let mut agent = Agent::new(&place)?;
    let (start, before) = (Instant::now(), busy());
    agent.apply(&snapshot)?;
    let (loaded, cpu) = (start.elapsed(), busy() - before);
    let memory = resident_kib().saturating_sub(objects);
    let (mut times, mut change_cpu) = (Vec::new(), Duration::ZERO);
    for round in 0..CHANGES {
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
    let mut next = Agent::new(&place)?;
    let start = Instant::now();
    next.apply(&snapshot)?;
    let line = json!({
        "load": loaded.as_secs_f64(), "load_cpu": cpu.as_secs_f64(),
        "change": median(times).as_secs_f64(),
        "change_cpu": change_cpu.as_secs_f64() / f64::from(CHANGES),
        "takeover": start.elapsed().as_secs_f64(), "memory_kib": memory,
    });
    println!("{line}");
    Ok(())
}
