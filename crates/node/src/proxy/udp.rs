//! Deletes UDP flows that lead where their Service does not lead any more.
//!
//! Level-triggered: flows are compared with the endpoints of now, so nothing depends on having seen a change.
//! Flows that lead to the right place are left alone.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use kernel::conntrack::{Conntrack, Flow, Protocol};
use plan::proxy::{FAMILIES, Frontends, Mode, Views};

use super::SinkError;

/// Knows which flows were this proxy's.
#[derive(Debug)]
pub(super) struct Cleaner {
    conntrack: Conntrack,
    /// Frontends that were there and are not; kept so that late flows to them go too.
    retired: BTreeSet<SocketAddr>,
    last: Frontends,
}

impl Cleaner {
    pub(super) fn open() -> Result<Self, SinkError> {
        let (retired, last) = (BTreeSet::new(), Frontends::new());
        Ok(Self { conntrack: Conntrack::open()?, retired, last })
    }

    /// Takes note of frontends that the kernel had from an agent before this one.
    pub(super) fn retire(&mut self, frontends: BTreeSet<SocketAddr>) {
        self.retired.extend(frontends);
    }

    /// Deletes what does not belong.
    pub(super) fn clean(&mut self, views: &Views) -> Result<(), SinkError> {
        let now = views.udp();
        self.retired.extend(self.last.keys().copied());
        self.retired.retain(|frontend| !now.contains_key(frontend));
        for family in FAMILIES {
            let mut flows = self.conntrack.flows(family, Protocol::Udp)?;
            flows.retain(|flow| self.is_stale(flow, &now, views));
            for flow in &flows {
                self.conntrack.delete(flow)?;
            }
        }
        self.last = now;
        Ok(())
    }

    fn is_stale(&self, flow: &Flow, now: &Frontends, views: &Views) -> bool {
        if let Some(endpoints) = now.get(&flow.destination) {
            // Without IPVS nobody translates what it did.
            let orphaned = flow.by_ipvs && views.settings().mode != Mode::Ipvs;
            return orphaned || !endpoints.contains(&flow.answers);
        }
        let address = flow.destination.ip();
        let ours = views.settings().service_cidrs.iter().any(|cidr| cidr.contains(&address));
        flow.translated && (ours || self.retired.contains(&flow.destination))
    }
}
