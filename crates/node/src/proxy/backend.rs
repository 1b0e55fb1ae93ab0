//! The ways to make the kernel carry Services. What is the same for all of them (UDP flows, health checks, kernel
//! settings, metrics) is done around them. Another way is one more of these.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use kernel::iptables::Flavor;
use plan::proxy::{Mode, Settings, Snapshot, Views};

use super::SinkError;
use super::ebpf::{self, Ebpf, Namespaces};
use super::iptables::{self, Iptables};
use super::ipvs::{self, Ipvs};
use super::metrics::Done;
use super::nftables::{self, Nftables};

/// What one way is to tell the kernel.
#[derive(Debug, PartialEq)]
pub enum Plan {
    /// By nftables.
    Nftables(nftables::Plan),
    /// By iptables.
    Iptables(iptables::Plan),
    /// By eBPF, and nftables underneath.
    Ebpf(ebpf::Plan),
    /// By IPVS.
    Ipvs(ipvs::Plan),
}

/// What came of it.
#[derive(Debug, Default)]
pub(super) struct Applied {
    /// Whether everything was told, and not only what differs.
    pub(super) whole: bool,
    /// Whether new connections may go elsewhere than before.
    pub(super) moved: bool,
    /// Whether UDP flows may lead to the wrong place.
    pub(super) udp: bool,
    /// Whether TCP connections that are reset then may lead to endpoints that are gone.
    pub(super) resets: bool,
    /// UDP frontends that the kernel had before: of this agent, or of one before it.
    pub(super) before: BTreeSet<SocketAddr>,
}

/// The snapshot without hints on what changed, for a fold that begins anew.
pub(super) fn whole(snapshot: &Snapshot, anew: bool) -> Cow<'_, Snapshot> {
    if anew {
        Cow::Owned(Snapshot { dirty: None, ..snapshot.clone() })
    } else {
        Cow::Borrowed(snapshot)
    }
}

/// One of the ways.
#[derive(Debug)]
pub(super) enum Backend {
    Nftables(Nftables),
    Iptables(Iptables),
    Ebpf(Box<Ebpf>),
    Ipvs(Box<Ipvs>),
}

impl Backend {
    /// The way of `settings.mode`, for the network namespace of the calling thread.
    pub(super) fn open(settings: Settings) -> Result<Self, SinkError> {
        match settings.mode {
            Mode::Nftables => Nftables::open(settings).map(Self::Nftables),
            Mode::Iptables => Iptables::open(settings).map(Self::Iptables),
            Mode::Ebpf => Ebpf::open(settings).map(|ebpf| Self::Ebpf(Box::new(ebpf))),
            Mode::Ipvs => Ipvs::open(settings).map(|ipvs| Self::Ipvs(Box::new(ipvs))),
        }
    }

    /// What differs between the snapshot and what the kernel has; everything where that is not known.
    pub(super) fn plan(&self, snapshot: &Snapshot) -> Plan {
        match self {
            Self::Nftables(nftables) => Plan::Nftables(nftables.plan(snapshot)),
            Self::Iptables(iptables) => Plan::Iptables(iptables.plan(snapshot)),
            Self::Ebpf(ebpf) => Plan::Ebpf(ebpf.plan(snapshot)),
            Self::Ipvs(ipvs) => Plan::Ipvs(ipvs.plan(snapshot)),
        }
    }

    /// Tells the kernel. After an error what it has is not known.
    pub(super) fn apply(&mut self, plan: Plan) -> Result<Applied, SinkError> {
        match (self, plan) {
            (Self::Nftables(nftables), Plan::Nftables(plan)) => nftables.apply(plan),
            (Self::Iptables(iptables), Plan::Iptables(plan)) => iptables.apply(plan),
            (Self::Ebpf(ebpf), Plan::Ebpf(plan)) => ebpf.apply(plan),
            (Self::Ipvs(ipvs), Plan::Ipvs(plan)) => ipvs.apply(plan),
            // Somebody else's plan: what this kernel has is to be looked at anew.
            (backend, _) => {
                backend.forget();
                Ok(Applied::default())
            }
        }
    }

    /// Looks whether somebody changed what the kernel was told, and repairs it.
    pub(super) fn verify(&mut self) -> Result<(), SinkError> {
        match self {
            Self::Nftables(nftables) => nftables.verify(),
            Self::Iptables(iptables) => iptables.verify(),
            Self::Ebpf(ebpf) => ebpf.verify(),
            Self::Ipvs(ipvs) => ipvs.verify(),
        }
    }

    /// Makes the next look not wait for its time.
    pub(super) fn distrust(&mut self) {
        match self {
            // It always looks.
            Self::Nftables(_) => {}
            Self::Iptables(iptables) => iptables.distrust(),
            Self::Ebpf(ebpf) => ebpf.distrust(),
            Self::Ipvs(ipvs) => ipvs.distrust(),
        }
    }

    /// Which kind of iptables is used, if any.
    pub(super) fn flavor(&self) -> Option<Flavor> {
        match self {
            Self::Nftables(_) | Self::Ebpf(_) | Self::Ipvs(_) => None,
            Self::Iptables(iptables) => Some(iptables.programs().flavor()),
        }
    }

    /// The mode that it is in truth: what the kernel does not run is not there.
    pub(super) fn mode(&self) -> Mode {
        match self {
            Self::Nftables(_) => Mode::Nftables,
            Self::Iptables(_) => Mode::Iptables,
            Self::Ebpf(ebpf) => ebpf.mode(),
            Self::Ipvs(_) => Mode::Ipvs,
        }
    }

    /// What is wrong with it, though Services are carried; told once.
    pub(super) fn trouble(&mut self) -> Option<String> {
        match self {
            Self::Nftables(_) | Self::Iptables(_) | Self::Ipvs(_) => None,
            Self::Ebpf(ebpf) => ebpf.trouble(),
        }
    }

    /// What programs in the kernel did, when it is time to ask.
    pub(super) fn done(&mut self) -> Option<Done> {
        match self {
            Self::Nftables(_) | Self::Iptables(_) | Self::Ipvs(_) => None,
            Self::Ebpf(ebpf) => ebpf.done(),
        }
    }

    /// Learns whose the network namespaces on this node are.
    pub(super) fn follow(&mut self, namespaces: Namespaces) {
        if let Self::Ebpf(ebpf) = self {
            ebpf.follow(namespaces);
        }
    }

    /// What the kernel has is not known any more.
    pub(super) fn forget(&mut self) {
        match self {
            Self::Nftables(nftables) => nftables.forget(),
            Self::Iptables(iptables) => iptables.forget(),
            Self::Ebpf(ebpf) => ebpf.forget(),
            Self::Ipvs(ipvs) => ipvs.forget(),
        }
    }

    /// The Services that it carries.
    pub(super) fn views(&mut self) -> &Views {
        match self {
            Self::Nftables(nftables) => nftables.views(),
            Self::Iptables(iptables) => iptables.views(),
            Self::Ebpf(ebpf) => ebpf.views(),
            Self::Ipvs(ipvs) => ipvs.views(),
        }
    }

    /// When to come back, though nothing changes.
    pub(super) fn wait(&self) -> Duration {
        match self {
            Self::Nftables(nftables) => nftables.wait(),
            Self::Iptables(iptables) => iptables.wait(),
            Self::Ebpf(ebpf) => ebpf.wait(),
            Self::Ipvs(ipvs) => ipvs.wait(),
        }
    }
}
