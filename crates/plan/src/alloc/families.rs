//! IP families of a Service: which it has by its own words and the cluster's ranges.
//!
//! Upstream counterpart: `initIPFamilyFields` of `pkg/registry/core/service/storage/alloc.go`.

use std::net::IpAddr;

use api::StatusError;
use api::resource::FieldError;
use ipnet::IpNet;
use serde_json::{Value, json};

use super::Allocator;
use super::service::{invalid, is_headless, needs_cluster_ip, strings};

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// The family of an address.
    #[must_use]
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// The family of a prefix.
    #[must_use]
    pub fn of_prefix(prefix: &IpNet) -> Self {
        Self::of(prefix.network())
    }

    /// As the API writes it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }

    fn other(self) -> Self {
        match self {
            Self::V4 => Self::V6,
            Self::V6 => Self::V4,
        }
    }

    pub(super) fn parse(name: &str) -> Option<Self> {
        [Self::V4, Self::V6].into_iter().find(|family| family.name() == name)
    }
}

const SINGLE: &str = "SingleStack";
const PREFER: &str = "PreferDualStack";
const REQUIRE: &str = "RequireDualStack";

/// Fills `ipFamilyPolicy` and `ipFamilies`; refuses what the cluster does not have.
pub(super) fn complete(
    allocator: &Allocator,
    service: &mut Value,
    old: Option<&Value>,
) -> Result<(), StatusError> {
    if !needs_cluster_ip(service) {
        return Ok(());
    }
    inherit(service, old);
    // What is content with one family stays as it is when the cluster gets the other.
    let kept = |old: &Value| {
        ["ipFamilyPolicy", "ipFamilies", "clusterIPs"]
            .iter()
            .all(|field| service["spec"][*field] == old["spec"][*field])
    };
    if service["spec"]["ipFamilyPolicy"] == PREFER && old.is_some_and(kept) {
        return Ok(());
    }
    let selects =
        service["spec"]["selector"].as_object().is_some_and(|selector| !selector.is_empty());
    let free = is_headless(service) && !selects;
    if service["spec"]["ipFamilyPolicy"].as_str().unwrap_or("").is_empty() {
        service["spec"]["ipFamilyPolicy"] = if free { REQUIRE } else { SINGLE }.into();
    }
    infer(allocator, service)?;
    if free {
        let mut families = families(service);
        if families.is_empty() {
            families.extend(allocator.families().first());
        }
        if families.len() == 1 && service["spec"]["ipFamilyPolicy"] != SINGLE {
            families.push(families[0].other());
        }
        set_families(service, &families);
        return Ok(());
    }
    check(allocator, service, old)?;
    let mut families = families(service);
    if families.is_empty() {
        families.extend(allocator.families().first());
    }
    if families.len() == 1 && service["spec"]["ipFamilyPolicy"] != SINGLE {
        families
            .extend(allocator.families().into_iter().find(|family| *family == families[0].other()));
    }
    set_families(service, &families);
    Ok(())
}

/// What an update does not name stays as it was; a downgrade drops the second family.
fn inherit(service: &mut Value, old: Option<&Value>) {
    let Some(old) = old.filter(|old| needs_cluster_ip(old)) else { return };
    for field in ["ipFamilyPolicy", "ipFamilies"] {
        let unset = match &service["spec"][field] {
            Value::Array(list) => list.is_empty(),
            value => value.as_str().unwrap_or("").is_empty(),
        };
        if unset && !old["spec"][field].is_null() {
            service["spec"][field] = old["spec"][field].clone();
        }
    }
    if service["spec"]["ipFamilyPolicy"] != SINGLE || old["spec"]["ipFamilyPolicy"] == SINGLE {
        return;
    }
    for field in ["ipFamilies", "clusterIPs"] {
        let same = service["spec"][field] == old["spec"][field];
        if let Some(list) =
            service["spec"][field].as_array_mut().filter(|list| same && list.len() == 2)
        {
            list.truncate(1);
        }
    }
}

/// Families from given addresses.
fn infer(allocator: &Allocator, service: &mut Value) -> Result<(), StatusError> {
    let mut families = families(service);
    let given = service["spec"]["clusterIPs"].clone();
    let mut errors = Vec::new();
    for (index, address) in strings(&given).into_iter().enumerate() {
        let Ok(address) = address.parse::<IpAddr>() else { break };
        let family = Family::of(address);
        if index < families.len() {
            continue;
        }
        if allocator.families().contains(&family) {
            families.push(family);
        } else {
            let why = format!("{} is not configured on this cluster", family.name());
            errors.push(FieldError::invalid(format!("spec.clusterIPs[{index}]"), &given, why));
        }
    }
    if !errors.is_empty() {
        return Err(invalid(service, &errors));
    }
    if !families.is_empty() {
        set_families(service, &families);
    }
    Ok(())
}

fn check(allocator: &Allocator, service: &Value, old: Option<&Value>) -> Result<(), StatusError> {
    let policy = &service["spec"]["ipFamilyPolicy"];
    let families = families(service);
    let mut errors = Vec::new();
    let mut refuse =
        |why: &str| errors.push(FieldError::invalid("spec.ipFamilyPolicy", policy, why));
    if policy == SINGLE {
        if strings(&service["spec"]["clusterIPs"]).len() > 1 {
            refuse(
                "must be 'RequireDualStack' or 'PreferDualStack' when multiple cluster IPs are specified",
            );
        } else if families.len() > 1 {
            refuse(
                "must be 'RequireDualStack' or 'PreferDualStack' when multiple IP families are specified",
            );
        }
    } else if old.is_some_and(|old| strings(&old["spec"]["clusterIPs"]).len() == 2)
        && strings(&service["spec"]["clusterIPs"]).len() == 1
    {
        refuse("must be 'SingleStack' to release the secondary cluster IP");
    }
    if policy == REQUIRE && allocator.families().len() < 2 {
        refuse("this cluster is not configured for dual-stack services");
    }
    for (index, family) in families.iter().enumerate() {
        if !allocator.families().contains(family) {
            let value = Value::from(family.name());
            let field = format!("spec.ipFamilies[{index}]");
            errors.push(FieldError::invalid(field, &value, "not configured on this cluster"));
        }
    }
    if errors.is_empty() { Ok(()) } else { Err(invalid(service, &errors)) }
}

/// `spec.ipFamilies`, as far as they are families.
pub(super) fn families(service: &Value) -> Vec<Family> {
    strings(&service["spec"]["ipFamilies"]).into_iter().filter_map(Family::parse).collect()
}

fn set_families(service: &mut Value, families: &[Family]) {
    let names: Vec<&str> = families.iter().map(|family| family.name()).collect();
    service["spec"]["ipFamilies"] = json!(names);
}
