//! Node ports that a process of the node listens on itself: the Service takes its traffic away, and that is told.
//!
//! kube-proxy held a socket for every node port until 1.27, and said so when it could not; since then it takes the port in
//! silence (k/k#61953).

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use api::core::{Node, Service};
use api::meta::{Condition, Time};
use api::{Kind, Name, Objects};
use jiff::Timestamp;
use serde_json::json;

use crate::action::{Action, Notice, ObjectKind, Plan};
use crate::objects::{label, reference};
use crate::proxy::Settings;
use crate::service::{LABEL_HEADLESS, LABEL_PROXY_NAME, Protocol};

/// The type of the condition of Services. It appears with the first conflict.
pub const CONDITION: &str = "NodePortsFree";
/// Its reason, and that of events, while there is a conflict.
pub const IN_USE: &str = "NodePortInUse";
/// Its reason when the conflict is over.
const FREE: &str = "NodePortsFree";
/// Services with one of these labels are not this proxy's.
const NOT_CARRIED: [&str; 2] = [LABEL_PROXY_NAME, LABEL_HEADLESS];

/// A socket of the node that listens.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Holder {
    /// TCP or UDP.
    pub protocol: Protocol,
    /// The address that it is bound to; unspecified for all.
    pub address: IpAddr,
    /// The port.
    pub port: u16,
    /// Whose it is, such as `nginx (12)`.
    pub process: String,
}

/// What is compared.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// All Services.
    pub services: Objects<Service>,
    /// All nodes: what one says that is no more is forgotten.
    pub nodes: Objects<Node>,
    /// The node's sockets.
    pub holders: BTreeSet<Holder>,
    /// Now.
    pub now: Timestamp,
}

/// The node ports of all Services that this proxy carries.
#[must_use]
pub fn node_ports(services: &Objects<Service>) -> BTreeSet<u16> {
    services.values().flat_map(|service| ports(service)).map(|(_, port)| port).collect()
}

fn ports(service: &Service) -> impl Iterator<Item = (Protocol, u16)> {
    let spec = service.spec.as_ref();
    let spec = spec.filter(|_| NOT_CARRIED.iter().all(|name| label(service, name).is_none()));
    let listed = spec.and_then(|spec| spec.ports.as_ref()).into_iter().flatten();
    listed.filter_map(|port| {
        let number = u16::try_from(port.node_port?).ok().filter(|number| *number != 0)?;
        Some((Protocol::of(port.protocol.as_deref())?, number))
    })
}

/// Tells every Service one of whose node ports is a process's on this node, and those for which that is over.
#[must_use]
pub fn plan(snapshot: &Snapshot, settings: &Settings) -> Plan {
    let mut plan = Plan::none();
    let node = snapshot.nodes.get(&Name::cluster(&settings.node)).map(AsRef::as_ref);
    let bound = snapshot.holders.iter().map(|holder| holder.address).collect();
    let answers: BTreeSet<IpAddr> =
        settings.node_view(node, &bound).addresses.into_iter().collect();
    let mut holders: BTreeMap<(Protocol, u16), BTreeSet<&str>> = BTreeMap::new();
    for holder in &snapshot.holders {
        if holder.address.is_unspecified() || answers.contains(&holder.address) {
            holders.entry((holder.protocol, holder.port)).or_default().insert(&holder.process);
        }
    }
    for service in snapshot.services.values() {
        let conflicts: Vec<String> = ports(service)
            .filter_map(|key| {
                let processes: Vec<&str> = holders.get(&key)?.iter().copied().collect();
                Some(format!("{}/{} is {}'s", key.1, key.0.word(), processes.join(" and ")))
            })
            .collect();
        plan.actions.extend(tell(snapshot, service, &settings.node, &conflicts));
    }
    plan
}

fn tell(snapshot: &Snapshot, service: &Service, node: &str, conflicts: &[String]) -> Vec<Action> {
    let prefix = format!("on node {node}: ");
    let present = present(service).filter(|one| one.status == "False");
    let others = present.filter(|one| {
        let said_by = one.message.strip_prefix("on node ").and_then(|rest| rest.split_once(':'));
        let alive = said_by
            .filter(|(who, _)| *who != node && snapshot.nodes.contains_key(&Name::cluster(who)));
        alive.is_some()
    });
    if conflicts.is_empty() {
        let over = present.is_some() && others.is_none();
        return over.then(|| write(service, true, "", snapshot.now)).into_iter().collect();
    }
    let message = format!("{prefix}{}; the Service takes its traffic", conflicts.join(", "));
    let told = Action::Event(Notice {
        about: reference(service),
        warning: true,
        reason: IN_USE,
        message: format!("Node port already in use {message}"),
    });
    let said = others.is_some() || present.is_some_and(|one| one.message == message);
    let write = (!said).then(|| write(service, false, &message, snapshot.now));
    [Some(told), write].into_iter().flatten().collect()
}

fn present(service: &Service) -> Option<&Condition> {
    let conditions = service.status.as_ref()?.conditions.as_ref()?;
    conditions.iter().find(|condition| condition.type_ == CONDITION)
}

/// Replaces our condition among those of others, if the Service is still this one.
fn write(service: &Service, free: bool, message: &str, now: Timestamp) -> Action {
    let status = if free { "True" } else { "False" };
    let same = present(service).filter(|one| one.status == status);
    let since = same.map(|one| one.last_transition_time.clone());
    let now = Timestamp::from_second(now.as_second()).unwrap_or(now);
    let ours = Condition {
        type_: CONDITION.to_owned(),
        status: status.to_owned(),
        reason: if free { FREE } else { IN_USE }.to_owned(),
        message: message.to_owned(),
        observed_generation: None,
        last_transition_time: since.unwrap_or(Time(now)),
    };
    let status = service.status.as_ref();
    let mut conditions = status.and_then(|status| status.conditions.clone()).unwrap_or_default();
    conditions.retain(|one| one.type_ != CONDITION);
    conditions.push(ours);
    Action::Patch {
        kind: ObjectKind::Service,
        name: service.object_name(),
        status: true,
        patch: json!({
            "metadata": {"uid": service.uid(), "resourceVersion": service.meta().resource_version},
            "status": {"conditions": conditions},
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proxy::NodePortAddresses;
    use crate::world::World;

    fn world() -> (World, Name) {
        let mut world = World::at(1000);
        for (name, address) in [("n1", "198.18.0.11"), ("n2", "198.18.0.12")] {
            world.add::<Node>(json!({
                "metadata": {"name": name},
                "status": {"addresses": [{"type": "InternalIP", "address": address}]},
            }));
        }
        let ports = json!([{"port": 80, "nodePort": 30007, "protocol": "TCP"}, {"port": 53, "nodePort": 30053, "protocol": "UDP"}]);
        let name = world.add::<Service>(json!({
            "metadata": {"name": "web", "namespace": "a"}, "spec": {"type": "NodePort", "ports": ports},
        }));
        (world, name)
    }

    fn holder(protocol: Protocol, address: &str, port: u16) -> Holder {
        let address = address.parse().expect("an address");
        Holder { protocol, address, port, process: "nginx (12)".to_owned() }
    }

    /// What was written, and what the events say.
    fn step(world: &mut World, node: &str, holders: &[Holder]) -> (usize, Vec<String>) {
        let settings = Settings { node: node.to_owned(), ..Settings::default() };
        step_with(world, &settings, holders)
    }

    fn step_with(
        world: &mut World,
        settings: &Settings,
        holders: &[Holder],
    ) -> (usize, Vec<String>) {
        let snapshot = Snapshot {
            services: world.all(),
            nodes: world.all(),
            holders: holders.iter().cloned().collect(),
            now: world.time(),
        };
        let plan = plan(&snapshot, settings);
        let writes = plan.actions.iter().filter(|one| matches!(one, Action::Patch { .. })).count();
        world.events.clear();
        world.apply(plan);
        (writes, world.events.clone())
    }

    fn condition(world: &World, name: &Name) -> Option<(String, String)> {
        let services = world.all::<Service>();
        present(services.get(name)?).map(|one| (one.status.clone(), one.message.clone()))
    }

    #[test]
    fn a_conflict_is_told_and_its_end() {
        let (mut world, name) = world();
        assert_eq!(step(&mut world, "n1", &[]), (0, Vec::new()));
        assert_eq!(condition(&world, &name), None);
        let holders = [holder(Protocol::Tcp, "0.0.0.0", 30007)];
        let (writes, events) = step(&mut world, "n1", &holders);
        let words = "on node n1: 30007/TCP is nginx (12)'s; the Service takes its traffic";
        assert_eq!((writes, events), (1, vec![format!("Node port already in use {words}")]));
        assert_eq!(condition(&world, &name), Some(("False".into(), words.into())));
        assert_eq!(step(&mut world, "n1", &holders).0, 0, "it is said");
        assert_eq!(step(&mut world, "n1", &[]), (1, Vec::new()));
        assert_eq!(condition(&world, &name), Some(("True".into(), String::new())));
    }

    #[test]
    fn only_what_the_proxy_takes_is_a_conflict() {
        let (mut world, _) = world();
        for holders in [
            holder(Protocol::Udp, "0.0.0.0", 30007),
            holder(Protocol::Tcp, "0.0.0.0", 30008),
            holder(Protocol::Tcp, "127.0.0.1", 30007),
            holder(Protocol::Tcp, "192.0.2.1", 30007),
        ] {
            assert_eq!(step(&mut world, "n1", &[holders]), (0, Vec::new()));
        }
        assert_eq!(step(&mut world, "n1", &[holder(Protocol::Tcp, "198.18.0.11", 30007)]).0, 1);
        let all = Settings {
            node: "n1".into(),
            node_port_addresses: vec![NodePortAddresses::All],
            ..Settings::default()
        };
        let second = [holder(Protocol::Udp, "192.0.2.1", 30053)];
        assert_eq!(step_with(&mut world, &all, &second).0, 1, "it answers there as well");
    }

    #[test]
    fn nodes_leave_what_other_nodes_say() {
        let (mut world, name) = world();
        let holders = [holder(Protocol::Tcp, "::", 30007)];
        step(&mut world, "n1", &holders);
        let (writes, events) = step(&mut world, "n2", &holders);
        assert_eq!((writes, events.len()), (0, 1));
        assert_eq!(step(&mut world, "n2", &[]).0, 0);
        world.remove(ObjectKind::Node, &Name::cluster("n1"));
        assert_eq!(step(&mut world, "n2", &[]).0, 1, "a node that is gone says nothing");
        assert_eq!(condition(&world, &name).map(|(status, _)| status), Some("True".into()));
    }
}
