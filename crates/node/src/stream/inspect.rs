//! `GET /rhumb/v1/proxy` and `GET /rhumb/v1/listeners`: what only this node knows, for `rhumb explain`. Reads, never writes.
//!
//! The first says what the kernel holds for one address and port of a Service, the second which sockets listen in a
//! pod's network, or in the node's when no pod is named.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;

use http::{HeaderValue, Response, StatusCode, header};
use http_body_util::Full;
use kernel::nftables::Nftables;
use net::nft::Family;
use plan::explain::{Frontend, Held, Listener, kernel::SETS, kernel::share};
use plan::proxy::TABLE;
use plan::service::Protocol;

use super::query::Query;
use super::{Body, boxed, plain};
use crate::kubelet::KubeletHandle;

/// Everything below this path is this module's.
pub(super) const ROOT: &str = "/rhumb/v1/";
/// A socket's state in `/proc/net/tcp` when it listens (`TCP_LISTEN`).
const LISTEN: &str = "0A";
/// A socket's state in `/proc/net/udp` when it is bound and not connected (`TCP_CLOSE`).
const UNCONNECTED: &str = "07";

/// Answers a question. Blocks while the kernel is asked.
pub(super) fn respond(handle: &KubeletHandle, path: &str, query: &Query) -> Response<Body> {
    match path.strip_prefix(ROOT) {
        Some("proxy") => proxy(query),
        Some("listeners") => listeners(handle, query),
        _ => plain(StatusCode::NOT_FOUND, "404 page not found"),
    }
}

fn json(value: &impl serde::Serialize) -> Response<Body> {
    let text = serde_json::to_vec(value).expect("texts and numbers always encode");
    let mut response = Response::new(boxed(Full::new(text.into())));
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, json);
    response
}

/// `?address=10.96.0.10&port=53&protocol=UDP`
fn proxy(query: &Query) -> Response<Body> {
    let address = query.get("address").and_then(|text| text.parse::<IpAddr>().ok());
    let port = query.get("port").and_then(|text| text.parse::<u16>().ok());
    let protocol = Protocol::of(query.get("protocol"));
    let (Some(address), Some(port), Some(protocol)) = (address, port, protocol) else {
        return plain(StatusCode::BAD_REQUEST, "address, port and protocol are needed");
    };
    let frontend = Frontend { address: SocketAddr::new(address, port), protocol };
    match held(frontend) {
        Ok(Some(held)) => json(&held),
        Ok(None) => plain(StatusCode::NOT_FOUND, "the kernel has no table rhumb_proxy"),
        Err(error) => plain(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
    }
}

fn held(frontend: Frontend) -> Result<Option<Held>, kernel::nftables::NetfilterError> {
    let family = Family::of(&frontend.address.ip());
    let mut nft = Nftables::open()?;
    let mut held = Held::new();
    for set in SETS {
        let Some(elements) = nft.elements(family, TABLE, set.name())? else { return Ok(None) };
        let share = share(set, &elements, frontend);
        if !share.is_empty() {
            held.insert(set.name().to_owned(), share);
        }
    }
    Ok(Some(held))
}

/// `?namespace=default&pod=a`; without a pod the node's own.
fn listeners(handle: &KubeletHandle, query: &Query) -> Response<Body> {
    let Some(pod) = query.get("pod") else { return json(&listening()) };
    let namespace = query.get("namespace").unwrap_or("default");
    let Ok(found) = handle.pod(namespace, pod) else {
        return plain(StatusCode::NOT_FOUND, &format!("pod {pod:?} does not exist"));
    };
    let listeners = match &found.netns {
        Some(netns) => within(netns),
        None if is_host_network(&found.pod) => Ok(listening()),
        None => return plain(StatusCode::CONFLICT, "the pod has no network yet"),
    };
    match listeners {
        Ok(listeners) => json(&listeners),
        Err(error) => plain(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
    }
}

fn is_host_network(pod: &api::core::Pod) -> bool {
    pod.spec.as_ref().and_then(|spec| spec.host_network).unwrap_or(false)
}

fn within(netns: &Path) -> Result<Vec<Listener>, kernel::netns::NetnsError> {
    kernel::netns::within(netns, listening)
}

/// The listening sockets of the calling thread's network.
fn listening() -> Vec<Listener> {
    let mut found = Vec::new();
    for (file, protocol, state) in [
        ("tcp", "TCP", LISTEN),
        ("tcp6", "TCP", LISTEN),
        ("udp", "UDP", UNCONNECTED),
        ("udp6", "UDP", UNCONNECTED),
    ] {
        let text = std::fs::read_to_string(format!("/proc/thread-self/net/{file}"));
        found.extend(parse(&text.unwrap_or_default(), protocol, state));
    }
    found.sort();
    found.dedup();
    found
}

/// Reads a table of `/proc/net`: the second column is address and port in hexadecimal, the fourth the state. Addresses
/// are words of 4 bytes, each in host order.
fn parse(table: &str, protocol: &str, state: &str) -> Vec<Listener> {
    let line = |line: &str| {
        let mut columns = line.split_whitespace().skip(1);
        let (address, port) = columns.next()?.split_once(':')?;
        if columns.nth(1)? != state {
            return None;
        }
        let word = |at: usize| {
            let word = u32::from_str_radix(address.get(at * 8..at * 8 + 8)?, 16).ok()?;
            Some(word.to_ne_bytes())
        };
        let address = if address.len() == 8 {
            IpAddr::from(Ipv4Addr::from(word(0)?))
        } else {
            let words = [word(0)?, word(1)?, word(2)?, word(3)?];
            let bytes = <[u8; 16]>::try_from(words.concat()).ok()?;
            IpAddr::from(Ipv6Addr::from(bytes)).to_canonical()
        };
        let port = u16::from_str_radix(port, 16).ok()?;
        Some(Listener { protocol: protocol.to_owned(), address, port })
    };
    table.lines().skip(1).filter_map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_of_sockets_are_read() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue\n   \
                     0: 00000000:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000\n   \
                     1: 0100007F:0035 00000000:0000 0A 00000000:00000000 00:00000000 00000000\n   \
                     2: 0100007F:9C40 0100007F:0035 01 00000000:00000000 00:00000000 00000000\n";
        let found = parse(table, "TCP", LISTEN);
        let shown: Vec<String> =
            found.iter().map(|one| SocketAddr::new(one.address, one.port).to_string()).collect();
        assert_eq!(shown, ["0.0.0.0:8080", "127.0.0.1:53"]);
        let table = "head\n 0: 00000000000000000000000000000000:0050 \
                     00000000000000000000000000000000:0000 0A 0\n";
        assert_eq!(parse(table, "TCP", LISTEN)[0].address, IpAddr::from(Ipv6Addr::UNSPECIFIED));
    }

    #[test]
    fn a_socket_of_this_process_is_seen() {
        let socket = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = socket.local_addr().unwrap().port();
        assert!(listening().iter().any(|one| one.port == port && one.protocol == "TCP"));
    }
}
