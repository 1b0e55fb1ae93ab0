//! Ranges of service addresses that come and go while the cluster runs: ready as soon as they are there, gone only when no
//! address in use needs them.
//!
//! Upstream counterpart: `pkg/controller/servicecidrs` (KEP-1880).

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use api::meta::{Condition, Time};
use api::networking::{IPAddress, ServiceCIDR, ServiceCIDRStatus};
use api::{Name, Objects};
use ipnet::IpNet;
use jiff::Timestamp;

use crate::action::{Action, Plan};

/// Holds a range back until no address needs it.
pub const FINALIZER: &str = "networking.k8s.io/service-cidr-finalizer";
/// How long a deleted range is kept: Services that were given its addresses before get their IPAddress meanwhile.
const GRACE: Duration = Duration::from_secs(10);

/// What a range is planned from.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// All ranges.
    pub ranges: Objects<ServiceCIDR>,
    /// All addresses in use.
    pub addresses: Objects<IPAddress>,
    /// Now.
    pub now: Timestamp,
}

/// The prefixes of a range; what is no prefix is left out.
pub fn prefixes(range: &ServiceCIDR) -> impl Iterator<Item = IpNet> {
    let spec = range.spec.as_ref();
    let texts = spec.and_then(|spec| spec.cidrs.as_ref()).into_iter().flatten();
    texts.filter_map(|text| text.parse().ok())
}

/// Whether addresses may be taken from a range: not any more when it is being deleted.
#[must_use]
pub fn is_in_use(range: &ServiceCIDR) -> bool {
    range.metadata.deletion_timestamp.is_none()
}

/// Makes one range ready, or lets it go when no address needs it.
#[must_use]
pub fn plan(snapshot: &Snapshot, name: &Name) -> Plan {
    let mut plan = Plan::none();
    let Some(range) = snapshot.ranges.get(name) else { return plan };
    let holds = range.metadata.finalizers.iter().flatten().any(|one| one == FINALIZER);
    let mut changed = ServiceCIDR::clone(range);
    if is_in_use(range) {
        if !holds {
            changed.metadata.finalizers.get_or_insert_default().push(FINALIZER.to_owned());
            plan.push(Action::Update(changed.into()));
            return plan;
        }
        if set_ready(&mut changed, "True", "", "Kubernetes Service CIDR is ready", snapshot.now) {
            plan.push(Action::UpdateStatus(changed.into()));
        }
        return plan;
    }
    if !holds {
        return plan;
    }
    if is_needed(snapshot, range) {
        let message = "There are still IPAddresses referencing the ServiceCIDR, please remove them or create a new ServiceCIDR";
        if set_ready(&mut changed, "False", "Terminating", message, snapshot.now) {
            plan.push(Action::UpdateStatus(changed.into()));
        }
        return plan;
    }
    let since = range.metadata.deletion_timestamp.as_ref().map(|time| time.0);
    let age = since.and_then(|since| Duration::try_from(snapshot.now.duration_since(since)).ok());
    let left = GRACE.saturating_sub(age.unwrap_or_default());
    if !left.is_zero() {
        plan.again = Some(left);
        return plan;
    }
    changed.metadata.finalizers.get_or_insert_default().retain(|one| one != FINALIZER);
    plan.push(Action::Update(changed.into()));
    plan
}

/// Whether an address in use is in this range and in no other that stays.
fn is_needed(snapshot: &Snapshot, range: &Arc<ServiceCIDR>) -> bool {
    let stays = |other: &&Arc<ServiceCIDR>| !Arc::ptr_eq(other, range) && is_in_use(other);
    let others: Vec<IpNet> =
        snapshot.ranges.values().filter(stays).flat_map(|other| prefixes(other)).collect();
    let own: Vec<IpNet> = prefixes(range).collect();
    let within =
        |all: &[IpNet], address: IpAddr| all.iter().any(|prefix| prefix.contains(&address));
    snapshot.addresses.keys().any(|name| {
        // The object's name is the address.
        let address: Option<IpAddr> = name.name.parse().ok();
        address.is_some_and(|address| within(&own, address) && !within(&others, address))
    })
}

/// Writes the condition `Ready`; whether that changed anything.
fn set_ready(
    range: &mut ServiceCIDR,
    status: &str,
    reason: &str,
    message: &str,
    now: Timestamp,
) -> bool {
    let conditions = range
        .status
        .get_or_insert_with(ServiceCIDRStatus::default)
        .conditions
        .get_or_insert_default();
    let old = conditions.iter().position(|one| one.type_ == "Ready");
    let since = match old.map(|at| &conditions[at]) {
        Some(old) if (&*old.status, &*old.reason, &*old.message) == (status, reason, message) => {
            return false;
        }
        Some(old) if old.status == status => old.last_transition_time.clone(),
        _ => Time(now),
    };
    let condition = Condition {
        type_: "Ready".to_owned(),
        status: status.to_owned(),
        reason: reason.to_owned(),
        message: message.to_owned(),
        last_transition_time: since,
        observed_generation: None,
    };
    match old {
        Some(at) => conditions[at] = condition,
        None => conditions.push(condition),
    }
    true
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::action::ObjectKind;
    use crate::world::World;

    fn settle(world: &mut World, addresses: &[&str]) {
        let addresses: Objects<IPAddress> = addresses
            .iter()
            .map(|name| (Name::cluster(name), Arc::new(IPAddress::default())))
            .collect();
        for _ in 0..4 {
            for name in world.all::<ServiceCIDR>().keys() {
                let ranges = world.all();
                let snapshot = Snapshot { ranges, addresses: addresses.clone(), now: world.time() };
                world.apply(plan(&snapshot, name));
            }
        }
    }

    fn range(world: &mut World, name: &str, cidr: &str) -> Name {
        let value: Value = json!({"metadata": {"name": name}, "spec": {"cidrs": [cidr]}});
        world.add::<ServiceCIDR>(value)
    }

    #[test]
    fn a_range_is_held_by_its_finalizer_from_the_start() {
        let mut world = World::at(0);
        let name = range(&mut world, "more", "10.200.0.0/24");
        settle(&mut world, &[]);
        let ranges = world.all::<ServiceCIDR>();
        assert_eq!(ranges[&name].metadata.finalizers.as_deref(), Some(&[FINALIZER.to_owned()][..]));
    }

    fn ready(world: &World, name: &Name) -> Option<String> {
        let ranges = world.all::<ServiceCIDR>();
        let conditions = ranges.get(name)?.status.clone()?.conditions?;
        Some(format!("{} {}", conditions[0].status, conditions[0].reason).trim().to_owned())
    }

    #[test]
    fn a_range_is_ready_and_goes_when_no_address_needs_it() {
        let mut world = World::at(0);
        let name = range(&mut world, "more", "10.200.0.0/24");
        settle(&mut world, &["10.200.0.7", "10.96.0.1"]);
        assert_eq!(ready(&world, &name).as_deref(), Some("True"));
        world.delete(ObjectKind::ServiceCIDR, &name);
        settle(&mut world, &["10.200.0.7", "10.96.0.1"]);
        assert_eq!(ready(&world, &name).as_deref(), Some("False Terminating"));
        settle(&mut world, &["10.96.0.1"]);
        assert_eq!(world.all::<ServiceCIDR>().len(), 1, "an address may be on its way");
        world.now += 10;
        settle(&mut world, &["10.96.0.1"]);
        assert_eq!(world.all::<ServiceCIDR>().len(), 0);
    }

    #[test]
    fn a_range_goes_when_another_has_its_addresses() {
        let mut world = World::at(0);
        let name = range(&mut world, "small", "10.200.0.0/24");
        range(&mut world, "large", "10.200.0.0/16");
        settle(&mut world, &["10.200.0.7"]);
        world.delete(ObjectKind::ServiceCIDR, &name);
        world.now += 10;
        settle(&mut world, &["10.200.0.7"]);
        assert_eq!(world.all::<ServiceCIDR>().len(), 1);
    }
}
