//! Scaling the sets of a Deployment: one set, or all in proportion while a rollout is on its way.

use api::Kind;
use api::apps::ReplicaSet;

use super::{DESIRED_REPLICAS, MAX_REPLICAS, Rollout, available, replicas};
use crate::action::Action;
use crate::objects::{Labels, annotation, reference};

impl Rollout<'_> {
    pub(super) fn scale_old(&mut self, index: usize, size: i32) {
        let mut set = std::mem::take(&mut self.old[index]);
        self.scale(&mut set, size);
        self.old[index] = set;
    }

    pub(super) fn scale_new(&mut self, size: i32) {
        if let Some(mut set) = self.new.take() {
            self.scale(&mut set, size);
            self.new = Some(set);
        }
    }

    /// Writes the size, and the annotations that later tell a scaling apart from a rollout.
    fn scale(&mut self, set: &mut ReplicaSet, size: i32) {
        if set.metadata.resource_version.is_none() && set.metadata.uid.is_some() {
            return;
        }
        let before = replicas(set);
        let mut changed = set.clone();
        self.annotate_size(changed.metadata.annotations.get_or_insert_default());
        changed.spec.get_or_insert_default().replicas = Some(size);
        if changed == *set {
            return;
        }
        self.plan.push(Action::Update(changed.clone().into()));
        if before != size {
            let direction = if size > before { "up" } else { "down" };
            let name = set.name();
            let message = format!("Scaled {direction} replica set {name} from {before} to {size}");
            self.plan.event(reference(self.deployment), "ScalingReplicaSet", message);
        }
        changed.metadata.resource_version = None;
        *set = changed;
    }

    pub(super) fn annotate_size(&self, annotations: &mut Labels) {
        let (surge, _) = self.fenceposts();
        let wanted = self.replicas();
        annotations.insert(DESIRED_REPLICAS.to_owned(), wanted.to_string());
        annotations.insert(MAX_REPLICAS.to_owned(), (wanted + surge).to_string());
    }

    /// Brings the sets to the wanted total without moving the rollout on.
    pub(super) fn scale_in_proportion(&mut self) {
        let wanted = self.replicas();
        let active = self.sets().filter(|set| replicas(set) > 0).count();
        if active <= 1 {
            match self.old.iter().position(|set| replicas(set) > 0) {
                Some(index) => self.scale_old(index, wanted),
                None if self.new.is_some() => self.scale_new(wanted),
                None => {
                    if let Some(latest) = self.old.len().checked_sub(1) {
                        self.scale_old(latest, wanted);
                    }
                }
            }
        } else if self.new.as_ref().is_some_and(|set| is_saturated(set, wanted)) {
            for index in 0..self.old.len() {
                if replicas(&self.old[index]) > 0 {
                    self.scale_old(index, 0);
                }
            }
        } else {
            self.spread();
        }
    }

    /// Gives each active set its share of what is to be added or removed; the largest takes the rounding.
    fn spread(&mut self) {
        let (wanted, (surge, _)) = (self.replicas(), self.fenceposts());
        let allowed = if wanted > 0 { wanted + surge } else { 0 };
        let total: i32 = self.sets().map(replicas).sum();
        let change = allowed - total;
        // Old sets are in order of age; the new one is the youngest and comes last.
        let mut order: Vec<(usize, i32)> =
            self.sets().map(replicas).enumerate().filter(|(_, size)| *size > 0).collect();
        if change > 0 {
            order.sort_by_key(|(index, size)| std::cmp::Reverse((*size, *index)));
        } else {
            order.sort_by_key(|(index, size)| (std::cmp::Reverse(*size), *index));
        }
        let mut added = 0;
        let mut sizes = Vec::new();
        for (index, size) in order {
            let set = self.old.get(index).or(self.new.as_ref());
            let ideal = set.map_or(0, |set| self.share(set, wanted + surge));
            let left = change - added;
            let share = if change > 0 { ideal.min(left).max(0) } else { ideal.max(left).min(0) };
            added += share;
            sizes.push((index, size + share));
        }
        if let Some(first) = sizes.first_mut() {
            first.1 = (first.1 + change - added).max(0);
        }
        for (index, size) in sizes {
            if index < self.old.len() {
                self.scale_old(index, size);
            } else {
                self.scale_new(size);
            }
        }
    }

    /// How much a set's size changes when the total maximum becomes `maximum`.
    fn share(&self, set: &ReplicaSet, maximum: i32) -> i32 {
        let size = replicas(set);
        if self.replicas() == 0 {
            return -size;
        }
        let before = annotation(set, MAX_REPLICAS).and_then(|text| text.parse::<i64>().ok());
        let status = self.deployment.status.as_ref().and_then(|status| status.replicas);
        let before = before.filter(|number| *number > 0).unwrap_or(i64::from(status.unwrap_or(0)));
        if before <= 0 {
            return 0;
        }
        let rounded = (2 * i64::from(size) * i64::from(maximum) + before) / (2 * before);
        i32::try_from(rounded).unwrap_or(i32::MAX) - size
    }
}

/// Whether the set alone is all that is wanted, and available.
fn is_saturated(set: &ReplicaSet, wanted: i32) -> bool {
    let seen = annotation(set, DESIRED_REPLICAS).and_then(|text| text.parse::<i32>().ok());
    replicas(set) == wanted && seen == Some(wanted) && available(set) == wanted
}
