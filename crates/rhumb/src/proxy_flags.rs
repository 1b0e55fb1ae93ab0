//! kube-proxy's settings as flags of `rhumb node`, and of `rhumb up` for all nodes of a lab.

use clap::Args;
use plan::proxy::{NodePortAddresses, Settings};
use serde::{Deserialize, Serialize};

/// What the proxy of a node is told; what is not given is as before, or the default.
#[derive(Args, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct ProxyFlags {
    /// Masquerade all clients of cluster addresses, pods too
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    pub(crate) masquerade_all: Option<bool>,
    /// Where node ports answer, with commas between: primary (the node's primary address of each family), localhost, all, CIDRs [default: primary]
    #[arg(
        long = "nodeport-addresses",
        value_delimiter = ',',
        value_name = "ADDRESSES",
        value_parser = check
    )]
    pub(crate) node_port_addresses: Vec<String>,
    /// Carry traffic to spec.externalIPs, which whoever may write Services then takes from anybody (CVE-2020-8554)
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    pub(crate) external_ips: Option<bool>,
    /// In mode ebpf, carry packets of other hosts at the node's links, too [default: true]
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    pub(crate) ebpf_links: Option<bool>,
    /// In mode ebpf, let the nodes of endpoints answer clients of other nodes' ports (direct server return): on all nodes or on none
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    pub(crate) ebpf_dsr: Option<bool>,
}

/// Checks one of the words of `--nodeport-addresses`.
fn check(word: &str) -> Result<String, String> {
    match word.parse::<NodePortAddresses>() {
        Ok(_) => Ok(word.to_owned()),
        Err(_) => Err("neither primary, localhost, all nor a CIDR".to_owned()),
    }
}

impl ProxyFlags {
    /// Takes what was given this time.
    pub(crate) fn change(&mut self, asked: &Self) {
        self.masquerade_all = asked.masquerade_all.or(self.masquerade_all);
        self.external_ips = asked.external_ips.or(self.external_ips);
        self.ebpf_links = asked.ebpf_links.or(self.ebpf_links);
        self.ebpf_dsr = asked.ebpf_dsr.or(self.ebpf_dsr);
        if !asked.node_port_addresses.is_empty() {
            self.node_port_addresses.clone_from(&asked.node_port_addresses);
        }
    }

    /// The same as flags.
    pub(crate) fn flags(&self) -> Vec<String> {
        let is_set = |flag: Option<bool>| flag == Some(true);
        let all = is_set(self.masquerade_all).then(|| "--masquerade-all".to_owned());
        let words = self.node_port_addresses.join(",");
        let addresses = (!words.is_empty()).then(|| format!("--nodeport-addresses={words}"));
        let external = is_set(self.external_ips).then(|| "--external-ips".to_owned());
        let links = self.ebpf_links.filter(|links| !links);
        let links = links.map(|links| format!("--ebpf-links={links}"));
        let dsr = is_set(self.ebpf_dsr).then(|| "--ebpf-dsr".to_owned());
        [all, addresses, external, links, dsr].into_iter().flatten().collect()
    }

    /// Settings of the proxy.
    pub(crate) fn settle(&self, settings: Settings) -> Settings {
        // The command line checked the words.
        let words = self.node_port_addresses.iter().filter_map(|word| word.parse().ok());
        Settings {
            masquerade_all: self.masquerade_all.unwrap_or(false),
            node_port_addresses: words.collect(),
            external_ips: self.external_ips.unwrap_or(false),
            ebpf_links: self.ebpf_links.unwrap_or(true),
            ebpf_dsr: self.ebpf_dsr.unwrap_or(false),
            ..settings
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser as _;

    #[derive(Debug, clap::Parser)]
    struct Line {
        #[command(flatten)]
        proxy: ProxyFlags,
    }

    #[test]
    fn the_proxies_are_told_what_up_was() {
        let line = "--masquerade-all --nodeport-addresses=primary,10.0.0.0/8 --external-ips --ebpf-links=false --ebpf-dsr";
        let flags = Line::try_parse_from(["up"].into_iter().chain(line.split(' '))).unwrap().proxy;
        assert_eq!(flags.flags().join(" "), line);
        let settings = flags.settle(Settings::default());
        assert!(settings.masquerade_all && settings.external_ips);
        let within = NodePortAddresses::Within("10.0.0.0/8".parse().unwrap());
        assert_eq!(settings.node_port_addresses, [NodePortAddresses::Primary, within]);
        let usual = Settings { ebpf_links: true, ..Settings::default() };
        assert_eq!(ProxyFlags::default().settle(Settings::default()), usual);
        assert!(ProxyFlags::default().flags().is_empty());
        let refused = Line::try_parse_from(["up", "--nodeport-addresses", "first"]).unwrap_err();
        assert!(refused.to_string().contains("neither primary, localhost, all nor a CIDR"));
        let mut known = flags;
        let line = ["up", "--masquerade-all=false", "--nodeport-addresses=primary"];
        known.change(&Line::try_parse_from(line).unwrap().proxy);
        assert_eq!(
            known.flags(),
            ["--nodeport-addresses=primary", "--external-ips", "--ebpf-links=false", "--ebpf-dsr"]
        );
    }
}
