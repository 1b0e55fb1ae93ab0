//! Writes the status of one pod: the newest wins, one write at a time, so that quick changes become one write.
//! Upstream: `pkg/kubelet/status/status_manager.go`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use api::Kind;
use api::core::{Pod, PodStatus};
use client::{Client, Patch};
use serde_json::{Map, Value, json};
use tokio::sync::watch;

/// First wait after a failed write; doubled up to [`RETRY_MAX`].
const RETRY_MIN: Duration = Duration::from_millis(50);
/// Longest wait between tries.
const RETRY_MAX: Duration = Duration::from_secs(5);

/// Fields that vanish from the status again and must be cleared by name.
const CLEARED: [&str; 2] = ["reason", "message"];

/// How long what another wrote over this node's report stays before it is set right: whoever takes the node for dead
/// marks its pods, again and again until the node has spoken up itself.
const CORRECTION: Duration = Duration::from_secs(1);

/// The status to report.
#[derive(Clone)]
struct Wanted {
    /// Counts the reports.
    number: u64,
    pod: Arc<Pod>,
    status: PodStatus,
    /// The API has another status than the one that was written.
    corrects: bool,
}

/// The writer of one pod's status. Dropping it ends the writing after the present try.
pub(super) struct Reporter {
    want: watch::Sender<Wanted>,
    done: watch::Receiver<u64>,
    /// The revision of the last write.
    revision: Arc<AtomicU64>,
}

impl Reporter {
    /// Starts the writer; `pod` is the object as first seen, with its status.
    pub(super) fn start(client: Client, pod: &Arc<Pod>) -> Self {
        let status = pod.status.clone().unwrap_or_default();
        let first = Wanted { number: 0, pod: Arc::clone(pod), status, corrects: false };
        let (want, wanted) = watch::channel(first);
        let (finished, done) = watch::channel(0);
        let revision = Arc::new(AtomicU64::new(0));
        tokio::spawn(write_all(client, wanted, finished, Arc::clone(&revision)));
        Self { want, done, revision }
    }

    /// Asks for `status` to be written, unless it is what was asked for last and nobody has written over it since.
    pub(super) fn report(&self, pod: &Arc<Pod>, status: &PodStatus) {
        let newer = pod.revision() > self.revision.load(Ordering::Acquire);
        let corrects = newer && pod.status.as_ref().is_some_and(|known| contradicts(known, status));
        self.want.send_if_modified(|wanted| {
            let changed = wanted.status != *status;
            // One correction at a time.
            let again = corrects && (wanted.pod.revision() != pod.revision() || !wanted.corrects);
            wanted.pod = Arc::clone(pod);
            if changed || again {
                wanted.status.clone_from(status);
                wanted.number += 1;
                wanted.corrects = again && !changed;
            }
            changed || again
        });
    }

    /// Waits until everything asked for so far is written or refused for good; call it outside the worker's loop.
    pub(super) fn flushed(&self) -> impl Future<Output = ()> + Send + 'static {
        let number = self.want.borrow().number;
        let mut done = self.done.clone();
        async move {
            let _ = done.wait_for(|done| *done >= number).await;
        }
    }
}

async fn write_all(
    client: Client,
    mut wanted: watch::Receiver<Wanted>,
    finished: watch::Sender<u64>,
    revision: Arc<AtomicU64>,
) {
    let mut written = wanted.borrow().pod.status.clone().unwrap_or_default();
    let mut wait = RETRY_MIN;
    while wanted.changed().await.is_ok() {
        loop {
            let Wanted { number, pod, status, corrects } = wanted.borrow_and_update().clone();
            if corrects {
                match tokio::time::timeout(CORRECTION, wanted.changed()).await {
                    Err(_elapsed) => {}
                    Ok(Ok(())) => continue,
                    Ok(Err(_gone)) => return,
                }
            }
            let patch = patch(&pod, &written, &status);
            let answer = client.patch_status::<Pod>(pod.namespace(), pod.name(), &patch).await;
            match answer {
                Ok(stored) => {
                    revision.store(stored.revision(), Ordering::Release);
                    written = status;
                    wait = RETRY_MIN;
                }
                Err(error) if error.is_not_found() || error.is_conflict() => {}
                Err(error) => {
                    complain(&pod, &error);
                    tokio::time::sleep(wait).await;
                    wait = (wait * 2).min(RETRY_MAX);
                    if wanted.has_changed().is_err() {
                        return;
                    }
                    continue;
                }
            }
            finished.send_replace(number);
            break;
        }
    }
}

/// Whether the API's status has another verdict on a condition that this node decides.
fn contradicts(known: &PodStatus, status: &PodStatus) -> bool {
    let verdict = |status: &PodStatus, type_: &str| {
        let mut all = status.conditions.iter().flatten();
        all.find(|condition| condition.type_ == type_).map(|condition| condition.status.clone())
    };
    plan::pods::OWNED_CONDITIONS.iter().any(|type_| verdict(known, type_) != verdict(status, type_))
}

fn complain(pod: &Pod, error: &client::Error) {
    let error: &(dyn std::error::Error + 'static) = error;
    let (namespace, name) = (pod.namespace(), pod.name());
    tracing::warn!(
        component = "kubelet",
        kind = "Pod",
        namespace,
        name,
        error,
        "status not written"
    );
}

/// The patch from `before` to `status`, for this very pod (its uid) and no other of the same name.
///
/// Conditions merge by type, so that those of others stay; lists of containers replace each other.
fn patch(pod: &Pod, before: &PodStatus, status: &PodStatus) -> Patch {
    let own = |status: &PodStatus| -> Map<String, Value> {
        let mut status = status.clone();
        if let Some(conditions) = &mut status.conditions {
            conditions.retain(|condition| {
                plan::pods::OWNED_CONDITIONS.contains(&condition.type_.as_str())
            });
        }
        match serde_json::to_value(&status) {
            Ok(Value::Object(map)) => map,
            _ => Map::new(),
        }
    };
    let (old, mut new) = (own(before), own(status));
    for field in CLEARED {
        if old.contains_key(field) && !new.contains_key(field) {
            new.insert(field.to_owned(), Value::Null);
        }
    }
    let find =
        |type_: &Value| old.get("conditions")?.as_array()?.iter().find(|c| &c["type"] == type_);
    if let Some(Value::Array(conditions)) = new.get_mut("conditions") {
        for condition in conditions {
            let Some(known) = find(&condition["type"]) else { continue };
            for field in CLEARED {
                if known.get(field).is_some() && condition.get(field).is_none() {
                    condition[field] = Value::Null;
                }
            }
        }
    }
    Patch::Strategic(json!({"metadata": {"uid": pod.uid()}, "status": new}))
}

#[cfg(test)]
mod tests {
    use super::*;
    use api::core::PodCondition;

    fn condition(type_: &str, reason: Option<&str>) -> PodCondition {
        PodCondition {
            type_: type_.to_owned(),
            reason: reason.map(ToOwned::to_owned),
            ..PodCondition::default()
        }
    }

    #[test]
    fn only_verdicts_that_are_the_node_s_are_contradicted() {
        let status = |type_: &str, holds: &str| PodStatus {
            conditions: Some(vec![PodCondition {
                status: holds.to_owned(),
                ..condition(type_, None)
            }]),
            ..PodStatus::default()
        };
        assert!(contradicts(&status("Ready", "False"), &status("Ready", "True")));
        assert!(!contradicts(&status("Ready", "True"), &status("Ready", "True")));
        assert!(!contradicts(&status("example.com/gate", "False"), &PodStatus::default()));
    }

    #[test]
    fn a_patch_clears_what_vanished_and_leaves_the_conditions_of_others() {
        let before = PodStatus {
            conditions: Some(vec![condition("Ready", Some("ContainersNotReady"))]),
            reason: Some("x".to_owned()),
            ..PodStatus::default()
        };
        let now = PodStatus {
            conditions: Some(vec![condition("Ready", None), condition("example.com/gate", None)]),
            ..PodStatus::default()
        };
        let Patch::Strategic(patch) = patch(&Pod::default(), &before, &now) else {
            panic!("a strategic patch")
        };
        assert_eq!(patch["status"]["reason"], Value::Null);
        assert!(patch["status"].as_object().unwrap().contains_key("reason"));
        let conditions = patch["status"]["conditions"].as_array().unwrap();
        assert_eq!(conditions.len(), 1);
        assert!(conditions[0].as_object().unwrap().contains_key("reason"));
    }
}
