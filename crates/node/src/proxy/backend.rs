//! The ways to make the kernel carry Services. What is the same for all of them (UDP flows, health checks, kernel
//! settings, metrics) is done around them. Another way is one more of these.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use plan::proxy::{Mode, Settings, Snapshot, Views};

use super::SinkError;
use super::nftables::{self, Nftables};

/// What one way is to tell the kernel.
#[derive(Debug, PartialEq)]
pub enum Plan {
    /// By nftables.
    Nftables(nftables::Plan),
}

/// What came of it.
#[derive(Debug, Default)]
pub(super) struct Applied {
    /// Whether everything was told, and not only what differs.
    pub(super) whole: bool,
    /// Whether UDP flows may lead to the wrong place.
    pub(super) udp: bool,
    /// UDP frontends that the kernel had before: of this agent, or of one before it.
    pub(super) before: BTreeSet<SocketAddr>,
}

/// One of the ways.
#[derive(Debug)]
pub(super) enum Backend {
    Nftables(Nftables),
}

impl Backend {
    /// The way of `settings.mode`, for the network namespace of the calling thread.
    pub(super) fn open(settings: Settings) -> Result<Self, SinkError> {
        match settings.mode {
            Mode::Nftables | Mode::Iptables => Nftables::open(settings).map(Self::Nftables),
        }
    }

    /// What differs between the snapshot and what the kernel has; everything where that is not known.
    pub(super) fn plan(&self, snapshot: &Snapshot) -> Plan {
        match self {
            Self::Nftables(nftables) => Plan::Nftables(nftables.plan(snapshot)),
        }
    }

    /// Tells the kernel. After an error what it has is not known.
    pub(super) fn apply(&mut self, plan: Plan) -> Result<Applied, SinkError> {
        match (self, plan) {
            (Self::Nftables(nftables), Plan::Nftables(plan)) => nftables.apply(plan),
        }
    }

    /// Looks whether somebody changed what the kernel was told, and repairs it.
    pub(super) fn verify(&mut self) -> Result<(), SinkError> {
        match self {
            Self::Nftables(nftables) => nftables.verify(),
        }
    }

    /// What the kernel has is not known any more.
    pub(super) fn forget(&mut self) {
        match self {
            Self::Nftables(nftables) => nftables.forget(),
        }
    }

    /// The Services that it carries.
    pub(super) fn views(&mut self) -> &Views {
        match self {
            Self::Nftables(nftables) => nftables.views(),
        }
    }

    /// When to come back, though nothing changes.
    pub(super) fn wait(&self) -> Duration {
        match self {
            Self::Nftables(nftables) => nftables.wait(),
        }
    }
}
