//! Host ports into the kernel: the whole table is replaced when the ports change. Upstream counterpart: CNI's `portmap`.

use std::net::{IpAddr, Ipv4Addr};

use kernel::nftables::Nftables;
use kernel::sysctl;
use net::nft::{Op, Table, Transaction};
use plan::podnet::hostports;

use super::PodNetError;
use crate::kubelet::network::HostPort;

/// What the kernel has of host ports.
#[derive(Debug)]
pub(super) struct HostPorts {
    nft: Nftables,
    /// The table that the kernel has; `None` when that is not known.
    committed: Option<Table>,
}

impl HostPorts {
    /// Knows nothing of what earlier runs left.
    ///
    /// # Errors
    /// When the kernel gives no netlink socket.
    pub(super) fn open() -> Result<Self, PodNetError> {
        Ok(Self { nft: Nftables::open()?, committed: None })
    }

    /// Makes these ports lead to their pods, and no others.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(super) fn set<'a>(
        &mut self,
        pods: impl Iterator<Item = (Ipv4Addr, &'a [HostPort])>,
    ) -> Result<(), PodNetError> {
        let ports: Vec<_> = pods
            .flat_map(|(pod, ports)| ports.iter().filter_map(move |port| to_pod(pod, port)))
            .collect();
        let table = hostports::table(&ports);
        if self.committed.as_ref() == Some(&table) {
            return Ok(());
        }
        self.committed = None;
        let mut ops = vec![Op::AddTable, Op::DeleteTable];
        if !ports.is_empty() {
            sysctl::set("net/ipv4/conf/all/route_localnet", "1")?;
            ops.extend(table.creation());
        }
        self.nft.commit(&Transaction { family: table.family, table: table.name.clone(), ops })?;
        self.committed = Some(table);
        Ok(())
    }
}

/// What the kernel is told of a port; none for what has no number or another family than the pod.
fn to_pod(pod: Ipv4Addr, port: &HostPort) -> Option<hostports::HostPort> {
    let protocol = match port.protocol.as_str() {
        "TCP" => 6,
        "UDP" => 17,
        "SCTP" => 132,
        _ => return None,
    };
    let host_ip = match port.host_ip {
        None => None,
        Some(IpAddr::V4(ip)) => Some(ip),
        Some(IpAddr::V6(_)) => return None,
    };
    let (host_port, container_port) = (port.host_port, port.container_port);
    Some(hostports::HostPort { protocol, host_ip, host_port, pod, container_port })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_of_another_family_leads_nowhere() {
        let port = |protocol: &str, ip: Option<&str>| HostPort {
            protocol: protocol.to_owned(),
            host_port: 80,
            container_port: 8080,
            host_ip: ip.map(|ip| ip.parse().unwrap()),
        };
        let pod = Ipv4Addr::new(10, 244, 0, 1);
        assert_eq!(to_pod(pod, &port("UDP", None)).map(|port| port.protocol), Some(17));
        assert!(to_pod(pod, &port("TCP", Some("127.0.0.1"))).is_some());
        assert_eq!(to_pod(pod, &port("TCP", Some("::1"))), None);
        assert_eq!(to_pod(pod, &port("ICMP", None)), None);
    }
}
