//! Events that are too old go: upstream gives them a lease of `--event-ttl`, an hour.

use std::sync::Arc;
use std::time::Duration;

use api::resource;
use serde_json::Value;
use store::{Compare, Op, Txn};

use crate::{Registry, object};

/// How long an event is kept after it was last changed.
const EVENT_AGE_MAX: jiff::SignedDuration = jiff::SignedDuration::from_hours(1);
/// How often old events are looked for.
const PERIOD: Duration = Duration::from_secs(60);

/// Removes old events for as long as the registry lives; run as a task of its own.
pub(crate) async fn run(registry: Arc<Registry>) {
    let mut ticks = tokio::time::interval(PERIOD);
    loop {
        ticks.tick().await;
        remove_older(&registry, jiff::Timestamp::now() - EVENT_AGE_MAX).await;
    }
}

async fn remove_older(registry: &Registry, limit: jiff::Timestamp) {
    let Some(events) = resource::find("", "v1", "events") else { return };
    let snapshot = registry.cache().snapshot(events);
    let old: Vec<_> =
        snapshot.objects.values().filter(|event| last_seen(&event.value()) < limit).collect();
    for event in old {
        let compare = vec![Compare { key: Arc::clone(&event.key), modified: event.revision }];
        let txn = Txn { compare, ops: vec![Op::Delete(Arc::clone(&event.key))] };
        // An event that changed meanwhile is no longer old: its conflict is as good as a removal.
        if let Err(error) = registry.store().commit(txn).await {
            tracing::warn!(component = "apiserver", %error, "cannot remove an old event");
            return;
        }
    }
}

/// The latest time that an event tells.
fn last_seen(event: &Value) -> jiff::Timestamp {
    let times = [
        &event["lastTimestamp"],
        &event["eventTime"],
        &event["series"]["lastObservedTime"],
        &object::meta(event)["creationTimestamp"],
    ];
    let parsed = times.into_iter().filter_map(|time| time.as_str()?.parse().ok());
    // An event without any time is of no known age, so it stays.
    parsed.max().unwrap_or(jiff::Timestamp::MAX)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::{Config, Server};
    use serde_json::json;

    #[tokio::test]
    async fn only_old_events_go() {
        let directory = tempfile::tempdir().unwrap();
        let registry = Server::open_registry(Config::new(directory.path())).await.unwrap();
        let events = resource::find("", "v1", "events").unwrap();
        for (name, time) in [("old", "2026-01-01T00:00:00Z"), ("new", "2026-01-01T02:00:00Z")] {
            let event =
                json!({"metadata": {"name": name, "namespace": "a", "creationTimestamp": time}});
            let key = crate::keys::key(events, "a", name).into();
            let ops = vec![Op::Put(key, object::encode_stored(&event))];
            registry.store().commit(Txn { compare: vec![], ops }).await.unwrap();
        }
        registry.cache().wait_for(3).await;
        remove_older(&registry, "2026-01-01T01:00:00Z".parse().unwrap()).await;
        registry.cache().wait_for(4).await;
        let left = registry.cache().list(events, "");
        assert_eq!(
            left.iter().map(|event| object::meta_str(event, "name")).collect::<Vec<_>>(),
            ["new"]
        );
    }
}
