//! The control plane's loops, each with its own view of the past.

use std::collections::{BTreeMap, BTreeSet};

use api::{Name, Objects};
use serde_json::json;

use super::Cluster;
use super::copies::{Copies, KINDS};
use crate::action::{ObjectKind, Plan};
use crate::{endpoints, endpointslice, scheduler, workloads};

/// A loop.
#[derive(Clone, Copy, Debug)]
pub(super) enum Part {
    Deployments,
    ReplicaSets,
    Scheduler,
    Slices,
    Endpoints,
}

impl Part {
    pub(super) const ALL: [Self; 5] =
        [Self::Deployments, Self::ReplicaSets, Self::Scheduler, Self::Slices, Self::Endpoints];

    /// The keys that the part may have to plan.
    fn keys(self, copies: &Copies) -> BTreeSet<Name> {
        match self {
            Self::Deployments => copies.deployments.keys().cloned().collect(),
            Self::ReplicaSets => copies.replica_sets.keys().cloned().collect(),
            Self::Scheduler => BTreeSet::from([Name::cluster("")]),
            Self::Slices => {
                let label = |slice: &api::discovery::EndpointSlice| {
                    let labels = slice.metadata.labels.clone()?;
                    let name = labels.get("kubernetes.io/service-name")?;
                    Some(Name::new(slice.metadata.namespace.as_deref()?, name))
                };
                let of_slices = copies.slices.values().filter_map(|slice| label(slice));
                of_slices.chain(copies.services.keys().cloned()).collect()
            }
            Self::Endpoints => {
                copies.endpoints.keys().chain(copies.services.keys()).cloned().collect()
            }
        }
    }

    fn plan(self, copies: &Copies, key: &Name, now: jiff::Timestamp) -> Plan {
        let Copies { pods, nodes, services, endpoints, slices, deployments, replica_sets } =
            copies.clone();
        match self {
            Self::Deployments => workloads::deployment::plan(
                &workloads::deployment::Snapshot { deployments, replica_sets, pods, now },
                key,
            ),
            Self::ReplicaSets => workloads::replicaset::plan(
                &workloads::replicaset::Snapshot { replica_sets, pods, now },
                key,
            ),
            Self::Scheduler => scheduler::plan(&scheduler::Snapshot {
                pods,
                nodes,
                namespaces: Objects::new(),
                claims: Objects::new(),
                volumes: Objects::new(),
                classes: Objects::new(),
                services,
                replica_sets,
                stateful_sets: Objects::new(),
                assumed: BTreeMap::new(),
                now,
            }),
            Self::Slices => {
                endpointslice::plan(&endpointslice::Snapshot { services, pods, slices, nodes }, key)
            }
            Self::Endpoints => {
                endpoints::plan(&endpoints::Snapshot { services, pods, endpoints }, key)
            }
        }
    }
}

impl Cluster {
    /// Some view hears of some changes.
    pub(super) fn deliver_something(&mut self) {
        let kind = self.chance.pick(KINDS).expect("there are kinds");
        let count = 1 + self.chance.below(4);
        let index = self.chance.below(self.parts.len() + self.nodes.len());
        let views = self.parts.iter_mut().map(|(_, view)| view);
        let mut views = views.chain(self.nodes.iter_mut().map(|(_, view)| view));
        let view = views.nth(index).expect("within both");
        view.deliver(&self.past, kind, count);
    }

    /// Some loop runs, on what it knows.
    pub(super) fn run_something(&mut self) {
        let index = self.chance.below(self.parts.len() + self.nodes.len());
        if index < self.parts.len() {
            self.run_part(index);
        } else {
            let fails = self.chance.is(10);
            self.run_proxy(index - self.parts.len(), fails);
        }
    }

    /// A loop plans all its keys; each plan sees the part's own writes but need not see anybody else's.
    pub(super) fn run_part(&mut self, index: usize) {
        let part = self.parts[index].0;
        for key in part.keys(&self.parts[index].1.copies) {
            // Past a limit the loop does not wait for its own writes any longer.
            if !self.chance.is(3) {
                self.parts[index].1.catch_up(&self.past);
            }
            let plan = part.plan(&self.parts[index].1.copies, &key, self.world.time());
            let reach = self.write(plan);
            self.parts[index].1.wrote(reach);
        }
    }

    /// A slice is edited or deleted by hand.
    pub(super) fn tamper(&mut self) {
        let names: Vec<Name> = self.now().slices.keys().cloned().collect();
        let Some(name) = self.chance.pick(&names) else { return };
        if self.chance.is(50) {
            self.world.remove(ObjectKind::EndpointSlice, &name);
        } else {
            self.world.edit(ObjectKind::EndpointSlice, &name, &json!({"endpoints": []}));
        }
        self.record();
    }
}
