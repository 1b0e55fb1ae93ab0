//! The conformance suite for data planes: real packets between network namespaces, compared with the executable
//! specification, row by row of the requirements and in random clusters. It writes `docs/conformance.md`.

#![expect(clippy::unwrap_used, reason = "a world that cannot be built fails its test")]

#[path = "conformance/drain.rs"]
mod drain;
#[path = "conformance/fast.rs"]
mod fast;
#[path = "conformance/machine.rs"]
mod machine;
#[path = "conformance/mode.rs"]
mod mode;
#[path = "conformance/objects.rs"]
mod objects;
#[path = "conformance/random.rs"]
mod random;
#[path = "conformance/rows.rs"]
mod rows;
#[path = "conformance/table.rs"]
mod table;
#[path = "conformance/topology.rs"]
mod topology;
#[path = "conformance/traffic.rs"]
mod traffic;
#[path = "conformance/world.rs"]
mod world;

#[test]
fn every_row_holds_in_every_mode() {
    table::every_row_in_every_mode();
}

#[test]
#[ignore = "runs in a virtual machine, which the test before starts"]
fn rows_in_the_machine() {
    table::say_what_is_seen();
}

#[test]
#[ignore = "runs in a virtual machine, which the next test starts"]
fn random_clusters_in_the_machine() {
    random::compare_on_this_kernel(true);
}

#[test]
fn random_clusters_are_carried_as_decided() {
    random::compare();
}

#[test]
fn connections_are_led_before_there_is_a_packet() {
    fast::no_packet_is_for_a_service();
}

#[test]
fn connections_outlive_the_mode_that_began_them() {
    fast::connections_outlive_the_mode();
}

#[test]
fn answers_take_the_short_way() {
    fast::answers_take_the_short_way();
}

#[test]
fn errors_find_the_endpoint_that_answers_itself() {
    fast::errors_find_the_endpoint();
}

#[test]
fn connections_that_are_lost_are_reset() {
    fast::lost_connections_are_reset();
}

#[test]
fn nodes_choose_alike() {
    fast::nodes_choose_alike();
}

#[test]
fn clients_outside_are_led_before_netfilter() {
    fast::no_packet_from_outside_is_seen();
}

#[test]
fn connections_outlast_endpoints_and_modes() {
    drain::in_machine();
}

#[test]
#[ignore = "runs in a virtual machine, which the test before starts"]
fn virtual_servers_drain() {
    drain::let_connections_end();
}
