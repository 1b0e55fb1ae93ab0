//! What makes an object invalid, in upstream's words: `pkg/apis/*/validation`.
//!
//! Three functions a kind, `create…(object)`, `update…(new, old)` and `status…(new, old)`, over defaulted objects of the
//! right types: defaults and `schema::check` come first. The order of errors is upstream's, where maps have one.

pub(crate) mod affinity;
pub(crate) mod at;
pub(crate) mod config;
pub(crate) mod container;
pub(crate) mod endpoints;
pub(crate) mod job;
pub(crate) mod meta;
pub(crate) mod names;
pub(crate) mod network;
pub(crate) mod pod;
pub(crate) mod policy;
pub(crate) mod probe;
pub(crate) mod rbac;
pub(crate) mod resources;
pub(crate) mod service;
pub(crate) mod storage;
pub(crate) mod volume;
pub(crate) mod workload;
