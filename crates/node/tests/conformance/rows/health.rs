//! What load balancers are told.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use net::nft::Family;
use plan::proxy::FAMILIES;
use serde_json::{Value, json};

use super::{Row, row};
use crate::objects::{Sketch, end, service};
use crate::topology::{node_ip, node_object, node_second};
use crate::traffic::Asker;
use crate::world::{World, source};

pub(super) const ROWS: [Row; 7] = [
    row("healthz / livez", "200 while all is well", healthy),
    row(
        "healthz / livez",
        "`ToBeDeletedByClusterAutoscaler`, or deletion: 503 at `/healthz`, not at `/livez`",
        leaving,
    ),
    row("healthz / livez", "503 at both when a sync is overdue", overdue),
    row("healthCheckNodePort", "200 with ready local endpoints, else 503, with the count", counts),
    row(
        "healthCheckNodePort",
        "endpoints that drain do not count, whatever they still serve",
        draining,
    ),
    row("healthCheckNodePort", "503 when the proxy is not healthy", unhealthy),
    row("healthCheckNodePort", "only at node port addresses; closed with the Service", addresses),
];

const PATIENCE: Duration = Duration::from_secs(5);

fn get(world: &World, to: SocketAddr, path: &str) -> Option<(u16, String)> {
    let source = source("client", Family::of(&to.ip()));
    Asker { netns: &world.path("client"), source }.get(to, path)
}

/// The same, once somebody listens; `None` when nobody ever does.
fn get_open(world: &World, to: SocketAddr, path: &str) -> Option<(u16, String)> {
    let started = Instant::now();
    while started.elapsed() < PATIENCE {
        if let Some(answer) = get(world, to, path) {
            return Some(answer);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    None
}

fn status(world: &World, node: &str, path: &str) -> u16 {
    let to = SocketAddr::new(node_ip(Family::Ip, node), 10256);
    get_open(world, to, path).expect("the port is open").0
}

fn healthy(world: &mut World) {
    world.apply(&[]);
    for node in ["n1", "n2", "n3"] {
        assert_eq!([status(world, node, "/healthz"), status(world, node, "/livez")], [200, 200]);
    }
    let to = SocketAddr::new(node_ip(Family::Ip, "n1"), 10256);
    let (_, text) = get(world, to, "/healthz").unwrap();
    let body: Value = serde_json::from_str(text.split("\r\n\r\n").nth(1).unwrap()).unwrap();
    assert_eq!(body["nodeEligible"], true, "{body}");
    for field in ["lastUpdated", "currentTime"] {
        let time = body[field].as_str().unwrap().parse::<jiff::Timestamp>();
        assert!(time.is_ok(), "{body}");
    }
}

fn leaving(world: &mut World) {
    world.apply(&[]);
    let mut tainted = node_object("n1");
    let taint = json!({ "key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule" });
    tainted.spec.get_or_insert_default().taints =
        Some(vec![serde_json::from_value(taint).unwrap()]);
    let mut deleted = node_object("n1");
    deleted.metadata.deletion_timestamp = Some(api::meta::Time(jiff::Timestamp::UNIX_EPOCH));
    for leaving in [tainted, deleted] {
        world.healths["n1"].observe(Some(&leaving));
        assert_eq!([status(world, "n1", "/healthz"), status(world, "n1", "/livez")], [503, 200]);
        world.healths["n1"].observe(Some(&node_object("n1")));
        assert_eq!([status(world, "n1", "/healthz"), status(world, "n1", "/livez")], [200, 200]);
    }
}

/// A change that has been waiting for longer than two rounds of syncs.
fn let_wait(world: &World) {
    let long_ago = Instant::now().checked_sub(Duration::from_secs(61)).unwrap();
    world.healths["n1"].queued(long_ago);
}

fn overdue(world: &mut World) {
    world.apply(&[]);
    world.healths["n1"].queued(Instant::now());
    assert_eq!(status(world, "n1", "/healthz"), 200, "a change may take its time");
    let_wait(world);
    assert_eq!([status(world, "n1", "/healthz"), status(world, "n1", "/livez")], [503, 503]);
    world.healths["n1"].syncing();
    assert_eq!(status(world, "n1", "/healthz"), 503, "begun is not done");
    world.settle();
    assert_eq!([status(world, "n1", "/healthz"), status(world, "n1", "/livez")], [200, 200]);
}

fn checked(pods: &[&'static str]) -> Sketch {
    service(10, pods)
        .node_port(30080)
        .balanced("VIP")
        .external_local()
        .set("healthCheckNodePort", json!(32000))
}

/// The answer of a health check port once it is open; `None` where it stays closed.
fn check(world: &World, node: &str, family: Family) -> Option<(u16, String)> {
    get_open(world, SocketAddr::new(node_ip(family, node), 32000), "/")
}

fn expect(world: &World, node: &str, status: u16, count: u64, is_healthy: bool) {
    for family in FAMILIES {
        let (found, text) = check(world, node, family).expect("the port is open");
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert_eq!(found, status, "{node}: {text}");
        let head = head.to_lowercase();
        assert!(head.contains("content-type: application/json"), "{head}");
        assert!(head.contains("x-content-type-options: nosniff"), "{head}");
        assert!(head.contains(&format!("x-load-balancing-endpoint-weight: {count}")), "{head}");
        let expected = json!({ "service": { "namespace": "default", "name": "s10" },
            "localEndpoints": count, "serviceProxyHealthy": is_healthy });
        assert_eq!(serde_json::from_str::<Value>(body).unwrap(), expected);
    }
}

fn counts(world: &mut World) {
    world.apply(&[checked(&["a", "b", "c"])]);
    expect(world, "n1", 200, 2, true);
    expect(world, "n2", 200, 1, true);
    expect(world, "n3", 503, 0, true);
    world.apply(&[checked(&["e"])]);
    expect(world, "n1", 503, 0, true);
    expect(world, "n3", 200, 1, true);
}

fn draining(world: &mut World) {
    world.apply(&[checked(&[]).ends([end("a").draining(), end("c")])]);
    expect(world, "n1", 503, 0, true);
    expect(world, "n2", 200, 1, true);
}

fn unhealthy(world: &mut World) {
    world.apply(&[checked(&["a"])]);
    expect(world, "n1", 200, 1, true);
    let_wait(world);
    expect(world, "n1", 503, 1, false);
    world.settle();
}

fn addresses(world: &mut World) {
    world.apply(&[checked(&["a"])]);
    expect(world, "n1", 200, 1, true);
    for family in FAMILIES {
        let second = SocketAddr::new(node_second(family, "n1"), 32000);
        assert_eq!(get(world, second, "/"), None);
    }
    world.apply(&[service(10, &["a"])]);
    let (to, started) = (SocketAddr::new(node_ip(Family::Ip, "n1"), 32000), Instant::now());
    while get(world, to, "/").is_some() {
        assert!(started.elapsed() < PATIENCE, "the port stays open");
        std::thread::sleep(Duration::from_millis(20));
    }
}
