//! The proxy with real packets: a client outside, a node, pods on it and elsewhere, each a network namespace.

#[path = "proxy/lab.rs"]
mod lab;

use std::collections::BTreeSet;

use lab::{Lab, Reply, endpoints, service};

#[test]
fn cluster_ip_reaches_every_endpoint_and_unknown_addresses_do_not_answer() {
    let mut lab = Lab::new();
    lab.apply(service("web", "10.96.0.10").tcp(80, 8080), endpoints("web", &["a", "b", "c"]));
    let seen: BTreeSet<String> = (0..40).map(|_| lab.tcp("b", "10.96.0.10:80").pod()).collect();
    assert_eq!(seen, ["a", "b", "c"].map(str::to_owned).into());
    assert!(lab.tcp("node", "10.96.0.10:80").is_pod());
    assert_eq!(lab.tcp("b", "10.96.0.10:81"), Reply::Refused);
    assert_eq!(lab.tcp("node", "10.96.0.10:81"), Reply::Refused);
    assert_eq!(lab.tcp("b", "10.96.0.99:80"), Reply::Silence);
}

#[test]
fn no_endpoints_refuses_at_once() {
    let mut lab = Lab::new();
    lab.apply(
        service("web", "10.96.0.10").tcp(80, 8080).udp(53, 8053).node_port(30080),
        endpoints("web", &[]),
    );
    assert_eq!(lab.tcp("b", "10.96.0.10:80"), Reply::Refused);
    assert_eq!(lab.tcp("node", "10.96.0.10:80"), Reply::Refused);
    assert_eq!(lab.tcp("client", "198.18.0.1:30080"), Reply::Refused);
    assert_eq!(lab.udp("b", "10.96.0.10:53"), Reply::Refused);
}

#[test]
fn hairpin_reaches_oneself() {
    let mut lab = Lab::new();
    lab.apply(service("web", "10.96.0.10").tcp(80, 8080), endpoints("web", &["a"]));
    let reply = lab.tcp("a", "10.96.0.10:80");
    assert_eq!(reply.pod(), "a");
    assert_ne!(reply.peer(), "10.244.0.2", "the pod must not see itself as the client");
}

#[test]
fn pods_keep_their_address_and_others_are_masqueraded() {
    let mut lab = Lab::new();
    lab.apply(
        service("web", "10.96.0.10").tcp(80, 8080).node_port(30080),
        endpoints("web", &["a"]),
    );
    assert_eq!(lab.tcp("b", "10.96.0.10:80").peer(), "10.244.0.3");
    assert_ne!(lab.tcp("client", "10.96.0.10:80").peer(), "198.18.0.9");
    assert_ne!(lab.tcp("client", "198.18.0.1:30080").peer(), "198.18.0.9");
    assert_eq!(lab.tcp("node", "198.18.0.1:30080").pod(), "a");
    assert_eq!(lab.tcp("node", "127.0.0.1:30080"), Reply::Refused);
}

#[test]
fn external_policy_local_keeps_the_client_and_drops_without_local_endpoints() {
    let mut lab = Lab::new();
    let web = || service("web", "10.96.0.10").tcp(80, 8080).node_port(30080).external_local();
    lab.apply(web(), endpoints("web", &["a", "c"]));
    for _ in 0..20 {
        let reply = lab.tcp("client", "198.18.0.1:30080");
        assert_eq!((reply.pod().as_str(), reply.peer().as_str()), ("a", "198.18.0.9"));
    }
    lab.apply(web(), endpoints("web", &["c"]));
    assert_eq!(lab.tcp("client", "198.18.0.1:30080"), Reply::Silence);
    assert_eq!(lab.tcp("b", "198.18.0.1:30080").pod(), "c", "pods are short-circuited");
    assert_eq!(lab.tcp("node", "198.18.0.1:30080").pod(), "c", "the node is short-circuited");
}

#[test]
fn internal_policy_local_drops_without_local_endpoints() {
    let mut lab = Lab::new();
    let web = || service("web", "10.96.0.10").tcp(80, 8080).internal_local();
    lab.apply(web(), endpoints("web", &["a", "c"]));
    for _ in 0..20 {
        assert_eq!(lab.tcp("b", "10.96.0.10:80").pod(), "a");
    }
    lab.apply(web(), endpoints("web", &["c"]));
    assert_eq!(lab.tcp("b", "10.96.0.10:80"), Reply::Silence);
}

#[test]
fn affinity_holds_until_the_endpoint_goes() {
    let mut lab = Lab::new();
    let web = || service("web", "10.96.0.10").tcp(80, 8080).node_port(30080).affinity(600);
    lab.apply(web(), endpoints("web", &["a", "b", "c"]));
    let first = lab.tcp("client", "10.96.0.10:80").pod();
    for _ in 0..20 {
        assert_eq!(lab.tcp("client", "10.96.0.10:80").pod(), first);
        assert_eq!(
            lab.tcp("client", "198.18.0.1:30080").pod(),
            first,
            "one affinity for all frontends"
        );
    }
    lab.restart();
    lab.apply(web(), endpoints("web", &["a", "b", "c"]));
    for _ in 0..20 {
        assert_eq!(lab.tcp("client", "10.96.0.10:80").pod(), first, "a restart forgets nobody");
    }
    let rest: Vec<&str> = ["a", "b", "c"].into_iter().filter(|pod| *pod != first).collect();
    lab.apply(web(), endpoints("web", &rest));
    let second = lab.tcp("client", "10.96.0.10:80").pod();
    assert_ne!(second, first);
    for _ in 0..20 {
        assert_eq!(lab.tcp("client", "10.96.0.10:80").pod(), second, "and holds to the new one");
    }
}

#[test]
fn source_ranges_guard_load_balancer_addresses() {
    let mut lab = Lab::new();
    let web = |range: &str| {
        service("web", "10.96.0.10").tcp(80, 8080).load_balancer("203.0.113.10").source_range(range)
    };
    lab.apply(web("198.18.0.0/29"), endpoints("web", &["a"]));
    assert_eq!(lab.tcp("client", "203.0.113.10:80"), Reply::Silence);
    assert_eq!(lab.tcp("node", "203.0.113.10:80").pod(), "a");
    lab.apply(web("198.18.0.8/29"), endpoints("web", &["a"]));
    assert_eq!(lab.tcp("client", "203.0.113.10:80").pod(), "a");
}

#[test]
fn udp_flows_follow_the_endpoints_and_others_survive() {
    let mut lab = Lab::new();
    let dns = || service("dns", "10.96.0.10").udp(53, 8053);
    lab.apply(dns(), endpoints("dns", &["a"]));
    let socket = lab.udp_socket("b");
    assert_eq!(lab.udp_ask(&socket, "10.96.0.10:53").pod(), "a");
    lab.apply(dns(), endpoints("dns", &["c"]));
    assert_eq!(lab.udp_ask(&socket, "10.96.0.10:53").pod(), "c");
    lab.apply(dns(), endpoints("dns", &["a", "c"]));
    for _ in 0..5 {
        assert_eq!(lab.udp_ask(&socket, "10.96.0.10:53").pod(), "c", "the flow is left alone");
    }
    lab.apply(dns(), endpoints("dns", &[]));
    assert_eq!(lab.udp_ask(&socket, "10.96.0.10:53"), Reply::Refused);
}

#[test]
fn draining_endpoints_serve_when_there_is_no_other() {
    let mut lab = Lab::new();
    let web = || service("web", "10.96.0.10").tcp(80, 8080);
    lab.apply(web(), endpoints("web", &["a"]).draining("c"));
    for _ in 0..10 {
        assert_eq!(lab.tcp("b", "10.96.0.10:80").pod(), "a");
    }
    lab.apply(web(), endpoints("web", &[]).draining("c"));
    assert_eq!(lab.tcp("b", "10.96.0.10:80").pod(), "c");
}

#[test]
fn a_changed_table_is_repaired_and_foreign_tables_stay() {
    let mut lab = Lab::new();
    lab.apply(service("web", "10.96.0.10").tcp(80, 8080), endpoints("web", &["a"]));
    for harm in [
        "flush ruleset",
        "delete table ip rhumb_proxy",
        "flush chain ip rhumb_proxy prerouting",
        "flush map ip rhumb_proxy endpoints",
        "add element ip rhumb_proxy cluster_ips { 10.99.0.1 }",
    ] {
        lab.nft("add table ip foreign; add chain ip foreign mine");
        lab.nft(harm);
        lab.settle();
        assert_eq!(lab.tcp("b", "10.96.0.10:80").pod(), "a", "after {harm}");
        assert!(!lab.nft("list set ip rhumb_proxy cluster_ips").contains("10.99.0.1"));
        assert_eq!(lab.nft("list tables").contains("foreign"), harm != "flush ruleset");
    }
}

#[test]
fn scaling_loses_no_connection() {
    let mut lab = Lab::new();
    let web = || service("web", "10.96.0.10").tcp(80, 8080);
    lab.apply(web(), endpoints("web", &["a", "b", "c"]));
    let load = lab.load("client", "10.96.0.10:80");
    for round in 0..300 {
        let all = [["a", "b", "c"].as_slice(), &["a", "c"], &["c"], &["b", "c"]];
        lab.apply(web(), endpoints("web", all[round % 4]));
    }
    let (connected, failed) = load.stop();
    assert!(connected > 100, "only {connected} connections were made");
    assert_eq!(failed, 0, "of {connected}");
}

#[test]
fn node_local_services_are_left_alone() {
    let mut lab = Lab::new();
    let dns = service("kube-dns", "10.96.0.10").tcp(80, 8080).node_local();
    lab.apply(dns, endpoints("kube-dns", &[]));
    lab.serve_on_node("10.96.0.10");
    assert_eq!(lab.tcp("b", "10.96.0.10:8080").pod(), "node");
}

#[test]
fn plain_nft_lists_every_kind_of_chain() {
    let mut lab = Lab::new();
    let web = |name: &str, ip: &str| service(name, ip).tcp(80, 8080).node_port(30080).affinity(600);
    lab.apply(web("sticky", "10.96.0.10"), endpoints("sticky", &["a", "c"]));
    let here = web("here", "10.96.0.11").node_port(30081).internal_local().external_local();
    lab.apply(here, endpoints("here", &["a", "c"]));
    let balanced = service("balanced", "10.96.0.12").tcp(80, 8080).load_balancer("203.0.113.10");
    lab.apply(balanced.source_range("198.18.0.8/29"), endpoints("balanced", &["a"]));
    lab.tcp("client", "10.96.0.10:80").pod();
    let listed = lab.nft("list table ip rhumb_proxy");
    assert!(listed.contains("draw-cluster-2-sticky-600"), "{listed}");
    let six = service("six", "fd96::10").tcp(80, 8080).affinity(600).external_local();
    lab.apply(six, endpoints("six", &[]).six());
    let listed = lab.nft("list table ip6 rhumb_proxy");
    assert!(listed.contains("draw-cluster-1-sticky-600"), "{listed}");
}
