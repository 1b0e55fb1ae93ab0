//! A place in an object: a value and the path that messages name it by (`field.Path`).

use serde_json::Value;

use crate::field::FieldError;

/// A value and where it is.
#[derive(Clone, Debug)]
pub(crate) struct At<'a> {
    /// What is there; `Null` when nothing is.
    pub value: &'a Value,
    /// `spec.ports[0].port`.
    pub path: String,
}

impl<'a> At<'a> {
    /// The whole object.
    pub(crate) fn root(value: &'a Value) -> Self {
        Self { value, path: String::new() }
    }

    /// The same value under another path.
    pub(crate) fn named(value: &'a Value, path: impl Into<String>) -> Self {
        Self { value, path: path.into() }
    }

    /// A field, or a field of a field: `spec.template`.
    pub(crate) fn get(&self, path: &str) -> Self {
        let value = path.split('.').fold(self.value, |value, name| &value[name]);
        Self { value, path: self.child(path) }
    }

    /// The path of a field.
    pub(crate) fn child(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) }
    }

    /// The members of a list.
    pub(crate) fn items(&self) -> impl Iterator<Item = At<'a>> + use<'a> {
        let path = self.path.clone();
        let items = self.value.as_array().map_or(&[][..], Vec::as_slice);
        items
            .iter()
            .enumerate()
            .map(move |(index, value)| At { value, path: format!("{path}[{index}]") })
    }

    /// The members of a map.
    pub(crate) fn entries(&self) -> impl Iterator<Item = (&'a str, At<'a>)> + use<'a> {
        let path = self.path.clone();
        self.value
            .as_object()
            .into_iter()
            .flatten()
            .map(move |(key, value)| (key.as_str(), At { value, path: format!("{path}[{key}]") }))
    }

    /// The number of members.
    pub(crate) fn len(&self) -> usize {
        match self.value {
            Value::Array(items) => items.len(),
            Value::Object(fields) => fields.len(),
            _ => 0,
        }
    }

    /// Whether something is there.
    pub(crate) fn is_set(&self) -> bool {
        !self.value.is_null()
    }

    /// Nothing, an empty text, list or map.
    pub(crate) fn is_empty(&self) -> bool {
        match self.value {
            Value::Null => true,
            Value::String(text) => text.is_empty(),
            Value::Array(_) | Value::Object(_) => self.len() == 0,
            _ => false,
        }
    }

    /// Whether `true` is there.
    pub(crate) fn is_true(&self) -> bool {
        self.value == &Value::Bool(true)
    }

    /// The text, or an empty one.
    pub(crate) fn text(&self) -> &'a str {
        self.value.as_str().unwrap_or("")
    }

    /// The number.
    pub(crate) fn int(&self) -> Option<i64> {
        self.value.as_i64()
    }

    /// The value is malformed.
    pub(crate) fn invalid(&self, detail: impl Into<String>) -> FieldError {
        FieldError::invalid(&*self.path, self.value, detail)
    }

    /// An invalid error for each message.
    pub(crate) fn all_invalid(&self, messages: Vec<String>) -> Vec<FieldError> {
        messages.into_iter().map(|message| self.invalid(message)).collect()
    }

    /// The field must be set.
    pub(crate) fn required(&self, detail: &str) -> FieldError {
        FieldError::required(&*self.path, detail)
    }

    /// The field must not be set so.
    pub(crate) fn forbidden(&self, detail: impl Into<String>) -> FieldError {
        FieldError::forbidden(&*self.path, detail)
    }

    /// The value is there twice.
    pub(crate) fn duplicate(&self) -> FieldError {
        FieldError::duplicate(&*self.path, self.value)
    }

    /// The value is not one of `known`.
    pub(crate) fn unsupported(&self, known: &[&str]) -> FieldError {
        FieldError::unsupported(&*self.path, self.value, known)
    }

    /// The value is not one of `known`, or missing (an empty value is a missing one).
    pub(crate) fn one_of(&self, known: &[&str]) -> Option<FieldError> {
        match self.text() {
            "" => Some(self.required("")),
            text if known.contains(&text) => None,
            _ => Some(self.unsupported(known)),
        }
    }

    /// The number is set and below zero.
    pub(crate) fn non_negative(&self) -> Option<FieldError> {
        let negative = self.int().is_some_and(|value| value < 0);
        negative.then(|| self.invalid(NEGATIVE))
    }
}

/// For numbers below zero.
pub(crate) const NEGATIVE: &str = "must be greater than or equal to 0";
/// For changes of what may not change.
pub(crate) const IMMUTABLE: &str = "field is immutable";

/// The value differs from the old one.
pub(crate) fn immutable(new: &At<'_>, old: &At<'_>) -> Option<FieldError> {
    (new.value != old.value).then(|| new.invalid(IMMUTABLE))
}
