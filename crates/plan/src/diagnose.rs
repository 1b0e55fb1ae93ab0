//! Why a Service does not work, with the nearest miss. Upstream has no counterpart: it stays silent (k/k#8329, k/k#31805).
//!
//! Pure: a Service and the objects that bear on it in, a [`Diagnosis`] out. The words are for the user: they name the
//! objects as he wrote them, and what he may have meant.

pub mod condition;
mod near;
mod notes;
mod pods;
mod ports;
mod readiness;
mod selector;
#[cfg(test)]
mod tests;

use std::net::IpAddr;
use std::sync::Arc;

use api::core::{Event, Pod, Service};
use api::discovery::EndpointSlice;
use api::{Kind, Objects};

use crate::endpointslice::{SERVICE_NAME, has_selector};
use crate::objects::{in_namespace, label};

/// What a diagnosis is made from. Only what is there is told: with no events, no probe's answer is.
#[derive(Clone, Copy, Debug)]
pub struct Evidence<'a> {
    /// Pods: at least those of the Service's namespace; of others, if they are to be told.
    pub pods: &'a Objects<Pod>,
    /// EndpointSlices: at least the Service's own.
    pub slices: &'a Objects<EndpointSlice>,
    /// Warnings about pods, such as failed probes; may be empty.
    pub events: &'a Objects<Event>,
}

/// What is to be said of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnosis {
    /// Why it does not work; `None` when every port has an endpoint, or the Service has no use for one.
    pub problem: Option<Problem>,
    /// What is worth a word although it stops nothing, such as endpoints in the network of their host.
    pub notes: Vec<String>,
}

impl Diagnosis {
    /// Whether every port has an endpoint, or the Service has no use for one.
    #[must_use]
    pub fn works(&self) -> bool {
        self.problem.is_none()
    }
}

/// Why a Service does not work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// In one word, as conditions and events carry it.
    pub reason: Reason,
    /// In a sentence, with the nearest miss.
    pub message: String,
    /// Whether it is likely to pass by itself: pods that start, slices that are being written.
    pub passing: bool,
}

/// Why a Service does not work, in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// No pod has the labels.
    SelectorMatchesNoPods,
    /// Pods match, and none is ready.
    PodsNotReady,
    /// All pods that match are being deleted.
    PodsTerminating,
    /// All pods that match have ended.
    PodsEnded,
    /// No pod names the port that `targetPort` names.
    NamedPortMissing,
    /// The port of that name is of another protocol.
    ProtocolMismatch,
    /// The pods have no address of the Service's family.
    AddressFamilyMissing,
    /// No EndpointSlice says where it goes: a Service without selector waits for somebody to write one.
    NoEndpointSlices,
    /// The slices that there are list no endpoint that may be used.
    NoReadyEndpoints,
    /// `externalName` is an address: no name server answers for it.
    ExternalNameIsAddress,
}

impl Reason {
    /// As conditions and events carry it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::SelectorMatchesNoPods => "SelectorMatchesNoPods",
            Self::PodsNotReady => "PodsNotReady",
            Self::PodsTerminating => "PodsTerminating",
            Self::PodsEnded => "PodsEnded",
            Self::NamedPortMissing => "NamedPortMissing",
            Self::ProtocolMismatch => "ProtocolMismatch",
            Self::AddressFamilyMissing => "AddressFamilyMissing",
            Self::NoEndpointSlices => "NoEndpointSlices",
            Self::NoReadyEndpoints => "NoReadyEndpoints",
            Self::ExternalNameIsAddress => "ExternalNameIsAddress",
        }
    }
}

impl Problem {
    fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self { reason, message: message.into(), passing: false }
    }
}

/// Why `service` does not work, or that it does, with what else is worth a word.
#[must_use]
pub fn service(service: &Service, evidence: &Evidence<'_>) -> Diagnosis {
    Diagnosis {
        problem: problem(service, evidence),
        notes: notes::of(service, &pods::selected(service, evidence)),
    }
}

/// Why `service` does not work. While it works, its slices say so, and no pod is looked at.
#[must_use]
pub fn problem(service: &Service, evidence: &Evidence<'_>) -> Option<Problem> {
    let spec = service.spec.as_ref()?;
    if spec.type_.as_deref() == Some("ExternalName") {
        return external_name(spec.external_name.as_deref().unwrap_or(""));
    }
    let slices: Vec<&Arc<EndpointSlice>> = in_namespace(evidence.slices, service.namespace())
        .filter(|slice| label(slice.as_ref(), SERVICE_NAME) == Some(service.name()))
        .collect();
    let missing = ports::unserved(service, &slices)?;
    if has_selector(service) {
        pods::problem(service, evidence, &missing)
    } else {
        Some(ports::of_slices(service, evidence, &slices, &missing))
    }
}

/// A name server has no record to point at an address.
fn external_name(name: &str) -> Option<Problem> {
    let address: IpAddr = name.trim_end_matches('.').parse().ok()?;
    let message = format!(
        "externalName {name:?} is an address, not a name: a CNAME cannot point at it. \
         Use a Service without selector and an EndpointSlice with {address}"
    );
    Some(Problem::new(Reason::ExternalNameIsAddress, message))
}

/// "1 pod", "3 pods".
fn count(number: usize, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}
