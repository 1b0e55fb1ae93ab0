//! What one part knows of the objects: each kind as of its own moment in the past, as reflectors do.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use api::{Name, Objects};
use serde_json::Value;

use super::Event;
use crate::action::ObjectKind;

macro_rules! kinds {
    ($($field:ident $variant:ident: $type:ty,)*) => {
        /// An object as watches deliver it, decoded once.
        #[derive(Clone)]
        pub(super) enum Copy { $($variant(Arc<$type>),)* }

        /// All objects that a part knows.
        #[derive(Clone, Default)]
        pub(super) struct Copies { $(pub(super) $field: Objects<$type>,)* }

        /// The kinds that are watched.
        pub(super) const KINDS: &[ObjectKind] = &[$(ObjectKind::$variant,)*];

        impl Copy {
            pub(super) fn of(kind: ObjectKind, value: &Value) -> Option<Self> {
                match kind {
                    $(ObjectKind::$variant => {
                        let object = serde_json::from_value(value.clone()).expect("decodes");
                        Some(Self::$variant(Arc::new(object)))
                    })*
                    _ => None,
                }
            }
        }

        impl Copies {
            fn take(&mut self, kind: ObjectKind, event: &Event) {
                match (&event.copy, kind) {
                    $((Some(Copy::$variant(object)), _) => {
                        self.$field.insert(event.name.clone(), Arc::clone(object));
                    })*
                    $((None, ObjectKind::$variant) => {
                        self.$field.remove(&event.name);
                    })*
                    (None, _) => {}
                }
            }
        }
    };
}

kinds! {
    pods Pod: api::core::Pod,
    nodes Node: api::core::Node,
    services Service: api::core::Service,
    endpoints Endpoints: api::core::Endpoints,
    slices EndpointSlice: api::discovery::EndpointSlice,
    deployments Deployment: api::apps::Deployment,
    replica_sets ReplicaSet: api::apps::ReplicaSet,
}

/// Copies, how much of each kind's past they hold, and what of them is new.
#[derive(Clone, Default)]
pub(super) struct View {
    pub(super) copies: Copies,
    at: BTreeMap<ObjectKind, usize>,
    /// Objects that changed since somebody looked; `None` after a relist.
    pub(super) dirty: Option<BTreeSet<(ObjectKind, Name)>>,
    /// Own writes, which the next plan must have seen.
    own: BTreeMap<ObjectKind, usize>,
}

impl View {
    /// Takes in the next changes of one kind, at most `count`.
    pub(super) fn deliver(
        &mut self,
        past: &BTreeMap<ObjectKind, Vec<Event>>,
        kind: ObjectKind,
        count: usize,
    ) {
        let at = self.at.entry(kind).or_default();
        let events = past.get(&kind).map_or(&[][..], Vec::as_slice);
        let end = at.saturating_add(count).min(events.len());
        for event in &events[(*at).min(end)..end] {
            self.copies.take(kind, event);
            if let Some(dirty) = &mut self.dirty {
                dirty.insert((kind, event.name.clone()));
            }
        }
        *at = end.max(*at);
    }

    pub(super) fn deliver_all(&mut self, past: &BTreeMap<ObjectKind, Vec<Event>>) {
        for kind in KINDS {
            self.deliver(past, *kind, usize::MAX);
        }
    }

    /// Remembers own writes.
    pub(super) fn wrote(&mut self, reach: BTreeMap<ObjectKind, usize>) {
        self.own.extend(reach);
    }

    /// Waits for own writes, as the loop does before it plans.
    pub(super) fn catch_up(&mut self, past: &BTreeMap<ObjectKind, Vec<Event>>) {
        for (kind, reach) in std::mem::take(&mut self.own) {
            let at = self.at.get(&kind).copied().unwrap_or(0);
            self.deliver(past, kind, reach.saturating_sub(at));
        }
    }
}
