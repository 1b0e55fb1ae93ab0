//! Annotations of pods that are Rhumb's own, where more than one crate reads them.

/// How long a pod's end waits until no new connections come: `off`, or a time such as `2s` or `500ms`.
pub const ROLLOUT_GUARD: &str = "rhumb.dev/rollout-guard";
