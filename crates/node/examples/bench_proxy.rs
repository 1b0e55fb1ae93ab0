//! Times of the proxy: first programming, one changed endpoint, takeover, memory. `bench/proxy.py` runs it beside peers.
//!
//! `bench_proxy measure SERVICES ENDPOINTS` runs in the network namespace it is started in, and so does `bench_proxy load
//! SERVICES ENDPOINT…`, which leaves the rules there; `bench_proxy ebpf …` and `bench_proxy iptables …` do the same in other
//! modes, and `bench_proxy outside …` for clients outside. Objects are in memory; what is timed is plan and kernel together.

#[path = "bench_proxy/agent.rs"]
mod agent;

use std::sync::Arc;
use std::time::{Duration, Instant};

use api::Kind;
use api::core::Service;
use api::discovery::EndpointSlice;
use net::nft::Family;
use node::proxy::Sink;
use plan::proxy::{Dirty, FAMILIES, Fold, Settings, Snapshot};
use serde_json::json;

const CHANGES: u32 = 400;

fn service(number: u32) -> anyhow::Result<Service> {
    let ip = format!("10.{}.{}.{}", 96 + (number >> 16), number >> 8 & 255, number & 255);
    Ok(serde_json::from_value(json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": { "name": format!("svc-{number}"), "namespace": "default" },
        "spec": { "type": "ClusterIP", "clusterIP": ip, "clusterIPs": [ip],
            "ports": [{ "port": 80, "protocol": "TCP", "targetPort": 8080 }] },
    }))?)
}

fn slice(number: u32, count: u32, salt: u32) -> anyhow::Result<EndpointSlice> {
    let endpoints = (0..count).map(|index| {
        let pod = number * 4.max(count) + index + salt;
        let ip = format!("10.{}.{}.{}", 128 + (pod >> 16 & 63), pod >> 8 & 255, pod & 255);
        json!({ "addresses": [ip], "nodeName": format!("n{}", pod % 100), "conditions": { "ready": true } })
    });
    Ok(serde_json::from_value(json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": { "name": format!("svc-{number}-x"), "namespace": "default",
            "labels": { "kubernetes.io/service-name": format!("svc-{number}") } },
        "ports": [{ "port": 8080, "protocol": "TCP" }],
        "endpoints": endpoints.collect::<Vec<_>>(),
    }))?)
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmRSS"));
    line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok()).unwrap_or(0)
}

/// Time this thread has spent on a CPU.
fn busy() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let nanos = text.split_whitespace().next().and_then(|nanos| nanos.parse().ok()).unwrap_or(0);
    Duration::from_nanos(nanos)
}

fn snapshot(services: u32, endpoints: u32) -> anyhow::Result<Snapshot> {
    let mut snapshot = Snapshot::default();
    for number in 0..services {
        let (service, slice) = (service(number)?, slice(number, endpoints, 0)?);
        snapshot.services.insert(service.object_name(), Arc::new(service));
        snapshot.slices.insert(slice.object_name(), Arc::new(slice));
    }
    Ok(snapshot)
}

fn settings() -> anyhow::Result<Settings> {
    Ok(Settings {
        node: "n1".to_owned(),
        service_cidrs: vec!["10.96.0.0/12".parse()?],
        pod_cidrs: vec!["10.128.0.0/9".parse()?],
        external_ips: false,
        ..Settings::default()
    })
}

fn fold() -> anyhow::Result<Fold> {
    settings().map(Fold::new)
}

/// Commits one changed slice after another; answers how long each took, and the CPU time of all together.
fn changes(
    (services, endpoints): (u32, u32),
    snapshot: &mut Snapshot,
    fold: &mut Fold,
    sink: &mut Sink,
) -> anyhow::Result<(Vec<Duration>, Duration)> {
    let (mut times, mut cpu) = (Vec::new(), Duration::ZERO);
    for round in 0..CHANGES {
        let number = round * 7919 % services;
        let count = if round % 2 == 0 { endpoints - 1 } else { endpoints };
        let slice = slice(number, count, round)?;
        let (start, before) = (Instant::now(), busy());
        let slices = [slice.object_name()].into();
        snapshot.dirty = Some(Dirty { slices, ..Dirty::default() });
        snapshot.slices.insert(slice.object_name(), Arc::new(slice));
        let change = fold.advance(snapshot);
        sink.change(change)?;
        times.push(start.elapsed());
        sink.sweep()?;
        cpu += busy() - before;
    }
    Ok((times, cpu))
}

#[expect(clippy::print_stdout, reason = "a benchmark's output")]
fn measure(services: u32, endpoints: u32) -> anyhow::Result<()> {
    let mut snapshot = snapshot(services, endpoints)?;
    let objects = resident_kib();
    let mut fold = fold()?;
    let mut sink = Sink::open()?;
    let (start, before) = (Instant::now(), busy());
    fold.catch_up(&snapshot);
    let planned = start.elapsed();
    sink.replace(&FAMILIES.map(|family| fold.table(family)))?;
    let (loaded, cpu) = (start.elapsed(), busy() - before);
    let memory = resident_kib().saturating_sub(objects);
    let (times, change_cpu) = changes((services, endpoints), &mut snapshot, &mut fold, &mut sink)?;
    let start = Instant::now();
    let mut next = Sink::open()?;
    next.replace(&FAMILIES.map(|family| fold.table(family)))?;
    let takeover = start.elapsed();
    let elements: usize =
        fold.table(Family::Ip).elements.values().map(std::collections::BTreeMap::len).sum();
    let line = json!({
        "plan": planned.as_secs_f64(), "load": loaded.as_secs_f64(), "load_cpu": cpu.as_secs_f64(),
        "change": median(times).as_secs_f64(),
        "change_cpu": change_cpu.as_secs_f64() / f64::from(CHANGES),
        "takeover": takeover.as_secs_f64(), "memory_kib": memory, "elements": elements,
    });
    println!("{line}");
    Ok(())
}

/// `services` Services with 4 endpoints each, the one in the middle with these (port 8080).
fn with_middle(services: u32, endpoints: &[String]) -> anyhow::Result<Snapshot> {
    let mut snapshot = snapshot(services, 4)?;
    let mut middle = slice(services / 2, 0, 0)?;
    for (number, address) in endpoints.iter().enumerate() {
        let endpoint = json!({ "addresses": [address], "nodeName": format!("n{number}"), "conditions": { "ready": true } });
        middle.endpoints.get_or_insert_default().push(serde_json::from_value(endpoint)?);
    }
    snapshot.slices.insert(middle.object_name(), Arc::new(middle));
    Ok(snapshot)
}

/// Programs Services and leaves them.
fn load(services: u32, endpoints: &[String]) -> anyhow::Result<()> {
    let mut fold = fold()?;
    fold.catch_up(&with_middle(services, endpoints)?);
    Sink::open()?.replace(&FAMILIES.map(|family| fold.table(family)))?;
    Ok(())
}

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.as_slice() {
        [what, services, endpoints] if what == "measure" => {
            measure(services.parse()?, endpoints.parse()?)
        }
        [what, services, endpoints @ ..] if what == "load" => load(services.parse()?, endpoints),
        [what, rest @ ..] if what == "ebpf" => agent::ebpf(rest),
        [what, rest @ ..] if what == "iptables" => agent::iptables(rest),
        [what, rest @ ..] if what == "outside" => agent::outside(rest),
        _ => anyhow::bail!(
            "which: measure SERVICES ENDPOINTS, load SERVICES ENDPOINT…, ebpf …, iptables …, or outside …"
        ),
    }
}
