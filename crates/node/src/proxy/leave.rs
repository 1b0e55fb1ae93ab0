//! What other modes left in the kernel goes, once this one's rules stand: connections are tracked and stay.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use kernel::bpf;
use kernel::iptables::{Flavor, Iptables, IptablesError};
use kernel::nftables::Nftables;
use kernel::tc::Tc;
use net::iptables::{Ruleset, Saved, TableId};
use net::nft::{Family, Op, Transaction};
use plan::proxy::iptables::{CLUSTER_IPS, takeover};
use plan::proxy::{FAMILIES, Mode, SetId, Settings, TABLE, ipvs, udp_frontends};

use super::SinkError;
use super::ebpf::drain::Drain;
use super::iptables::tell;
use super::ipvs::Sink;

/// The other modes' traces in the network namespace that the opening thread was in.
#[derive(Debug)]
pub(super) struct Others {
    nft: Nftables,
    programs: Iptables,
    tc: Tc,
    drain: Option<Drain>,
    /// Virtual servers of IPVS, where there were any at the start; they go when they have no connections.
    servers: Option<Sink>,
}

impl Others {
    pub(super) fn open() -> Result<Self, SinkError> {
        let (mut nft, programs) = (Nftables::open()?, Iptables::open(Flavor::Nft)?);
        let tc = Tc::open()?;
        let mut led = false;
        for family in FAMILIES {
            led |= nft.has_table(family, ipvs::TABLE)?;
        }
        // Asking for IPVS would load its module.
        let servers = led.then(Sink::open).transpose();
        let servers = servers.inspect_err(|error| {
            let error: &dyn std::error::Error = error;
            tracing::warn!(component = "proxy", error, "what is left of IPVS stays");
        });
        Ok(Self { nft, programs, tc, drain: None, servers: servers.unwrap_or_default() })
    }

    /// Takes away what is not of the mode, and of iptables what is not of `flavor`. Answers the UDP frontends that were in
    /// it. What cannot be taken away is logged: Services are carried all the same.
    pub(super) fn remove(
        &mut self,
        settings: &Settings,
        flavor: Option<Flavor>,
    ) -> BTreeSet<SocketAddr> {
        let mut before = BTreeSet::new();
        if settings.mode != Mode::Ebpf {
            log(self.leave_programs(&settings.ebpf.pins));
        }
        for family in FAMILIES {
            // eBPF and IPVS have the same table beside them.
            if settings.mode == Mode::Iptables {
                log(self.remove_table(family, &mut before));
            }
            for other in Flavor::ALL.into_iter().filter(|other| Some(*other) != flavor) {
                log(self.remove_chains(family, other, &mut before));
            }
        }
        if settings.mode != Mode::Ipvs {
            log(self.retire_servers());
        }
        before
    }

    /// Looks after what could not be removed at once.
    pub(super) fn look(&mut self, settings: &Settings) {
        self.look_after_programs(settings);
        if settings.mode != Mode::Ipvs {
            self.look_after_servers();
        }
    }

    fn look_after_programs(&mut self, settings: &Settings) {
        let Some(drain) = &mut self.drain else { return };
        match drain.is_over(&mut self.tc) {
            Ok(false) => {}
            Ok(true) => {
                self.drain = None;
                log(remove_programs(&settings.ebpf.pins));
            }
            Err(error) => log(Err(error.into())),
        }
    }

    /// Connections are led no more; those that are carried at links go on.
    fn leave_programs(&mut self, pins: &Path) -> Result<(), SinkError> {
        if !bpf::is_pinned(pins) {
            return Ok(());
        }
        bpf::stop_connects(pins)?;
        self.drain = Drain::begin(&mut self.tc, pins)?;
        if self.drain.is_none() {
            return remove_programs(pins);
        }
        tracing::info!(component = "proxy", "eBPF's program stays at links with its connections");
        Ok(())
    }

    /// Virtual servers take no new connections from now on; those that have none go.
    fn retire_servers(&mut self) -> Result<(), SinkError> {
        let Some(sink) = &mut self.servers else { return Ok(()) };
        let all = sink.replace(ipvs::Servers::new())?;
        sink.finish(&all)
    }

    /// Takes virtual servers away whose connections have ended.
    fn look_after_servers(&mut self) {
        let Some(sink) = &mut self.servers else { return };
        let drained = sink.verify();
        if !sink.is_empty() {
            return log(drained);
        }
        let closed = drained.and_then(|()| sink.close());
        if closed.is_ok() {
            tracing::info!(component = "proxy", "the virtual servers of IPVS are removed");
        }
        log(closed);
        self.servers = None;
    }

    fn remove_table(
        &mut self,
        family: Family,
        before: &mut BTreeSet<SocketAddr>,
    ) -> Result<(), SinkError> {
        if !self.nft.has_table(family, TABLE)? {
            return Ok(());
        }
        let elements = self.nft.elements(family, TABLE, SetId::Services.name())?;
        before.extend(udp_frontends(family, &elements.unwrap_or_default()));
        // The rules first. Deleted together, maps are empty before sets are, and a packet among the rules was refused.
        for op in [Op::FlushRules, Op::DeleteTable] {
            let (table, ops) = (Arc::from(TABLE), vec![Op::AddTable, op]);
            self.nft.commit(&Transaction { family, table, ops })?;
        }
        tracing::info!(component = "proxy", family = family.word(), "nftables' rules are removed");
        Ok(())
    }

    /// Only what this proxy made: upstream's may be somebody else's who still uses them.
    fn remove_chains(
        &mut self,
        family: Family,
        flavor: Flavor,
        before: &mut BTreeSet<SocketAddr>,
    ) -> Result<(), SinkError> {
        let programs = self.programs.with(flavor)?;
        let there = match flavor {
            Flavor::Nft => {
                let filter = self.nft.inventory(family, TableId::Filter.word())?;
                filter.is_some_and(|filter| filter.chains.contains_key(CLUSTER_IPS))
            }
            Flavor::Legacy => programs.has_legacy_tables(family)? && programs.is_installed(),
        };
        if !there {
            return Ok(());
        }
        let saved = Saved::parse(&programs.save(family)?);
        let filter = saved.table(TableId::Filter);
        if filter.is_none_or(|chains| !chains.contains_key(CLUSTER_IPS)) {
            return Ok(());
        }
        before.extend(plan::proxy::iptables::udp_frontends(&saved));
        tell(&programs, family, &takeover(&saved, &Ruleset::new()))?;
        let (family, backend) = (family.word(), flavor.word());
        tracing::info!(component = "proxy", family, backend, "iptables' rules are removed");
        Ok(())
    }
}

fn remove_programs(pins: &Path) -> Result<(), SinkError> {
    bpf::remove(pins)?;
    tracing::info!(component = "proxy", "eBPF's programs and tables are removed");
    Ok(())
}

fn log(result: Result<(), SinkError>) {
    match result {
        Ok(()) => {}
        Err(SinkError::Iptables(IptablesError::Missing(program))) => {
            tracing::warn!(
                component = "proxy",
                program,
                "iptables' rules stay: it is not installed"
            );
        }
        Err(error) => {
            let error: &dyn std::error::Error = &error;
            tracing::warn!(component = "proxy", error, "another mode's rules stay");
        }
    }
}
