//! Data planes under test. Another mode is one more of these, and one more column of the table.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use client::Reconcile;
use kernel::netns;
use node::proxy::{ConntrackLimits, Health, Proxy, prepare};
use plan::proxy::{EbpfPlace, IptablesBackend, Settings, Snapshot};
use tokio::runtime::Handle;
use tokio::sync::watch;

use super::rows::Row;

/// Where a data plane is to work.
#[derive(Clone)]
pub(crate) struct Place {
    /// The node's network namespace.
    pub(crate) netns: PathBuf,
    /// The node's runtime: its threads are in that namespace.
    pub(crate) runtime: Handle,
    /// The control group of the node and its pods.
    pub(crate) group: PathBuf,
    /// For what is to outlive the agent.
    pub(crate) pins: PathBuf,
    /// The namespaces of its pods, and their addresses.
    pub(crate) pods: Vec<(PathBuf, [IpAddr; 2])>,
}

/// What a mode does otherwise than a row says.
#[derive(Clone, Copy)]
pub(crate) enum Note {
    /// The row holds, in the mode's own way.
    Holds(&'static str),
    /// The mode does not have it.
    Lacks(&'static str),
}

/// A way to carry Services.
pub(crate) trait Mode: Sync {
    /// The head of its column.
    fn name(&self) -> &'static str;

    /// Starts it on a node. What the kernel there has from before is taken over.
    fn start(&self, place: &Place, settings: Settings, health: Health) -> Box<dyn DataPlane>;

    /// Ways to harm what it has put into the kernel, as commands; `{pins}` is [`Place::pins`].
    fn harms(&self) -> &'static [&'static str];

    /// A command that shows what it has put into the kernel, and a word that is in it then.
    fn trace(&self) -> (&'static str, &'static str);

    /// Whether it has all that the other mode has, and more.
    fn includes(&self, other: &dyn Mode) -> bool {
        self.name() == other.name()
    }

    /// Whether it needs what the kernel under the tests may lack: then it is tested in a virtual machine.
    fn needs_machine(&self) -> bool {
        false
    }

    /// What is to be said of a row by the mode's nature.
    fn note(&self, _row: &Row) -> Option<Note> {
        None
    }

    /// Whether a client is remembered at each address of a Service apart, and its connections outlast the memory.
    fn remembers_by_address(&self) -> bool {
        false
    }

    /// Commands that put something of others beside its own, show it, and take it away, where nftables is not all that
    /// it uses.
    fn others(&self) -> Option<[&'static str; 3]> {
        None
    }

    /// Whose tables it has in nftables, if any.
    fn tables(&self) -> plan::proxy::Mode {
        plan::proxy::Mode::Nftables
    }

    /// A program for rules of others beside its own.
    fn iptables(&self) -> &'static str {
        "iptables-nft"
    }
}

/// A data plane that runs on a node. Dropped, its agent is dead; what it put into the kernel stays.
pub(crate) trait DataPlane: Send + Sync {
    /// Makes the kernel carry these Services; returns when there is nothing left to do.
    fn apply(&mut self, snapshot: &Snapshot);
}

/// Every mode, in the order of the columns.
pub(crate) const MODES: [&dyn Mode; 5] =
    [&Nft, &Iptables(IptablesBackend::Nft), &Iptables(IptablesBackend::Legacy), EBPF_LINKS, IPVS];

/// IPVS, which needs the virtual machine.
pub(crate) const IPVS: &dyn Mode = &Ipvs;
/// eBPF, and what it leaves to nftables.
pub(crate) const EBPF: &dyn Mode = &Ebpf { links: false };
/// The same with the program at links, which is off by default.
pub(crate) const EBPF_LINKS: &dyn Mode = &Ebpf { links: true };

/// `MODE=ebpf` and the like try one mode alone.
pub(crate) fn is_asked_for(mode: &dyn Mode) -> bool {
    let asked = std::env::var("MODE").unwrap_or_default().to_lowercase();
    mode.name().to_lowercase().contains(&asked)
}

/// nftables through netlink.
struct Nft;

impl Mode for Nft {
    fn name(&self) -> &'static str {
        "nftables"
    }

    fn start(&self, place: &Place, settings: Settings, health: Health) -> Box<dyn DataPlane> {
        start(place, Settings { mode: plan::proxy::Mode::Nftables, ..settings }, health)
    }

    fn harms(&self) -> &'static [&'static str] {
        &[
            "nft delete table ip rhumb_proxy",
            "nft delete table ip6 rhumb_proxy",
            "nft flush chain ip rhumb_proxy prerouting",
            "nft flush map ip6 rhumb_proxy endpoints",
            "nft flush map ip rhumb_proxy services",
            "nft add rule ip rhumb_proxy prerouting drop",
            "nft flush ruleset",
        ]
    }

    fn trace(&self) -> (&'static str, &'static str) {
        // The table alone is IPVS's, too.
        ("nft list ruleset", "draw-")
    }
}

/// iptables' programs, with upstream's chains.
struct Iptables(IptablesBackend);

impl Mode for Iptables {
    fn name(&self) -> &'static str {
        match self.0 {
            IptablesBackend::Legacy => "iptables (legacy)",
            IptablesBackend::Auto | IptablesBackend::Nft => "iptables (nft)",
        }
    }

    fn start(&self, place: &Place, settings: Settings, health: Health) -> Box<dyn DataPlane> {
        let mode = plan::proxy::Mode::Iptables;
        start(place, Settings { mode, iptables: self.0, ..settings }, health)
    }

    fn harms(&self) -> &'static [&'static str] {
        match self.0 {
            IptablesBackend::Legacy => &[
                "iptables-legacy -t nat -F",
                "ip6tables-legacy -t nat -F KUBE-SERVICES",
                "iptables-legacy -t nat -D PREROUTING 1",
                "iptables-legacy -t nat -I KUBE-SERVICES -d 10.96.0.10 -j RETURN",
                "iptables-legacy -F KUBE-SERVICES",
                "ip6tables-legacy -t mangle -X KUBE-PROXY-CANARY",
            ],
            IptablesBackend::Auto | IptablesBackend::Nft => &[
                "iptables-nft -t nat -F",
                "ip6tables-nft -t nat -F KUBE-SERVICES",
                "iptables-nft -t nat -D PREROUTING 1",
                "iptables-nft -t nat -I KUBE-SERVICES -d 10.96.0.10 -j RETURN",
                "iptables-nft -F KUBE-SERVICES",
                "ip6tables-nft -t mangle -X KUBE-PROXY-CANARY",
                "nft delete table ip nat",
                "nft flush ruleset",
            ],
        }
    }

    fn trace(&self) -> (&'static str, &'static str) {
        match self.0 {
            IptablesBackend::Legacy => ("iptables-legacy-save", "KUBE-"),
            IptablesBackend::Auto | IptablesBackend::Nft => ("iptables-nft-save", "KUBE-"),
        }
    }

    fn iptables(&self) -> &'static str {
        match self.0 {
            IptablesBackend::Legacy => "iptables-legacy",
            IptablesBackend::Auto | IptablesBackend::Nft => "iptables-nft",
        }
    }
}

/// eBPF programs at sockets, nftables underneath.
struct Ebpf {
    links: bool,
}

impl Mode for Ebpf {
    fn name(&self) -> &'static str {
        "eBPF"
    }

    fn start(&self, place: &Place, settings: Settings, health: Health) -> Box<dyn DataPlane> {
        // Those who ask are threads of this process.
        if !place.group.exists() {
            std::fs::create_dir(&place.group).unwrap();
            std::fs::write(place.group.join("cgroup.type"), "threaded").unwrap();
        }
        let settings = Settings { ebpf_links: self.links, ..settings };
        start(place, Settings { mode: plan::proxy::Mode::Ebpf, ..settings }, health)
    }

    fn harms(&self) -> &'static [&'static str] {
        &[
            "find {pins} -name connect4 -delete",
            "find {pins} -name endpoints6 -delete",
            "find {pins} -name getpeername6 -delete -or -name frontends4 -delete",
            "nft delete table ip rhumb_proxy",
            "nft flush map ip6 rhumb_proxy endpoints",
            "nft flush ruleset",
            "find {pins} -type f -path *connect-* -delete",
        ]
    }

    fn includes(&self, other: &dyn Mode) -> bool {
        [self.name(), Nft.name()].contains(&other.name())
    }

    fn trace(&self) -> (&'static str, &'static str) {
        // A program at links stays as long as it has connections.
        ("sh -c find${IFS}{pins}${IFS}-name${IFS}connect4||:", "connect4")
    }
}

/// IPVS, with nftables for what that does not do.
struct Ipvs;

impl Mode for Ipvs {
    fn name(&self) -> &'static str {
        "IPVS"
    }

    fn start(&self, place: &Place, settings: Settings, health: Health) -> Box<dyn DataPlane> {
        start(place, Settings { mode: plan::proxy::Mode::Ipvs, ..settings }, health)
    }

    fn harms(&self) -> &'static [&'static str] {
        &[
            "nft delete table ip rhumb_proxy",
            "nft delete table ip6 rhumb_ipvs",
            "nft flush chain ip rhumb_ipvs steer",
            "nft flush set ip rhumb_ipvs servers",
            "ipvsadm -D -t 10.96.0.10:80",
            "ipvsadm -C",
            "ip rule del pref 211",
            "ip -6 route flush table 8211",
            "nft flush ruleset",
        ]
    }

    /// Virtual servers whose connections have not ended stay, with weight 0.
    fn trace(&self) -> (&'static str, &'static str) {
        ("cat /proc/net/ip_vs", "Masq    1 ")
    }

    fn needs_machine(&self) -> bool {
        true
    }

    fn note(&self, row: &Row) -> Option<Note> {
        match row.seen {
            "uniform for new connections (chi-square)" => {
                Some(Note::Holds("scheduler `rr`: one after the other, exactly even"))
            }
            "nobody has answered yet: the client's next try goes to another" => {
                Some(Note::Lacks("IPVS leads all packets of a connection to one destination"))
            }
            "a client comes back, at every address of the Service port" => {
                Some(Note::Holds("persistence is of a virtual server: at each address apart"))
            }
            "forgotten after the timeout, which every connection begins anew" => Some(Note::Holds(
                "the timeout begins when IPVS has forgotten the client's last connection: for TCP two minutes after its end",
            )),
            _ => None,
        }
    }

    fn tables(&self) -> plan::proxy::Mode {
        plan::proxy::Mode::Ipvs
    }

    fn others(&self) -> Option<[&'static str; 3]> {
        Some([
            "ipvsadm -A -t 192.0.2.50:80 -s lc",
            "ipvsadm -L -n -t 192.0.2.50:80",
            "ipvsadm -D -t 192.0.2.50:80",
        ])
    }

    fn remembers_by_address(&self) -> bool {
        true
    }
}

fn start(place: &Place, settings: Settings, health: Health) -> Box<dyn DataPlane> {
    let group = place.group.file_name().expect("a group has a name").to_string_lossy();
    let ebpf = EbpfPlace { pins: place.pins.clone(), cgroup: group.into_owned() };
    let settings = Settings { ebpf, ..settings };
    let proxy = netns::within(&place.netns, || {
        prepare(&settings, ConntrackLimits::default());
        Proxy::open(settings, health).unwrap()
    });
    let mut proxy = proxy.unwrap();
    let pods = place.pods.iter().map(|(path, addresses)| {
        let cookie = netns::within(path, || kernel::bpf::netns_cookie().unwrap()).unwrap();
        let [IpAddr::V4(v4), IpAddr::V6(v6)] = addresses else { panic!("{addresses:?}") };
        (cookie, kernel::bpf::Place::Pod(Some(*v4), Some(*v6)))
    });
    proxy.follow(watch::Sender::new(Arc::new(pods.collect::<BTreeMap<_, _>>())).subscribe());
    Box::new(Plane { proxy, runtime: place.runtime.clone() })
}

struct Plane {
    proxy: Proxy,
    runtime: Handle,
}

impl DataPlane for Plane {
    fn apply(&mut self, snapshot: &Snapshot) {
        // A change, what it left over, and a look whether anybody meddled.
        for round in 0..3 {
            if round == 1 {
                self.proxy.distrust();
            }
            let plan = self.proxy.plan(snapshot, &());
            self.runtime.block_on(self.proxy.apply(&(), plan)).unwrap_or_else(|error| {
                let cause = std::error::Error::source(&error);
                panic!("{error}: {:?}", cause.map(|cause| (cause.to_string(), cause.source())))
            });
        }
    }
}
