//! What one Service answers with.

use std::collections::BTreeSet;
use std::net::IpAddr;

use api::core::Service;
use api::discovery::EndpointSlice;

/// What one Service answers with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceRecords {
    /// Where its name leads.
    pub target: Target,
    /// Its named ports, for SRV. Headless Services take the ports of their endpoints.
    pub ports: Vec<PortRecord>,
}

/// Where a Service's name leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// To its own addresses.
    ClusterIp(Vec<IpAddr>),
    /// To its endpoints.
    Headless(Vec<EndpointRecord>),
    /// To another name, without a trailing dot.
    External(String),
}

/// A port for SRV answers.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PortRecord {
    /// The port's name.
    pub name: String,
    /// `tcp`, `udp` or `sctp`.
    pub protocol: String,
    /// The number.
    pub port: u16,
}

/// One endpoint of a headless Service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct EndpointRecord {
    /// The host part of its name: the pod's hostname, or its address with dashes.
    pub host: String,
    /// Its address.
    pub address: IpAddr,
    /// Its named ports.
    pub ports: Vec<PortRecord>,
}

/// Decides what a Service answers with; `None` when it has no names (no address yet).
#[must_use]
pub fn service_records<'a>(
    service: &Service,
    slices: impl Iterator<Item = &'a EndpointSlice>,
) -> Option<ServiceRecords> {
    let spec = service.spec.as_ref()?;
    if spec.type_.as_deref() == Some("ExternalName") {
        let name = spec.external_name.as_deref()?.trim_end_matches('.').to_ascii_lowercase();
        return Some(ServiceRecords { target: Target::External(name), ports: Vec::new() });
    }
    if spec.cluster_ip.as_deref() == Some("None") {
        let everyone = spec.publish_not_ready_addresses == Some(true);
        let endpoints: BTreeSet<EndpointRecord> =
            slices.flat_map(|slice| endpoints(slice, everyone)).collect();
        return Some(ServiceRecords {
            target: Target::Headless(endpoints.into_iter().collect()),
            ports: Vec::new(),
        });
    }
    let listed = spec.cluster_ips.iter().flatten();
    let mut addresses: Vec<IpAddr> = listed.filter_map(|text| text.parse().ok()).collect();
    if addresses.is_empty() {
        addresses.extend(spec.cluster_ip.as_deref().and_then(|text| text.parse::<IpAddr>().ok()));
    }
    let ports = spec.ports.iter().flatten().filter_map(|port| {
        named_port(port.name.as_deref(), port.protocol.as_deref(), Some(port.port))
    });
    let ports = ports.collect();
    (!addresses.is_empty())
        .then_some(ServiceRecords { target: Target::ClusterIp(addresses), ports })
}

fn named_port(name: Option<&str>, protocol: Option<&str>, port: Option<i32>) -> Option<PortRecord> {
    let name = name.filter(|name| !name.is_empty())?.to_owned();
    let protocol = protocol.unwrap_or("TCP").to_ascii_lowercase();
    Some(PortRecord { name, protocol, port: u16::try_from(port?).ok()? })
}

/// The endpoints of a slice that have names: the ready ones, or everyone.
fn endpoints(slice: &EndpointSlice, everyone: bool) -> impl Iterator<Item = EndpointRecord> + '_ {
    let ports: Vec<PortRecord> = slice
        .ports
        .iter()
        .flatten()
        .filter_map(|port| named_port(port.name.as_deref(), port.protocol.as_deref(), port.port))
        .collect();
    let named = slice.endpoints.iter().flatten().filter(move |endpoint| {
        everyone
            || endpoint.conditions.as_ref().and_then(|conditions| conditions.ready) != Some(false)
    });
    named.filter_map(move |endpoint| {
        let address: IpAddr = endpoint.addresses.first()?.parse().ok()?;
        let host = endpoint.hostname.clone().unwrap_or_else(|| dashed(address));
        Some(EndpointRecord { host, address, ports: ports.clone() })
    })
}

/// `10-244-1-5`; IPv6 addresses the same way (`2001-db8--1`).
fn dashed(address: IpAddr) -> String {
    address.to_string().replace(['.', ':'], "-")
}
