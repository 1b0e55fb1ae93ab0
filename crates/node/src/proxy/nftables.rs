//! Services by nftables: `plan::proxy::Fold` says what differs, [`Sink`] tells the kernel.

use std::time::Duration;

use net::bpf;
use net::nft::Table;
use parking_lot::Mutex;
use plan::proxy::ipvs::Servers;
use plan::proxy::{Change, FAMILIES, Fold, Settings, Snapshot, Views};

use super::backend::{Applied, whole};
use super::sink::{Sink, SinkError};

/// How long elements stay that packets which are just being looked up may still need.
const SWEEP_AFTER: Duration = Duration::from_millis(20);
/// How often to look whether somebody changed the table.
const VERIFY_AFTER: Duration = Duration::from_secs(5);

/// What the kernel is to be told.
#[derive(Debug, PartialEq)]
pub enum Plan {
    /// Everything: what the kernel has is not known.
    Replace(Vec<Table>),
    /// What differs.
    Change(Change),
}

/// The desired state, and the kernel's side of it.
#[derive(Debug)]
pub(super) struct Nftables {
    /// Behind a lock because `plan` only borrows: the fold is a memory of work done, never a second truth.
    fold: Mutex<Fold>,
    sink: Sink,
}

impl Nftables {
    pub(super) fn open(settings: Settings) -> Result<Self, SinkError> {
        Ok(Self { fold: Mutex::new(Fold::new(settings)), sink: Sink::open()? })
    }

    pub(super) fn plan(&self, snapshot: &Snapshot) -> Plan {
        let mut fold = self.fold.lock();
        let anew = fold.follow(snapshot);
        if self.sink.is_known() && !anew {
            Plan::Change(fold.advance(snapshot))
        } else {
            fold.catch_up(&whole(snapshot, anew));
            Plan::Replace(FAMILIES.iter().map(|family| fold.table(*family)).collect())
        }
    }

    /// Netlink does the work before the call returns: 20 µs for a change, tens of milliseconds for everything.
    pub(super) fn apply(&mut self, plan: Plan) -> Result<Applied, SinkError> {
        match plan {
            Plan::Replace(tables) => {
                let before = self.sink.replace(&tables)?;
                Ok(Applied { whole: true, moved: true, udp: true, resets: true, before })
            }
            Plan::Change(change) => {
                let (udp, resets) = (change.udp, change.resets);
                let moved = !change.families.is_empty();
                if change.families.is_empty() {
                    self.sink.sweep()?;
                } else {
                    self.sink.change(change)?;
                }
                Ok(Applied { moved, udp, resets, ..Applied::default() })
            }
        }
    }

    /// All that eBPF programs are told beside the rules.
    pub(super) fn fast(&self) -> bpf::Tables {
        self.fold.lock().fast()
    }

    /// Virtual servers of IPVS, where that chooses.
    pub(super) fn servers(&self) -> Servers {
        self.fold.lock().servers()
    }

    /// So many transactions of nftables were this agent's own, on other tables.
    pub(super) fn expect(&mut self, commits: u32) {
        self.sink.expect(commits);
    }

    pub(super) fn verify(&mut self) -> Result<(), SinkError> {
        let fold = self.fold.get_mut();
        self.sink.verify(|family| fold.table(family))
    }

    pub(super) fn forget(&mut self) {
        self.sink.forget();
    }

    pub(super) fn views(&mut self) -> &Views {
        self.fold.get_mut().views()
    }

    pub(super) fn wait(&self) -> Duration {
        if self.sink.has_spare() { SWEEP_AFTER } else { VERIFY_AFTER }
    }
}
