//! `--proxy-mode` and what goes with it: how nodes carry Services. A lab remembers what it was told.

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use kernel::iptables::{Flavor, Iptables};
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

fn word(value: impl ValueEnum) -> String {
    let value = value.to_possible_value().expect("no value is hidden");
    value.get_name().to_owned()
}

impl Carry {
    /// Takes what was given this time.
    pub(crate) fn change(&mut self, asked: Self) {
        self.proxy_mode = asked.proxy_mode.or(self.proxy_mode);
        self.iptables_backend = asked.iptables_backend.or(self.iptables_backend);
    }

    /// The same as flags.
    pub(crate) fn flags(self) -> Vec<String> {
        let mode = self.proxy_mode.map(|mode| format!("--proxy-mode={}", word(mode)));
        let kind = self.iptables_backend.map(|kind| format!("--iptables-backend={}", word(kind)));
        mode.into_iter().chain(kind).collect()
    }

    fn mode(self) -> Mode {
        match self.proxy_mode {
            None | Some(ProxyMode::Nftables) => Mode::Nftables,
            Some(ProxyMode::Iptables) => Mode::Iptables,
            Some(ProxyMode::Ebpf) => Mode::Ebpf,
        }
    }

    /// Settings of the proxy.
    pub(crate) fn settle(self, settings: Settings) -> Settings {
        let iptables = match self.iptables_backend {
            None | Some(Kind::Auto) => IptablesBackend::Auto,
            Some(Kind::Nft) => IptablesBackend::Nft,
            Some(Kind::Legacy) => IptablesBackend::Legacy,
        };
        Settings { mode: self.mode(), iptables, ..settings }
    }

    /// Fails unless the programs that the mode needs are installed.
    pub(crate) fn check(self) -> Result<()> {
        if self.mode() != Mode::Iptables {
            return Ok(());
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
    fn what_is_not_given_stays() {
        let mut known = Carry { proxy_mode: Some(ProxyMode::Iptables), ..Carry::default() };
        known.change(Carry { iptables_backend: Some(Kind::Legacy), ..Carry::default() });
        assert_eq!(known.flags(), ["--proxy-mode=iptables", "--iptables-backend=legacy"]);
        let settings = known.settle(Settings::default());
        assert_eq!(settings.mode, Mode::Iptables);
        assert_eq!(settings.iptables, IptablesBackend::Legacy);
        assert_eq!(Carry::default().settle(Settings::default()), Settings::default());
        assert!(Carry::default().flags().is_empty());
    }
}
