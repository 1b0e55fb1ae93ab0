//! Kernel parameters that the proxy needs. Upstream counterpart: `cmd/kube-proxy/app/conntrack.go`.

use std::num::NonZeroUsize;
use std::time::Duration;

use kernel::sysctl;
use plan::proxy::Settings;

const BE_LIBERAL: &str = "net/netfilter/nf_conntrack_tcp_be_liberal";
const MAX: &str = "net/netfilter/nf_conntrack_max";
const ESTABLISHED: &str = "net/netfilter/nf_conntrack_tcp_timeout_established";
const CLOSE_WAIT: &str = "net/netfilter/nf_conntrack_tcp_timeout_close_wait";
const ROUTE_LOCALNET: &str = "net/ipv4/conf/all/route_localnet";

/// How much connection tracking is to hold, and for how long. The defaults are upstream's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConntrackLimits {
    /// Connections for each core (`--conntrack-max-per-core`).
    pub max_per_core: u32,
    /// Connections at least (`--conntrack-min`).
    pub min: u32,
    /// How long an idle TCP connection is remembered (`--conntrack-tcp-timeout-established`).
    pub established: Duration,
    /// The same, when one side has closed it (`--conntrack-tcp-timeout-close-wait`).
    pub close_wait: Duration,
}

impl Default for ConntrackLimits {
    fn default() -> Self {
        Self {
            max_per_core: 32_768,
            min: 131_072,
            established: Duration::from_secs(24 * 60 * 60),
            close_wait: Duration::from_secs(60 * 60),
        }
    }
}

impl ConntrackLimits {
    /// Connections on a node with so many cores.
    #[must_use]
    pub fn max(&self, cores: u32) -> u32 {
        self.max_per_core.saturating_mul(cores).max(self.min)
    }
}

/// Sets the parameters of the calling thread's network namespace. What cannot be set is logged: the proxy works without.
pub fn prepare(settings: &Settings, limits: ConntrackLimits) {
    // Packets that connection tracking calls invalid would reach clients untranslated, and be answered with resets.
    set(BE_LIBERAL, "1", "connections may be reset by packets out of window");
    let cores = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let max = limits.max(u32::try_from(cores).unwrap_or(u32::MAX));
    // The host may have been given more; one number serves all namespaces, and most of them may not set it.
    let known = sysctl::get(MAX).ok().and_then(|text| text.parse::<u32>().ok());
    if known.is_none_or(|known| known < max) {
        set(MAX, &max.to_string(), "fewer connections can be tracked");
    }
    let seconds = |time: Duration| time.as_secs().to_string();
    let why = "connections are remembered for another time";
    set(ESTABLISHED, &seconds(limits.established), why);
    set(CLOSE_WAIT, &seconds(limits.close_wait), why);
    if settings.node_ports_on_localhost() {
        // With this neighbours could reach the loopback addresses, were it not for a rule in the table.
        set(ROUTE_LOCALNET, "1", "node ports do not answer on 127.0.0.1");
    }
}

fn set(name: &str, value: &str, otherwise: &str) {
    if let Err(error) = sysctl::set(name, value) {
        let error: &dyn std::error::Error = &error;
        tracing::warn!(component = "proxy", name, error, "{otherwise}");
    }
}
