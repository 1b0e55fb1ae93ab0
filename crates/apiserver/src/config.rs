//! What a server is told at start: validated values, no files of its own beyond its data directory.

use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;

use ipnet::IpNet;

/// Settings of one API server.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where the store, keys and certificates live; made when missing.
    pub data_dir: PathBuf,
    /// ClusterIPs come from these; the first is the primary family.
    pub service_cidrs: Vec<IpNet>,
    /// Where node ports come from.
    pub node_port_range: RangeInclusive<u16>,
    /// The cluster's DNS domain, usually `cluster.local`.
    pub cluster_domain: String,
    /// The address at which nodes and pods reach this server; goes into the `kubernetes` Endpoints.
    pub advertise_address: IpAddr,
    /// The port at [`Config::advertise_address`].
    pub advertise_port: u16,
    /// Further names and addresses for the serving certificate.
    pub certificate_names: Vec<String>,
    /// Issuer of ServiceAccount tokens, usually `https://kubernetes.default.svc.cluster.local`.
    pub issuer: String,
}

impl Config {
    /// The defaults of the documents (10.96.0.0/12, 30000-32767, cluster.local) over a data directory.
    #[must_use]
    pub fn new(data_dir: impl Into<PathBuf>) -> Self {
        Self {
            data_dir: data_dir.into(),
            service_cidrs: vec!["10.96.0.0/12".parse().expect("a literal prefix parses")],
            node_port_range: 30000..=32767,
            cluster_domain: "cluster.local".to_owned(),
            advertise_address: IpAddr::from([127, 0, 0, 1]),
            advertise_port: 6443,
            certificate_names: Vec::new(),
            issuer: "https://kubernetes.default.svc.cluster.local".to_owned(),
        }
    }
}
