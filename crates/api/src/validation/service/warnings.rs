//! Warnings about Services: what is accepted but will not last, or does nothing. Upstream: `pkg/api/service/warnings.go`.

use std::net::IpAddr;

use serde_json::Value;

use super::super::at::At;
use super::super::names::{sloppy_ip, sloppy_net, strict_net};
use super::is_headless;
use crate::service::RESET_CONNECTIONS;

/// What to tell the author of a Service.
pub(crate) fn warnings(service: &Value) -> Vec<String> {
    const HINTS: &str = "service.kubernetes.io/topology-aware-hints";
    let spec = At::root(service).get("spec");
    let mut warnings = Vec::new();
    if service["metadata"]["annotations"].get(HINTS).is_some() {
        warnings.push(format!(
            "annotation {HINTS} is deprecated, please use service.kubernetes.io/topology-mode instead"
        ));
    }
    let resets = service["metadata"]["annotations"].get(RESET_CONNECTIONS).and_then(Value::as_str);
    if let Some(text) = resets.filter(|text| crate::duration::parse(text).is_none()) {
        warnings.push(format!(
            "metadata.annotations[{RESET_CONNECTIONS}]: {text:?} is no time such as \"10s\"; connections are left alone"
        ));
    }
    let addresses = |list: &str| spec.get(list).items().filter_map(|ip| ip_warning(&ip));
    let named = spec.get("type").text() == "ExternalName";
    let headless = is_headless(service);
    if !headless {
        warnings.extend(addresses("clusterIPs"));
    }
    let external = !spec.get("externalIPs").is_empty();
    if headless {
        let ignored = [
            ("loadBalancerIP", !spec.get("loadBalancerIP").text().is_empty()),
            ("externalIPs", external),
            ("SessionAffinity", spec.get("sessionAffinity").text() == "ClientIP"),
        ];
        warnings.extend(
            ignored
                .iter()
                .filter(|(_, set)| *set)
                .map(|(field, _)| format!("spec.{field} is ignored for headless services")),
        );
    }
    warnings.extend(addresses("externalIPs"));
    if external && !headless && !named {
        warnings.push(
            "spec.externalIPs is deprecated and may no longer be implemented in some clusters"
                .to_owned(),
        );
    }
    warnings.extend(ip_warning(&spec.get("loadBalancerIP")));
    warnings.extend(
        spec.get("loadBalancerSourceRanges").items().filter_map(|range| cidr_warning(&range)),
    );
    if named && external {
        warnings.push("spec.externalIPs is ignored when spec.type is \"ExternalName\"".to_owned());
    }
    if !named && !spec.get("externalName").text().is_empty() {
        warnings
            .push("spec.externalName is ignored when spec.type is not \"ExternalName\"".to_owned());
    }
    if spec.get("trafficDistribution").text() == "PreferClose" {
        warnings.push(
            "spec.trafficDistribution: \"PreferClose\" is deprecated; use \"PreferSameZone\""
                .to_owned(),
        );
    }
    warnings
}

/// About an address in an old notation.
fn ip_warning(at: &At<'_>) -> Option<String> {
    let text = at.text();
    let old = |better: IpAddr| {
        format!("{}: non-standard IP address {text:?} is invalid: use \"{better}\"", at.path)
    };
    match text.parse::<IpAddr>() {
        Err(_) => sloppy_ip(text).map(old),
        Ok(IpAddr::V6(ip)) => match ip.to_ipv4_mapped() {
            Some(v4) => Some(old(v4.into())),
            None => (ip.to_string() != text).then(|| {
                format!(
                    "{}: IPv6 address {text:?} should be in RFC 5952 canonical format (\"{ip}\")",
                    at.path
                )
            }),
        },
        Ok(IpAddr::V4(_)) => None,
    }
}

/// About a subnet in an old notation, or with bits of a host.
fn cidr_warning(at: &At<'_>) -> Option<String> {
    let text = at.text();
    let strict = strict_net(text);
    let net = strict.or_else(|| sloppy_net(text))?;
    if net.addr() != net.network() {
        let (network, bits) = (net.trunc(), net.max_prefix_len());
        return Some(format!(
            "{}: CIDR value {text:?} is ambiguous in this context (should be \"{network}\" or \"{}/{bits}\"?)",
            at.path,
            net.addr()
        ));
    }
    if strict.is_none() {
        return Some(format!(
            "{}: non-standard CIDR value {text:?} is invalid: use \"{net}\"",
            at.path
        ));
    }
    let differs = text.contains(':') && net.to_string() != text;
    differs.then(|| {
        format!(
            "{}: IPv6 CIDR value {text:?} should be in RFC 5952 canonical format (\"{net}\")",
            at.path
        )
    })
}
