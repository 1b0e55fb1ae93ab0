//! Annotations of Services that are Rhumb's own, where more than one crate reads them.

/// After how long connections to an endpoint that is gone are reset (`10s`, `0s`); without it they are left alone.
pub const RESET_CONNECTIONS: &str = "rhumb.dev/reset-connections";
