//! Packs endpoints into slices in few writes: change in place, fill what changes anyway, one more slice, else new ones.
//!
//! Never rebalances. Upstream counterpart: `reconcileByPortMapping` (KEP-0752).

use api::discovery::{Endpoint, EndpointPort, EndpointSlice};

use super::{Endpoints, TRIGGER_TIME, identity};

/// Slices to write. An update may turn out to change nothing.
#[derive(Debug, Default)]
pub(super) struct Writes {
    pub(super) create: Vec<EndpointSlice>,
    pub(super) update: Vec<EndpointSlice>,
    pub(super) delete: Vec<EndpointSlice>,
    /// Slices that stay as they are.
    pub(super) unchanged: Vec<EndpointSlice>,
}

impl Writes {
    /// Adds the writes of another group.
    pub(super) fn merge(&mut self, other: Self) {
        self.create.extend(other.create);
        self.update.extend(other.update);
        self.delete.extend(other.delete);
        self.unchanged.extend(other.unchanged);
    }

    /// Turns a deletion and a creation of the same address type into one update.
    pub(super) fn reuse(&mut self) {
        for old in std::mem::take(&mut self.delete) {
            match self.create.pop() {
                None => self.delete.push(old),
                Some(mut new) => {
                    let made = std::mem::replace(&mut new.metadata, old.metadata);
                    new.metadata.labels = made.labels;
                    new.metadata.owner_references = made.owner_references;
                    self.update.push(new);
                }
            }
        }
    }
}

/// Packs `wanted` into `existing` slices of the same ports and new ones of at most `max` endpoints.
pub(super) fn pack(
    template: &EndpointSlice,
    ports: Option<Vec<EndpointPort>>,
    mut wanted: Endpoints,
    existing: Vec<EndpointSlice>,
    max: usize,
) -> Writes {
    let mut writes = Writes::default();
    let placeholder = wanted.is_empty();
    let mut unchanged = Vec::new();
    for slice in existing {
        let before = slice.clone();
        let mut slice = framed(slice, template);
        let kept: Vec<Endpoint> = slice
            .endpoints
            .iter()
            .flatten()
            .filter_map(|endpoint| wanted.remove(&identity(endpoint)))
            .collect();
        if kept.is_empty() && !(placeholder && writes.update.is_empty() && unchanged.is_empty()) {
            writes.delete.push(before);
            continue;
        }
        slice.endpoints = Some(kept);
        if without_trigger(&slice) == without_trigger(&before) {
            unchanged.push(before);
        } else {
            writes.update.push(slice);
        }
    }
    let mut rest: Vec<Endpoint> = wanted.into_values().collect();
    writes.update.sort_by_key(|slice| std::cmp::Reverse(size(slice)));
    for slice in &mut writes.update {
        fill(slice, &mut rest, max);
    }
    if !rest.is_empty() && rest.len() < max {
        let fits = |slice: &EndpointSlice| size(slice) + rest.len() <= max;
        let room = unchanged.iter().enumerate().filter(|(_, slice)| fits(slice));
        if let Some((fullest, _)) = room.max_by_key(|(_, slice)| size(slice)) {
            let mut slice = unchanged.remove(fullest);
            fill(&mut slice, &mut rest, max);
            writes.update.push(slice);
        }
    }
    let none = placeholder && writes.update.is_empty() && unchanged.is_empty();
    while !rest.is_empty() || (none && writes.create.is_empty()) {
        let mut slice = template.clone();
        slice.ports.clone_from(&ports);
        fill(&mut slice, &mut rest, max);
        writes.create.push(slice);
    }
    writes.unchanged = unchanged;
    writes
}

/// The slice with the labels and owner that it must have.
fn framed(mut slice: EndpointSlice, template: &EndpointSlice) -> EndpointSlice {
    slice.metadata.labels.clone_from(&template.metadata.labels);
    slice.metadata.owner_references.clone_from(&template.metadata.owner_references);
    slice
}

fn without_trigger(slice: &EndpointSlice) -> EndpointSlice {
    let mut slice = slice.clone();
    if let Some(annotations) = &mut slice.metadata.annotations {
        annotations.remove(TRIGGER_TIME);
    }
    if slice.endpoints.is_none() {
        slice.endpoints = Some(Vec::new());
    }
    slice
}

fn size(slice: &EndpointSlice) -> usize {
    slice.endpoints.as_ref().map_or(0, Vec::len)
}

fn fill(slice: &mut EndpointSlice, rest: &mut Vec<Endpoint>, max: usize) {
    let endpoints = slice.endpoints.get_or_insert_default();
    let room = max.saturating_sub(endpoints.len()).min(rest.len());
    endpoints.extend(rest.drain(..room));
}
