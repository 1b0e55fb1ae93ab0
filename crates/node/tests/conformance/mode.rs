//! Data planes under test. Another mode is one more of these, and one more column of the table.

use std::path::{Path, PathBuf};

use client::Reconcile;
use kernel::netns;
use kernel::nftables::Nftables;
use node::proxy::{ConntrackLimits, Health, Proxy, prepare};
use plan::proxy::{FAMILIES, Settings, Snapshot, TABLE};
use tokio::runtime::Handle;

/// Where a data plane is to work.
#[derive(Clone)]
pub(crate) struct Place {
    /// The node's network namespace.
    pub(crate) netns: PathBuf,
    /// The node's runtime: its threads are in that namespace.
    pub(crate) runtime: Handle,
}

/// A way to carry Services.
pub(crate) trait Mode: Sync {
    /// The head of its column.
    fn name(&self) -> &'static str;

    /// Starts it on a node. What the kernel there has from before is taken over.
    fn start(&self, place: &Place, settings: Settings, health: Health) -> Box<dyn DataPlane>;

    /// Ways to harm what it has put into the kernel, as shell commands.
    fn harms(&self) -> &'static [&'static str];

    /// How many clients a node remembers for session affinity.
    fn remembered(&self, netns: &Path) -> usize;
}

/// A data plane that runs on a node. Dropped, its agent is dead; what it put into the kernel stays.
pub(crate) trait DataPlane: Send + Sync {
    /// Makes the kernel carry these Services; returns when there is nothing left to do.
    fn apply(&mut self, snapshot: &Snapshot);
}

/// Every mode, in the order of the columns.
pub(crate) const MODES: [&dyn Mode; 1] = [&Nft];

/// nftables through netlink.
struct Nft;

impl Mode for Nft {
    fn name(&self) -> &'static str {
        "nftables"
    }

    fn start(&self, place: &Place, settings: Settings, health: Health) -> Box<dyn DataPlane> {
        let proxy = netns::within(&place.netns, || {
            prepare(&settings, ConntrackLimits::default());
            Proxy::open(settings, health).unwrap()
        });
        Box::new(NftPlane { proxy: proxy.unwrap(), runtime: place.runtime.clone() })
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

    fn remembered(&self, netns: &Path) -> usize {
        let mut nft = netns::within(netns, || Nftables::open().unwrap()).unwrap();
        let sets = FAMILIES.map(|family| nft.elements(family, TABLE, "affinity").unwrap());
        sets.into_iter().flatten().map(|set| set.len()).sum()
    }
}

struct NftPlane {
    proxy: Proxy,
    runtime: Handle,
}

impl DataPlane for NftPlane {
    fn apply(&mut self, snapshot: &Snapshot) {
        // A change, what it left over, and a look whether anybody meddled.
        for _ in 0..3 {
            let plan = self.proxy.plan(snapshot, &());
            self.runtime.block_on(self.proxy.apply(&(), plan)).unwrap_or_else(|error| {
                let cause = std::error::Error::source(&error);
                panic!("{error}: {:?}", cause.map(|cause| (cause.to_string(), cause.source())))
            });
        }
    }
}
