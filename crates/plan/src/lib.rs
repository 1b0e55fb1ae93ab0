//! Every decision of every component: pure functions from a snapshot to a plan.
pub mod action;
pub mod alloc;
pub mod objects;
pub mod pods;
pub mod podfacts;
pub mod workloads;
pub mod podnet;
pub mod loadbalancer;
pub mod dns;
pub mod endpoints;
pub mod endpointslice;
pub mod scheduler;
pub mod volumes;
pub mod proxy;
pub mod service;
pub mod decide;
pub mod namespaces;
pub mod serviceaccounts;
pub mod gc;
pub mod nodes;
#[cfg(test)]
mod world;
