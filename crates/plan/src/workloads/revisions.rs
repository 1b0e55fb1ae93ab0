//! ControllerRevisions: the numbered templates of a StatefulSet or DaemonSet. Upstream: `pkg/controller/history`.

use std::collections::BTreeMap;
use std::sync::Arc;

use api::Kind;
use api::apps::ControllerRevision;
use api::core::PodTemplateSpec;
use api::meta::ObjectMeta;
use serde_json::{Value, json};

use super::content_hash;
use crate::action::{Action, delete};

/// The label of pods, and of revisions, that names the template.
pub const REVISION_HASH: &str = "controller-revision-hash";

/// The revisions of one owner, and what to write so that the newest is the owner's template.
#[derive(Debug)]
pub struct History {
    /// Oldest first; the last is the owner's template.
    pub revisions: Vec<ControllerRevision>,
    /// A creation, or a new number for an old template.
    pub actions: Vec<Action>,
    /// The name is taken by another template.
    pub collided: bool,
}

impl History {
    /// The name of the newest revision.
    #[must_use]
    pub fn newest(&self) -> &str {
        self.revisions.last().map_or("", |revision| revision.name())
    }

    /// A revision by name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&ControllerRevision> {
        self.revisions.iter().find(|revision| revision.name() == name)
    }

    /// Deletions of the oldest revisions beyond `limit` that nothing uses.
    #[must_use]
    pub fn surplus(&self, limit: usize, used: impl Fn(&str) -> bool) -> Vec<Action> {
        let idle: Vec<_> = self
            .revisions
            .iter()
            .filter(|one| !used(one.name()) && one.metadata.uid.is_some())
            .collect();
        let surplus = idle.len().saturating_sub(limit);
        idle.into_iter().take(surplus).map(delete).collect()
    }
}

/// What a revision stores: the template as a patch that replaces it.
fn data(template: &PodTemplateSpec) -> Value {
    let mut template = serde_json::to_value(template).expect("API objects encode");
    if let Some(fields) = template.as_object_mut() {
        fields.insert("$patch".into(), "replace".into());
    }
    json!({ "spec": { "template": template } })
}

/// The template that a revision stores.
#[must_use]
pub fn template_of(revision: &ControllerRevision) -> Option<PodTemplateSpec> {
    let mut template = revision.data.as_ref()?.0.get("spec")?.get("template")?.clone();
    template.as_object_mut()?.remove("$patch");
    serde_json::from_value(template).ok()
}

/// The history of `owner` with `template` as its newest revision.
pub fn history<O: Kind>(
    owner: &O,
    template: &PodTemplateSpec,
    owned: &[Arc<ControllerRevision>],
    collisions: i32,
) -> History {
    let mut revisions: Vec<ControllerRevision> =
        owned.iter().map(|one| ControllerRevision::clone(one)).collect();
    revisions
        .sort_by_key(|one| (one.revision, crate::podfacts::created(one), one.name().to_owned()));
    let next = revisions.last().map_or(1, |last| last.revision + 1);
    let mut history = History { revisions, actions: Vec::new(), collided: false };
    let same =
        history.revisions.iter().rposition(|one| template_of(one).as_ref() == Some(template));
    match same {
        Some(index) if index + 1 == history.revisions.len() => {}
        Some(index) => {
            let mut revision = history.revisions.remove(index);
            revision.revision = next;
            history.actions.push(Action::Update(revision.clone().into()));
            history.revisions.push(revision);
        }
        None => {
            let hash = content_hash(template, collisions);
            let name = format!("{}-{hash}", owner.name());
            history.collided = history.get(&name).is_some();
            let mut labels = super::template_labels(template).cloned().unwrap_or_default();
            labels.insert(REVISION_HASH.to_owned(), hash);
            let revision = ControllerRevision {
                metadata: ObjectMeta {
                    name: Some(name),
                    namespace: Some(owner.namespace().to_owned()),
                    labels: Some(labels),
                    annotations: Some(BTreeMap::new()),
                    owner_references: Some(vec![owner.as_controller()]),
                    ..ObjectMeta::default()
                },
                data: serde_json::from_value(data(template)).ok(),
                revision: next,
            };
            if !history.collided {
                history.actions.push(Action::Create(revision.clone().into()));
            }
            history.revisions.push(revision);
        }
    }
    history
}
