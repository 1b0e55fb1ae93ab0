//! Resets TCP connections to endpoints that are gone, for Services that ask for it; `plan::proxy::Resets` says which.
//!
//! A table of rules answers whatever such a connection's ends send with a reset, in either direction and in every mode. An
//! end that only waits is made to send: a segment out of order is answered with an acknowledgement, and that one is
//! answered by the rules. So the kernel itself puts the right sequence numbers into every reset, on this node's
//! connections as on those of clients elsewhere.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use kernel::conntrack::{Conntrack, Flow, Protocol};
use kernel::nftables::Nftables;
use kernel::nudge::Nudger;
use net::nft::{Family, Op, Transaction, Value};
use plan::proxy::{
    FAMILIES, Lead, RESETS_SET, RESETS_TABLE, ResetFrontends, Resets, Step, Views, reset_key,
    resets_table,
};

use super::SinkError;

/// A connection that was being made while the rules changed may show a moment later.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// The rules go when nothing was reset for so long: as long as connection tracking remembers a connection that is over.
const RULES_STAY: Duration = Duration::from_secs(10);
/// Each try speaks in another quarter of the sequence numbers: by chance one may be in order, which is not answered.
const SEQUENCE_STEP: u32 = 1 << 30;

/// Knows the connections that are to be reset.
#[derive(Debug)]
pub(super) struct Resetter {
    conntrack: Conntrack,
    nft: Nftables,
    /// None without the right to raw sockets: then only ends that send are told.
    nudger: Option<Nudger>,
    resets: Resets,
    /// Times count from here.
    born: Instant,
    /// When to look at the connections.
    next: Option<Duration>,
    /// Until when the rules are there. At first an agent before this one may have left some.
    armed: Option<Duration>,
}

impl Resetter {
    pub(super) fn open() -> Result<Self, SinkError> {
        let nudger = Nudger::open().inspect_err(|error| {
            let error: &dyn std::error::Error = error;
            tracing::warn!(component = "proxy", error, "idle connections are not reset");
        });
        Ok(Self {
            conntrack: Conntrack::open()?,
            nft: Nftables::open()?,
            nudger: nudger.ok(),
            resets: Resets::default(),
            born: Instant::now(),
            next: None,
            armed: Some(Duration::ZERO),
        })
    }

    /// Looks at the connections when that may be of use: `touched` says that endpoints changed. Answers how many were reset.
    /// What the kernel refuses is logged and tried again: Services are carried all the same.
    pub(super) fn look(&mut self, views: &Views, touched: bool) -> u64 {
        let now = self.born.elapsed();
        if !touched && self.next.is_none_or(|next| now < next) {
            return 0;
        }
        let frontends = views.resets();
        let result = self.round(&frontends, now);
        let again = (touched && !frontends.is_empty()).then(|| now + LOOK_AGAIN);
        self.next = [again, self.resets.next(), self.armed].into_iter().flatten().min();
        result.unwrap_or_else(|error| {
            let error: &dyn std::error::Error = &error;
            tracing::warn!(
                component = "proxy",
                error,
                "connections to endpoints that are gone stay"
            );
            self.next = Some(now + LOOK_AGAIN);
            0
        })
    }

    /// When to be called though nothing changes.
    pub(super) fn wait(&self) -> Option<Duration> {
        self.next.map(|next| next.saturating_sub(self.born.elapsed()))
    }

    fn round(&mut self, frontends: &ResetFrontends, now: Duration) -> Result<u64, SinkError> {
        let flows = self.open_flows(frontends)?;
        let leads: BTreeSet<Lead> = flows.iter().map(lead).collect();
        let steps = self.resets.judge(&leads, frontends, now);
        let step = |flow: &Flow| steps.get(&lead(flow)).copied().unwrap_or(Step::Wait);
        for flow in flows.iter().filter(|flow| step(flow) == Step::Forget) {
            self.conntrack.delete(flow)?;
        }
        let resets = flows.iter().filter_map(|flow| match step(flow) {
            Step::Reset(tries) => Some((flow, tries)),
            Step::Wait | Step::Forget => None,
        });
        let resets: Vec<(&Flow, u32)> = resets.collect();
        if !resets.is_empty() {
            self.reset(&resets, now)?;
        } else if self.armed.is_some_and(|until| until <= now) {
            self.disarm()?;
        }
        let fresh = resets.iter().filter(|(_, tries)| *tries == 0);
        Ok(u64::try_from(fresh.count()).unwrap_or(u64::MAX))
    }

    /// Open connections in the families of these frontends.
    fn open_flows(&mut self, frontends: &ResetFrontends) -> Result<Vec<Flow>, SinkError> {
        let mut found = Vec::new();
        for family in FAMILIES {
            if !frontends.keys().any(|frontend| Family::of(&frontend.ip()) == family) {
                continue;
            }
            let flows = self.conntrack.flows(family, Protocol::Tcp)?.into_iter();
            found.extend(flows.filter(|flow| flow.translated && !flow.is_over));
        }
        Ok(found)
    }

    fn reset(&mut self, flows: &[(&Flow, u32)], now: Duration) -> Result<(), SinkError> {
        let armed = self.armed.is_some_and(|until| !until.is_zero());
        self.armed = Some(now + RULES_STAY);
        for family in FAMILIES {
            let of_family =
                flows.iter().filter(|(flow, _)| Family::of(&flow.source.ip()) == family);
            let keys = of_family.map(|(flow, _)| (reset_key(flow.source, lead(flow)), Value::None));
            let table = resets_table(family);
            let mut ops = Vec::new();
            if !armed {
                ops.extend([Op::AddTable, Op::DeleteTable]);
                ops.extend(table.creation());
            }
            ops.push(Op::AddElements(RESETS_SET.into(), keys.collect()));
            self.nft.commit(&Transaction { family, table: table.name, ops }).inspect_err(|_| {
                // Whatever is there is made afresh next time.
                self.armed = Some(Duration::ZERO);
            })?;
        }
        for (flow, tries) in flows {
            self.nudge(flow, tries.wrapping_mul(SEQUENCE_STEP));
        }
        log(flows);
        Ok(())
    }

    /// Makes both ends speak. The endpoint is mostly gone, and so may be the client.
    fn nudge(&self, flow: &Flow, sequence: u32) {
        let Some(nudger) = &self.nudger else { return };
        for (from, to) in [(flow.answers, flow.answered), (flow.source, flow.destination)] {
            if let Err(error) = nudger.nudge(from, to, sequence) {
                tracing::debug!(component = "proxy", %from, %to, %error, "an end is out of reach");
            }
        }
    }

    fn disarm(&mut self) -> Result<(), SinkError> {
        for family in FAMILIES {
            if self.nft.has_table(family, RESETS_TABLE)? {
                let (table, ops) = (RESETS_TABLE.into(), vec![Op::AddTable, Op::DeleteTable]);
                self.nft.commit(&Transaction { family, table, ops })?;
            }
        }
        self.armed = None;
        Ok(())
    }
}

fn lead(flow: &Flow) -> Lead {
    (flow.destination, flow.answers)
}

fn log(flows: &[(&Flow, u32)]) {
    let mut counts: BTreeMap<Lead, usize> = BTreeMap::new();
    for (flow, _) in flows.iter().filter(|(_, tries)| *tries == 0) {
        *counts.entry(lead(flow)).or_default() += 1;
    }
    for ((frontend, endpoint), connections) in counts {
        tracing::info!(
            component = "proxy",
            %frontend,
            %endpoint,
            connections,
            "connections are reset: the endpoint is gone"
        );
    }
}
