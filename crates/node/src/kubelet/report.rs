//! Writes the status of one pod: the newest wins, one write at a time, so that quick changes become one write.
//! Upstream: `pkg/kubelet/status/status_manager.go`.

use std::sync::Arc;
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

/// The status to report, numbered.
type Wanted = (u64, Arc<Pod>, PodStatus);

/// The writer of one pod's status. Dropping it ends the writing after the present try.
pub(super) struct Reporter {
    want: watch::Sender<Wanted>,
    done: watch::Receiver<u64>,
}

impl Reporter {
    /// Starts the writer; `pod` is the object as first seen, with its status.
    pub(super) fn start(client: Client, pod: &Arc<Pod>) -> Self {
        let status = pod.status.clone().unwrap_or_default();
        let (want, wanted) = watch::channel((0, Arc::clone(pod), status));
        let (finished, done) = watch::channel(0);
        tokio::spawn(write_all(client, wanted, finished));
        Self { want, done }
    }

    /// Asks for `status` to be written, unless it is what was asked for last.
    pub(super) fn report(&self, pod: &Arc<Pod>, status: &PodStatus) {
        self.want.send_if_modified(|(number, of, last)| {
            let changed = last != status;
            *of = Arc::clone(pod);
            if changed {
                last.clone_from(status);
                *number += 1;
            }
            changed
        });
    }

    /// Waits until everything asked for so far is written or refused for good; call it outside the worker's loop.
    pub(super) fn flushed(&self) -> impl Future<Output = ()> + Send + 'static {
        let number = self.want.borrow().0;
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
) {
    let mut written = wanted.borrow().1.status.clone().unwrap_or_default();
    let mut wait = RETRY_MIN;
    while wanted.changed().await.is_ok() {
        loop {
            let (number, pod, status) = wanted.borrow_and_update().clone();
            let patch = patch(&pod, &written, &status);
            let answer = client.patch_status::<Pod>(pod.namespace(), pod.name(), &patch).await;
            match answer {
                Ok(_) => {
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
