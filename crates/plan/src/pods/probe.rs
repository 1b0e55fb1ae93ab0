//! Probes: how single results become a verdict. Upstream: `pkg/kubelet/prober/worker.go`.

use api::core::{Container, Probe};

/// Which probe of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ProbeKind {
    /// Until it passes once, the others wait; when it fails, the container restarts.
    Startup,
    /// When it fails, the container restarts.
    Liveness,
    /// While it fails, the container gets no traffic.
    Readiness,
}

impl ProbeKind {
    /// As events spell it: `Readiness probe failed: …`.
    #[must_use]
    pub fn title(self) -> &'static str {
        match self {
            Self::Startup => "Startup",
            Self::Liveness => "Liveness",
            Self::Readiness => "Readiness",
        }
    }

    /// This probe of `container`, if it has one.
    #[must_use]
    pub fn of(self, container: &Container) -> Option<&Probe> {
        match self {
            Self::Startup => container.startup_probe.as_ref(),
            Self::Liveness => container.liveness_probe.as_ref(),
            Self::Readiness => container.readiness_probe.as_ref(),
        }
    }
}

/// Results in a row, and the verdict so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    successes: i32,
    failures: i32,
    verdict: Option<bool>,
}

impl Tally {
    /// Counts one result; returns the verdict when it is new.
    pub fn count(&mut self, probe: &Probe, passed: bool) -> Option<bool> {
        let (row, threshold) = if passed {
            self.failures = 0;
            self.successes = self.successes.saturating_add(1);
            (self.successes, probe.success_threshold.unwrap_or(1))
        } else {
            self.successes = 0;
            self.failures = self.failures.saturating_add(1);
            (self.failures, probe.failure_threshold.unwrap_or(3))
        };
        if row < threshold.max(1) || self.verdict == Some(passed) {
            return None;
        }
        self.verdict = Some(passed);
        self.verdict
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verdict_turns_after_the_threshold_in_a_row() {
        let probe =
            Probe { failure_threshold: Some(2), success_threshold: Some(2), ..Probe::default() };
        let mut tally = Tally::default();
        let results = [true, false, true, true, true, false, true, false, false];
        let verdicts: Vec<_> = results.iter().map(|ok| tally.count(&probe, *ok)).collect();
        let (none, yes, no) = (None, Some(true), Some(false));
        assert_eq!(verdicts, [none, none, none, yes, none, none, none, none, no]);
    }
}
