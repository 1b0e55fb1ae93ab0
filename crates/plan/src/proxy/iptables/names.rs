//! Names of chains: upstream's, which people and tools know. Upstream: `pkg/proxy/iptables/proxier.go`.

use std::net::SocketAddr;
use std::sync::Arc;

use api::Name;
use net::iptables::TableId;
use sha2::{Digest, Sha256};

use crate::service::Protocol;

pub(super) const SERVICES: &str = "KUBE-SERVICES";
pub(super) const NODE_PORTS: &str = "KUBE-NODEPORTS";
pub(super) const POSTROUTING: &str = "KUBE-POSTROUTING";
pub(super) const MARK_MASQ: &str = "KUBE-MARK-MASQ";
pub(super) const EXTERNAL_SERVICES: &str = "KUBE-EXTERNAL-SERVICES";
pub(super) const FORWARD: &str = "KUBE-FORWARD";
pub(super) const FIREWALL: &str = "KUBE-PROXY-FIREWALL";
/// Empty; in every table. Who flushes everything takes it away, too.
pub(super) const CANARY: &str = "KUBE-PROXY-CANARY";
/// Not upstream's: what happens to packets for addresses of Services that no Service port took.
pub const CLUSTER_IPS: &str = "RHUMB-CLUSTER-IPS";
/// Not upstream's: marks whom no range of pods has, where there is more than one range.
pub(super) const OFF_CLUSTER: &str = "RHUMB-OFF-CLUSTER";

/// Characters of a hash in a name: names are at most 28 long.
const HASH_LEN: usize = 16;

/// Whether a chain is this proxy's: everything else is somebody's.
#[must_use]
pub fn owns(table: TableId, chain: &str) -> bool {
    let names: &[&str] = match table {
        TableId::Filter => {
            &[SERVICES, EXTERNAL_SERVICES, NODE_PORTS, FORWARD, FIREWALL, CANARY, CLUSTER_IPS]
        }
        TableId::Nat => &[SERVICES, NODE_PORTS, POSTROUTING, MARK_MASQ, CANARY, OFF_CLUSTER],
        TableId::Mangle => &[CANARY],
    };
    names.contains(&chain) || (table == TableId::Nat && is_of_service(chain))
}

/// Whether a chain is one Service port's or one endpoint's.
pub(super) fn is_of_service(chain: &str) -> bool {
    const PREFIXES: [&str; 5] = ["KUBE-SVC-", "KUBE-SVL-", "KUBE-EXT-", "KUBE-FW-", "KUBE-SEP-"];
    PREFIXES.iter().any(|prefix| chain.starts_with(prefix))
}

/// A Service port, as names and comments have it.
#[derive(Clone, Debug)]
pub(super) struct PortName {
    /// `namespace/name:port`, or `namespace/name` where the port has no name.
    text: String,
    hash: String,
    protocol: &'static str,
}

impl PortName {
    pub(super) fn of(service: &Name, port: &str, protocol: Protocol) -> Self {
        let colon = if port.is_empty() { "" } else { ":" };
        let text = format!("{}/{}{colon}{port}", service.namespace, service.name);
        let protocol = word(protocol);
        let hash = hash(&[&text, protocol]);
        Self { text, hash, protocol }
    }

    /// As a comment: objects that nobody validated could have anything in their names.
    pub(super) fn comment(&self) -> String {
        let harmless = |c: char| c.is_ascii_alphanumeric() || "./:-_".contains(c);
        self.text.chars().map(|c| if harmless(c) { c } else { '_' }).collect()
    }

    /// All endpoints.
    pub(super) fn svc(&self) -> String {
        format!("KUBE-SVC-{}", self.hash)
    }

    /// Endpoints of this node.
    pub(super) fn svl(&self) -> String {
        format!("KUBE-SVL-{}", self.hash)
    }

    /// From outside the cluster.
    pub(super) fn ext(&self) -> String {
        format!("KUBE-EXT-{}", self.hash)
    }

    /// Source ranges of the load balancer.
    pub(super) fn firewall(&self) -> String {
        format!("KUBE-FW-{}", self.hash)
    }

    /// One endpoint.
    pub(super) fn sep(&self, endpoint: SocketAddr) -> Arc<str> {
        let endpoint = endpoint.to_string();
        format!("KUBE-SEP-{}", hash(&[&self.text, self.protocol, &endpoint])).into()
    }
}

/// iptables' word for a protocol.
pub(super) const fn word(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
        Protocol::Sctp => "sctp",
    }
}

/// The first characters of the base 32 of the SHA-256.
fn hash(parts: &[&str]) -> String {
    const ALPHABET: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
    let mut digest = Sha256::new();
    for part in parts {
        digest.update(part);
    }
    let digest = digest.finalize();
    let bit = |at: usize| usize::from(digest[at / 8] >> (7 - at % 8) & 1);
    let letter = |at: usize| {
        let index = (at * 5..at * 5 + 5).fold(0, |index, at| index << 1 | bit(at));
        char::from(ALPHABET[index])
    };
    (0..HASH_LEN).map(letter).collect()
}
