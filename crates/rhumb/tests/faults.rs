//! What goes wrong on a cluster, each with the state, message and events that users of upstream expect.
//!
//! Killed agents and servers are in `story.rs`; a container that takes too much memory is in `scenarios/workloads.rs`.

#[path = "faults/disk.rs"]
mod disk;
#[path = "faults/node.rs"]
mod node;
#[path = "faults/pods.rs"]
mod pods;

use anyhow::{Result, ensure};
use serde_json::Value;
use testkit::lab::Lab;

const BINARY: &str = env!("CARGO_BIN_EXE_rhumb");

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// The events of an object: type, reason, message.
fn events(lab: &Lab, name: &str) -> Result<Vec<[String; 3]>> {
    let found = lab.get(&["events", "--field-selector", &format!("involvedObject.name={name}")])?;
    let all = found["items"].as_array().into_iter().flatten();
    Ok(all.map(|one| ["type", "reason", "message"].map(|key| text(&one[key]))).collect())
}

/// Waits for an event that begins so.
fn told(lab: &Lab, name: &str, kind: &str, reason: &str, message: &str) -> Result<()> {
    lab.eventually(&format!("{name} has the event {reason}: {message}"), || {
        let events = events(lab, name)?;
        let wanted = |event: &[String; 3]| {
            event[0] == kind && event[1] == reason && event[2].starts_with(message)
        };
        ensure!(events.iter().any(wanted), "{events:#?}");
        Ok(())
    })
}

/// What `kubectl get pod` shows: READY, STATUS, RESTARTS, without how long ago.
fn row(lab: &Lab, pod: &str) -> Result<[String; 3]> {
    let table = lab.kubectl(&["get", "pod", pod, "--no-headers"])?;
    let mut words = table.split_whitespace().skip(1);
    Ok([(); 3].map(|()| words.next().unwrap_or_default().to_owned()))
}

/// Waits until `kubectl get pod` shows this status.
fn shows(lab: &Lab, pod: &str, status: &str) -> Result<[String; 3]> {
    lab.eventually(&format!("{pod} shows {status}"), || {
        let row = row(lab, pod)?;
        ensure!(row[1] == status, "{row:?}");
        Ok(row)
    })
}
