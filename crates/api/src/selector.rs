//! Label selectors, as text and as `metav1.LabelSelector`: `k8s.io/apimachinery/pkg/labels`.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::meta;

/// One requirement on one label.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Requirement {
    In(String, Vec<String>),
    NotIn(String, Vec<String>),
    Exists(String),
    Absent(String),
}

/// A conjunction of requirements; without any it matches everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LabelSelector {
    requirements: Vec<Requirement>,
}

impl LabelSelector {
    /// Parses `a=b,c!=d,e in (f,g),h notin (i),j,!k`.
    ///
    /// # Errors
    /// In upstream's words.
    pub fn parse(text: &str) -> Result<Self, String> {
        let requirements = split(text).into_iter().map(parse_requirement).collect::<Result<_, _>>()?;
        Ok(Self { requirements })
    }

    /// A selector of exact labels, as `spec.selector` of a Service.
    #[must_use]
    pub fn exact(labels: &BTreeMap<String, String>) -> Self {
        let requirements = labels.iter().map(|(key, value)| Requirement::In(key.clone(), vec![value.clone()]));
        Self { requirements: requirements.collect() }
    }

    /// Reads the structured form.
    ///
    /// # Errors
    /// When an operator is not known.
    pub fn of(selector: &meta::LabelSelector) -> Result<Self, String> {
        let mut all = selector.match_labels.as_ref().map(Self::exact).unwrap_or_default();
        for expression in selector.match_expressions.iter().flatten() {
            let (key, values) = (expression.key.clone(), expression.values.clone().unwrap_or_default());
            all.requirements.push(match expression.operator.as_str() {
                "In" => Requirement::In(key, values),
                "NotIn" => Requirement::NotIn(key, values),
                "Exists" => Requirement::Exists(key),
                "DoesNotExist" => Requirement::Absent(key),
                other => return Err(format!("{other:?} is not a valid label selector operator")),
            });
        }
        Ok(all)
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
        self.requirements.iter().all(|requirement| match requirement {
            Requirement::In(key, values) => label(key).is_some_and(|value| values.iter().any(|known| known == value)),
            Requirement::NotIn(key, values) => label(key).is_none_or(|value| values.iter().all(|known| known != value)),
            Requirement::Exists(key) => label(key).is_some(),
            Requirement::Absent(key) => label(key).is_none(),
        })
    }
}

/// Splits at commas outside parentheses.
fn split(text: &str) -> Vec<&str> {
    let (mut parts, mut start, mut depth) = (Vec::new(), 0, 0_usize);
    for (index, character) in text.char_indices() {
        match character {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            ',' if depth == 0 => {
                parts.push(text[start..index].trim());
                start = index + 1;
            }
            _ => {}
        }
    }
    parts.push(text[start..].trim());
    parts.retain(|part| !part.is_empty());
    parts
}

fn parse_requirement(part: &str) -> Result<Requirement, String> {
    if let Some(key) = part.strip_prefix('!') {
        return Ok(Requirement::Absent(key_of(key)?));
    }
    for (operator, negative) in [("!=", true), ("==", false), ("=", false)] {
        if let Some((key, value)) = part.split_once(operator) {
            let (key, values) = (key_of(key)?, vec![value_of(value)?]);
            return Ok(if negative { Requirement::NotIn(key, values) } else { Requirement::In(key, values) });
        }
    }
    let Some((head, set)) = part.split_once('(') else {
        return Ok(Requirement::Exists(key_of(part)?));
    };
    let set = set.trim_end().strip_suffix(')').ok_or_else(|| format!("unable to parse requirement: found '', expected: ',', or ')' in {part:?}"))?;
    let values = set.split(',').map(value_of).collect::<Result<Vec<_>, _>>()?;
    let mut words = head.split_whitespace();
    match (words.next(), words.next(), words.next()) {
        (Some(key), Some("in"), None) => Ok(Requirement::In(key_of(key)?, values)),
        (Some(key), Some("notin"), None) => Ok(Requirement::NotIn(key_of(key)?, values)),
        _ => Err(format!("unable to parse requirement: found '{}', expected: in, notin, =, ==, !=, gt, lt", head.trim())),
    }
}

fn key_of(text: &str) -> Result<String, String> {
    let key = text.trim();
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
    if key.is_empty() || !key.chars().all(allowed) {
        return Err(format!("unable to parse requirement: found '{key}', expected: !, identifier, or 'end of string'"));
    }
    Ok(key.to_owned())
}

fn value_of(text: &str) -> Result<String, String> {
    let value = text.trim();
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if value.len() > 63 || !value.chars().all(allowed) {
        return Err(format!(
            "unable to parse requirement: values[0][{value}]: Invalid value: {value:?}: a valid label must be an empty string or consist of \
             alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or \
             '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')"
        ));
    }
    Ok(value.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn every_operator_matches_as_it_reads() {
        let labels = json!({"app": "web", "tier": "front"});
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
        ] {
            assert_eq!(LabelSelector::parse(text).unwrap().matches_value(&labels), expected, "{text}");
        }
        assert!(LabelSelector::parse("app in web").is_err());
        assert!(LabelSelector::parse("a b=c").is_err());
    }
}
