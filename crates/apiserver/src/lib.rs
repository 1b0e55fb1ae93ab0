//! The Kubernetes API: REST, watch, authentication, admission, discovery.
//!
//! Upstream counterpart: kube-apiserver. A kind is a row of `api::resource::RESOURCES`; everything here is written
//! once for all rows. Requests enter through [`Server::respond`], whether from a TLS connection or from a component in
//! the same process.

pub mod admission;
pub mod auth;
mod body;
pub mod bootstrap;
pub mod cache;
mod config;
mod convert;
mod decode;
mod discovery;
mod expiry;
mod keys;
mod lookup;
mod metrics;
mod negotiate;
mod object;
mod options;
mod paths;
pub mod pki;
pub mod proxy;
pub mod registry;
mod reply;
pub mod request;
mod rest;
mod select;
mod server;
mod table;

pub use body::{BODY_BYTES_MAX, Body, BoxError, empty_body, full_body, read_body};
pub use cache::Cache;
pub use config::Config;
pub use registry::{DeleteOptions, Registry, WriteOptions, Written};
pub use request::RequestInfo;
pub use server::{Server, ServerError};
