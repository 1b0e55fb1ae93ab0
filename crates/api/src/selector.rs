//! Label selectors, as text and as `metav1.LabelSelector`, and field selectors: `k8s.io/apimachinery/pkg/{labels,fields}`.

mod parse;

use std::collections::BTreeMap;

use serde_json::Value;

use crate::meta;
use crate::resource::Resource;

/// One requirement on one label.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Requirement {
    In(String, Vec<String>),
    NotIn(String, Vec<String>),
    Exists(String),
    Absent(String),
    Above(String, i64),
    Below(String, i64),
}

/// A conjunction of requirements; without any it matches everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LabelSelector {
    requirements: Vec<Requirement>,
}

impl LabelSelector {
    /// Parses `a=b,c!=d,e in (f,g),h notin (i),j,!k,l>1`.
    ///
    /// # Errors
    /// The whole message in upstream's words, with its own `unable to parse requirement: ` where upstream has it.
    pub fn parse(text: &str) -> Result<Self, String> {
        Ok(Self { requirements: parse::selector(text)? })
    }

    /// A selector of exact labels, as `spec.selector` of a Service.
    #[must_use]
    pub fn exact(labels: &BTreeMap<String, String>) -> Self {
        let requirements =
            labels.iter().map(|(key, value)| Requirement::In(key.clone(), vec![value.clone()]));
        Self { requirements: requirements.collect() }
    }

    /// Reads the structured form.
    ///
    /// # Errors
    /// When an operator is not known.
    pub fn of(selector: &meta::LabelSelector) -> Result<Self, String> {
        let mut all = selector.match_labels.as_ref().map(Self::exact).unwrap_or_default();
        for expression in selector.match_expressions.iter().flatten() {
            let values = expression.values.clone().unwrap_or_default();
            all.requirements.push(requirement(&expression.key, &expression.operator, values)?);
        }
        Ok(all)
    }

    /// Reads the structured form from JSON; `Null` selects everything.
    ///
    /// # Errors
    /// When an operator is not known.
    pub fn of_value(selector: &Value) -> Result<Self, String> {
        let mut requirements = Vec::new();
        for (key, value) in selector["matchLabels"].as_object().into_iter().flatten() {
            let value = value.as_str().unwrap_or("").to_owned();
            requirements.push(Requirement::In(key.clone(), vec![value]));
        }
        for expression in selector["matchExpressions"].as_array().into_iter().flatten() {
            let text = |field: &str| expression[field].as_str().unwrap_or("");
            let values = expression["values"].as_array().into_iter().flatten();
            let values = values.filter_map(Value::as_str).map(str::to_owned).collect();
            requirements.push(requirement(text("key"), text("operator"), values)?);
        }
        Ok(Self { requirements })
    }

    /// Whether everything matches.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.requirements.is_empty()
    }

    /// Whether labels match.
    #[must_use]
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.check(|key| labels.get(key).map(String::as_str))
    }

    /// Whether labels match that are a JSON object, or null.
    #[must_use]
    pub fn matches_value(&self, labels: &Value) -> bool {
        self.check(|key| labels.get(key).and_then(Value::as_str))
    }

    fn check<'a>(&self, label: impl Fn(&str) -> Option<&'a str>) -> bool {
        let number = |key: &str| label(key).and_then(|value| value.parse::<i64>().ok());
        self.requirements.iter().all(|requirement| match requirement {
            Requirement::In(key, values) => {
                label(key).is_some_and(|value| values.iter().any(|known| known == value))
            }
            Requirement::NotIn(key, values) => {
                label(key).is_none_or(|value| values.iter().all(|known| known != value))
            }
            Requirement::Exists(key) => label(key).is_some(),
            Requirement::Absent(key) => label(key).is_none(),
            Requirement::Above(key, bound) => number(key).is_some_and(|value| value > *bound),
            Requirement::Below(key, bound) => number(key).is_some_and(|value| value < *bound),
        })
    }
}

fn requirement(key: &str, operator: &str, values: Vec<String>) -> Result<Requirement, String> {
    let key = key.to_owned();
    match operator {
        "In" => Ok(Requirement::In(key, values)),
        "NotIn" => Ok(Requirement::NotIn(key, values)),
        "Exists" => Ok(Requirement::Exists(key)),
        "DoesNotExist" => Ok(Requirement::Absent(key)),
        other => Err(format!("{other:?} is not a valid label selector operator")),
    }
}

/// One term of a field selector.
#[derive(Clone, Debug, PartialEq, Eq)]
struct FieldTerm {
    field: String,
    value: String,
    /// `!=` instead of `=`.
    not: bool,
}

/// A conjunction of fields and their values; without any it matches everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldSelector {
    terms: Vec<FieldTerm>,
}

impl FieldSelector {
    /// Parses `spec.nodeName=a,status.phase!=Running` for a resource.
    ///
    /// # Errors
    /// In upstream's words, also for fields that the resource does not offer.
    pub fn parse(text: &str, resource: &Resource) -> Result<Self, String> {
        let mut terms = Vec::new();
        for part in split_terms(text) {
            let term = field_term(&part).ok_or_else(|| {
                format!("invalid selector: '{text}'; can't understand '{part}'")
            })??;
            let known = ["metadata.name", "metadata.namespace"].contains(&term.field.as_str())
                || (resource.rules.fields)(&Value::Null)
                    .iter()
                    .any(|(name, _)| *name == term.field);
            if !known {
                return Err(format!("field label not supported: {}", term.field));
            }
            terms.push(term);
        }
        Ok(Self { terms })
    }

    /// Whether everything matches.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.terms.is_empty()
    }

    /// Whether an object of the resource matches.
    #[must_use]
    pub fn matches(&self, object: &Value, resource: &Resource) -> bool {
        let own = (resource.rules.fields)(object);
        self.terms.iter().all(|term| {
            let found = match term.field.as_str() {
                "metadata.name" => object["metadata"]["name"].as_str().unwrap_or(""),
                "metadata.namespace" => object["metadata"]["namespace"].as_str().unwrap_or(""),
                field => own.iter().find(|(name, _)| *name == field).map_or("", |(_, value)| value),
            };
            (found == term.value) != term.not
        })
    }
}

/// Splits at commas without a backslash before them.
fn split_terms(text: &str) -> Vec<String> {
    let (mut parts, mut part, mut escaped) = (Vec::new(), String::new(), false);
    for character in text.chars() {
        if character == ',' && !escaped {
            parts.push(std::mem::take(&mut part));
            continue;
        }
        escaped = character == '\\' && !escaped;
        part.push(character);
    }
    parts.push(part);
    parts.retain(|part| !part.is_empty());
    parts
}

fn field_term(part: &str) -> Option<Result<FieldTerm, String>> {
    let bytes = part.as_bytes();
    let at = part.find('=')?;
    let (end, start, not) = if at > 0 && bytes[at - 1] == b'!' {
        (at - 1, at + 1, true)
    } else if bytes.get(at + 1) == Some(&b'=') {
        (at, at + 2, false)
    } else {
        (at, at + 1, false)
    };
    let value = unescape(&part[start..]);
    Some(value.map(|value| FieldTerm { field: part[..end].to_owned(), value, not }))
}

fn unescape(text: &str) -> Result<String, String> {
    let mut value = String::new();
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        match character {
            '\\' => match characters.next() {
                Some(next) if "\\,=".contains(next) => value.push(next),
                Some(next) => {
                    return Err(format!(
                        "invalid field selector: invalid escape sequence: \\{next}"
                    ));
                }
                None => {
                    return Err("invalid field selector: invalid escape sequence: \\".to_owned());
                }
            },
            ',' | '=' => {
                return Err(format!(
                    "invalid field selector: unescaped character in value: {character}"
                ));
            }
            other => value.push(other),
        }
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn every_operator_matches_as_it_reads() {
        let labels = json!({"app": "web", "tier": "front", "size": "3"});
        for (text, expected) in [
            ("", true),
            ("app=web", true),
            ("app==web,tier=front", true),
            ("app!=web", false),
            ("zone!=a", true),
            ("app in (db, web)", true),
            ("app notin (db,web)", false),
            ("tier", true),
            ("!tier", false),
            ("!zone", true),
            ("size>2", true),
            ("size<3", false),
            ("app in (in,web)", true),
            ("zone in ()", false),
            ("app=", false),
        ] {
            assert_eq!(
                LabelSelector::parse(text).unwrap().matches_value(&labels),
                expected,
                "{text}"
            );
        }
    }

    #[test]
    fn errors_are_upstreams() {
        for (text, error) in [
            ("app in web", "unable to parse requirement: found 'web' expected: '('"),
            (
                "a b=c",
                "unable to parse requirement: found 'b', expected: in, notin, =, ==, !=, gt, lt",
            ),
            ("=a", "found '=', expected: !, identifier, or 'end of string'"),
            ("a=b,", "found '', expected: identifier after ','"),
            ("a in (b", "unable to parse requirement: found '', expected: ',' or ')'"),
            ("!", "unable to parse requirement: found '', expected: identifier"),
            ("a=b=c", "found '=', expected: ',' or 'end of string'"),
            (
                "a=-b",
                "unable to parse requirement: values[0][a]: Invalid value: \"-b\": a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')",
            ),
        ] {
            assert_eq!(LabelSelector::parse(text).unwrap_err(), error, "{text}");
        }
    }

    #[test]
    fn structured_selectors_match() {
        let selector = json!({"matchLabels": {"a": "b"}, "matchExpressions": [{"key": "c", "operator": "Exists"}]});
        let selector = LabelSelector::of_value(&selector).unwrap();
        assert!(selector.matches_value(&json!({"a": "b", "c": ""})));
        assert!(!selector.matches_value(&json!({"a": "b"})));
        assert!(
            LabelSelector::of_value(&json!({"matchExpressions": [{"key": "c", "operator": "X"}]}))
                .is_err()
        );
    }

    #[test]
    fn field_selectors_know_their_fields() {
        let pods = crate::resource::find("", "v1", "pods").unwrap();
        let selector = FieldSelector::parse("spec.nodeName=a,status.phase!=Running", pods).unwrap();
        assert!(selector.matches(&json!({"spec": {"nodeName": "a"}}), pods));
        assert!(
            !selector
                .matches(&json!({"spec": {"nodeName": "a"}, "status": {"phase": "Running"}}), pods)
        );
        assert_eq!(
            FieldSelector::parse("spec.x=1", pods).unwrap_err(),
            "field label not supported: spec.x"
        );
        assert_eq!(
            FieldSelector::parse("spec", pods).unwrap_err(),
            "invalid selector: 'spec'; can't understand 'spec'"
        );
        assert!(
            FieldSelector::parse("metadata.name=a\\,b", pods)
                .unwrap()
                .matches(&json!({"metadata": {"name": "a,b"}}), pods)
        );
    }
}
