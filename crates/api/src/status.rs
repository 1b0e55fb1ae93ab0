//! API errors as upstream words them: `k8s.io/apimachinery/pkg/api/errors`.

use serde_json::{Value, json};
use std::fmt;

/// Why a request failed; the machine-readable half of a `Status` (`metav1.StatusReason`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// 400.
    BadRequest,
    /// 401.
    Unauthorized,
    /// 403.
    Forbidden,
    /// 404.
    NotFound,
    /// 405.
    MethodNotAllowed,
    /// 406.
    NotAcceptable,
    /// 409: the name is taken.
    AlreadyExists,
    /// 409: the object changed meanwhile.
    Conflict,
    /// 410: the revision was compacted.
    Expired,
    /// 413.
    RequestEntityTooLarge,
    /// 415.
    UnsupportedMediaType,
    /// 422: validation.
    Invalid,
    /// 429.
    TooManyRequests,
    /// 500.
    InternalError,
    /// 503.
    ServiceUnavailable,
    /// 504: also "Too large resource version".
    Timeout,
}

impl Reason {
    /// The HTTP status code.
    #[must_use]
    pub fn code(self) -> u16 {
        match self {
            Self::BadRequest => 400,
            Self::Unauthorized => 401,
            Self::Forbidden => 403,
            Self::NotFound => 404,
            Self::MethodNotAllowed => 405,
            Self::NotAcceptable => 406,
            Self::AlreadyExists | Self::Conflict => 409,
            Self::Expired => 410,
            Self::RequestEntityTooLarge => 413,
            Self::UnsupportedMediaType => 415,
            Self::Invalid => 422,
            Self::TooManyRequests => 429,
            Self::InternalError => 500,
            Self::ServiceUnavailable => 503,
            Self::Timeout => 504,
        }
    }
}

/// A failed request: everything that goes on the wire as `kind: Status`.
#[derive(Clone, Debug, PartialEq)]
pub struct StatusError {
    /// Machine-readable reason.
    pub reason: Reason,
    /// Human-readable message, in upstream's words.
    pub message: String,
    /// `details` of the Status: name, group, kind, causes; `Null` when there are none.
    pub details: Value,
}

impl StatusError {
    /// An error without details.
    #[must_use]
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self { reason, message: message.into(), details: Value::Null }
    }

    /// 400 with a message.
    #[must_use]
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(Reason::BadRequest, message)
    }

    /// 500: `Internal error occurred: …`.
    #[must_use]
    pub fn internal(message: impl fmt::Display) -> Self {
        Self::new(Reason::InternalError, format!("Internal error occurred: {message}"))
    }

    /// 404: `pods "a" not found`. `group` is empty for core; `plural` names the resource.
    #[must_use]
    pub fn not_found(group: &str, plural: &str, name: &str) -> Self {
        Self {
            reason: Reason::NotFound,
            message: format!("{} {name:?} not found", qualified(group, plural)),
            details: details(group, plural, name),
        }
    }

    /// 409: `pods "a" already exists`.
    #[must_use]
    pub fn already_exists(group: &str, plural: &str, name: &str) -> Self {
        Self {
            reason: Reason::AlreadyExists,
            message: format!("{} {name:?} already exists", qualified(group, plural)),
            details: details(group, plural, name),
        }
    }

    /// 409: `Operation cannot be fulfilled on pods "a": …`.
    #[must_use]
    pub fn conflict(group: &str, plural: &str, name: &str, why: impl fmt::Display) -> Self {
        Self {
            reason: Reason::Conflict,
            message: format!(
                "Operation cannot be fulfilled on {} {name:?}: {why}",
                qualified(group, plural)
            ),
            details: details(group, plural, name),
        }
    }

    /// 409 for a stale resourceVersion.
    #[must_use]
    pub fn modified(group: &str, plural: &str, name: &str) -> Self {
        Self::conflict(
            group,
            plural,
            name,
            "the object has been modified; please apply your changes to the latest version and try again",
        )
    }

    /// 403: `pods "a" is forbidden: …`; `pods is forbidden: …` without a name.
    #[must_use]
    pub fn forbidden(group: &str, plural: &str, name: &str, why: impl fmt::Display) -> Self {
        let subject = if name.is_empty() {
            qualified(group, plural)
        } else {
            format!("{} {name:?}", qualified(group, plural))
        };
        Self {
            reason: Reason::Forbidden,
            message: format!("{subject} is forbidden: {why}"),
            details: details(group, plural, name),
        }
    }

    /// The object as it goes on the wire.
    #[must_use]
    pub fn to_value(&self) -> Value {
        let mut status = json!({
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.message,
            "reason": format!("{:?}", self.reason),
            "code": self.reason.code(),
        });
        if !self.details.is_null() {
            status["details"] = self.details.clone();
        }
        status
    }
}

/// `deployments.apps`, or `pods` in the core group.
fn qualified(group: &str, plural: &str) -> String {
    if group.is_empty() { plural.to_owned() } else { format!("{plural}.{group}") }
}

fn details(group: &str, plural: &str, name: &str) -> Value {
    let mut details = json!({});
    for (key, value) in [("name", name), ("group", group), ("kind", plural)] {
        if !value.is_empty() {
            details[key] = value.into();
        }
    }
    details
}

impl fmt::Display for StatusError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for StatusError {}
