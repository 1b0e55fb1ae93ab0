//! Slices against a small API: conditions, ports, packing, and a property: slices are exactly the pods.

use proptest::prelude::{any, prop};
use proptest::{prop_assert, prop_assert_eq, proptest};
use serde_json::{Value, json};

use super::*;
use crate::action::ObjectKind;
use crate::world::World;

fn world(spec: &Value) -> (World, Name) {
    let mut world = World::at(1000);
    world.add::<Node>(json!({
        "metadata": {"name": "n1", "labels": {"topology.kubernetes.io/zone": "z1"}},
    }));
    let name = world.add::<Service>(json!({
        "metadata": {"name": "web", "namespace": "a", "labels": {"team": "shop"}},
        "spec": {"selector": {"app": "web"}, "ipFamilies": ["IPv4"],
            "ports": [{"name": "http", "port": 80, "targetPort": "http"}]},
    }));
    world.edit(ObjectKind::Service, &name, &json!({ "spec": spec }));
    (world, name)
}

fn pod(world: &mut World, index: usize, port: i32) -> Name {
    world.add::<Pod>(json!({
        "metadata": {"name": format!("p{index}"), "namespace": "a", "labels": {"app": "web"}},
        "spec": {"nodeName": "n1", "containers": [
            {"name": "c", "ports": [{"name": "http", "containerPort": port}]}]},
        "status": {"phase": "Running", "podIP": format!("10.0.{}.{}", index / 250, index % 250 + 1)},
    }))
}

fn step(world: &mut World, name: &Name) -> usize {
    let snapshot = Snapshot {
        services: world.all(),
        pods: world.all(),
        slices: world.all(),
        nodes: world.all(),
    };
    let plan = plan(&snapshot, name);
    let writes = plan.actions.len();
    world.apply(plan);
    writes
}

fn slices(world: &World) -> Vec<EndpointSlice> {
    world.all::<EndpointSlice>().values().map(|slice| EndpointSlice::clone(slice)).collect()
}

fn only(world: &World) -> Endpoint {
    let slices = slices(world);
    let [slice] = slices.as_slice() else { panic!("{slices:?}") };
    let endpoints = slice.endpoints.clone().unwrap_or_default();
    let [endpoint] = endpoints.as_slice() else { panic!("{endpoints:?}") };
    endpoint.clone()
}

fn conditions(world: &World) -> (Option<bool>, Option<bool>, Option<bool>) {
    let found = only(world).conditions.expect("set");
    (found.ready, found.serving, found.terminating)
}

#[test]
fn a_service_without_pods_has_a_placeholder() {
    let (mut world, name) = world(&json!({}));
    step(&mut world, &name);
    let all = slices(&world);
    assert_eq!((all.len(), &all[0].ports, all[0].endpoints.as_deref()), (1, &None, Some(&[][..])));
    assert_eq!(label(&all[0], MANAGED_BY), Some(CONTROLLER));
    assert_eq!(label(&all[0], "team"), Some("shop"));
    assert_eq!(all[0].controller().map(|owner| owner.name.as_str()), Some("web"));
    assert_eq!(step(&mut world, &name), 0);
    pod(&mut world, 0, 8080);
    assert_eq!(step(&mut world, &name), 1, "the placeholder is used again");
    assert_eq!(slices(&world)[0].ports.as_ref().map(|ports| ports[0].port), Some(Some(8080)));
}

#[test]
fn conditions_follow_the_pod() {
    let (mut world, name) = world(&json!({"trafficDistribution": "PreferSameZone"}));
    let pod = pod(&mut world, 0, 8080);
    step(&mut world, &name);
    assert_eq!(conditions(&world), (Some(false), Some(false), Some(false)));
    assert_eq!(only(&world).hints, None);
    world.now += 1;
    world.set_ready(&pod, true);
    step(&mut world, &name);
    assert_eq!(conditions(&world), (Some(true), Some(true), Some(false)));
    let endpoint = only(&world);
    assert_eq!((endpoint.zone.as_deref(), endpoint.node_name.as_deref()), (Some("z1"), Some("n1")));
    assert_eq!(
        endpoint.hints.and_then(|one| one.for_zones).map(|one| one[0].name.clone()),
        Some("z1".into())
    );
    assert_eq!(
        crate::objects::annotation(&slices(&world)[0], TRIGGER_TIME),
        Some("1970-01-01T00:16:41Z")
    );
    world.delete(ObjectKind::Pod, &pod);
    step(&mut world, &name);
    assert_eq!(conditions(&world), (Some(false), Some(true), Some(true)));
    world.edit(ObjectKind::Service, &name, &json!({"spec": {"publishNotReadyAddresses": true}}));
    step(&mut world, &name);
    assert_eq!(conditions(&world), (Some(true), Some(true), Some(true)));
}

#[test]
fn pods_with_other_ports_go_to_other_slices_and_edits_are_put_back() {
    let (mut world, name) = world(&json!({}));
    pod(&mut world, 0, 8080);
    pod(&mut world, 1, 9090);
    step(&mut world, &name);
    assert_eq!(slices(&world).len(), 2);
    let slice = slices(&world)[0].object_name();
    let edit = json!({"metadata": {"labels": {"team": "other"}}, "endpoints": []});
    world.edit(ObjectKind::EndpointSlice, &slice, &edit);
    assert_eq!(step(&mut world, &name), 1);
    assert_eq!(label(&slices(&world)[0], "team"), Some("shop"));
    assert_eq!(slices(&world)[0].endpoints.as_ref().map(Vec::len), Some(1));
    world.edit(ObjectKind::Service, &name, &json!({"spec": {"selector": null}}));
    step(&mut world, &name);
    assert!(slices(&world).is_empty(), "without a selector nothing is managed");
}

proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig { cases: 24, max_shrink_iters: 64, failure_persistence: None, ..Default::default() })]
    /// After every step the slices hold exactly the pods, at most 100 each, and a second step writes nothing.
    #[test]
    fn slices_are_exactly_the_pods(rounds in prop::collection::vec((any::<u8>(), 0..130_usize), 1..8)) {
        let (mut world, name) = world(&json!({}));
        let mut next = 0;
        for (what, count) in rounds {
            if what % 3 == 0 {
                for pod in world.all::<Pod>().keys().step_by(3).take(count) {
                    world.remove(ObjectKind::Pod, pod);
                }
            } else {
                for _ in 0..count {
                    pod(&mut world, next, 8080);
                    next += 1;
                }
            }
            step(&mut world, &name);
            let slices = slices(&world);
            let mut seen: Vec<_> = slices
                .iter()
                .flat_map(|slice| slice.endpoints.iter().flatten())
                .filter_map(|endpoint| endpoint.target_ref.as_ref()?.name.clone())
                .collect();
            seen.sort();
            let pods: Vec<_> = world.all::<Pod>().keys().map(|pod| pod.name.to_string()).collect();
            prop_assert_eq!(seen, pods);
            prop_assert!(slices.iter().all(|one| one.endpoints.as_ref().is_none_or(|all| all.len() <= 100)));
            prop_assert!(!slices.is_empty());
            prop_assert_eq!(step(&mut world, &name), 0);
        }
    }
}

/// Sizes of the slices, smallest first.
fn sizes(world: &World) -> Vec<usize> {
    let slices = slices(world);
    let mut sizes: Vec<_> =
        slices.iter().map(|one| one.endpoints.as_ref().map_or(0, Vec::len)).collect();
    sizes.sort_unstable();
    sizes
}

#[test]
fn packing_fills_what_changes_then_one_more_and_never_rebalances() {
    let (mut world, name) = world(&json!({}));
    for index in 0..250 {
        pod(&mut world, index, 8080);
    }
    assert_eq!((step(&mut world, &name), sizes(&world)), (3, vec![50, 100, 100]));
    pod(&mut world, 250, 8080);
    assert_eq!((step(&mut world, &name), sizes(&world)), (1, vec![51, 100, 100]), "one more slice");
    for slice in slices(&world) {
        // All but ten pods of one full slice go, and the slice stays as small.
        let endpoints = slice.endpoints.clone().unwrap_or_default();
        if endpoints.len() == 100 {
            for endpoint in &endpoints[10..] {
                let pod = endpoint.target_ref.as_ref().and_then(|one| one.name.clone());
                world.remove(ObjectKind::Pod, &Name::new("a", &pod.expect("a pod")));
            }
            break;
        }
    }
    assert_eq!((step(&mut world, &name), sizes(&world)), (1, vec![10, 51, 100]));
    for index in 300..345 {
        pod(&mut world, index, 8080);
    }
    assert_eq!(
        (step(&mut world, &name), sizes(&world)),
        (1, vec![10, 96, 100]),
        "the fullest with room for all of them"
    );
    for index in 400..495 {
        pod(&mut world, index, 8080);
    }
    assert_eq!(
        (step(&mut world, &name), sizes(&world)),
        (1, vec![10, 95, 96, 100]),
        "no one has room for all of them: a new slice"
    );
    let gone =
        slices(&world).into_iter().find(|one| one.endpoints.as_ref().map(Vec::len) == Some(10));
    let gone = gone.and_then(|one| one.endpoints?.into_iter().next()?.target_ref?.name);
    world.remove(ObjectKind::Pod, &Name::new("a", &gone.expect("a pod")));
    pod(&mut world, 500, 8080);
    pod(&mut world, 501, 8080);
    assert_eq!(
        (step(&mut world, &name), sizes(&world)),
        (1, vec![11, 95, 96, 100]),
        "into the slice that changes anyway"
    );
}

#[test]
fn families_have_slices_of_their_own_and_go_with_their_family() {
    let (mut world, name) = world(&json!({"ipFamilies": ["IPv4", "IPv6"]}));
    let first = pod(&mut world, 0, 8080);
    let ips = json!([{"ip": "10.0.0.1"}, {"ip": "fd00::1"}]);
    world.edit(ObjectKind::Pod, &first, &json!({"status": {"podIPs": ips}}));
    step(&mut world, &name);
    let mut found: Vec<_> = slices(&world)
        .into_iter()
        .map(|slice| (slice.address_type, slice.endpoints.unwrap_or_default()[0].addresses.clone()))
        .collect();
    found.sort();
    let expected = [("IPv4", "10.0.0.1"), ("IPv6", "fd00::1")];
    assert_eq!(found, expected.map(|(kind, ip)| (kind.to_owned(), vec![ip.to_owned()])));
    world.edit(ObjectKind::Service, &name, &json!({"spec": {"ipFamilies": ["IPv6"]}}));
    step(&mut world, &name);
    let kinds: Vec<_> = slices(&world).into_iter().map(|slice| slice.address_type).collect();
    assert_eq!(kinds, ["IPv6"]);
}

#[test]
fn who_is_an_endpoint_and_by_which_name() {
    let (mut world, name) = world(&json!({"clusterIP": "None"}));
    for (index, edit) in [
        json!({"status": {"phase": "Succeeded"}}),
        json!({"status": {"phase": "Failed"}}),
        json!({"status": {"podIP": null}}),
        json!({"spec": {"hostNetwork": true, "hostname": "h", "subdomain": "web"}}),
        json!({"spec": {"hostname": "h", "subdomain": "other"}}),
        json!({"spec": {"subdomain": "web"}}),
    ]
    .iter()
    .enumerate()
    {
        let pod = pod(&mut world, index, 8080);
        world.edit(ObjectKind::Pod, &pod, edit);
    }
    step(&mut world, &name);
    let all = slices(&world);
    assert_eq!(label(&all[0], HEADLESS), Some(""));
    assert_eq!(all[0].metadata.generate_name.as_deref(), Some("web-"));
    let hosts: BTreeMap<_, _> = all
        .iter()
        .flat_map(|slice| slice.endpoints.iter().flatten())
        .map(|one| (one.target_ref.as_ref().and_then(|pod| pod.name.clone()), one.hostname.clone()))
        .collect();
    let text = |text: &str| Some(text.to_owned());
    let expected = [(text("p3"), text("h")), (text("p4"), None), (text("p5"), None)];
    assert_eq!(hosts, BTreeMap::from(expected));
}

#[test]
fn a_port_name_that_a_pod_lacks_is_left_out_of_its_slice() {
    let ports = json!([{"name": "http", "port": 80, "targetPort": "http", "appProtocol": "kubernetes.io/h2c"},
        {"name": "admin", "port": 81, "targetPort": "admin"}]);
    let (mut world, name) = world(&json!({ "ports": ports }));
    pod(&mut world, 0, 8080);
    step(&mut world, &name);
    let ports = slices(&world)[0].ports.clone().unwrap_or_default();
    assert_eq!(ports.len(), 1);
    assert_eq!(ports[0].app_protocol.as_deref(), Some("kubernetes.io/h2c"));
}

#[test]
fn prefer_same_node_hints_at_node_and_zone() {
    let (mut world, name) = world(&json!({"trafficDistribution": "PreferSameNode"}));
    let pod = pod(&mut world, 0, 8080);
    world.set_ready(&pod, true);
    step(&mut world, &name);
    let hints = only(&world).hints.expect("ready");
    assert_eq!(hints.for_nodes.map(|nodes| nodes[0].name.clone()), Some("n1".into()));
    assert_eq!(hints.for_zones.map(|zones| zones[0].name.clone()), Some("z1".into()));
}

#[test]
fn what_others_manage_is_left_alone() {
    let (mut world, name) = world(&json!({}));
    let foreign = world.add::<EndpointSlice>(json!({
        "metadata": {"name": "mine", "namespace": "a", "labels": {SERVICE_NAME: "web", MANAGED_BY: "me"}},
        "addressType": "IPv4", "endpoints": [{"addresses": ["192.0.2.1"]}], "ports": [],
    }));
    step(&mut world, &name);
    assert_eq!(slices(&world).len(), 2);
    world.remove(ObjectKind::Service, &name);
    step(&mut world, &name);
    let left: Vec<_> = world.all::<EndpointSlice>().keys().cloned().collect();
    assert_eq!(left, [foreign]);
}
