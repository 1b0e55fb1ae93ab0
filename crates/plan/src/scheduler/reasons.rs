//! Why nothing fits, in upstream's words (`FitError`).

use std::collections::BTreeMap;

/// What upstream's plugin for device claims adds to every sentence since 1.34.
const DEALLOCATION: &str = "no new claims to deallocate";

/// Why one node does not fit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    /// One or more reasons; only resources give several.
    pub(super) reasons: Vec<String>,
    /// Whether removing other pods could not help.
    pub(super) final_: bool,
}

impl Refusal {
    /// Removing other pods could help.
    pub(super) fn for_now(reason: &str) -> Self {
        Self { reasons: vec![reason.to_owned()], final_: false }
    }

    /// Nothing but a change of the node or the pod helps.
    pub(super) fn for_good(reason: impl Into<String>) -> Self {
        Self { reasons: vec![reason.into()], final_: true }
    }
}

/// Reasons of all nodes, counted.
#[derive(Debug, Default)]
pub(super) struct Reasons {
    counts: BTreeMap<String, usize>,
    helpful: usize,
    final_: usize,
}

impl Reasons {
    /// Counts one node.
    pub(super) fn add(&mut self, refusal: Refusal) {
        for reason in refusal.reasons {
            *self.counts.entry(reason).or_default() += 1;
        }
        if refusal.final_ {
            self.final_ += 1;
        } else {
            self.helpful += 1;
        }
    }

    /// The whole sentence. `never` when the pod's preemptionPolicy is Never.
    pub(super) fn message(&self, nodes: usize, never: bool) -> String {
        let mut reasons: Vec<String> =
            self.counts.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
        reasons.sort();
        let head = format!("0/{nodes} nodes are available: {}.", reasons.join(", "));
        if never {
            return format!(
                "{head} {DEALLOCATION}, preemption: not eligible due to preemptionPolicy=Never."
            );
        }
        let mut preemption = Vec::new();
        if self.helpful > 0 {
            preemption
                .push(format!("{} No preemption victims found for incoming pod", self.helpful));
        }
        if self.final_ > 0 {
            preemption.push(format!("{} Preemption is not helpful for scheduling", self.final_));
        }
        preemption.sort();
        let preemption = preemption.join(", ");
        format!("{head} {DEALLOCATION}, preemption: 0/{nodes} nodes are available: {preemption}.")
    }
}

/// The sentence for a pod that cannot go anywhere whatever the node.
pub(super) fn refused(nodes: usize, reason: &str) -> String {
    format!(
        "0/{nodes} nodes are available: {reason}. {DEALLOCATION}, preemption: 0/{nodes} nodes are available: {nodes} Preemption is not helpful for scheduling."
    )
}
