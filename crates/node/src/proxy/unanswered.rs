//! Forgets TCP connections that nobody has answered, and whose endpoint new connections do not go to any more: one on a node
//! without power, say, or of a pod that ended.
//!
//! The client tries again after one second, two, four and so on; connection tracking would lead each try where the first one
//! went. Once it has forgotten the connection, the next try is led as a new one. Connections that were answered are left
//! alone. Level-triggered, as for UDP: what is there is compared with the endpoints of now.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use kernel::conntrack::{Conntrack, Flow};
use plan::proxy::{Frontends, Views};

use super::SinkError;

/// How long after a change: long before anybody tries again, so that many changes cost one look.
const LOOK_AFTER: Duration = Duration::from_millis(100);
/// A look makes the kernel go through all that it tracks: no more often, unless a node has fallen silent.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// How soon to ask again for a list that is being made.
const LISTED_AFTER: Duration = Duration::from_millis(20);

/// The connections as the kernel lists them.
type Listed = Result<Vec<Flow>, SinkError>;

/// Looks for such connections after changes.
#[derive(Debug)]
pub(super) struct Unanswered {
    conntrack: Conntrack,
    /// Lists connections in a thread, for nobody is to wait for that; none while it does.
    lister: Option<Conntrack>,
    listing: Option<JoinHandle<(Conntrack, Listed)>>,
    silent: Arc<BTreeSet<String>>,
    next: Option<Instant>,
    /// Not before, for what is no hurry.
    again: Instant,
}

impl Unanswered {
    pub(super) fn open() -> Result<Self, SinkError> {
        Ok(Self {
            conntrack: Conntrack::open()?,
            lister: Some(Conntrack::open()?),
            listing: None,
            silent: Arc::default(),
            next: None,
            again: Instant::now(),
        })
    }

    /// Forgets them when it is time; `moved` says that new connections may go elsewhere than before. Answers how many. What
    /// the kernel refuses is logged: Services are carried all the same.
    pub(super) fn look(&mut self, views: &Views, moved: bool) -> u64 {
        let now = Instant::now();
        let silent = &views.node().silent;
        if *silent != self.silent {
            self.silent = Arc::clone(silent);
            self.next = Some(now + LOOK_AFTER);
        } else if moved {
            self.next.get_or_insert((now + LOOK_AFTER).max(self.again));
        }
        let forgotten = match self.listing.take() {
            Some(listing) if listing.is_finished() => self.finish(listing, views),
            Some(listing) => {
                self.listing = Some(listing);
                return 0;
            }
            None => Ok(0),
        };
        if self.next.is_some_and(|next| next <= now)
            && let Some(mut lister) = self.lister.take()
        {
            (self.next, self.again) = (None, now + LOOK_EVERY);
            self.listing = Some(std::thread::spawn(move || {
                let listed = lister.unanswered().map_err(SinkError::from);
                (lister, listed)
            }));
        }
        forgotten.unwrap_or_else(|error| {
            let error: &dyn std::error::Error = &error;
            tracing::warn!(component = "proxy", error, "connections that nobody answers stay");
            0
        })
    }

    /// When to be called though nothing changes.
    pub(super) fn wait(&self) -> Option<Duration> {
        if self.listing.is_some() {
            return Some(LISTED_AFTER);
        }
        self.next.map(|next| next.saturating_duration_since(Instant::now()))
    }

    fn finish(
        &mut self,
        listing: JoinHandle<(Conntrack, Listed)>,
        views: &Views,
    ) -> Result<u64, SinkError> {
        let Ok((lister, listed)) = listing.join() else {
            self.lister = Some(Conntrack::open()?);
            return Ok(0);
        };
        self.lister = Some(lister);
        self.forget(listed?, views)
    }

    fn forget(&mut self, mut flows: Vec<Flow>, views: &Views) -> Result<u64, SinkError> {
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
