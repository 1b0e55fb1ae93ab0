//! Forgets TCP connections that nobody has answered, and whose endpoint new connections do not go to any more: one on a node
//! without power, say, or of a pod that ended.
//!
//! The client tries again after one second, two, four and so on; connection tracking would lead each try where the first one
//! went. Once it has forgotten the connection, the next try is led as a new one. Connections that were answered are left
//! alone. Level-triggered, as for UDP: what is there is compared with the endpoints of now.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use kernel::conntrack::{Conntrack, Flow};
use plan::proxy::{FAMILIES, Frontends, Views};

use super::SinkError;

/// How long after a change: long before anybody tries again, so that many changes cost one look.
const LOOK_AFTER: Duration = Duration::from_millis(100);
/// The kernel walks through all connections, so with many of them it looks less often: for this part of the time at most.
const LOOK_SHARE: u32 = 20;

/// Looks for such connections after changes.
#[derive(Debug)]
pub(super) struct Unanswered {
    conntrack: Conntrack,
    next: Option<Instant>,
    not_before: Instant,
}

impl Unanswered {
    pub(super) fn open() -> Result<Self, SinkError> {
        Ok(Self { conntrack: Conntrack::open()?, next: None, not_before: Instant::now() })
    }

    /// Forgets them when it is time; `moved` says that new connections may go elsewhere than before. Answers how many. What
    /// the kernel refuses is logged: Services are carried all the same.
    pub(super) fn look(&mut self, views: &Views, moved: bool) -> u64 {
        let now = Instant::now();
        if moved {
            self.next.get_or_insert(self.not_before.max(now + LOOK_AFTER));
        }
        if self.next.is_none_or(|next| now < next) {
            return 0;
        }
        self.next = None;
        let forgotten = self.forget(views).unwrap_or_else(|error| {
            let error: &dyn std::error::Error = &error;
            tracing::warn!(component = "proxy", error, "connections that nobody answers stay");
            0
        });
        self.not_before = Instant::now() + now.elapsed() * LOOK_SHARE;
        forgotten
    }

    /// When to be called though nothing changes.
    pub(super) fn wait(&self) -> Option<Duration> {
        self.next.map(|next| next.saturating_duration_since(Instant::now()))
    }

    fn forget(&mut self, views: &Views) -> Result<u64, SinkError> {
        let mut flows = Vec::new();
        for family in FAMILIES {
            flows.extend(self.conntrack.unanswered(family)?);
        }
        if flows.is_empty() {
            return Ok(0);
        }
        let destinations: BTreeSet<SocketAddr> =
            flows.iter().map(|flow| flow.destination).collect();
        let now = views.tcp(&destinations);
        flows.retain(|flow| leads_nowhere(flow, &now, views));
        for flow in &flows {
            self.conntrack.delete(flow)?;
        }
        Ok(u64::try_from(flows.len()).unwrap_or(u64::MAX))
    }
}

/// Whether a Service had the connection and would not lead it there now. Others' translations are left alone.
fn leads_nowhere(flow: &Flow, now: &Frontends, views: &Views) -> bool {
    match now.get(&flow.destination) {
        Some(endpoints) => !endpoints.contains(&flow.answers),
        None => {
            let address = flow.destination.ip();
            views.settings().service_cidrs.iter().any(|cidr| cidr.contains(&address))
        }
    }
}
