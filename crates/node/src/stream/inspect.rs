//! `GET /rhumb/v1/settings`, `proxy` and `listeners`: what only this node knows, for `rhumb explain`. Reads, never writes.
//!
//! The first says what the proxy was told, the second what the kernel holds for one address and port of a Service, the third which sockets listen in a
//! pod's network, or in the node's when no pod is named.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use http::{HeaderValue, Response, StatusCode, header};
use http_body_util::Full;
use kernel::iptables::{Flavor, Iptables, IptablesError};
use kernel::ipvs::Ipvs;
use kernel::nftables::{NetfilterError, Nftables};
use net::iptables::{Saved, TableId};
use net::nft::Family;
use plan::explain::kernel::{SETS, VIRTUAL_SERVER, share, share_server};
use plan::explain::{Frontend, Held, Listener, Told};
use plan::proxy::iptables::{CLUSTER_IPS, share as share_rules};
use plan::proxy::{Mode, TABLE};
use plan::service::Protocol;

use super::query::Query;
use super::{Body, Shared, boxed, plain};
use crate::kubelet::KubeletHandle;
use crate::proxy::SinkError;
use crate::sockets;

/// Everything below this path is this module's.
pub(super) const ROOT: &str = "/rhumb/v1/";

/// Answers a question. Blocks while the kernel is asked.
pub(super) fn respond(shared: &Shared, path: &str, query: &Query) -> Response<Body> {
    let handle = &shared.handle;
    match path.strip_prefix(ROOT) {
        Some("settings") => {
            let (settings, silent) = (shared.settings.clone(), (*shared.silence.now()).clone());
            json(&Told { settings, addresses: crate::proxy::addresses(), silent })
        }
        Some("proxy") => proxy(shared.settings.mode, query),
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
fn proxy(mode: Mode, query: &Query) -> Response<Body> {
    let address = query.get("address").and_then(|text| text.parse::<IpAddr>().ok());
    let port = query.get("port").and_then(|text| text.parse::<u16>().ok());
    let protocol = Protocol::of(query.get("protocol"));
    let (Some(address), Some(port), Some(protocol)) = (address, port, protocol) else {
        return plain(StatusCode::BAD_REQUEST, "address, port and protocol are needed");
    };
    let frontend = Frontend { address: SocketAddr::new(address, port), protocol };
    let held = match mode {
        Mode::Nftables | Mode::Ebpf => elements(frontend).map_err(SinkError::from),
        Mode::Ipvs => with_server(frontend).map_err(SinkError::from),
        Mode::Iptables => rules(frontend).map_err(SinkError::from),
    };
    match held {
        Ok(Some(held)) => json(&held),
        Ok(None) => plain(
            StatusCode::NOT_FOUND,
            &format!("the kernel has no rules of Services of the mode {}", mode.word()),
        ),
        Err(error) => plain(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
    }
}

/// What nftables holds; `None` where Rhumb's table is not.
fn elements(frontend: Frontend) -> Result<Option<Held>, NetfilterError> {
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

/// The same with the virtual server of IPVS.
fn with_server(frontend: Frontend) -> Result<Option<Held>, NetfilterError> {
    let (Some(mut held), Some(mut ipvs)) = (elements(frontend)?, Ipvs::open()?) else {
        return Ok(None);
    };
    let server = frontend.server();
    if let Some(choice) = ipvs.server(&server)? {
        let destinations = ipvs.destinations(&server)?.into_iter().collect();
        let found = net::ipvs::Held { choice, destinations };
        held.insert(VIRTUAL_SERVER.to_owned(), share_server(&found));
    }
    Ok(Some(held))
}

/// What the kind of iptables holds that has this proxy's chains; `None` where neither has.
fn rules(frontend: Frontend) -> Result<Option<Held>, IptablesError> {
    let family = Family::of(&frontend.address.ip());
    let any = Iptables::open(Flavor::Nft)?;
    for flavor in Flavor::ALL {
        let programs = any.with(flavor)?;
        let has_tables = flavor == Flavor::Nft || programs.has_legacy_tables(family)?;
        if !has_tables || !programs.is_installed() {
            continue;
        }
        let saved = Saved::parse(&programs.save(family)?);
        if saved.table(TableId::Filter).is_some_and(|chains| chains.contains_key(CLUSTER_IPS)) {
            return Ok(Some(share_rules(&saved, frontend.address, frontend.protocol)));
        }
    }
    Ok(None)
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
    let mut found: Vec<Listener> =
        sockets::listening().into_iter().map(|socket| socket.listener).collect();
    found.dedup();
    found
}
