//! The proxy's metrics, under upstream's names (`pkg/proxy/metrics`), so that dashboards made for kube-proxy work.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use jiff::Timestamp;
use plan::proxy::Mode;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

/// What is counted. Clones share it.
#[derive(Clone, Debug)]
pub struct Metrics {
    registry: Arc<Registry>,
    syncs: Histogram,
    full: Histogram,
    partial: Histogram,
    programming: Histogram,
    nftables_failures: Counter,
    iptables_failures: Counter,
    service_changes: Counter,
    endpoint_changes: Counter,
    resets: Counter,
    led_anew: Counter,
    last_sync: Gauge<f64, AtomicU64>,
    last_queued: Gauge<f64, AtomicU64>,
    /// What eBPF programs did; nothing in other modes.
    ebpf: [Family<Labels, Counter>; 4],
}

type Labels = [(&'static str, &'static str); 1];

/// What eBPF programs did since they were first attached: by address family, IPv4 first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Done {
    /// Connects led to an endpoint.
    pub(super) connections: [u64; 2],
    /// Datagrams led to an endpoint.
    pub(super) datagrams: [u64; 2],
    /// Connects and datagrams to a Service that were left to the rules.
    pub(super) left: [u64; 2],
    /// Flows led to an endpoint at links.
    pub(super) flows: [u64; 2],
}

/// Upstream's buckets of a sync: 1 ms to 16 s. A change takes microseconds here, so three finer ones come before.
fn sync_buckets() -> impl Iterator<Item = f64> {
    [0.000_05, 0.000_2, 0.000_5].into_iter().chain(exponential_buckets(0.001, 2.0, 15))
}

/// Upstream's buckets from the trigger of a change to the kernel: 0.25 s to five minutes, with finer ones before.
fn programming_buckets() -> impl Iterator<Item = f64> {
    let fine = [0.01, 0.025, 0.05, 0.1, 0.25, 0.5].into_iter();
    let seconds = (1..60).chain((60..120).step_by(5)).chain((120..=300).step_by(30));
    fine.chain(seconds.map(f64::from))
}

impl Default for Metrics {
    fn default() -> Self {
        let metrics = Self {
            registry: Arc::default(),
            syncs: Histogram::new(sync_buckets()),
            full: Histogram::new(sync_buckets()),
            partial: Histogram::new(sync_buckets()),
            programming: Histogram::new(programming_buckets()),
            nftables_failures: Counter::default(),
            iptables_failures: Counter::default(),
            service_changes: Counter::default(),
            endpoint_changes: Counter::default(),
            resets: Counter::default(),
            led_anew: Counter::default(),
            last_sync: Gauge::default(),
            last_queued: Gauge::default(),
            ebpf: Default::default(),
        };
        let mut all = Registry::with_prefix("kubeproxy");
        let rules = all.sub_registry_with_prefix("sync_proxy_rules");
        rules.register("duration_seconds", "Seconds of a sync", metrics.syncs.clone());
        rules.register(
            "last_timestamp_seconds",
            "When the kernel last took everything that was known",
            metrics.last_sync.clone(),
        );
        rules.register(
            "last_queued_timestamp_seconds",
            "When a change last asked for a sync",
            metrics.last_queued.clone(),
        );
        rules.register(
            "nftables_sync_failures",
            "Syncs that the kernel refused",
            metrics.nftables_failures.clone(),
        );
        rules.register(
            "iptables_restore_failures",
            "Syncs that iptables-restore refused",
            metrics.iptables_failures.clone(),
        );
        rules.register("service_changes", "Changes of Services", metrics.service_changes.clone());
        rules.register(
            "endpoint_changes",
            "Changes of EndpointSlices",
            metrics.endpoint_changes.clone(),
        );
        register_gone(&mut all, metrics.resets.clone(), metrics.led_anew.clone());
        all.register(
            "sync_full_proxy_rules_duration_seconds",
            "Seconds of a sync of everything",
            metrics.full.clone(),
        );
        all.register(
            "sync_partial_proxy_rules_duration_seconds",
            "Seconds of a sync of what differs",
            metrics.partial.clone(),
        );
        all.register(
            "network_programming_duration_seconds",
            "Seconds from what triggered a change of endpoints until the kernel has it",
            metrics.programming.clone(),
        );
        register_ebpf(&mut all, metrics.ebpf.clone());
        Self { registry: Arc::new(all), ..metrics }
    }
}

/// About connections to endpoints that are gone.
fn register_gone(all: &mut Registry, resets: Counter, led_anew: Counter) {
    all.register(
        "connections_reset",
        "Connections to endpoints that were gone, which their Services asked to reset",
        resets,
    );
    all.register(
        "connections_led_anew",
        "Connections that nobody answered, forgotten so that their next try goes elsewhere",
        led_anew,
    );
}

fn register_ebpf(
    all: &mut Registry,
    [connections, datagrams, left, flows]: [Family<Labels, Counter>; 4],
) {
    let ebpf = all.sub_registry_with_prefix("ebpf");
    ebpf.register("connections", "TCP connects led to an endpoint at their socket", connections);
    ebpf.register("datagrams", "Datagrams led to an endpoint at their socket", datagrams);
    ebpf.register("left", "Connects, datagrams and flows to Services left to the rules", left);
    ebpf.register("flows", "Flows led to an endpoint at a link", flows);
}

impl Metrics {
    /// A Service changed.
    pub(super) fn service_changed(&self) {
        self.service_changes.inc();
        self.last_queued.set(seconds(Timestamp::now()));
    }

    /// So many connections were reset.
    pub(super) fn reset(&self, connections: u64) {
        self.resets.inc_by(connections);
    }

    /// So many connections that nobody answered were forgotten.
    pub(super) fn led_anew(&self, connections: u64) {
        self.led_anew.inc_by(connections);
    }

    /// An EndpointSlice changed.
    pub(super) fn endpoints_changed(&self) {
        self.endpoint_changes.inc();
        self.last_queued.set(seconds(Timestamp::now()));
    }

    /// The kernel has taken a sync of everything or of what differs. `triggers` are the moments of the changes in it.
    pub(super) fn synced(&self, whole: bool, took: Duration, triggers: &[Timestamp]) {
        let now = Timestamp::now();
        self.syncs.observe(took.as_secs_f64());
        if whole { &self.full } else { &self.partial }.observe(took.as_secs_f64());
        for trigger in triggers {
            self.programming.observe((seconds(now) - seconds(*trigger)).max(0.0));
        }
        self.last_sync.set(seconds(now));
    }

    /// eBPF programs have done so much by now.
    pub(super) fn programs_did(&self, done: Done) {
        let all = [done.connections, done.datagrams, done.left, done.flows];
        for (metric, counts) in self.ebpf.iter().zip(all) {
            for (family, count) in ["IPv4", "IPv6"].into_iter().zip(counts) {
                metric.get_or_create(&[("ip_family", family)]).inner().store(count, Relaxed);
            }
        }
    }

    /// The kernel has refused a sync.
    pub(super) fn failed(&self, mode: Mode) {
        match mode {
            Mode::Nftables | Mode::Ebpf | Mode::Ipvs => &self.nftables_failures,
            Mode::Iptables => &self.iptables_failures,
        }
        .inc();
    }

    /// All of it in the OpenMetrics text format.
    #[must_use]
    pub fn render(&self) -> String {
        let mut text = String::new();
        encode(&mut text, &self.registry).expect("a string takes any text");
        text
    }
}

/// Seconds since 1970.
fn seconds(time: Timestamp) -> f64 {
    time.as_duration().as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_that_dashboards_ask_for() {
        let metrics = Metrics::default();
        metrics.service_changed();
        metrics.synced(false, Duration::from_micros(40), &[Timestamp::UNIX_EPOCH]);
        metrics.failed(Mode::Nftables);
        metrics.programs_did(Done { connections: [7, 1], ..Done::default() });
        let text = metrics.render();
        for line in [
            "kubeproxy_sync_proxy_rules_duration_seconds_count 1",
            "kubeproxy_sync_partial_proxy_rules_duration_seconds_count 1",
            "kubeproxy_sync_full_proxy_rules_duration_seconds_count 0",
            "kubeproxy_network_programming_duration_seconds_bucket{le=\"+Inf\"} 1",
            "kubeproxy_sync_proxy_rules_service_changes_total 1",
            "kubeproxy_sync_proxy_rules_endpoint_changes_total 0",
            "kubeproxy_sync_proxy_rules_nftables_sync_failures_total 1",
            "kubeproxy_sync_proxy_rules_last_timestamp_seconds",
            "kubeproxy_ebpf_connections_total{ip_family=\"IPv4\"} 7",
            "kubeproxy_ebpf_left_total{ip_family=\"IPv6\"} 0",
        ] {
            assert!(text.contains(line), "{line} is not in {text}");
        }
    }
}
