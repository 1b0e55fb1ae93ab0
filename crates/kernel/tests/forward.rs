//! The program at the links, with real packets: whom flows reach, and that netfilter and routing never saw them.

#![expect(clippy::unwrap_used, reason = "a test may fail")]

#[path = "forward/lab.rs"]
mod lab;

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use kernel::bpf::Counter;

use kernel::bpf::forward::{Forward, NodeFacts, PLACES, Timeouts, detach_all};
use kernel::tc::Tc;
use lab::{Direction, FAMILIES, Lab, NODE_PORT, PORT, SILENCE, V4, V6, at, facts, tally};
use testkit::machine::Machine;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn flows(lab: &Lab) -> u64 {
    lab.counted(Counter::Flows4) + lab.counted(Counter::Flows6)
}

#[test]
fn clients_outside_reach_pods_here_and_elsewhere() {
    let mut lab = Lab::new("reach");
    for family in FAMILIES {
        let frontend = at(family.node, NODE_PORT);
        for (pod, name) in [(family.pod, "pod"), (family.far, "far")] {
            for masquerade in [false, true] {
                lab.serve(frontend, &[at(pod, PORT)], masquerade);
                let seen = ip(if masquerade { family.node } else { family.client });
                let before = flows(&lab);
                let expected = Some((name.to_owned(), seen));
                assert_eq!(lab.ask("client", frontend), expected, "TCP to {pod}");
                assert_eq!(lab.ask_udp("client", frontend), expected, "UDP to {pod}");
                assert_eq!(flows(&lab), before + 2);
            }
        }
    }
}

#[test]
fn netfilter_sees_nothing_of_these_flows() {
    let mut lab = Lab::new("unseen");
    lab.node("nft add table inet seen");
    lab.node("nft add chain inet seen packets { type filter hook prerouting priority -300; }");
    lab.node("nft add rule inet seen packets tcp dport { 8080, 30080 } counter drop");
    lab.node("nft add rule inet seen packets tcp sport { 8080, 30080 } counter drop");
    for family in FAMILIES {
        let frontend = at(family.node, NODE_PORT);
        for (pod, name) in [(family.pod, "pod"), (family.far, "far")] {
            lab.serve(frontend, &[at(pod, PORT)], true);
            assert_eq!(lab.ask("client", frontend), Some((name.to_owned(), ip(family.node))));
        }
    }
    let seen = lab.node("nft list chain inet seen packets");
    assert_eq!(seen.matches("counter packets 0 ").count(), 2, "{seen}");
}

#[test]
fn connections_that_nobody_answers_are_led_anew() {
    let mut lab = Lab::new("anew");
    lab.at("far", "nft add table inet dead");
    lab.at("far", "nft add chain inet dead input { type filter hook input priority 0; }");
    lab.at("far", &format!("nft add rule inet dead input tcp dport {PORT} drop"));
    for family in FAMILIES {
        let frontend = at(family.node, NODE_PORT);
        lab.serve(frontend, &[at(family.far, PORT)], true);
        let knock = lab.knock("client", frontend);
        lab.serve(frontend, &[at(family.pod, PORT)], true);
        assert_eq!(knock.answer(), Some(("pod".to_owned(), ip(family.node))));
    }
}

#[test]
fn pods_reach_each_other_past_netfilter() {
    let lab = Lab::new("direct");
    lab.node("nft add table inet seen");
    lab.node("nft add chain inet seen packets { type filter hook prerouting priority -300; }");
    lab.node("nft add rule inet seen packets meta l4proto tcp counter drop");
    for family in FAMILIES {
        let direct = || lab.counted(Counter::Direct4) + lab.counted(Counter::Direct6);
        for (from, to, name) in [("pod", family.far, "far"), ("far", family.pod, "pod")] {
            let before = direct();
            let source = ip(if from == "pod" { family.pod } else { family.far });
            assert_eq!(lab.ask(from, at(to, PORT)), Some((name.to_owned(), source)));
            assert_eq!(direct(), before + 1);
        }
        // Of others nothing is changed that is to no Service.
        assert_eq!(lab.ask("client", at(family.pod, PORT)), None);
    }
}

#[test]
fn answers_to_what_netfilter_translated_are_left_to_it() {
    let lab = Lab::new("answers");
    lab.node("nft add table inet foreign");
    lab.node("nft add chain inet foreign lead { type nat hook prerouting priority -100; }");
    for family in FAMILIES {
        let (vip, far) = (family.vip, at(family.far, PORT));
        let word = if far.is_ipv4() { "ip" } else { "ip6" };
        for protocol in ["tcp", "udp"] {
            let what = format!("{word} daddr {vip} {protocol} dport 80 dnat {word} to {far}");
            lab.node(&format!("nft add rule inet foreign lead {what}"));
        }
        let expected = Some(("far".to_owned(), ip(family.pod)));
        assert_eq!(lab.ask("pod", at(vip, 80)), expected);
        assert_eq!(lab.ask_udp("pod", at(vip, 80)), expected);
    }
}

#[test]
fn pods_reach_services_and_themselves() {
    let mut lab = Lab::new("pods");
    for family in FAMILIES {
        let vip = at(family.vip, 80);
        lab.serve(vip, &[at(family.far, PORT)], false);
        let expected = Some(("far".to_owned(), ip(family.pod)));
        assert_eq!(lab.ask("pod", vip), expected);
        assert_eq!(lab.ask_udp("pod", vip), expected);
        // To itself it comes back from the node, or it would not take its own packet.
        lab.serve(vip, &[at(family.pod, PORT)], false);
        let expected = Some(("pod".to_owned(), ip(family.node)));
        assert_eq!(lab.ask("pod", vip), expected);
        assert_eq!(lab.ask_udp("pod", vip), expected);
    }
}

#[test]
fn much_is_carried_with_and_without_help_of_the_links() {
    let mut lab = Lab::new("much");
    for offload in ["on", "off"] {
        for (place, link) in
            [("client", "eth0"), ("pod", "eth0"), ("far", "eth0"), ("node", "pod0")]
        {
            lab.at(
                place,
                &format!(
                    "ethtool -K {link} tx {offload} gso {offload} gro {offload} tso {offload}"
                ),
            );
        }
        for family in FAMILIES {
            let frontend = at(family.node, NODE_PORT);
            for (pod, masquerade) in [(family.pod, true), (family.far, true), (family.pod, false)] {
                lab.serve(frontend, &[at(pod, PORT)], masquerade);
                let mut talk = lab.talk("client", frontend);
                for bytes in [1, 1_000_000, 10, 3_000_000] {
                    assert_eq!(talk.say(bytes), bytes, "{pod}, offload {offload}");
                }
            }
        }
    }
}

#[test]
fn endpoints_are_drawn_evenly() {
    let mut lab = Lab::new("drawn");
    for family in FAMILIES {
        let frontend = at(family.node, NODE_PORT);
        lab.serve(frontend, &[at(family.pod, PORT), at(family.far, PORT)], true);
        let counts = tally((0..400).map(|_| lab.ask("client", frontend)));
        // Outside of 140 to 260 once in a thousand million times.
        assert!(counts.keys().eq(["far", "pod"]), "{counts:?}");
        assert!(counts.values().all(|count| (140..=260).contains(count)), "{counts:?}");
    }
}

#[test]
fn connections_stay_when_endpoints_go_and_datagrams_do_not() {
    let mut lab = Lab::new("stay");
    for family in FAMILIES {
        let frontend = at(family.node, NODE_PORT);
        lab.serve(frontend, &[at(family.pod, PORT)], true);
        let mut talk = lab.talk("client", frontend);
        let flow = lab.udp("client", frontend);
        assert_eq!(flow.ask(ANSWER).unwrap().0, "pod");
        // More endpoints do not move it.
        lab.serve(frontend, &[at(family.far, PORT), at(family.pod, PORT)], true);
        for _ in 0..8 {
            assert_eq!(flow.ask(ANSWER).unwrap().0, "pod");
        }
        lab.serve(frontend, &[at(family.far, PORT)], true);
        assert_eq!(flow.ask(ANSWER).unwrap().0, "far");
        assert_eq!(talk.say(100), 100);
        // Nobody: what is there goes on, datagrams are left to the rules underneath, which have none here.
        lab.serve(frontend, &[], true);
        assert_eq!(talk.say(100), 100);
        assert_eq!(flow.ask(SILENCE), None);
    }
}

const ANSWER: Duration = Duration::from_secs(3);

#[test]
fn flows_go_on_when_the_agent_dies_and_comes_back() {
    let mut lab = Lab::new("back");
    let frontends = FAMILIES.map(|family| at(family.node, NODE_PORT));
    let mut talks = Vec::new();
    for (family, frontend) in FAMILIES.into_iter().zip(frontends) {
        lab.serve(frontend, &[at(family.far, PORT)], true);
        talks.push(lab.talk("client", frontend));
    }
    (lab.forward, lab.tables) = (None, None);
    for (talk, frontend) in talks.iter_mut().zip(frontends) {
        assert_eq!(talk.say(100), 100);
        assert_eq!(lab.ask("client", frontend).unwrap().0, "far");
    }
    lab.start();
    for (talk, frontend) in talks.iter_mut().zip(frontends) {
        assert_eq!(talk.say(100), 100);
        assert_eq!(lab.ask("client", frontend).unwrap().0, "far");
    }
    // Gone for good: what comes is for the rules underneath, which have nothing here.
    kernel::netns::within(&lab.path("node"), || detach_all(&mut Tc::open().unwrap()).unwrap())
        .unwrap();
    assert!(lab.ask("client", frontends[0]).is_none());
    lab.start();
    assert_eq!(lab.ask("client", frontends[0]).unwrap().0, "far");
}

#[test]
fn what_cannot_be_carried_whole_is_left_alone() {
    let mut lab = Lab::new("left");
    lab.tell(&facts());
    let frontend = at(V4.node, NODE_PORT);
    // Without ports nothing can be masqueraded.
    lab.serve(frontend, &[at(V4.pod, PORT)], true);
    assert_eq!(lab.ask("client", frontend), None);
    assert_eq!(flows(&lab), 0);
    assert!(lab.counted(Counter::Left4) > 0);
    lab.serve(frontend, &[at(V4.pod, PORT)], false);
    assert!(lab.ask("client", frontend).is_some());
    // Pods of other nodes are not the outside.
    lab.at("far", "ip addr add 198.18.0.200/32 dev lo");
    assert!(lab.ask("far", frontend).is_none_or(|(_, seen)| seen != ip(V4.far)));
    // An endpoint behind a link that the program does not see.
    lab.serve(frontend, &[at("127.0.0.1", PORT)], false);
    let before = flows(&lab);
    assert_eq!(lab.ask("client", frontend), None);
    assert_eq!(flows(&lab), before);
}

#[test]
fn silent_flows_are_forgotten() {
    let mut lab = Lab::new("silent");
    let timeouts = Timeouts { answered_s: 1, asked_s: 1, ..Timeouts::default() };
    lab.tell(&NodeFacts { ports: Some(20_000..=29_999), timeouts, ..facts() });
    let frontend = at(V6.node, NODE_PORT);
    lab.serve(frontend, &[at(V6.pod, PORT)], true);
    let flow = lab.udp("client", frontend);
    assert!(flow.ask(ANSWER).is_some());
    assert!(flow.ask(ANSWER).is_some());
    assert_eq!(flows(&lab), 1);
    let forgotten = (0..100).any(|_| {
        std::thread::sleep(Duration::from_millis(1500));
        assert!(flow.ask(ANSWER).is_some());
        flows(&lab) > 1
    });
    assert!(forgotten);
}

#[test]
fn a_port_is_free_again_when_its_connection_is_closed() {
    let mut lab = Lab::new("ports");
    // Without that, the fifth connection would find none. The endpoint closes a moment after the client.
    lab.tell(&NodeFacts { ports: Some(20_000..=20_003), ..facts() });
    let frontend = at(V4.node, NODE_PORT);
    lab.serve(frontend, &[at(V4.pod, PORT)], true);
    for _ in 0..20 {
        let free = (0..100).any(|_| {
            std::thread::sleep(Duration::from_millis(10));
            lab.ask("client", frontend).is_some()
        });
        assert!(free);
    }
}

#[test]
fn datagrams_in_parts_come_whole() {
    let mut lab = Lab::new("parts");
    for family in FAMILIES {
        let frontend = at(family.node, NODE_PORT);
        for (pod, name) in [(family.pod, "pod"), (family.far, "far")] {
            lab.serve(frontend, &[at(pod, PORT)], true);
            let flow = lab.udp("client", frontend);
            for bytes in [10, 4000, 10, 20_000] {
                let answer = flow.ask_with(&vec![b'?'; bytes], ANSWER);
                assert_eq!(answer, Some((name.to_owned(), ip(family.node))), "{bytes} to {pod}");
            }
        }
    }
}

#[test]
fn errors_find_back_to_the_client() {
    let mut lab = Lab::new("errors");
    for family in FAMILIES {
        let frontend = at(family.node, NODE_PORT);
        for (pod, masquerade) in
            [(family.pod, true), (family.pod, false), (family.far, true), (family.far, false)]
        {
            lab.serve(frontend, &[at(pod, PORT + 1)], masquerade);
            let before = flows(&lab);
            assert!(lab.udp("client", frontend).is_refused(), "{pod} {masquerade}");
            assert_eq!(flows(&lab), before + 1);
        }
        // To a pod that asks, too.
        lab.serve(at(family.vip, 80), &[at(family.far, PORT + 1)], false);
        assert!(lab.udp("pod", at(family.vip, 80)).is_refused());
    }
}

#[test]
fn routers_on_the_way_say_what_fits() {
    let mut lab = Lab::new("routers");
    lab.at("far", "sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1");
    lab.at("far", "ip link add beyond type veth peer name end");
    lab.at("far", "ip link set beyond mtu 1290 up");
    for (family, beyond) in FAMILIES.into_iter().zip(["10.244.2.7", "fd44:0:2::7"]) {
        lab.at("far", &format!("ip route add {beyond} dev beyond"));
        let frontend = at(family.node, NODE_PORT);
        for masquerade in [true, false] {
            lab.serve(frontend, &[at(beyond, PORT)], masquerade);
            let flow = lab.udp("client", frontend);
            let is_told = (0..100).any(|_| {
                flow.send(1400);
                std::thread::sleep(Duration::from_millis(20));
                lab.at("client", &format!("ip route get {}", family.node)).contains("mtu 1290")
            });
            assert!(is_told, "{beyond} {masquerade}");
            lab.at("client", "ip route flush cache");
            lab.at("client", "ip -6 route flush cache");
        }
    }
}

#[test]
fn narrow_ways_are_told_of() {
    let mut lab = Lab::new("narrow");
    for narrow in ["side", "wan"] {
        lab.node(&format!("ip link set {narrow} mtu 1300"));
        for family in FAMILIES {
            let frontend = at(family.node, NODE_PORT);
            for masquerade in [true, false] {
                lab.serve(frontend, &[at(family.far, PORT)], masquerade);
                let mut talk = lab.talk("client", frontend);
                for bytes in [10, 100_000, 1_000_000] {
                    assert_eq!(talk.say(bytes), bytes, "{narrow}, masquerade {masquerade}");
                }
            }
        }
        lab.node(&format!("ip link set {narrow} mtu 1500"));
        for place in ["client", "far"] {
            lab.at(place, "ip route flush cache");
            lab.at(place, "ip -6 route flush cache");
        }
    }
}

#[test]
fn clients_stay_with_their_endpoints() {
    let mut lab = Lab::new("affinity");
    for family in FAMILIES {
        let frontend = at(family.node, NODE_PORT);
        let both = [at(family.pod, PORT), at(family.far, PORT)];
        lab.serve_staying(frontend, &both, 3600);
        let clients: Vec<IpAddr> = (100..108)
            .map(|number| {
                let (client, _) = family.client.split_at(family.client.len() - 1);
                ip(&format!("{client}{number}"))
            })
            .collect();
        let ends: Vec<String> = clients
            .iter()
            .map(|client| {
                lab.at("client", &format!("ip addr add {client} dev eth0 nodad"));
                let mut answers = (0..4).map(|_| {
                    let answer = lab.ask_as(SocketAddr::new(*client, 0), frontend).unwrap();
                    assert_eq!(answer.1, *client);
                    answer.0
                });
                let first = answers.next().unwrap();
                assert!(answers.all(|other| other == first));
                first
            })
            .collect();
        let stays = |name: &str| ends.iter().position(|end| end == name).map(|at| clients[at]);
        // These addresses are always the same, and so is where they lead.
        let (here, there) = (stays("pod").unwrap(), stays("far").unwrap());
        let ask =
            |lab: &Lab, client: IpAddr| lab.ask_as(SocketAddr::new(client, 0), frontend).unwrap().0;
        lab.serve_staying(frontend, &both[..1], 3600);
        assert_eq!(ask(&lab, there), "pod");
        assert_eq!(ask(&lab, here), "pod");
        // Now it is remembered there, until that is too long ago.
        lab.serve_staying(frontend, &both, 3600);
        assert_eq!(ask(&lab, there), "pod");
        std::thread::sleep(Duration::from_millis(2100));
        lab.serve_staying(frontend, &both, 1);
        assert_eq!(ask(&lab, there), "far");
    }
}

#[test]
fn a_client_whom_the_rules_led_stays_with_them() {
    let mut lab = Lab::new("theirs");
    let frontend = at(V4.node, NODE_PORT);
    let nowhere = at("127.0.0.1", PORT);
    lab.serve_staying(frontend, &[nowhere], 3600);
    assert_eq!(lab.ask("client", frontend), None);
    lab.serve_staying(frontend, &[nowhere, at(V4.pod, PORT)], 3600);
    lab.serve_staying(frontend, &[at(V4.pod, PORT)], 3600);
    assert_eq!(lab.ask("client", frontend), None);
    assert_eq!(flows(&lab), 0);
}

#[test]
fn a_flow_that_is_half_forgotten_comes_back_and_one_that_is_lost_ends() {
    let mut lab = Lab::new("forgotten");
    for family in FAMILIES {
        let frontend = at(family.node, NODE_PORT);
        lab.serve(frontend, &[at(family.far, PORT)], true);
        let mut talk = lab.talk("client", frontend);
        assert_eq!(talk.say(100), 100);
        lab.lose(Direction::Reply);
        // Those that are looked at every second are not forgotten.
        std::thread::sleep(Duration::from_millis(1100));
        assert_eq!(talk.say(100), 100);
        lab.lose(Direction::Forth);
        assert!(talk.is_reset());
        let mut talk = lab.talk("client", frontend);
        lab.lose(Direction::Forth);
        lab.lose(Direction::Reply);
        assert!(talk.is_reset());
        assert!(lab.ask("client", frontend).is_some());
    }
}

#[test]
fn what_is_left_of_a_flow_takes_no_answers_of_others() {
    let mut lab = Lab::new("older");
    lab.node("nft add table inet rules");
    lab.node("nft add chain inet rules lead { type nat hook prerouting priority -100; }");
    for (family, word) in FAMILIES.into_iter().zip(["ip", "ip6"]) {
        let (far, gone) = (at(family.far, PORT), at(family.node, NODE_PORT));
        // From one port to a Service and to its endpoint, at once.
        let client = at(family.client, 45_002);
        lab.serve(gone, &[far], false);
        let mut talk = lab.talk_as(client, gone);
        assert_eq!(lab.ask_as(client, far), Some(("far".to_owned(), client.ip())));
        assert_eq!(talk.say(100), 100);
        // To the endpoint itself, and to a Service that is left to the rules.
        let client = at(family.client, 45_000);
        lab.leave_over(far, client, gone);
        assert_eq!(lab.ask_as(client, far), Some(("far".to_owned(), client.ip())));
        let client = at(family.client, 45_001);
        let left = at(family.node, NODE_PORT + 1);
        lab.serve(left, &[], false);
        lab.node(&format!(
            "nft add rule inet rules lead {word} daddr {} tcp dport {} dnat {word} to {far}",
            family.node,
            left.port()
        ));
        lab.leave_over(far, client, gone);
        assert_eq!(lab.ask_as(client, left), Some(("far".to_owned(), client.ip())));
    }
}

#[test]
fn connections_go_on_when_the_mode_is_left() {
    let mut lab = Lab::new("leave");
    let frontends = FAMILIES.map(|family| at(family.node, NODE_PORT));
    for (family, frontend) in FAMILIES.into_iter().zip(frontends) {
        lab.serve(frontend, &[at(family.far, PORT)], true);
    }
    let mut talks = frontends.map(|frontend| lab.talk("client", frontend));
    let flow = lab.udp("client", frontends[0]);
    assert!(flow.ask(ANSWER).is_some());
    let mut leaving = lab.leaving();
    leaving.begin().unwrap();
    for (talk, frontend) in talks.iter_mut().zip(frontends) {
        assert_eq!(talk.say(100_000), 100_000);
        assert_eq!(lab.ask("client", frontend), None);
    }
    assert_eq!(flow.ask(SILENCE), None);
    assert!(leaving.carries().unwrap());
    drop(talks);
    let is_over = (0..200).any(|_| {
        std::thread::sleep(Duration::from_millis(10));
        !leaving.carries().unwrap()
    });
    assert!(is_over);
    lab.tell(&NodeFacts { ports: Some(20_000..=29_999), ..facts() });
    assert!(lab.ask("client", frontends[0]).is_some());
}

#[test]
fn the_kernel_of_debian_12_takes_it_too() {
    Machine::new().unwrap().run_test("it_loads_in_the_machine").unwrap();
}

#[test]
#[ignore = "runs in the virtual machine"]
fn it_loads_in_the_machine() {
    let folder = tempfile::tempdir().unwrap();
    let pins = folder.path().join("pins");
    let mut forward = Forward::open(&pins).unwrap();
    forward.tell(&NodeFacts { ports: Some(20_000..=29_999), ..facts() }).unwrap();
    forward.put_table(1, &[0; PLACES]).unwrap();
    assert_eq!(forward.tables().unwrap(), [1].into());
    // What is loaded is taken over.
    drop(forward);
    assert_eq!(Forward::open(&pins).unwrap().tables().unwrap(), [1].into());
    kernel::bpf::remove(&pins).unwrap();
}
