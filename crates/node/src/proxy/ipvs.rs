//! Services by IPVS, and by an nftables table for what IPVS does not do: `plan::proxy::ipvs` says which virtual servers
//! there are, [`Sink`] keeps the kernel's like them.

mod sink;

use std::time::Duration;

use plan::proxy::ipvs::{Change, Servers};
use plan::proxy::{Settings, Snapshot, Views};

use super::backend::Applied;
use super::nftables::{self, Nftables};
use super::sink::{IpvsMissing, SinkError};

pub(super) use sink::Sink;

/// Fails unless the kernel has IPVS, or a module for it.
///
/// # Errors
/// [`SinkError::Ipvs`], with what to do.
pub fn check_ipvs() -> Result<(), SinkError> {
    kernel::ipvs::Ipvs::open()?.ok_or(IpvsMissing)?;
    Ok(())
}

/// What the kernel is to be told.
#[derive(Debug, PartialEq)]
pub struct Plan {
    table: nftables::Plan,
    servers: Part,
}

/// The virtual servers to tell of.
#[derive(Debug, PartialEq)]
enum Part {
    /// Everything: what the kernel has is not known.
    All(Servers),
    /// What differs.
    Change(Change),
}

/// The desired state, and the kernel's side of it.
#[derive(Debug)]
pub(super) struct Ipvs {
    nftables: Nftables,
    sink: Sink,
}

impl Ipvs {
    pub(super) fn open(settings: Settings) -> Result<Self, SinkError> {
        let sink = Sink::open()?;
        sink::tune();
        Ok(Self { nftables: Nftables::open(settings)?, sink })
    }

    pub(super) fn plan(&self, snapshot: &Snapshot) -> Plan {
        let (table, servers) = match self.nftables.plan(snapshot) {
            nftables::Plan::Change(mut change) if self.sink.is_known() => {
                let servers = std::mem::take(&mut change.servers);
                (nftables::Plan::Change(change), Part::Change(servers))
            }
            table => (table, Part::All(self.nftables.servers())),
        };
        Plan { table, servers }
    }

    /// First what connections need that are led to IPVS, then the table that leads them, then what they do not need any
    /// more.
    pub(super) fn apply(&mut self, plan: Plan) -> Result<Applied, SinkError> {
        let touched = match plan.servers {
            Part::All(servers) => self.sink.replace(servers),
            Part::Change(change) => self.sink.change(change),
        };
        self.nftables.expect(self.sink.commits());
        let (applied, touched) = (self.nftables.apply(plan.table)?, touched?);
        self.sink.finish(&touched)?;
        self.nftables.expect(self.sink.commits());
        self.sink.settle()?;
        Ok(applied)
    }

    pub(super) fn verify(&mut self) -> Result<(), SinkError> {
        self.nftables.verify()?;
        self.sink.verify()?;
        self.nftables.expect(self.sink.commits());
        self.sink.settle()
    }

    pub(super) fn distrust(&mut self) {
        self.sink.distrust();
    }

    pub(super) fn forget(&mut self) {
        self.nftables.forget();
        self.sink.forget();
    }

    pub(super) fn views(&mut self) -> &Views {
        self.nftables.views()
    }

    pub(super) fn wait(&self) -> Duration {
        self.nftables.wait()
    }
}
