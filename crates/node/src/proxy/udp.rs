//! Deletes UDP flows that lead where their Service does not lead any more.
//!
//! Level-triggered: flows are compared with the endpoints of now, so nothing depends on having seen a change.
//! Flows that lead to the right place are left alone.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use kernel::conntrack::{Conntrack, Flow};
use plan::proxy::{FAMILIES, Fold, UdpFrontends};

use super::SinkError;

/// NodePorts that an agent before this one may have served.
const NODE_PORTS: std::ops::RangeInclusive<u16> = 30_000..=32_767;

/// Knows which flows were this proxy's.
#[derive(Debug)]
pub(super) struct Cleaner {
    conntrack: Conntrack,
    /// Frontends that were there and are not; kept so that late flows to them go too.
    retired: BTreeSet<SocketAddr>,
    last: UdpFrontends,
    first: bool,
}

impl Cleaner {
    pub(super) fn open() -> Result<Self, SinkError> {
        let (retired, last) = (BTreeSet::new(), UdpFrontends::new());
        Ok(Self { conntrack: Conntrack::open()?, retired, last, first: true })
    }

    /// Deletes what does not belong.
    pub(super) fn clean(&mut self, fold: &Fold) -> Result<(), SinkError> {
        let now = fold.udp();
        self.retired.extend(self.last.keys().copied());
        self.retired.retain(|frontend| !now.contains_key(frontend));
        for family in FAMILIES {
            let mut flows = self.conntrack.udp_flows(family)?;
            flows.retain(|flow| self.is_stale(flow, &now, fold));
            for flow in &flows {
                self.conntrack.delete(flow)?;
            }
        }
        self.last = now;
        self.first = false;
        Ok(())
    }

    fn is_stale(&self, flow: &Flow, now: &UdpFrontends, fold: &Fold) -> bool {
        if let Some(endpoints) = now.get(&flow.destination) {
            return !endpoints.contains(&flow.answers);
        }
        let address = flow.destination.ip();
        let ours = fold.settings().service_cidrs.iter().any(|cidr| cidr.contains(&address));
        let node_port = self.first
            && fold.node().addresses.contains(&address)
            && NODE_PORTS.contains(&flow.destination.port());
        flow.translated && (ours || node_port || self.retired.contains(&flow.destination))
    }
}
