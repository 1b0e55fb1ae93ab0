//! Every decision of every component: pure functions from a snapshot to a plan.
pub mod action;
pub mod alloc;
pub mod decide;
pub mod diagnose;
pub mod disruption;
pub mod dns;
pub mod endpoints;
pub mod endpointslice;
pub mod explain;
pub mod gc;
pub mod guard;
pub mod liveness;
pub mod loadbalancer;
pub mod namespaces;
pub mod nodes;
pub mod objects;
pub mod podfacts;
pub mod podnet;
pub mod pods;
pub mod portuse;
pub mod proxy;
pub mod quota;
pub mod repair;
pub mod rollout;
pub mod scheduler;
pub mod service;
pub mod serviceaccounts;
pub mod servicecidr;
#[cfg(test)]
mod simulation;
pub mod volumes;
pub mod workloads;
#[cfg(test)]
mod world;
