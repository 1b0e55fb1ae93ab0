//! Which addresses and ports answer from outside.

use std::net::IpAddr;

use api::core::Service;

/// The addresses of a Service outside the cluster: its load balancer's, and `spec.externalIPs`.
pub(super) fn external_addresses(service: &Service) -> (Vec<IpAddr>, Vec<IpAddr>) {
    let status = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    let ingress = status.and_then(|status| status.ingress.as_ref()).into_iter().flatten();
    let balancers = ingress.filter_map(|ingress| ingress.ip.as_deref()?.parse().ok());
    let external = service.spec.iter().flat_map(|spec| spec.external_ips.iter().flatten());
    (balancers.collect(), external.filter_map(|text| text.parse().ok()).collect())
}
