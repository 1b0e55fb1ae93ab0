//! Sets of field paths and their `FieldsV1` form (`f:`, `k:`, `v:`, `i:`). Upstream: `structured-merge-diff/fieldpath`.

use std::collections::BTreeMap;
use std::fmt;

use serde_json::{Map, Value};

/// One step of a path. Keys and values are kept as canonical JSON text, which orders and compares them.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Element {
    /// A field of a struct or map.
    Field(String),
    /// The element of a keyed list.
    Key(String),
    /// The element of a set.
    Value(String),
    /// The element of a list by its place; read, never written.
    Index(usize),
}

impl Element {
    fn parse(text: &str) -> Option<Self> {
        let (kind, rest) = text.split_once(':')?;
        match kind {
            "f" => Some(Self::Field(rest.to_owned())),
            "k" => serde_json::from_str::<Map<String, Value>>(rest)
                .ok()
                .map(|key| Self::Key(Value::Object(key).to_string())),
            "v" => {
                serde_json::from_str::<Value>(rest).ok().map(|value| Self::Value(value.to_string()))
            }
            "i" => rest.parse().ok().map(Self::Index),
            _ => None,
        }
    }

    fn encode(&self) -> String {
        match self {
            Self::Field(name) => format!("f:{name}"),
            Self::Key(key) => format!("k:{key}"),
            Self::Value(value) => format!("v:{value}"),
            Self::Index(index) => format!("i:{index}"),
        }
    }
}

/// `.spec`, `[name="a"]`, `[="x"]`, `[0]`.
impl fmt::Display for Element {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Field(name) => write!(f, ".{name}"),
            Self::Key(key) => {
                let fields: Map<String, Value> = serde_json::from_str(key).unwrap_or_default();
                let fields: Vec<String> =
                    fields.iter().map(|(name, value)| format!("{name}={value}")).collect();
                write!(f, "[{}]", fields.join(","))
            }
            Self::Value(value) => write!(f, "[={value}]"),
            Self::Index(index) => write!(f, "[{index}]"),
        }
    }
}

/// A set of paths as a tree.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Set {
    /// Whether the path up to here is itself in the set.
    member: bool,
    children: BTreeMap<Element, Set>,
}

impl Set {
    pub(super) fn is_empty(&self) -> bool {
        !self.member && self.children.values().all(Self::is_empty)
    }

    pub(super) fn insert(&mut self, path: &[Element]) {
        match path.split_first() {
            None => self.member = true,
            Some((head, rest)) => self.children.entry(head.clone()).or_default().insert(rest),
        }
    }

    /// The set below a path; `None` when nothing is there.
    pub(super) fn below(&self, element: &Element) -> Option<&Self> {
        self.children.get(element)
    }

    pub(super) fn is_member(&self) -> bool {
        self.member
    }

    pub(super) fn remove(&mut self, path: &[Element]) {
        match path.split_first() {
            None => self.member = false,
            Some((head, rest)) => {
                if let Some(child) = self.children.get_mut(head) {
                    child.remove(rest);
                    if child.is_empty() {
                        self.children.remove(head);
                    }
                }
            }
        }
    }

    /// Drops a path and everything below it.
    pub(super) fn remove_below(&mut self, path: &[Element]) {
        match path {
            [] => *self = Self::default(),
            [last] => {
                self.children.remove(last);
            }
            [head, rest @ ..] => {
                if let Some(child) = self.children.get_mut(head) {
                    child.remove_below(rest);
                }
            }
        }
    }

    pub(super) fn union(&self, other: &Self) -> Self {
        let mut out = self.clone();
        out.member |= other.member;
        for (element, set) in &other.children {
            let merged =
                out.children.get(element).map_or_else(|| set.clone(), |own| own.union(set));
            out.children.insert(element.clone(), merged);
        }
        out
    }

    pub(super) fn intersection(&self, other: &Self) -> Self {
        self.combine(other, |own, theirs| own && theirs)
    }

    pub(super) fn difference(&self, other: &Self) -> Self {
        self.combine(other, |own, theirs| own && !theirs)
    }

    /// Keeps members of `self` by a rule on membership in both.
    fn combine(&self, other: &Self, keep: fn(bool, bool) -> bool) -> Self {
        let nothing = Self::default();
        let children = self
            .children
            .iter()
            .map(|(element, set)| {
                (element.clone(), set.combine(other.below(element).unwrap_or(&nothing), keep))
            })
            .filter(|(_, set)| !set.is_empty())
            .collect();
        Self { member: keep(self.member, other.member), children }
    }

    /// All member paths in order.
    pub(super) fn paths(&self) -> Vec<Vec<Element>> {
        let mut out = Vec::new();
        self.collect(&mut Vec::new(), &mut out);
        out
    }

    fn collect(&self, path: &mut Vec<Element>, out: &mut Vec<Vec<Element>>) {
        if self.member {
            out.push(path.clone());
        }
        for (element, set) in &self.children {
            path.push(element.clone());
            set.collect(path, out);
            path.pop();
        }
    }

    /// `FieldsV1`.
    pub(super) fn encode(&self) -> Value {
        let mut out = Map::new();
        if self.member && !self.children.is_empty() {
            out.insert(".".to_owned(), Value::Object(Map::new()));
        }
        for (element, set) in self.children.iter().filter(|(_, set)| !set.is_empty()) {
            out.insert(element.encode(), set.encode());
        }
        Value::Object(out)
    }

    /// Reads `FieldsV1`; `None` when it is not of that form.
    pub(super) fn decode(fields: &Value) -> Option<Self> {
        let fields = fields.as_object()?;
        let mut set =
            Self { member: fields.is_empty() || fields.contains_key("."), ..Self::default() };
        for (name, value) in fields.iter().filter(|(name, _)| *name != ".") {
            set.children.insert(Element::parse(name)?, Self::decode(value)?);
        }
        Some(set)
    }

    /// As [`Set::decode`], for a whole entry: nothing at the top means nothing at all.
    pub(super) fn decode_root(fields: &Value) -> Option<Self> {
        Self::decode(fields).map(|set| Self { member: false, ..set })
    }
}

/// A path as upstream prints it: `.spec.template.spec.containers[name="a"].image`.
pub(super) fn path_text(path: &[Element]) -> String {
    path.iter().map(ToString::to_string).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn fields_v1_reads_back_as_written() {
        let fields = json!({
            "f:metadata": {"f:finalizers": {".": {}, "v:\"x\"": {}}, "f:labels": {".": {}, "f:a/b": {}}},
            "f:spec": {"f:ports": {"k:{\"port\":80,\"protocol\":\"TCP\"}": {".": {}, "f:name": {}}}, "i:3": {}},
        });
        let set = Set::decode_root(&fields).expect("is FieldsV1");
        assert_eq!(set.encode(), fields);
        let texts: Vec<String> = set.paths().iter().map(|path| path_text(path)).collect();
        assert!(
            texts.contains(&".spec.ports[port=80,protocol=\"TCP\"].name".to_owned()),
            "{texts:?}"
        );
        assert!(texts.contains(&".metadata.finalizers[=\"x\"]".to_owned()), "{texts:?}");
    }

    #[test]
    fn malformed_fields_are_refused() {
        for bad in [json!([]), json!({"spec": {}}), json!({"k:x": {}}), json!({"f:a": 1})] {
            assert_eq!(Set::decode_root(&bad), None, "{bad}");
        }
    }
}
