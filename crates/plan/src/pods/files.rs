//! Text files that every pod gets: `/etc/hosts`, `/etc/resolv.conf`, and its host name.
//! Upstream: `managedHostsFileContent`, `GeneratePodHostNameAndDomain`, `pkg/kubelet/network/dns`; the layout of
//! `resolv.conf` is containerd's.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::IpAddr;

use api::Kind;
use api::core::{HostAlias, Pod};

/// glibc and upstream stop at three name servers.
const NAMESERVERS_MAX: usize = 3;
/// Upstream's bound on search domains.
const SEARCHES_MAX: usize = 32;
/// A Linux host name has at most 64 bytes, a label 63.
const LABEL_BYTES_MAX: usize = 63;

/// What is written in a `resolv.conf`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dns {
    /// Addresses of name servers, in order.
    pub servers: Vec<String>,
    /// Search domains, in order.
    pub searches: Vec<String>,
    /// Options such as `ndots:5`.
    pub options: Vec<String>,
}

impl Dns {
    /// Reads a `resolv.conf`; the last `search` line counts, `domain` is an old form of it.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let mut dns = Self::default();
        for line in text.lines() {
            let mut words = line.split_whitespace();
            let word = words.next().unwrap_or_default();
            let rest = words.map(ToOwned::to_owned);
            match word {
                "nameserver" => dns.servers.extend(rest.take(1)),
                "search" | "domain" => dns.searches = rest.filter(|name| name != ".").collect(),
                "options" => dns.options = rest.collect(),
                _ => {}
            }
        }
        dns
    }

    /// The file's text.
    #[must_use]
    pub fn render(&self) -> String {
        let mut text = String::new();
        let mut line = |word: &str, values: &str| {
            writeln!(text, "{word} {values}").expect("a String takes everything");
        };
        if !self.searches.is_empty() {
            line("search", &self.searches.join(" "));
        }
        for server in &self.servers {
            line("nameserver", server);
        }
        if !self.options.is_empty() {
            line("options", &self.options.join(" "));
        }
        text
    }
}

/// The pod's `resolv.conf`. `host` is the node's; `server` the cluster DNS, if there is one.
#[must_use]
pub fn resolv_conf(pod: &Pod, host: &Dns, server: Option<IpAddr>, domain: &str) -> Dns {
    let spec = pod.spec.as_ref();
    let policy = spec.and_then(|spec| spec.dns_policy.as_deref()).unwrap_or("ClusterFirst");
    let host_network = spec.and_then(|spec| spec.host_network).unwrap_or(false);
    let cluster = match policy {
        "ClusterFirst" => !host_network,
        "ClusterFirstWithHostNet" => true,
        _ => false,
    };
    let mut dns = match (policy, cluster.then_some(server).flatten()) {
        ("None", _) => Dns::default(),
        (_, Some(server)) => {
            let namespace = pod.namespace();
            let mut searches = vec![
                format!("{namespace}.svc.{domain}"),
                format!("svc.{domain}"),
                domain.to_owned(),
            ];
            append(&mut searches, &host.searches);
            Dns { servers: vec![server.to_string()], searches, options: vec!["ndots:5".to_owned()] }
        }
        (_, None) => host.clone(),
    };
    if let Some(own) = spec.and_then(|spec| spec.dns_config.as_ref()) {
        append(&mut dns.servers, own.nameservers.as_deref().unwrap_or_default());
        append(&mut dns.searches, own.searches.as_deref().unwrap_or_default());
        let mut options: BTreeMap<String, String> = BTreeMap::new();
        for option in &dns.options {
            let (name, value) = option.split_once(':').unwrap_or((option, ""));
            options.insert(name.to_owned(), value.to_owned());
        }
        for option in own.options.iter().flatten() {
            let name = option.name.clone().unwrap_or_default();
            options.insert(name, option.value.clone().unwrap_or_default());
        }
        dns.options = options
            .into_iter()
            .map(|(name, value)| if value.is_empty() { name } else { format!("{name}:{value}") })
            .collect();
    }
    dns.servers.truncate(NAMESERVERS_MAX);
    dns.searches.truncate(SEARCHES_MAX);
    dns
}

fn append(list: &mut Vec<String>, more: &[String]) {
    for entry in more {
        if !list.contains(entry) {
            list.push(entry.clone());
        }
    }
}

/// The pod's short host name and its DNS domain, which is empty without a subdomain.
#[must_use]
pub fn hostname(pod: &Pod, cluster_domain: &str) -> (String, String) {
    let spec = pod.spec.as_ref();
    let set = |text: Option<&String>| text.filter(|text| !text.is_empty()).cloned();
    if let Some(name) = set(spec.and_then(|spec| spec.hostname_override.as_ref())) {
        return (name, String::new());
    }
    let name = set(spec.and_then(|spec| spec.hostname.as_ref()));
    let name = name.unwrap_or_else(|| pod.name().to_owned());
    let short: String = name.chars().take(LABEL_BYTES_MAX).collect();
    let short = short.trim_end_matches(['-', '.']).to_owned();
    let domain = set(spec.and_then(|spec| spec.subdomain.as_ref()))
        .map(|sub| format!("{sub}.{}.svc.{cluster_domain}", pod.namespace()));
    (short, domain.unwrap_or_default())
}

/// The name in the UTS namespace: the short name, or the full one with `setHostnameAsFQDN`.
#[must_use]
pub fn uts_hostname(pod: &Pod, cluster_domain: &str) -> String {
    let (name, domain) = hostname(pod, cluster_domain);
    let full = pod.spec.as_ref().and_then(|spec| spec.set_hostname_as_fqdn).unwrap_or(false);
    if full && !domain.is_empty() { format!("{name}.{domain}") } else { name }
}

/// The pod's `/etc/hosts`.
#[must_use]
pub fn hosts(pod: &Pod, ips: &[IpAddr], cluster_domain: &str) -> String {
    let (name, domain) = hostname(pod, cluster_domain);
    let mut text = String::from(
        "# Kubernetes-managed hosts file.\n\
         127.0.0.1\tlocalhost\n\
         ::1\tlocalhost ip6-localhost ip6-loopback\n\
         fe00::0\tip6-localnet\n\
         fe00::0\tip6-mcastprefix\n\
         fe00::1\tip6-allnodes\n\
         fe00::2\tip6-allrouters\n",
    );
    for ip in ips {
        let line = if domain.is_empty() {
            format!("{ip}\t{name}\n")
        } else {
            format!("{ip}\t{name}.{domain}\t{name}\n")
        };
        text.push_str(&line);
    }
    text.push_str(&aliases(pod));
    text
}

/// `/etc/hosts` of a pod with `hostNetwork`: the node's, and the pod's aliases.
#[must_use]
pub fn hosts_of_node(pod: &Pod, node: &str) -> String {
    format!("# Kubernetes-managed hosts file (host network).\n{node}{}", aliases(pod))
}

fn aliases(pod: &Pod) -> String {
    let aliases: &[HostAlias] =
        pod.spec.as_ref().and_then(|spec| spec.host_aliases.as_deref()).unwrap_or_default();
    if aliases.is_empty() {
        return String::new();
    }
    let mut text = String::from("\n# Entries added by HostAliases.\n");
    for alias in aliases {
        let names = alias.hostnames.as_deref().unwrap_or_default().join("\t");
        writeln!(text, "{}\t{names}", alias.ip).expect("a String takes everything");
    }
    text
}
