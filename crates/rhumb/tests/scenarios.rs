//! What the documents say of Services and of the parts around them, statement by statement, on running clusters.

#[path = "scenarios/services.rs"]
mod services;
#[path = "scenarios/workloads.rs"]
mod workloads;

use anyhow::{Context as _, Result};
use serde_json::Value;
use testkit::lab::Lab;

const BINARY: &str = env!("CARGO_BIN_EXE_rhumb");

/// The list of a list's answer.
fn items(list: &Value) -> impl Iterator<Item = &Value> {
    list["items"].as_array().into_iter().flatten()
}

/// The names of objects.
fn names(list: &Value) -> Vec<String> {
    items(list).map(|one| text(&one["metadata"]["name"])).collect()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// The reasons of an object's events in the order in which they were written.
fn reasons(lab: &Lab, name: &str) -> Result<Vec<(String, String)>> {
    let field = format!("involvedObject.name={name}");
    let events = lab.get(&["events", "--field-selector", &field])?;
    let mut found = Vec::new();
    for event in items(&events) {
        let version = event["metadata"]["resourceVersion"].as_str().context("it has a revision")?;
        let written: u64 = version.parse()?;
        found.push((written, text(&event["reason"]), text(&event["message"])));
    }
    found.sort();
    Ok(found.into_iter().map(|(_, reason, message)| (reason, message)).collect())
}
