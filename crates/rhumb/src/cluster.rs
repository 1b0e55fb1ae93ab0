//! A cluster on this machine as a file: what it was asked to be, and the addresses it was given.
//!
//! `rhumb up` writes it, the supervisor follows it, and every other command reads it. It is the only state of the lab;
//! everything else is made from it.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::{fs, io};

use anyhow::{Context as _, Result, bail, ensure};
use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use crate::carry::Carry;
use crate::proxy_flags::ProxyFlags;
use crate::watch_flags::WatchFlags;

/// Below this folder every cluster keeps its data, unless `--data-dir` says otherwise.
pub(crate) const DATA: &str = "/var/lib/rhumb";
/// Below this folder every cluster keeps what does not outlive the machine's run.
pub(crate) const RUN: &str = "/run/rhumb";
/// RFC 2544 reserves this range for labs; nobody's network uses it.
const LAB_RANGE: &str = "198.18.0.0/15";
/// The host number of the first node; below are the host, the server and the client.
const FIRST_NODE: u8 = 11;
/// The most nodes of one lab: host numbers up to 190.
pub(crate) const NODES_MAX: usize = 180;

/// Whether a node's processes run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum NodeState {
    /// The agent runs.
    Running,
    /// The agent is stopped, as by `rhumb node stop`.
    Stopped,
}

/// One node of the lab.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LabNode {
    pub(crate) name: String,
    pub(crate) address: Ipv4Addr,
    pub(crate) state: NodeState,
    /// Whether the node's link to the others is down, as by `rhumb node cut`.
    #[serde(default)]
    pub(crate) cut: bool,
}

/// A cluster on this machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Cluster {
    pub(crate) name: String,
    pub(crate) data_dir: PathBuf,
    pub(crate) node_cidr: Ipv4Net,
    pub(crate) pod_cidr: Ipv4Net,
    pub(crate) service_cidr: Ipv4Net,
    pub(crate) dns_domain: String,
    pub(crate) node_port_range: PortRange,
    pub(crate) api_port: u16,
    /// `HOST=URL` pairs.
    pub(crate) registry_mirrors: Vec<String>,
    pub(crate) nodes: Vec<LabNode>,
    /// The file of the resolvers that names outside the cluster are asked of, when the lab has a way out.
    #[serde(default)]
    pub(crate) egress: Option<PathBuf>,
    /// How nodes carry Services.
    #[serde(default)]
    pub(crate) carry: Carry,
    /// What the proxies are told.
    #[serde(default)]
    pub(crate) proxy: ProxyFlags,
    /// How nodes watch each other.
    #[serde(default)]
    pub(crate) watch: WatchFlags,
}

/// An inclusive range of ports, `30000-32767`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct PortRange {
    pub(crate) first: u16,
    pub(crate) last: u16,
}

impl std::str::FromStr for PortRange {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let (first, last) = text
            .split_once('-')
            .with_context(|| format!("{text:?} is not a range such as 30000-32767"))?;
        let range = Self { first: first.parse()?, last: last.parse()? };
        ensure!(
            0 < range.first && range.first <= range.last,
            "{text:?} is not a range such as 30000-32767"
        );
        Ok(range)
    }
}

impl TryFrom<String> for PortRange {
    type Error = anyhow::Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl std::fmt::Display for PortRange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

impl From<PortRange> for String {
    fn from(range: PortRange) -> Self {
        range.to_string()
    }
}

impl Cluster {
    /// Reads the cluster `name`; `None` when there is none.
    pub(crate) fn read(data_dir: &Path, name: &str) -> Result<Option<Self>> {
        let path = file(&data_dir.join(name));
        let text = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            text => text.with_context(|| format!("cannot read {}", path.display()))?,
        };
        serde_json::from_slice(&text)
            .map(Some)
            .with_context(|| format!("{} is not a cluster's file", path.display()))
    }

    /// Reads the cluster `name`, which must be there.
    pub(crate) fn existing(data_dir: &Path, name: &str) -> Result<Self> {
        Self::read(data_dir, name)?.with_context(|| {
            format!("there is no cluster {name:?} here; `rhumb up --name {name}` makes one")
        })
    }

    /// Writes the cluster's file whole or not at all.
    pub(crate) fn write(&self) -> Result<()> {
        fs::create_dir_all(self.dir())
            .with_context(|| format!("cannot make {}", self.dir().display()))?;
        let path = file(&self.dir());
        let part = path.with_extension("part");
        fs::write(&part, serde_json::to_vec_pretty(self)?)
            .and_then(|()| fs::rename(&part, &path))
            .with_context(|| format!("cannot write {}", path.display()))
    }

    /// All clusters below a data folder.
    pub(crate) fn all(data_dir: &Path) -> Vec<Self> {
        let entries = fs::read_dir(data_dir).into_iter().flatten().flatten();
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        names.filter_map(|name| Self::read(data_dir, &name).ok().flatten()).collect()
    }

    pub(crate) fn dir(&self) -> PathBuf {
        self.data_dir.join(&self.name)
    }

    pub(crate) fn run_dir(&self) -> PathBuf {
        Path::new(RUN).join(&self.name)
    }

    pub(crate) fn server_dir(&self) -> PathBuf {
        self.dir().join("server")
    }

    pub(crate) fn node_dir(&self, node: &str) -> PathBuf {
        self.dir().join("nodes").join(node)
    }

    /// The images of all nodes: they are on one disk.
    pub(crate) fn images_dir(&self) -> PathBuf {
        self.dir().join("images")
    }

    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.dir().join("kubeconfig")
    }

    pub(crate) fn log(&self, process: &str) -> PathBuf {
        self.dir().join("logs").join(format!("{process}.log"))
    }

    /// An address of the node network by its host number.
    fn host(&self, number: u8) -> Ipv4Addr {
        let network = u32::from(self.node_cidr.network());
        Ipv4Addr::from(network.saturating_add(u32::from(number)))
    }

    /// This machine's own address on the lab's link.
    pub(crate) fn host_address(&self) -> Ipv4Addr {
        self.host(1)
    }

    pub(crate) fn server_address(&self) -> Ipv4Addr {
        self.host(2)
    }

    /// The address of the client outside the cluster.
    pub(crate) fn client_address(&self) -> Ipv4Addr {
        self.host(3)
    }

    /// First and last address for LoadBalancer Services.
    pub(crate) fn load_balancer_pool(&self) -> (Ipv4Addr, Ipv4Addr) {
        (self.host(200), self.host(250))
    }

    pub(crate) fn api_url(&self) -> String {
        format!("https://{}:{}", self.server_address(), self.api_port)
    }

    /// Adds a node with the first free name and address.
    pub(crate) fn add_node(&mut self, name: Option<&str>) -> Result<LabNode> {
        ensure!(self.nodes.len() < NODES_MAX, "a lab has at most {NODES_MAX} nodes");
        let taken: BTreeSet<Ipv4Addr> = self.nodes.iter().map(|node| node.address).collect();
        let address = (FIRST_NODE..=190)
            .map(|number| self.host(number))
            .find(|address| !taken.contains(address));
        let address = address.context("the node network has no free address")?;
        let names: BTreeSet<&str> = self.nodes.iter().map(|node| node.name.as_str()).collect();
        let name = match name {
            Some(name) if names.contains(name) => bail!("there is a node {name:?} already"),
            Some(name) => name.to_owned(),
            None => (1..)
                .map(|n| format!("n{n}"))
                .find(|name| !names.contains(name.as_str()))
                .expect("names do not end"),
        };
        check_name(&name, "node")?;
        let node = LabNode { name, address, state: NodeState::Running, cut: false };
        self.nodes.push(node.clone());
        Ok(node)
    }

    /// The node `name`, to change it.
    pub(crate) fn node_mut(&mut self, name: &str) -> Result<&mut LabNode> {
        let cluster = self.name.clone();
        let found = self.nodes.iter_mut().find(|node| node.name == name);
        found.with_context(|| format!("cluster {cluster:?} has no node {name:?}"))
    }
}

fn file(dir: &Path) -> PathBuf {
    dir.join("cluster.json")
}

/// Names become parts of host names, paths and links.
pub(crate) fn check_name(name: &str, what: &str) -> Result<()> {
    let fine = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let ends = name.starts_with('-') || name.ends_with('-');
    ensure!(
        !name.is_empty() && name.len() <= 40 && name.chars().all(fine) && !ends,
        "the {what} name {name:?} must be at most 40 lower case letters, digits and '-', and begin and end with a letter or digit"
    );
    Ok(())
}

/// The first /24 of the lab range that neither this machine's routes nor another cluster use.
pub(crate) fn free_node_cidr(used: &[Ipv4Net]) -> Result<Ipv4Net> {
    let range: Ipv4Net = LAB_RANGE.parse().expect("a constant");
    let mut subnets = range.subnets(24)?;
    let free = subnets.find(|subnet| !used.iter().any(|used| overlap(*used, *subnet)));
    free.context("every /24 of 198.18.0.0/15 is in use; choose another range with --node-cidr")
}

/// Whether two ranges have an address in common.
pub(crate) fn overlap(a: Ipv4Net, b: Ipv4Net) -> bool {
    a.contains(&b.network()) || b.contains(&a.network())
}

/// The ranges that this machine routes, from `/proc/net/route`, without the default route.
pub(crate) fn routed_ranges() -> Vec<Ipv4Net> {
    parse_routes(&fs::read_to_string("/proc/net/route").unwrap_or_default())
}

fn parse_routes(table: &str) -> Vec<Ipv4Net> {
    let number = |text: &str| {
        u32::from_str_radix(text, 16).ok().map(|bits| Ipv4Addr::from(bits.swap_bytes()))
    };
    let line = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        Ipv4Net::with_netmask(number(fields.get(1)?)?, number(fields.get(7)?)?).ok()
    };
    table.lines().skip(1).filter_map(line).filter(|net| net.prefix_len() > 0).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cluster() -> Cluster {
        Cluster {
            name: "a".into(),
            data_dir: DATA.into(),
            node_cidr: "198.18.4.0/24".parse().unwrap(),
            pod_cidr: "10.244.0.0/16".parse().unwrap(),
            service_cidr: "10.96.0.0/12".parse().unwrap(),
            dns_domain: "cluster.local".into(),
            node_port_range: "30000-32767".parse().unwrap(),
            api_port: 6443,
            registry_mirrors: Vec::new(),
            nodes: Vec::new(),
            egress: None,
            carry: Carry::default(),
            proxy: ProxyFlags::default(),
            watch: WatchFlags::default(),
        }
    }

    #[test]
    fn nodes_get_the_first_free_name_and_address() {
        let mut cluster = cluster();
        assert_eq!(cluster.add_node(None).unwrap().name, "n1");
        assert_eq!(cluster.add_node(Some("x")).unwrap().address.to_string(), "198.18.4.12");
        assert_eq!(cluster.add_node(None).unwrap().name, "n2");
        assert!(cluster.add_node(Some("x")).unwrap_err().to_string().contains("already"));
        cluster.nodes.remove(0);
        assert_eq!(cluster.add_node(None).unwrap().address.to_string(), "198.18.4.11");
    }

    #[test]
    fn a_range_in_use_is_passed_over() {
        let used: Vec<Ipv4Net> =
            vec!["198.18.0.0/23".parse().unwrap(), "10.0.0.0/8".parse().unwrap()];
        assert_eq!(free_node_cidr(&used).unwrap().to_string(), "198.18.2.0/24");
        assert!(free_node_cidr(&["198.18.0.0/15".parse().unwrap()]).is_err());
    }

    #[test]
    fn the_routing_table_is_read() {
        let table = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\n\
                     eth0\t00000000\t0101A8C0\t0003\t0\t0\t0\t00000000\t0\n\
                     eth0\t0001A8C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\n";
        assert_eq!(parse_routes(table), ["192.168.1.0/24".parse().unwrap()]);
    }

    #[test]
    fn port_ranges_and_names_are_checked() {
        assert!("32767-30000".parse::<PortRange>().is_err());
        assert_eq!("1-2".parse::<PortRange>().unwrap().to_string(), "1-2");
        assert!(check_name("Bad_Name", "cluster").is_err());
        assert!(check_name("good-1", "cluster").is_ok());
    }
}
