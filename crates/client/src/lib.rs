//! The way every component reaches the API: requests, list and watch, reflectors, the loop, events.
//!
//! Upstream counterpart: client-go. Only this crate speaks to an API server. Components that share the API server's
//! process use the same [`Client`] over an in-process [`Transport`].

mod applied;
mod client;
mod events;
mod index;
mod kubeconfig;
mod reconcile;
mod reflector;
mod transport;
mod watch;

pub use applied::Applied;
pub use client::{Client, DeleteOptions, Error, List, ListParams, Patch};
pub use events::{EventKind, Recorder};
pub use index::Index;
pub use kubeconfig::{Kubeconfig, KubeconfigError};
pub use reconcile::{ApplyError, Inputs, Next, Reconcile, run};
pub use reflector::{Change, Reflector, View};
pub use transport::{
    Body, BoxError, InProcess, Tcp, Transport, TransportError, empty_body, full_body,
};
pub use watch::WatchEvent;
