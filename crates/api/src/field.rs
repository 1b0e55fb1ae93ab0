//! Validation errors that point at a field: `k8s.io/apimachinery/pkg/util/validation/field`.

use std::fmt;

use serde_json::{Value, json};

use crate::{Reason, StatusError};

/// What is wrong with a field (`field.ErrorType`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FieldErrorKind {
    /// The field must be set.
    Required,
    /// The value is malformed.
    Invalid,
    /// The value must be unique and is not.
    Duplicate,
    /// What the value names does not exist.
    NotFound,
    /// The value is not one of the known ones.
    NotSupported,
    /// The field must not be set (so).
    Forbidden,
    /// The text is too long.
    TooLong,
    /// The list or map has too many members.
    TooMany,
    /// The value has the wrong type.
    TypeInvalid,
    /// Something failed while checking.
    Internal,
}

impl FieldErrorKind {
    /// The words of messages.
    #[must_use]
    pub fn words(self) -> &'static str {
        match self {
            Self::Required => "Required value",
            Self::Invalid | Self::TypeInvalid => "Invalid value",
            Self::Duplicate => "Duplicate value",
            Self::NotFound => "Not found",
            Self::NotSupported => "Unsupported value",
            Self::Forbidden => "Forbidden",
            Self::TooLong => "Too long",
            Self::TooMany => "Too many",
            Self::Internal => "Internal error",
        }
    }

    /// The reason of a cause in `Status.details`.
    #[must_use]
    pub fn reason(self) -> &'static str {
        match self {
            Self::Required => "FieldValueRequired",
            Self::Invalid => "FieldValueInvalid",
            Self::Duplicate => "FieldValueDuplicate",
            Self::NotFound => "FieldValueNotFound",
            Self::NotSupported => "FieldValueNotSupported",
            Self::Forbidden => "FieldValueForbidden",
            Self::TooLong => "FieldValueTooLong",
            Self::TooMany => "FieldValueTooMany",
            Self::TypeInvalid => "FieldValueTypeInvalid",
            Self::Internal => "InternalError",
        }
    }
}

/// One error of one field.
#[derive(Clone, Debug, PartialEq)]
pub struct FieldError {
    /// What is wrong.
    pub kind: FieldErrorKind,
    /// The field, as `spec.ports[0].port`.
    pub field: String,
    /// The value as messages show it (texts quoted, the rest as JSON), where they show it.
    pub value: Option<String>,
    /// The rule, in words; may be empty.
    pub detail: String,
}

impl FieldError {
    fn new(
        kind: FieldErrorKind,
        field: impl Into<String>,
        value: Option<&Value>,
        detail: impl Into<String>,
    ) -> Self {
        Self { kind, field: field.into(), value: value.map(shown), detail: detail.into() }
    }

    /// The field must be set.
    pub fn required(field: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::new(FieldErrorKind::Required, field, None, detail)
    }

    /// The value is malformed.
    pub fn invalid(field: impl Into<String>, value: &Value, detail: impl Into<String>) -> Self {
        Self::new(FieldErrorKind::Invalid, field, Some(value), detail)
    }

    /// The value is malformed; `shown` is how the message writes it, for what Go prints otherwise than JSON sorts it.
    pub fn invalid_shown(
        field: impl Into<String>,
        shown: impl Into<String>,
        detail: impl Into<String>,
    ) -> Self {
        Self {
            value: Some(shown.into()),
            ..Self::new(FieldErrorKind::Invalid, field, None, detail)
        }
    }

    /// The value is there twice; `shown` is how the message writes it.
    pub fn duplicate_shown(field: impl Into<String>, shown: impl Into<String>) -> Self {
        Self { value: Some(shown.into()), ..Self::new(FieldErrorKind::Duplicate, field, None, "") }
    }

    /// The value is there twice.
    pub fn duplicate(field: impl Into<String>, value: &Value) -> Self {
        Self::new(FieldErrorKind::Duplicate, field, Some(value), "")
    }

    /// What the value names does not exist.
    pub fn not_found(field: impl Into<String>, value: &Value) -> Self {
        Self::new(FieldErrorKind::NotFound, field, Some(value), "")
    }

    /// The value is not one of `known`.
    pub fn unsupported(field: impl Into<String>, value: &Value, known: &[&str]) -> Self {
        let known: Vec<String> = known.iter().map(|known| format!("{known:?}")).collect();
        let detail = if known.is_empty() {
            String::new()
        } else {
            format!("supported values: {}", known.join(", "))
        };
        Self::new(FieldErrorKind::NotSupported, field, Some(value), detail)
    }

    /// The field must not be set so.
    pub fn forbidden(field: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::new(FieldErrorKind::Forbidden, field, None, detail)
    }

    /// The text has more than `max` bytes.
    pub fn too_long(field: impl Into<String>, max: usize) -> Self {
        let unit = if max == 1 { "byte" } else { "bytes" };
        Self::new(
            FieldErrorKind::TooLong,
            field,
            None,
            format!("may not be more than {max} {unit}"),
        )
    }

    /// There are more than `max` members.
    pub fn too_many(field: impl Into<String>, actual: usize, max: usize) -> Self {
        let unit = if max == 1 { "item" } else { "items" };
        let detail = format!("must have at most {max} {unit}");
        Self::new(FieldErrorKind::TooMany, field, Some(&actual.into()), detail)
    }

    /// The message without the field's name: what a cause says.
    #[must_use]
    pub fn body(&self) -> String {
        let mut text = self.kind.words().to_owned();
        if let Some(value) = &self.value {
            text.push_str(": ");
            text.push_str(value);
        }
        if !self.detail.is_empty() {
            text.push_str(": ");
            text.push_str(&self.detail);
        }
        text
    }
}

/// A value as Go prints it in these messages: texts quoted, the rest as JSON.
fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => format!("{text:?}"),
        Value::Null => "null".to_owned(),
        other => other.to_string(),
    }
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.body())
    }
}

impl StatusError {
    /// 422: `Service "x" is invalid: …`. `group` is empty for core; `kind` is the kind's name.
    #[must_use]
    pub fn invalid(group: &str, kind: &str, name: &str, errors: &[FieldError]) -> Self {
        let mut lines: Vec<String> = Vec::new();
        for line in errors.iter().map(ToString::to_string) {
            if !lines.contains(&line) {
                lines.push(line);
            }
        }
        let all = match lines.as_slice() {
            [one] => one.clone(),
            many => format!("[{}]", many.join(", ")),
        };
        let subject = if group.is_empty() { kind.to_owned() } else { format!("{kind}.{group}") };
        let causes: Vec<Value> = errors
            .iter()
            .map(|error| json!({"reason": error.kind.reason(), "message": error.body(), "field": error.field}))
            .collect();
        let mut details = json!({"name": name, "kind": kind, "causes": causes});
        if !group.is_empty() {
            details["group"] = group.into();
        }
        Self {
            reason: Reason::Invalid,
            message: format!("{subject} {name:?} is invalid: {all}"),
            details,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_read_as_upstreams() {
        let one = FieldError::invalid(
            "spec.ports[0].port",
            &0.into(),
            "must be between 1 and 65535, inclusive",
        );
        let status = StatusError::invalid("", "Service", "web", std::slice::from_ref(&one));
        let text = "Service \"web\" is invalid: spec.ports[0].port: Invalid value: 0: must be between 1 and 65535, inclusive";
        assert_eq!(status.message, text);
        let two = [
            FieldError::required("spec.selector", ""),
            FieldError::unsupported("spec.type", &"X".into(), &["A", "B"]),
        ];
        let status = StatusError::invalid("apps", "Deployment", "web", &two);
        let text = "Deployment.apps \"web\" is invalid: [spec.selector: Required value, spec.type: Unsupported value: \"X\": supported values: \"A\", \"B\"]";
        assert_eq!(status.message, text);
        assert_eq!(status.details["causes"][0]["reason"], "FieldValueRequired");
    }
}
