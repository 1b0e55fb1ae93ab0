//! The cluster's DNS zone and its answers, after the Kubernetes DNS specification 1.1.0 and CoreDNS' `kubernetes` plugin.
//!
//! The zone is a fold over Services: a change of one Service costs the work of one. Cloning it is cheap, so the server
//! swaps whole zones and readers never wait.

mod answer;
mod records;

pub use answer::{Answer, Data, Kind, Outcome, Record};
pub use records::{EndpointRecord, PortRecord, ServiceRecords, Target, service_records};

use std::net::IpAddr;

use api::Name;
use imbl::{OrdMap, OrdSet};

/// Seconds that answers may be kept (CoreDNS' default).
pub const TTL: u32 = 5;

/// All names of a cluster.
#[derive(Clone, Debug, PartialEq)]
pub struct Zone {
    /// The domain, lower case, without dots at its ends: `cluster.local`.
    domain: String,
    services: OrdMap<Name, ServiceRecords>,
    namespaces: OrdSet<String>,
    /// Names for PTR queries. Several Services may share an endpoint.
    pointers: OrdMap<IpAddr, OrdSet<String>>,
}

impl Zone {
    /// A zone without names.
    #[must_use]
    pub fn new(domain: &str) -> Self {
        Self {
            domain: domain.trim_matches('.').to_ascii_lowercase(),
            services: OrdMap::new(),
            namespaces: OrdSet::new(),
            pointers: OrdMap::new(),
        }
    }

    /// The domain without a trailing dot.
    #[must_use]
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// How many Services have names.
    #[must_use]
    pub fn len(&self) -> usize {
        self.services.len()
    }

    /// Whether no Service has a name.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.services.is_empty()
    }

    /// Sets what a Service answers with; `None` removes its names.
    pub fn set_service(&mut self, name: &Name, records: Option<ServiceRecords>) {
        if let Some(old) = self.services.remove(name) {
            for (address, host) in self.pointers_of(name, &old) {
                let rest = self
                    .pointers
                    .get(&address)
                    .map(|names| names.without(&host))
                    .unwrap_or_default();
                if rest.is_empty() {
                    self.pointers.remove(&address);
                } else {
                    self.pointers.insert(address, rest);
                }
            }
        }
        let Some(records) = records else { return };
        for (address, host) in self.pointers_of(name, &records) {
            self.pointers.entry(address).or_default().insert(host);
        }
        self.services.insert(name.clone(), records);
    }

    /// Says whether a namespace exists: its own name then has no data instead of not existing.
    pub fn set_namespace(&mut self, name: &str, exists: bool) {
        if exists {
            self.namespaces.insert(name.to_owned());
        } else {
            self.namespaces.remove(name);
        }
    }

    /// `web.default.svc.cluster.local`
    fn service_host(&self, name: &Name) -> String {
        format!("{}.{}.svc.{}", name.name, name.namespace, self.domain)
    }

    fn pointers_of(&self, name: &Name, records: &ServiceRecords) -> Vec<(IpAddr, String)> {
        let host = self.service_host(name);
        match &records.target {
            Target::ClusterIp(addresses) => {
                addresses.iter().map(|address| (*address, host.clone())).collect()
            }
            Target::Headless(endpoints) => {
                let endpoints = endpoints.iter();
                endpoints
                    .map(|endpoint| (endpoint.address, format!("{}.{host}", endpoint.host)))
                    .collect()
            }
            Target::External(_) => Vec::new(),
        }
    }
}
