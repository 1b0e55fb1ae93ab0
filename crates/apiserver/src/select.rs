//! Selection of objects by labels and fields. Upstream: `SelectionPredicate`.

use api::StatusError;
use api::resource::Resource;
use api::selector::LabelSelector;
use serde::Deserialize;
use serde_json::Value;

use crate::cache::Object;
use crate::request::RequestInfo;

/// One term of a field selector.
#[derive(Clone, Debug, PartialEq, Eq)]
struct FieldTerm {
    field: String,
    value: String,
    /// `!=` instead of `=`.
    not: bool,
}

/// Labels and fields that objects must have.
#[derive(Clone, Debug)]
pub(crate) struct Selector {
    resource: &'static Resource,
    labels: Option<LabelSelector>,
    fields: Vec<FieldTerm>,
}

/// An object of which only the labels are parsed.
#[derive(Default, Deserialize)]
struct Labelled {
    metadata: LabelledMeta,
}

#[derive(Default, Deserialize)]
struct LabelledMeta {
    #[serde(default)]
    labels: Value,
}

/// The labels of an object's bytes; `null` when it has none.
fn labels(json: &[u8]) -> Value {
    serde_json::from_slice::<Labelled>(json).unwrap_or_default().metadata.labels
}

impl Selector {
    /// Reads `labelSelector` and `fieldSelector`.
    ///
    /// # Errors
    /// 400 in upstream's words.
    pub(crate) fn parse(
        info: &RequestInfo,
        resource: &'static Resource,
    ) -> Result<Self, StatusError> {
        let (labels, fields) = (info.query.get("labelSelector"), info.query.get("fieldSelector"));
        let parsed = match labels {
            "" => None,
            text => Some(LabelSelector::parse(text).map_err(|error| {
                StatusError::bad_request(format!("unable to parse requirement: {error}"))
            })?),
        };
        let mut selector = Self { resource, labels: parsed, fields: Vec::new() };
        for part in fields.split(',').filter(|part| !part.is_empty()) {
            let term = parse_term(part).ok_or_else(|| {
                StatusError::bad_request(format!(
                    "invalid selector: '{fields}'; can't understand '{part}'"
                ))
            })?;
            if !selector.knows(&term.field) {
                return Err(StatusError::bad_request(selector.unknown_field(&term.field)));
            }
            selector.fields.push(term);
        }
        Ok(selector)
    }

    /// Only the object of that name.
    pub(crate) fn require_name(&mut self, name: &str) {
        self.fields.push(FieldTerm {
            field: "metadata.name".to_owned(),
            value: name.to_owned(),
            not: false,
        });
    }

    /// Whether nothing is left out.
    pub(crate) fn is_everything(&self) -> bool {
        self.labels.is_none() && self.fields.is_empty()
    }

    /// Whether an object is selected; parses no more of it than it must.
    pub(crate) fn matches(&self, object: &Object) -> bool {
        match &self.labels {
            _ if !self.fields.is_empty() => self.matches_value(&object.value()),
            Some(selector) => selector.matches_value(&labels(&object.json)),
            None => true,
        }
    }

    fn matches_value(&self, object: &Value) -> bool {
        let labels = &object["metadata"]["labels"];
        if self.labels.as_ref().is_some_and(|selector| !selector.matches_value(labels)) {
            return false;
        }
        if self.fields.is_empty() {
            return true;
        }
        let own = (self.resource.rules.fields)(object);
        self.fields.iter().all(|term| {
            let found = match term.field.as_str() {
                "metadata.name" => crate::object::meta_str(object, "name"),
                "metadata.namespace" => crate::object::meta_str(object, "namespace"),
                field => own.iter().find(|(name, _)| *name == field).map_or("", |(_, value)| value),
            };
            (found == term.value) != term.not
        })
    }

    /// Upstream's `AddFieldLabelConversionFunc` of kinds with fields of their own, and `DefaultMetaV1FieldSelectorConversion`.
    fn unknown_field(&self, field: &str) -> String {
        if (self.resource.rules.fields)(&Value::Null).is_empty() {
            format!(
                "{field:?} is not a known field selector: only \"metadata.name\", \"metadata.namespace\""
            )
        } else {
            format!("field label not supported: {field}")
        }
    }

    fn knows(&self, field: &str) -> bool {
        matches!(field, "metadata.name" | "metadata.namespace")
            || (self.resource.rules.fields)(&Value::Null).iter().any(|(name, _)| *name == field)
    }
}

fn parse_term(part: &str) -> Option<FieldTerm> {
    let (field, value, not) = if let Some((field, value)) = part.split_once("!=") {
        (field, value, true)
    } else if let Some((field, value)) = part.split_once("==") {
        (field, value, false)
    } else {
        let (field, value) = part.split_once('=')?;
        (field, value, false)
    };
    let value = value.replace("\\,", ",").replace("\\=", "=").replace("\\\\", "\\");
    Some(FieldTerm { field: field.trim().to_owned(), value, not })
}
