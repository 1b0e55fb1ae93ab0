//! Which nodes have fallen silent, for the parts of the agent that send new connections to nodes; and what it costs to know.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use plan::liveness::Ignored;
use prometheus_client::encoding::text::encode_registry;
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use tokio::sync::watch;

/// The nodes that are left alone, by name. Clones share it.
#[derive(Clone)]
pub struct Silence {
    silent: Arc<watch::Sender<Arc<BTreeSet<String>>>>,
    registry: Arc<Registry>,
    pub(super) counts: Counts,
}

/// What is counted.
#[derive(Clone, Default)]
pub(super) struct Counts {
    pub(super) sent: Counter,
    pub(super) sent_bytes: Counter,
    pub(super) received: Counter,
    pub(super) pings: Counter,
    ignored: Family<Why, Counter>,
    pub(super) watched: Gauge,
    pub(super) missed: Gauge,
    silent: Gauge,
}

/// Why a datagram was not heeded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
pub(super) enum Reason {
    /// Its tag is wrong.
    Foreign,
    /// It is no message.
    Malformed,
    /// It is for another node.
    NotForUs,
    /// Its sender is no neighbour.
    NoNeighbour,
    /// It came before, or a later one did.
    Old,
}

impl From<Ignored> for Reason {
    fn from(why: Ignored) -> Self {
        match why {
            Ignored::NotForUs => Self::NotForUs,
            Ignored::NoNeighbour => Self::NoNeighbour,
            Ignored::Old => Self::Old,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Why {
    reason: Reason,
}

impl Counts {
    pub(super) fn ignored(&self, reason: Reason) {
        self.ignored.get_or_create(&Why { reason }).inc();
    }

    fn register(&self, to: &mut Registry) {
        to.register("sent_messages", "Messages to neighbours", self.sent.clone());
        to.register("sent_bytes", "Bytes of UDP payload to neighbours", self.sent_bytes.clone());
        to.register("received_messages", "Messages that were taken", self.received.clone());
        to.register("echo_requests", "Times that a kernel was asked", self.pings.clone());
        to.register("ignored_messages", "Datagrams not heeded, by reason", self.ignored.clone());
        to.register("watched_nodes", "Nodes that this one watches", self.watched.clone());
        to.register("missed_nodes", "Nodes that this one misses", self.missed.clone());
        to.register("silent_nodes", "Nodes that this one leaves alone", self.silent.clone());
    }
}

impl Default for Silence {
    /// Nobody is silent.
    fn default() -> Self {
        let (mut registry, counts) = (Registry::with_prefix("rhumb_liveness"), Counts::default());
        counts.register(&mut registry);
        let silent = Arc::new(watch::Sender::default());
        Self { silent, registry: Arc::new(registry), counts }
    }
}

impl fmt::Debug for Silence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Silence").field(&self.now()).finish()
    }
}

impl Silence {
    /// Who is left alone now.
    #[must_use]
    pub fn now(&self) -> Arc<BTreeSet<String>> {
        Arc::clone(&self.silent.borrow())
    }

    /// Calls `changed` whenever it is somebody else.
    pub fn listen(&self, changed: impl Fn() + Send + 'static) {
        let mut follow = self.silent.subscribe();
        tokio::spawn(async move {
            while follow.changed().await.is_ok() {
                changed();
            }
        });
    }

    /// Waits until a node has fallen silent.
    pub async fn falls(&self, node: &str) {
        let mut follow = self.silent.subscribe();
        if follow.wait_for(|silent| silent.contains(node)).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Leaves exactly these alone.
    pub fn set(&self, silent: BTreeSet<String>) {
        self.counts.silent.set(i64::try_from(silent.len()).unwrap_or(i64::MAX));
        self.silent.send_if_modified(|known| {
            let changed = **known != silent;
            if changed {
                *known = Arc::new(silent);
            }
            changed
        });
    }

    /// What it costs, in the text format of metrics, without the format's last line.
    #[must_use]
    pub fn metrics(&self) -> String {
        let mut text = String::new();
        encode_registry(&mut text, &self.registry).expect("a string takes any text");
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_waits_for_a_node_to_fall_silent_is_told() {
        let silence = Silence::default();
        let falls = |node| tokio::time::timeout(std::time::Duration::ZERO, silence.falls(node));
        assert!(falls("n2").await.is_err());
        silence.set(BTreeSet::from(["n2".to_owned()]));
        assert!(falls("n2").await.is_ok());
        assert!(falls("n3").await.is_err());
    }

    #[test]
    fn metrics_say_what_it_costs() {
        let silence = Silence::default();
        silence.counts.sent_bytes.inc_by(90);
        silence.counts.ignored(Reason::Foreign);
        silence.set(BTreeSet::from(["n2".to_owned()]));
        let text = silence.metrics();
        for line in [
            "rhumb_liveness_sent_bytes_total 90",
            "rhumb_liveness_ignored_messages_total{reason=\"Foreign\"} 1",
            "rhumb_liveness_silent_nodes 1",
        ] {
            assert!(text.contains(line), "{line} is not in {text}");
        }
        assert!(!text.contains("# EOF"));
    }
}
