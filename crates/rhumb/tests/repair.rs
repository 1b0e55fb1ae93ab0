//! Addresses and node ports that are not what is allocated: told as events, and put right where that can be. What the API
//! allows is done by kubectl; what it never would is written into the store while the cluster is down.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use store::{Embedded, Op, Outcome, Store as _, Txn};
use testkit::lab::Lab;

const BINARY: &str = env!("CARGO_BIN_EXE_rhumb");

const SERVICES: &str = r"
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {type: NodePort, clusterIP: 10.96.0.90, ports: [{port: 80, nodePort: 30090}]}
---
apiVersion: v1
kind: Service
metadata: {name: lost}
spec: {clusterIP: 10.96.0.92, ports: [{port: 80}]}
";

const RANGE: &str = r"
apiVersion: networking.k8s.io/v1
kind: ServiceCIDR
metadata: {name: more}
spec: {cidrs: [10.200.0.0/28]}
";

const FAR: &str = r"
apiVersion: v1
kind: Service
metadata: {name: far}
spec: {clusterIP: 10.200.0.10, ports: [{port: 80}]}
";

/// A Service has this event, as `kubectl describe` shows it.
fn told(lab: &Lab, service: &str, reason: &str, words: &str) -> Result<()> {
    lab.eventually(&format!("{service} tells {reason}"), || {
        let text = lab.kubectl(&["describe", "service", service])?;
        let events = text.split_once("Events:").map_or("", |(_, events)| events);
        let line = events.lines().find(|line| line.contains(reason));
        let line = line.with_context(|| format!("no {reason} in {text}"))?;
        ensure!(line.contains(words), "{words:?} is not in {line}");
        Ok(())
    })
}

fn owner(lab: &Lab, address: &str, service: &str) -> Result<()> {
    lab.eventually(&format!("{address} is the address of {service}"), || {
        let owner = lab.value(&format!("ipaddress/{address}"), "{.spec.parentRef.name}")?;
        ensure!(owner == service, "it is {owner:?}'s");
        Ok(())
    })
}

#[test]
fn what_is_not_as_allocated_is_told_and_put_right() -> Result<()> {
    let lab = Lab::up(BINARY, 1, &[])?;
    lab.apply(SERVICES)?;
    lab.apply(RANGE)?;
    owner(&lab, "10.96.0.90", "web")?;
    owner(&lab, "10.96.0.92", "lost")?;
    out_of_range(&lab)?;
    corrupted(&lab)
}

/// A range that somebody takes away by force leaves a Service without one.
fn out_of_range(lab: &Lab) -> Result<()> {
    lab.eventually("the range is used", || lab.apply(FAR))?;
    lab.kubectl(&["delete", "servicecidr", "more", "--wait=false"])?;
    lab.eventually("the range is gone", || {
        // It is held for the address's sake as often as its controller sees it.
        let none = r#"{"metadata": {"finalizers": null}}"#;
        let _ = lab.kubectl(&["patch", "servicecidr", "more", "--type=merge", "-p", none]);
        lab.refusal(&["get", "servicecidr", "more"])
    })?;
    told(lab, "far", "ClusterIPOutOfRange", "10.200.0.10 is not within any configured Service CIDR")
}

/// What no API server would store: an address and a port twice, a port out of the range, an address without its object,
/// and one whose object is of a Service that nobody knows.
fn corrupted(lab: &Lab) -> Result<()> {
    lab.rhumb(&["down", "--keep-data"])?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(corrupt(lab))?;
    lab.rhumb(&["up", "--detach"])?;
    told(lab, "twin", "ClusterIPAlreadyAllocated", "was assigned to multiple services")?;
    told(lab, "web", "PortAlreadyAllocated", "Port 30090 was assigned to multiple services")?;
    told(lab, "lost", "ClusterIPNotAllocated", "has a wrong reference; repairing")?;
    owner(lab, "10.96.0.92", "lost")?;
    told(lab, "beyond", "PortOutOfRange", "Port 20000 is not within the port range 30000-32767")?;
    owner(lab, "10.96.0.91", "beyond")
}

async fn corrupt(lab: &Lab) -> Result<()> {
    let store = Embedded::open(&lab.dir().join("server/store.redb"))?;
    let stored = store.get("/registry/services/specs/default/web").await?.context("it is there")?;
    let web: Value = serde_json::from_slice(&stored.value)?;
    let changes = BTreeMap::from([
        // The first one by name has the port; the address is whose object says so.
        ("twin", json!({})),
        ("beyond", json!({ "clusterIP": "10.96.0.91", "port": 20_000 })),
    ]);
    let ops = changes.into_iter().map(|(name, change)| {
        let mut service = web.clone();
        service["metadata"]["name"] = json!(name);
        service["metadata"]["uid"] = json!(format!("00000000-0000-0000-0000-{:012}", name.len()));
        if let Some(ip) = change.get("clusterIP") {
            service["spec"]["clusterIP"] = ip.clone();
            service["spec"]["clusterIPs"] = json!([ip]);
            service["spec"]["ports"][0]["nodePort"] = change["port"].clone();
        }
        let key: Arc<str> = format!("/registry/services/specs/default/{name}").into();
        Ok(Op::Put(key, serde_json::to_vec(&service)?.into()))
    });
    let mut ops = ops.collect::<Result<Vec<_>>>()?;
    let key = "/registry/ipaddresses/10.96.0.92";
    let stored = store.get(key).await?.context("it is there")?;
    let mut address: Value = serde_json::from_slice(&stored.value)?;
    address["spec"]["parentRef"]["name"] = json!("ghost");
    ops.push(Op::Put(key.into(), serde_json::to_vec(&address)?.into()));
    let outcome = store.commit(Txn { ops, ..Txn::default() }).await?;
    ensure!(matches!(outcome, Outcome::Committed(_)), "{outcome:?}");
    store.close().await;
    Ok(())
}
