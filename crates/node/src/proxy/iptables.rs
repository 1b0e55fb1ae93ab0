//! Services by iptables, in upstream's chains: `plan::proxy::iptables` says what differs, [`Sink`] runs the programs.

mod sink;

use std::time::Duration;

use kernel::iptables::Iptables as Programs;
use parking_lot::Mutex;
use plan::proxy::iptables::{Change, Fold};
use plan::proxy::{FAMILIES, Settings, Snapshot, Views};

use super::backend::{Applied, whole};
use super::sink::SinkError;
use sink::Sink;

pub(super) use sink::tell;

/// How often to look whether somebody changed the rules.
const VERIFY_AFTER: Duration = Duration::from_secs(5);

/// What the kernel is to be told.
#[derive(Debug, PartialEq)]
pub enum Plan {
    /// Everything: what the kernel has is not known.
    Replace,
    /// What differs.
    Change(Change),
}

/// The desired state, and the kernel's side of it.
#[derive(Debug)]
pub(super) struct Iptables {
    /// Behind a lock because `plan` only borrows: the fold is a memory of work done, never a second truth.
    fold: Mutex<Fold>,
    sink: Sink,
}

impl Iptables {
    pub(super) fn open(settings: Settings) -> Result<Self, SinkError> {
        let sink = Sink::open(settings.iptables)?;
        Ok(Self { fold: Mutex::new(Fold::new(settings)), sink })
    }

    pub(super) fn programs(&self) -> &Programs {
        self.sink.programs()
    }

    pub(super) fn plan(&self, snapshot: &Snapshot) -> Plan {
        let mut fold = self.fold.lock();
        let anew = fold.follow(snapshot);
        let change = fold.advance(&whole(snapshot, anew));
        if self.sink.is_known() && !anew { Plan::Change(change) } else { Plan::Replace }
    }

    pub(super) fn apply(&mut self, plan: Plan) -> Result<Applied, SinkError> {
        let (fold, sink) = (self.fold.get_mut(), &mut self.sink);
        blocking(|| match plan {
            Plan::Replace => {
                let before = sink.replace(|family| fold.rules(family))?;
                Ok(Applied { whole: true, moved: true, udp: true, resets: true, before })
            }
            Plan::Change(change) => {
                let (udp, resets) = (change.udp, change.resets);
                let moved = !change.families.is_empty();
                for family in FAMILIES {
                    if let Some(delta) = change.families.get(&family) {
                        sink.change(family, delta)?;
                    }
                }
                Ok(Applied { moved, udp, resets, ..Applied::default() })
            }
        })
    }

    pub(super) fn verify(&mut self) -> Result<(), SinkError> {
        let (fold, sink) = (self.fold.get_mut(), &mut self.sink);
        blocking(|| sink.verify(|family| fold.rules(family)))
    }

    pub(super) fn distrust(&mut self) {
        self.sink.distrust();
    }

    pub(super) fn forget(&mut self) {
        self.sink.forget();
    }

    pub(super) fn views(&mut self) -> &Views {
        self.fold.get_mut().views()
    }

    pub(super) fn wait(&self) -> Duration {
        VERIFY_AFTER
    }
}

/// The programs take milliseconds, and seconds with tens of thousands of Services: others run meanwhile where that can be.
fn blocking<T>(work: impl FnOnce() -> T) -> T {
    use tokio::runtime::{Handle, RuntimeFlavor};
    match Handle::try_current().map(|handle| handle.runtime_flavor()) {
        Ok(RuntimeFlavor::MultiThread) => tokio::task::block_in_place(work),
        _ => work(),
    }
}
