//! Sets of objects, comparison, merge and removal by shapes. Upstream: `structured-merge-diff/typed`.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::set::{Element, Set, path_text};
use super::shape::Shape;
use crate::schema::table::{Field, Type};

/// What an applied configuration owns.
pub(super) fn to_set(value: &Value, shape: Shape) -> Set {
    let mut set = Set::default();
    own(value, shape, &mut Vec::new(), &mut set);
    set
}

fn own(value: &Value, shape: Shape, path: &mut Vec<Element>, set: &mut Set) {
    let Some(children) = shape.children(value) else { return set.insert(path) };
    if children.is_empty() {
        set.insert(path);
    }
    for (element, value, child) in children {
        // Elements of lists and free map keys are owned themselves, besides what is in them.
        let itself = !matches!((shape, &element), (Shape::Struct(_), Element::Field(_)));
        path.push(element);
        if itself && !matches!(shape, Shape::Deduced) {
            set.insert(path);
        }
        own(value, child, path, set);
        path.pop();
    }
}

/// What changed from one object to another.
#[derive(Debug, Default)]
pub(super) struct Comparison {
    pub(super) added: Set,
    pub(super) modified: Set,
    pub(super) removed: Set,
}

pub(super) fn compare(old: Option<&Value>, new: &Value, shape: Shape) -> Comparison {
    let mut out = Comparison::default();
    walk(old, Some(new), Spot { shape, zero: true }, &mut Vec::new(), &mut out);
    out.added.remove(&[]);
    out
}

#[derive(Clone, Copy)]
struct Spot {
    shape: Shape,
    /// Whether Go's zero object has the place too, so that its coming is no addition.
    zero: bool,
}

fn walk(
    old: Option<&Value>,
    new: Option<&Value>,
    spot: Spot,
    path: &mut Vec<Element>,
    out: &mut Comparison,
) {
    let before = old.map(|value| spot.shape.children(value));
    let after = new.map(|value| spot.shape.children(value));
    let (before, after) = match (before, after) {
        (None, None) => return,
        (None, Some(after)) => {
            let hollow = after.as_ref().is_none_or(Vec::is_empty);
            if hollow || !spot.zero {
                out.added.insert(path);
            }
            (None, after)
        }
        (Some(before), None) => {
            out.removed.insert(path);
            (before, None)
        }
        (Some(Some(before)), Some(Some(after))) => (Some(before), Some(after)),
        (Some(_), Some(_)) => {
            if old != new {
                out.modified.insert(path);
            }
            return;
        }
    };
    let exists = spot.zero || old.is_some();
    let mut pairs: BTreeMap<Element, (Option<&Value>, Option<&Value>, Shape)> = BTreeMap::new();
    for (element, value, shape) in before.into_iter().flatten() {
        pairs.insert(element, (Some(value), None, shape));
    }
    for (element, value, shape) in after.into_iter().flatten() {
        pairs.entry(element).or_insert((None, None, shape)).1 = Some(value);
    }
    for (element, (old, new, shape)) in pairs {
        let zero = exists && in_zero_object(spot.shape, &element);
        path.push(element);
        walk(old, new, Spot { shape, zero }, path, out);
        path.pop();
    }
}

/// Whether a zero Go struct has the field: structs that are no pointers, and lists that are written even when empty.
fn in_zero_object(shape: Shape, element: &Element) -> bool {
    let (Shape::Struct(message), Element::Field(name)) = (shape, element) else { return false };
    message.field(name).is_some_and(|field: &Field| {
        !field.pointer
            && match field.ty.bare() {
                Type::Message(_) => true,
                Type::List(_) | Type::Map(..) => !field.omit_empty,
                _ => false,
            }
    })
}

/// The live value with the applied one laid over it.
pub(super) fn merge(live: &Value, applied: &Value, shape: Shape) -> Value {
    match (shape, live, applied) {
        (
            Shape::Struct(_) | Shape::Map(_) | Shape::Deduced,
            Value::Object(live),
            Value::Object(applied),
        ) => {
            let mut out = live.clone();
            for (name, value) in applied {
                let merged = match live.get(name) {
                    Some(old) => merge(old, value, shape.field(name)),
                    None => value.clone(),
                };
                out.insert(name.clone(), merged);
            }
            Value::Object(out)
        }
        (Shape::Set | Shape::Keyed(..), Value::Array(live), Value::Array(applied)) => {
            Value::Array(merge_lists(live, applied, shape))
        }
        _ => applied.clone(),
    }
}

/// Elements in the applied order; live ones that it does not name keep their place before what followed them.
fn merge_lists(live: &[Value], applied: &[Value], shape: Shape) -> Vec<Value> {
    let named: Vec<Option<Element>> = applied.iter().map(|item| shape.element(item)).collect();
    let own: Vec<Option<Element>> = live.iter().map(|item| shape.element(item)).collect();
    let mut out = Vec::new();
    let mut next = 0;
    for (item, element) in applied.iter().zip(&named) {
        let at = own.iter().position(|own| element.is_some() && own == element);
        let until = at.map_or(next, |at| at.max(next));
        out.extend(
            (next..until).filter(|at| !named.contains(&own[*at])).map(|at| live[at].clone()),
        );
        next = until;
        out.push(match at {
            Some(at) => merge(&live[at], item, shape.item()),
            None => item.clone(),
        });
    }
    out.extend(
        (next..live.len()).filter(|at| !named.contains(&own[*at])).map(|at| live[at].clone()),
    );
    out
}

/// Removes what is in `gone` and neither in nor above anything of `kept`; containers emptied that way go too.
pub(super) fn remove(value: &mut Value, shape: Shape, gone: &Set, kept: &Set) {
    match value {
        Value::Object(fields) => {
            let names: Vec<String> = fields.keys().cloned().collect();
            for name in names {
                let element = Element::Field(name.clone());
                let Some(child) = fields.get_mut(&name) else { continue };
                if removes(child, shape.field(&name), gone.below(&element), kept.below(&element)) {
                    fields.remove(&name);
                }
            }
        }
        Value::Array(items) if matches!(shape, Shape::Set | Shape::Keyed(..)) => {
            items.retain_mut(|item| {
                let Some(element) = shape.element(item) else { return true };
                !removes(item, shape.item(), gone.below(&element), kept.below(&element))
            });
        }
        _ => {}
    }
}

fn removes(value: &mut Value, shape: Shape, gone: Option<&Set>, kept: Option<&Set>) -> bool {
    let Some(gone) = gone else { return false };
    let is_kept = kept.is_some_and(|kept| !kept.is_empty());
    if gone.is_member() && !is_kept {
        return true;
    }
    let nothing = Set::default();
    let was_empty = is_hollow(value);
    remove(value, shape, gone, kept.unwrap_or(&nothing));
    !was_empty && is_hollow(value) && !is_kept
}

fn is_hollow(value: &Value) -> bool {
    value.as_object().is_some_and(Map::is_empty) || value.as_array().is_some_and(Vec::is_empty)
}

/// What keeps an applied configuration from being typed, in upstream's words.
pub(super) fn errors(value: &Value, shape: Shape) -> Vec<String> {
    let mut out = Vec::new();
    find_errors(value, shape, &mut Vec::new(), &mut out);
    out
}

fn find_errors(value: &Value, shape: Shape, path: &mut Vec<Element>, out: &mut Vec<String>) {
    if let (Shape::Struct(message), Value::Object(fields)) = (shape, value) {
        for name in fields.keys().filter(|name| message.field(name).is_none()) {
            out.push(format!("{}.{name}: field not declared in schema", path_text(path)));
        }
    }
    if let (Shape::Set | Shape::Keyed(..), Value::Array(items)) = (shape, value) {
        let mut seen: Vec<Element> = Vec::new();
        for (index, item) in items.iter().enumerate() {
            let Some(element) = shape.element(item) else {
                let key = shape.missing_key(item).unwrap_or("");
                out.push(format!(
                    "{}: element {index}: associative list with keys has an element that omits key field {key:?} \
                     (and doesn't have default value)",
                    path_text(path)
                ));
                continue;
            };
            if seen.contains(&element) {
                out.push(format!("{}: duplicate entries for key {element}", path_text(path)));
            }
            seen.push(element);
        }
    }
    for (element, value, child) in shape.children(value).unwrap_or_default() {
        path.push(element);
        find_errors(value, child, path, out);
        path.pop();
    }
}
