//! Times of the proxy at 10,000 Services: first programming, one changed endpoint, takeover, memory.
//!
//! Runs in a network namespace of its own. Objects are in memory; what is timed is plan and kernel together.

use std::sync::Arc;
use std::time::{Duration, Instant};

use api::Kind;
use api::core::Service;
use api::discovery::EndpointSlice;
use net::nft::Family;
use node::proxy::Sink;
use plan::proxy::{Dirty, FAMILIES, Fold, Settings, Snapshot};
use serde_json::json;

const ENDPOINTS: u32 = 4;
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
        let pod = number * ENDPOINTS + index + salt;
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

#[expect(clippy::print_stdout, reason = "a benchmark's output")]
fn bench(services: u32) -> anyhow::Result<()> {
    let mut snapshot = Snapshot::default();
    for number in 0..services {
        let (service, slice) = (service(number)?, slice(number, ENDPOINTS, 0)?);
        snapshot.services.insert(service.object_name(), Arc::new(service));
        snapshot.slices.insert(slice.object_name(), Arc::new(slice));
    }
    let settings = Settings {
        node: "n1".to_owned(),
        service_cidrs: vec!["10.96.0.0/12".parse()?],
        pod_cidrs: vec!["10.128.0.0/10".parse()?],
        external_ips: false,
        ..Settings::default()
    };
    let objects = resident_kib();
    let mut fold = Fold::new(settings);
    let mut sink = Sink::open()?;
    let start = Instant::now();
    fold.catch_up(&snapshot);
    let planned = start.elapsed();
    sink.replace(&FAMILIES.map(|family| fold.table(family)))?;
    let loaded = start.elapsed();
    let memory = resident_kib().saturating_sub(objects);
    let mut times = Vec::new();
    for round in 0..CHANGES {
        let number = round * 7919 % services;
        let count = if round % 2 == 0 { ENDPOINTS - 1 } else { ENDPOINTS };
        let slice = slice(number, count, round)?;
        let start = Instant::now();
        let slices = [slice.object_name()].into();
        snapshot.dirty = Some(Dirty { slices, ..Dirty::default() });
        snapshot.slices.insert(slice.object_name(), Arc::new(slice));
        let change = fold.advance(&snapshot);
        sink.change(change)?;
        times.push(start.elapsed());
        sink.sweep()?;
    }
    let start = Instant::now();
    let mut next = Sink::open()?;
    next.replace(&FAMILIES.map(|family| fold.table(family)))?;
    let takeover = start.elapsed();
    println!(
        "{services:>6} Services: plan {planned:.1?}, plan and load {loaded:.1?}, a change p50 {:.1?}, takeover {takeover:.1?}, memory {memory} KiB, elements {}",
        median(times),
        fold.table(Family::Ip)
            .elements
            .values()
            .map(std::collections::BTreeMap::len)
            .sum::<usize>(),
    );
    Ok(())
}

fn main() -> anyhow::Result<()> {
    for services in [10, 1_000, 10_000] {
        let name = format!("rhumb-test-bench-{}", std::process::id());
        let path = kernel::netns::named(&name);
        kernel::netns::create(&path)?;
        let done = kernel::netns::within(&path, || bench(services));
        kernel::netns::delete(&path)?;
        done??;
    }
    Ok(())
}
