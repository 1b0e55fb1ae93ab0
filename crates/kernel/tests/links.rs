//! Links, addresses, routes and proxied addresses in namespaces of the test's own, checked with real packets.

use std::net::{IpAddr, UdpSocket};
use std::path::PathBuf;
use std::time::Duration;

use kernel::link::{Netlink, Route};
use kernel::netns;

/// A namespace that is gone when the test ends.
struct Netns(PathBuf);

impl Netns {
    fn new(name: &str) -> Self {
        testkit::leftovers::sweep();
        let path = netns::named(&format!("rhumb-test-{}-{name}", std::process::id()));
        netns::create(&path).expect("root can make a namespace");
        Self(path)
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        netns::delete(&self.0).expect("the namespace is ours");
    }
}

async fn pair(left: &Netns, right: &Netns) -> (Netlink, Netlink) {
    let a = Netlink::open_in(&left.0).expect("a socket");
    let b = Netlink::open_in(&right.0).expect("a socket");
    a.set_up("lo", true).await.expect("lo");
    b.set_up("lo", true).await.expect("lo");
    a.add_veth("v0", "eth0", &right.0, Some(1400)).await.expect("a veth pair");
    b.set_up("eth0", true).await.expect("up");
    a.add_address("v0", "198.18.0.1/24".parse().expect("a prefix")).await.expect("an address");
    b.add_address("eth0", "198.18.0.2/24".parse().expect("a prefix")).await.expect("an address");
    (a, b)
}

/// Sends a datagram from `from` to `to`, on which `at` listens; says whether it came.
fn reaches(from: &Netns, at: &Netns, to: IpAddr) -> bool {
    let server =
        netns::within(&at.0, || UdpSocket::bind((to, 7000)).expect("the address is local"))
            .expect("inside");
    server.set_read_timeout(Some(Duration::from_secs(2))).expect("a timeout");
    let client =
        netns::within(&from.0, || UdpSocket::bind("0.0.0.0:0").expect("any port")).expect("inside");
    client.send_to(b"ping", (to, 7000)).is_ok() && server.recv(&mut [0; 8]).is_ok()
}

#[tokio::test]
async fn veth_address_and_route_carry_packets() {
    let (left, right) = (Netns::new("a"), Netns::new("b"));
    let (a, b) = pair(&left, &right).await;
    b.add_address("lo", "198.19.5.5/32".parse().expect("a prefix")).await.expect("an address");
    let route = Route::via(
        "198.19.5.0/24".parse().expect("a prefix"),
        "198.18.0.2".parse().expect("an address"),
    );
    a.replace_route(&route).await.expect("a route");
    a.replace_route(&route).await.expect("the same route again");
    let listed = a.routes().await.expect("routes");
    assert_eq!(listed.len(), 1);
    assert_eq!((listed[0].to, listed[0].via), (route.to, route.via));
    assert!(reaches(&left, &right, "198.19.5.5".parse().expect("an address")));
    a.delete_route(&route).await.expect("deleted");
    a.delete_route(&route).await.expect("deleting twice is no error");
    assert!(a.routes().await.expect("routes").is_empty());
}

#[tokio::test]
async fn a_neighbour_and_a_route_need_no_arp() {
    let (left, right) = (Netns::new("c"), Netns::new("d"));
    let (a, b) = pair(&left, &right).await;
    let gateway: IpAddr = "169.254.1.1".parse().expect("an address");
    let near = a.link("v0").await.expect("the link");
    let far = b.link("eth0").await.expect("the link");
    b.replace_route(&Route::through("169.254.1.1/32".parse().expect("a prefix"), far.index))
        .await
        .expect("a route");
    b.set_neighbour(far.index, gateway, &near.mac).await.expect("a neighbour");
    let default = Route {
        link: Some(far.index),
        ..Route::via("0.0.0.0/0".parse().expect("a prefix"), gateway)
    };
    b.replace_route(&default).await.expect("a default route");
    a.add_address("lo", "198.19.9.9/32".parse().expect("a prefix")).await.expect("an address");
    assert!(reaches(&right, &left, "198.19.9.9".parse().expect("an address")));
}

#[tokio::test]
async fn a_proxied_address_is_answered_for() {
    let (left, right) = (Netns::new("e"), Netns::new("f"));
    let (_, b) = pair(&left, &right).await;
    netns::within(&right.0, || {
        kernel::sysctl::set("net/ipv4/ip_forward", "1").expect("forwarding");
        kernel::sysctl::set("net/ipv4/neigh/eth0/proxy_delay", "0").expect("no delay");
    })
    .expect("inside");
    let address: IpAddr = "198.18.0.200".parse().expect("an address");
    let (lo, eth0) = (b.link("lo").await.expect("lo"), b.link("eth0").await.expect("eth0"));
    b.replace_route(&Route::through("198.18.0.200/32".parse().expect("a prefix"), lo.index))
        .await
        .expect("a route");
    b.add_proxy(eth0.index, address).await.expect("proxied");
    assert_eq!(b.proxies(eth0.index).await.expect("listed"), [address]);
    let mac = |path: &PathBuf| {
        netns::within(path, || {
            std::fs::read_to_string("/proc/thread-self/net/arp").expect("the table")
        })
        .expect("inside")
    };
    let client =
        netns::within(&left.0, || UdpSocket::bind("0.0.0.0:0").expect("any port")).expect("inside");
    client.send_to(b"who has it", (address, 7000)).expect("sent");
    let found = (0..100).any(|_| {
        std::thread::sleep(Duration::from_millis(20));
        mac(&left.0)
            .lines()
            .any(|line| line.starts_with("198.18.0.200") && !line.contains("00:00:00:00:00:00"))
    });
    assert!(found, "the kernel answers ARP for the address");
    let IpAddr::V4(v4) = address else { panic!("an IPv4 address") };
    netns::within(&right.0, || kernel::arp::announce(&eth0, v4).expect("announced"))
        .expect("inside");
    b.delete_proxy(eth0.index, address).await.expect("deleted");
    b.delete_proxy(eth0.index, address).await.expect("deleting twice is no error");
    assert!(b.proxies(eth0.index).await.expect("listed").is_empty());
}
