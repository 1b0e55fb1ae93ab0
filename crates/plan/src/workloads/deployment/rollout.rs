//! The rolling update: up by the surge, down by what is available beyond the minimum.

use api::apps::ReplicaSet;

use super::{Rollout, available, replicas};

impl Rollout<'_> {
    /// One step of a rolling update: first up, else down, else clean up.
    pub(super) fn roll(&mut self) {
        let size = self.new_size();
        if !self.ensure_new(size) {
            return;
        }
        if self.new_replicas() != size {
            self.scale_new(size);
            return;
        }
        if !self.scale_down_old() && self.is_complete() {
            self.clean_up();
        }
    }

    /// The size of the new set that the surge allows now.
    fn new_size(&self) -> i32 {
        let (present, wanted) = (self.new_replicas(), self.replicas());
        if present >= wanted {
            return wanted;
        }
        let (surge, _) = self.fenceposts();
        let room = wanted + surge - self.sets().map(replicas).sum::<i32>();
        present + room.clamp(0, wanted - present)
    }

    /// Scales old sets down: first replicas that are not available anyway, then as many as availability allows.
    fn scale_down_old(&mut self) -> bool {
        let (_, max_unavailable) = self.fenceposts();
        let minimum = self.replicas() - max_unavailable;
        let total: i32 = self.sets().map(replicas).sum();
        let new_unavailable = self.new.as_ref().map_or(0, |set| replicas(set) - sure(set));
        let mut budget = total - minimum - new_unavailable;
        if budget <= 0 {
            return false;
        }
        let mut sizes: Vec<i32> = self.old.iter().map(replicas).collect();
        for (size, set) in sizes.iter_mut().zip(&self.old) {
            let unhealthy = (*size - sure(set)).clamp(0, budget);
            *size -= unhealthy;
            budget -= unhealthy;
        }
        let mut surplus = self.sets().map(sure).sum::<i32>() - minimum;
        for size in &mut sizes {
            let down = (*size).min(surplus).max(0);
            *size -= down;
            surplus -= down;
        }
        let mut scaled = false;
        for (index, size) in sizes.into_iter().enumerate() {
            if replicas(&self.old[index]) != size {
                self.scale_old(index, size);
                scaled = true;
            }
        }
        scaled
    }

    /// Whether every wanted pod is new and available, and no old one is left.
    fn is_complete(&self) -> bool {
        self.new.as_ref().is_some_and(|set| {
            let status = set.status.clone().unwrap_or_default();
            status.replicas == self.replicas() && available(set) == self.replicas()
        }) && self.old.iter().all(|set| set.status.as_ref().is_none_or(|one| one.replicas == 0))
    }
}

/// Available pods that the set keeps: one that was just scaled down may still report those that go.
fn sure(set: &ReplicaSet) -> i32 {
    available(set).min(replicas(set))
}
