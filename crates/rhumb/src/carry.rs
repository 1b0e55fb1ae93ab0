//! `--proxy-mode` and what goes with it: how nodes carry Services. A lab remembers what it was told.

use anyhow::{Context, Result};
use clap::builder::PossibleValue;
use clap::{Args, ValueEnum};
use kernel::iptables::{Flavor, Iptables};
use plan::proxy::ipvs::Scheduler;
use plan::proxy::{IptablesBackend, Mode, Settings};
use serde::{Deserialize, Serialize};

/// How Services are carried; what is not given is as before, or the default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Args, Serialize, Deserialize)]
pub(crate) struct Carry {
    /// How Services are carried [default: nftables]
    #[arg(long, value_name = "MODE")]
    #[serde(default)]
    pub(crate) proxy_mode: Option<ProxyMode>,
    /// With iptables: which kind of its programs [default: auto, the kind that has rules already]
    #[arg(long, value_name = "KIND")]
    #[serde(default)]
    pub(crate) iptables_backend: Option<Kind>,
    /// With IPVS: how virtual servers choose an endpoint [default: rr]
    #[arg(long, value_name = "SCHEDULER")]
    #[serde(default)]
    pub(crate) ipvs_scheduler: Option<IpvsScheduler>,
}

/// A mode's word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum ProxyMode {
    /// nftables through netlink: maps that all Services share
    Nftables,
    /// iptables' programs, in kube-proxy's chains
    Iptables,
    /// eBPF programs at sockets and links, and nftables for what they leave
    Ebpf,
    /// Virtual servers of IPVS; refusals, source ranges and source NAT by nftables
    Ipvs,
}

/// A kind of iptables' programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Kind {
    /// The kind that has rules already
    Auto,
    /// iptables-nft
    Nft,
    /// iptables-legacy
    Legacy,
}

/// A scheduler of IPVS, in the kernel's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct IpvsScheduler(Scheduler);

impl ValueEnum for IpvsScheduler {
    fn value_variants<'a>() -> &'a [Self] {
        const ALL: [IpvsScheduler; Scheduler::ALL.len()] = {
            let mut all = [IpvsScheduler(Scheduler::Rr); Scheduler::ALL.len()];
            let mut at = 0;
            while at < all.len() {
                all[at] = IpvsScheduler(Scheduler::ALL[at]);
                at += 1;
            }
            all
        };
        &ALL
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(PossibleValue::new(self.0.word()))
    }
}

fn word(value: impl ValueEnum) -> String {
    let value = value.to_possible_value().expect("no value is hidden");
    value.get_name().to_owned()
}

impl Carry {
    /// Takes what was given this time.
    pub(crate) fn change(&mut self, asked: Self) {
        self.proxy_mode = asked.proxy_mode.or(self.proxy_mode);
        self.iptables_backend = asked.iptables_backend.or(self.iptables_backend);
        self.ipvs_scheduler = asked.ipvs_scheduler.or(self.ipvs_scheduler);
    }

    /// The same as flags.
    pub(crate) fn flags(self) -> Vec<String> {
        let mode = self.proxy_mode.map(|mode| format!("--proxy-mode={}", word(mode)));
        let kind = self.iptables_backend.map(|kind| format!("--iptables-backend={}", word(kind)));
        let scheduler =
            self.ipvs_scheduler.map(|scheduler| format!("--ipvs-scheduler={}", word(scheduler)));
        [mode, kind, scheduler].into_iter().flatten().collect()
    }

    fn mode(self) -> Mode {
        match self.proxy_mode {
            None | Some(ProxyMode::Nftables) => Mode::Nftables,
            Some(ProxyMode::Iptables) => Mode::Iptables,
            Some(ProxyMode::Ebpf) => Mode::Ebpf,
            Some(ProxyMode::Ipvs) => Mode::Ipvs,
        }
    }

    /// Settings of the proxy.
    pub(crate) fn settle(self, settings: Settings) -> Settings {
        let iptables = match self.iptables_backend {
            None | Some(Kind::Auto) => IptablesBackend::Auto,
            Some(Kind::Nft) => IptablesBackend::Nft,
            Some(Kind::Legacy) => IptablesBackend::Legacy,
        };
        let ipvs_scheduler = self.ipvs_scheduler.map_or_else(Scheduler::default, |which| which.0);
        Settings { mode: self.mode(), iptables, ipvs_scheduler, ..settings }
    }

    /// Fails unless the kernel and the installed programs have what the mode needs.
    pub(crate) fn check(self) -> Result<()> {
        match self.mode() {
            Mode::Nftables | Mode::Ebpf => return Ok(()),
            Mode::Ipvs => return Ok(node::proxy::check_ipvs()?),
            Mode::Iptables => {}
        }
        let flavor = match self.iptables_backend {
            Some(Kind::Legacy) => Flavor::Legacy,
            None | Some(Kind::Auto | Kind::Nft) => Flavor::Nft,
        };
        Iptables::open(flavor)?.check().context("--proxy-mode iptables does not work here")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_without_ipvs_is_told_of_at_the_start() {
        let asked = Carry { proxy_mode: Some(ProxyMode::Ipvs), ..Carry::default() };
        let has = kernel::ipvs::Ipvs::open().unwrap().is_some();
        match asked.check() {
            Ok(()) => assert!(has),
            Err(error) => {
                assert!(!has, "{error}");
                let said = error.to_string();
                assert!(
                    said.starts_with(
                        "can't use the IPVS proxier: Ipvs not supported by the kernel"
                    ),
                    "{said}"
                );
                assert!(said.contains("modprobe ip_vs"), "{said}");
            }
        }
    }

    #[test]
    fn what_is_not_given_stays() {
        let mut known = Carry { proxy_mode: Some(ProxyMode::Iptables), ..Carry::default() };
        known.change(Carry { iptables_backend: Some(Kind::Legacy), ..Carry::default() });
        let scheduler = Some(IpvsScheduler(Scheduler::Sed));
        known.change(Carry { ipvs_scheduler: scheduler, ..Carry::default() });
        let flags = ["--proxy-mode=iptables", "--iptables-backend=legacy", "--ipvs-scheduler=sed"];
        assert_eq!(known.flags(), flags);
        let settings = known.settle(Settings::default());
        assert_eq!(settings.mode, Mode::Iptables);
        assert_eq!(settings.iptables, IptablesBackend::Legacy);
        assert_eq!(settings.ipvs_scheduler, Scheduler::Sed);
        assert_eq!(Carry::default().settle(Settings::default()), Settings::default());
        assert!(Carry::default().flags().is_empty());
    }
}
