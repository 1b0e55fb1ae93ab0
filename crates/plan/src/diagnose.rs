//! Why a Service does not work, with the nearest miss. Upstream has no counterpart: it stays silent (k/k#8329, k/k#31805).
//!
//! Pure: a Service and the objects that bear on it in, a [`Diagnosis`] out. The words are for the user: they name the
//! objects as he wrote them, and what he may have meant.

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

/// Why `service` does not work, or that it does.
#[must_use]
pub fn service(service: &Service, evidence: &Evidence<'_>) -> Diagnosis {
    let slices: Vec<&Arc<EndpointSlice>> = in_namespace(evidence.slices, service.namespace())
        .filter(|slice| label(slice.as_ref(), SERVICE_NAME) == Some(service.name()))
        .collect();
    let problem = if slices.is_empty() && !has_selector(service) {
        let message = "the Service has no selector, and no EndpointSlice names it";
        Some(Problem::new(Reason::NoEndpointSlices, message))
    } else {
        None
    };
    Diagnosis { problem, notes: Vec::new() }
}
