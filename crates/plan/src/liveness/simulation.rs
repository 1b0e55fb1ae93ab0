//! Clusters on a bad network, by seed: who is there is never left alone, and who is not always is.
//!
//! With `RHUMB_LONG=10` (at compile time) ten times as many seeds run, and bad weather lasts for an hour in every cluster.

mod net;

use std::collections::BTreeSet;

use super::{Id, Ring};
use crate::simulation::chance::Chance;
use net::{FINE, FOUL, Net, Said, Weather};

const HOUR_MS: u64 = 3_600_000;
const MINUTE_MS: u64 = 60_000;

/// How many times as many seeds run.
fn long() -> u64 {
    option_env!("RHUMB_LONG").and_then(|text| text.parse().ok()).unwrap_or(1)
}

/// Nobody may ever say that somebody is silent.
fn nobody_is_missed(net: &Net, what: &str) {
    assert!(net.said.is_empty(), "{what}: {:?}", &net.said[..net.said.len().min(5)]);
}

/// All nodes that are there leave exactly `silent` alone.
fn all_agree(net: &Net, silent: &BTreeSet<usize>, what: &str) {
    for (node, view) in net.views() {
        let others = view.iter().copied().filter(|other| *other != node);
        let wanted = silent.iter().copied().filter(|other| *other != node);
        assert!(others.eq(wanted), "{what}: node {node} leaves {view:?} alone, and not {silent:?}");
    }
}

/// When the last node said so of `of`, after `since`; who did not is in the second number.
fn last_said(net: &Net, of: usize, silent: bool, since: u64) -> (u64, usize) {
    let said = |said: &&Said| said.of == of && said.silent == silent && said.at >= since;
    let by: BTreeSet<usize> = net.said.iter().filter(said).map(|said| said.by).collect();
    let at = net.said.iter().filter(said).map(|said| said.at - since).max().unwrap_or(0);
    let others = net.nodes.iter().filter(|node| node.agent.is_some()).count();
    let others = others - usize::from(net.nodes[of].agent.is_some());
    (at, others.saturating_sub(by.len()))
}

#[test]
fn nobody_is_missed_in_bad_weather() {
    let minutes = |minutes: u64| if long() > 1 { HOUR_MS } else { minutes * MINUTE_MS };
    for (count, ms) in [(3, HOUR_MS), (5, minutes(20)), (20, minutes(3)), (100, minutes(1))] {
        for seed in 0..long() {
            let mut net = Net::new(count, seed, FOUL);
            net.run(ms);
            nobody_is_missed(&net, &format!("{count} nodes, seed {seed}"));
        }
    }
}

#[test]
fn a_dead_node_is_left_alone_by_all_within_a_second_and_taken_back() {
    for (count, seeds) in [(3, 20), (4, 10), (5, 10), (8, 10), (20, 5), (100, 1)] {
        let (mut slowest, mut sum) = (0, 0);
        for seed in 0..seeds * long() {
            let mut net = Net::new(count, seed, FINE);
            let dead = net.chance.below(count);
            let moment = net.chance.below(400) as u64;
            net.run(moment);
            let since = net.now;
            net.power_off(dead);
            net.run(1_000);
            let (took, missing) = last_said(&net, dead, true, since);
            assert_eq!(missing, 0, "{count} nodes, seed {seed}: not all have noticed");
            assert_eq!(net.said.len(), count - 1, "{count} nodes, seed {seed}: {:?}", net.said);
            (slowest, sum) = (took.max(slowest), sum + took);
            net.run(10_000);
            let since = net.now;
            net.power_on(dead);
            net.run(1_000);
            all_agree(&net, &BTreeSet::new(), &format!("{count} nodes, seed {seed}, back"));
            net.run(2_000);
            let told: Vec<bool> = net.told.iter().map(|(_, verdict)| verdict.silent).collect();
            assert_eq!(told, [true, false], "{count} nodes, seed {seed}: one tells, of each");
            assert!(since > 0);
        }
        let mean = sum / (seeds * long());
        assert!(mean <= 700, "{count} nodes: {mean} ms, at most {slowest}");
    }
}

#[test]
fn a_dead_node_is_left_alone_in_bad_weather_too() {
    for (count, seeds) in large(&[(3, 20), (5, 10), (20, 2)]) {
        for seed in 0..seeds * long() {
            let mut net = Net::new(count, seed, FOUL);
            let dead = net.chance.below(count);
            net.power_off(dead);
            net.run(2_000);
            all_agree(&net, &BTreeSet::from([dead]), &format!("{count} nodes, seed {seed}"));
            // Nor is it taken back while it is gone, whatever comes.
            net.run(20_000);
            all_agree(&net, &BTreeSet::from([dead]), &format!("{count} nodes, seed {seed}, later"));
            net.power_on(dead);
            net.run(5_000);
            all_agree(&net, &BTreeSet::new(), &format!("{count} nodes, seed {seed}, back"));
        }
    }
}

#[test]
fn agents_that_stand_still_end_or_begin_anew_are_no_dead_nodes() {
    for (count, seeds) in large(&[(3, 10), (5, 10), (20, 1)]) {
        for seed in 0..seeds * long() {
            let mut net = Net::new(count, seed, FOUL);
            for _ in 0..60 {
                let node = net.chance.below(count);
                match net.chance.below(3) {
                    0 => {
                        let ms = 200 + net.chance.below(1_800) as u64;
                        net.pause(node, ms);
                    }
                    1 => net.kill(node),
                    _ => net.start(node),
                }
                let ms = net.chance.below(1_500) as u64;
                net.run(ms);
            }
            nobody_is_missed(&net, &format!("{count} nodes, seed {seed}"));
            // One after another, as an upgrade does it.
            for node in 0..count {
                net.kill(node);
                net.run(700);
                net.start(node);
            }
            nobody_is_missed(&net, &format!("{count} nodes, seed {seed}, all anew"));
        }
    }
}

#[test]
fn a_stopped_machine_that_goes_on_accuses_nobody() {
    for seed in 0..40 {
        let mut net = Net::new(5, seed, FINE);
        // The whole machine stands: its kernel is silent too, and it is left alone; but it leaves nobody alone itself.
        let others: BTreeSet<usize> = BTreeSet::from([0]);
        net.part(&others, true);
        net.pause(0, 3_000);
        net.run(3_000);
        net.cut.clear();
        net.run(3_000);
        assert!(net.said.iter().all(|said| said.by != 0), "seed {seed}: {:?}", net.said);
        all_agree(&net, &BTreeSet::new(), &format!("seed {seed}"));
    }
}

#[test]
fn busy_nodes_are_neither_missed_nor_miss_others() {
    for (count, seeds) in [(3, 10), (5, 10), (20, 3)] {
        for seed in 0..seeds * long() {
            let mut net = Net::new(count, seed, FOUL);
            for round in 0..10 {
                for node in 0..count {
                    let slow = net.chance.below(800) as u64;
                    net.nodes[node].slow = if net.chance.is(40) { slow } else { 0 };
                }
                net.run(3_000);
                nobody_is_missed(&net, &format!("{count} nodes, seed {seed}, round {round}"));
            }
        }
    }
}

/// Large clusters, in a long run only.
fn large(few: &[(usize, u64)]) -> Vec<(usize, u64)> {
    let hundred = (long() > 1).then_some((100, 1));
    few.iter().copied().chain(hundred).collect()
}

/// A minority of the nodes, at least one.
fn minority(chance: &mut Chance, count: usize) -> BTreeSet<usize> {
    let most = (count - 1) / 2;
    let size = 1 + chance.below(most);
    let mut some = BTreeSet::new();
    while some.len() < size {
        some.insert(chance.below(count));
    }
    some
}

/// Whom of `few` a node can know to be gone, if those with whom it is connected, watcher by watcher, are a majority: whom two
/// of them watch, or one whose fellow watchers are all known to be gone.
fn seen_from(net: &Net, node: usize, few: &BTreeSet<usize>) -> BTreeSet<usize> {
    let ring = Ring::new(&net.ids());
    let neighbours = |of: usize| {
        let ids: BTreeSet<Id> = ring.neighbours(net.nodes[of].id).collect();
        (0..net.nodes.len()).filter(move |other| ids.contains(&net.nodes[*other].id))
    };
    let (mut with, mut open) = (BTreeSet::from([node]), vec![node]);
    while let Some(next) = open.pop() {
        for other in neighbours(next).filter(|other| !few.contains(other)) {
            if with.insert(other) {
                open.push(other);
            }
        }
    }
    let is_majority = 2 * with.len() > net.nodes.len();
    let mut known = BTreeSet::new();
    loop {
        let is_known = |gone: &usize| {
            let there = neighbours(*gone).filter(|one| with.contains(one)).count();
            let lost = neighbours(*gone).filter(|one| known.contains(one)).count();
            there >= 2 || there == 1 && lost + 1 == neighbours(*gone).count()
        };
        let more: BTreeSet<usize> = few.iter().copied().filter(is_known).collect();
        if !is_majority || more == known {
            return known;
        }
        known = more;
    }
}

#[test]
fn the_majority_leaves_the_minority_alone_and_never_the_other_way_round() {
    let near = Weather { loss: 0, twice: 20, latency: 1, jitter: 10 };
    for (count, seeds) in large(&[(3, 10), (4, 10), (5, 10), (9, 10), (20, 3)]) {
        for seed in 0..seeds * long() {
            let what = format!("{count} nodes, seed {seed}");
            let mut net = Net::new(count, seed, if seed % 2 == 0 { near } else { FOUL });
            let few = minority(&mut net.chance, count);
            let since = net.now;
            net.part(&few, true);
            net.run(20_000);
            for said in &net.said {
                assert!(!few.contains(&said.by), "{what}: the minority {few:?} acts: {said:?}");
                assert!(few.contains(&said.of), "{what}: {few:?} are gone: {said:?}");
            }
            for (node, view) in net.views().into_iter().filter(|(node, _)| !few.contains(node)) {
                let wanted = seen_from(&net, node, &few);
                assert!(view == wanted, "{what}: {node} has {view:?}, {wanted:?} of {few:?}");
            }
            let slow = net.said.iter().filter(|said| said.silent && said.at > since + 1_000);
            assert!(seed % 2 == 1 || slow.count() == 0, "{what}: {few:?}: {:?}", net.said);
            net.cut.clear();
            net.run(10_000);
            all_agree(&net, &BTreeSet::new(), &what);
        }
    }
}

#[test]
fn two_halves_leave_each_other_in_peace() {
    for count in [2, 4, 20] {
        for seed in 0..3 * long() {
            let mut net = Net::new(count, seed, FINE);
            let half: BTreeSet<usize> = (0..count / 2).collect();
            net.part(&half, true);
            net.run(20_000);
            nobody_is_missed(&net, &format!("{count} nodes, seed {seed}"));
        }
    }
}

#[test]
fn who_speaks_and_does_not_hear_or_hears_and_does_not_speak_is_silent() {
    for (count, seeds) in large(&[(3, 10), (5, 10), (9, 10), (20, 3)]) {
        for seed in 0..seeds * long() {
            let what = format!("{count} nodes, seed {seed}");
            let weather = Weather { twice: 20, latency: 1, jitter: 5, ..FINE };
            let mut net = Net::new(count, seed, weather);
            let few = minority(&mut net.chance, count);
            let dumb = net.chance.is(50);
            if dumb {
                net.part(&few, false);
            } else {
                let many = (0..count).filter(|node| !few.contains(node)).collect();
                net.part(&many, false);
            }
            net.run(5_000);
            for said in &net.said {
                assert!(!few.contains(&said.by), "{what}: {few:?} act, dumb {dumb}: {said:?}");
                assert!(few.contains(&said.of), "{what}: {few:?} are gone, dumb {dumb}: {said:?}");
            }
            for (node, view) in net.views().into_iter().filter(|(node, _)| !few.contains(node)) {
                let wanted = seen_from(&net, node, &few);
                assert!(view == wanted, "{what}: {node} has {view:?}, {wanted:?} of {few:?}");
            }
            net.cut.clear();
            net.run(5_000);
            all_agree(&net, &BTreeSet::new(), &what);
        }
    }
}

#[test]
fn one_broken_link_is_no_silent_node() {
    for (count, seeds) in [(3, 10), (5, 10), (20, 3)] {
        for seed in 0..seeds * long() {
            let mut net = Net::new(count, seed, FOUL);
            let one = net.chance.below(count);
            let other = (one + 1 + net.chance.below(count - 1)) % count;
            net.cut.extend([(one, other), (other, one)]);
            net.run(30_000);
            nobody_is_missed(&net, &format!("{count} nodes, seed {seed}: {one} and {other}"));
        }
    }
}

#[test]
fn agents_that_begin_anew_learn_who_is_silent_and_nobody_forgets() {
    for (count, seeds) in large(&[(3, 10), (5, 10), (20, 1)]) {
        for seed in 0..seeds * long() {
            let what = format!("{count} nodes, seed {seed}");
            let mut net = Net::new(count, seed, FINE);
            net.power_off(0);
            net.run(5_000);
            all_agree(&net, &BTreeSet::from([0]), &what);
            for node in 1..count {
                net.kill(node);
                net.run(500);
                net.start(node);
                net.run(4_000);
            }
            assert!(net.said.iter().all(|said| said.silent), "{what}: {:?}", net.said);
            all_agree(&net, &BTreeSet::from([0]), &format!("{what}, all anew"));
        }
    }
}

#[test]
fn who_falls_silent_again_and_again_is_taken_back_ever_later() {
    let mut net = Net::new(5, 1, FINE);
    let mut pauses = Vec::new();
    for _ in 0..6 {
        net.power_off(0);
        net.run(3_000);
        let since = net.now;
        net.power_on(0);
        net.run(6_000);
        let (took, missing) = last_said(&net, 0, false, since);
        assert_eq!(missing, 0, "all others have it back");
        pauses.push(took);
    }
    assert!(pauses[0] < 500, "{pauses:?}");
    assert!(pauses[5] > 2_500, "{pauses:?}");
    // A link that comes and goes is not used half of the time, but not switched all the time either.
    let before = net.said.len();
    for _ in 0..60 {
        net.power_off(0);
        net.run(600);
        net.power_on(0);
        net.run(600);
    }
    let changes = net.said.len() - before;
    assert!(changes <= 4 * 8, "{changes} verdicts in 72 seconds");
}

#[test]
fn whatever_happened_all_agree_in_the_end() {
    for seed in 0..40 * long() {
        let mut chance = Chance::new(seed ^ 0xabcd);
        let count = 3 + chance.below(8);
        let mut net = Net::new(count, seed, FOUL);
        for _ in 0..20 {
            something_happens(&mut net, &mut chance);
            let ms = chance.below(2_000) as u64;
            net.run(ms);
        }
        net.cut.clear();
        for node in 0..count {
            net.nodes[node].slow = 0;
            if net.nodes[node].agent.is_none() {
                net.power_on(node);
            }
        }
        net.run(20_000);
        all_agree(&net, &BTreeSet::new(), &format!("{count} nodes, seed {seed}"));
        let dead = minority(&mut chance, count);
        dead.iter().for_each(|node| net.power_off(*node));
        net.run(20_000);
        all_agree(&net, &dead, &format!("{count} nodes, seed {seed}, some dead"));
    }
}

fn something_happens(net: &mut Net, chance: &mut Chance) {
    let count = net.nodes.len();
    let node = chance.below(count);
    match chance.below(8) {
        0 => net.power_off(node),
        1 => net.power_on(node),
        2 => net.kill(node),
        3 if net.nodes[node].powered => net.start(node),
        4 => net.pause(node, 200 + chance.below(1_800) as u64),
        5 => {
            let few = minority(chance, count);
            net.part(&few, chance.is(50));
        }
        6 => net.cut.clear(),
        _ => net.nodes[node].slow = chance.below(200) as u64,
    }
}

#[test]
fn a_node_costs_the_same_in_a_cluster_of_any_size() {
    for (count, bytes_max) in [(3, 1_000), (8, 4_000), (100, 3_500), (300, 3_500)] {
        let mut net = Net::new(count, 1, FINE);
        net.sent = Some((0, 0));
        net.run(5_000);
        let (messages, bytes) = net.sent.unwrap();
        // Around the message: authentication, UDP and IPv4.
        let each = (bytes + messages * (16 + 28)) / (count as u64 * 5);
        assert!(each <= bytes_max, "{count} nodes: {each} bytes a second");
    }
}

#[test]
fn nodes_beat_together_and_wake_up_seldom() {
    for (count, seed) in [(3, 1), (3, 2), (8, 3), (20, 4), (100, 5)] {
        let mut net = Net::new(count, seed, FINE);
        // One after another, at any time.
        for node in 0..count {
            net.kill(node);
            let ms = net.chance.below(300) as u64;
            net.run(ms);
            net.start(node);
        }
        net.run(3_000);
        let (mut busy, mut before) = (0, 0);
        net.sent = Some((0, 0));
        for _ in 0..2_000 {
            net.run(1);
            let (messages, _) = net.sent.unwrap();
            busy += u32::from(messages > before);
            before = messages;
        }
        // Ten beats, and some milliseconds until the news of each is everywhere.
        assert!(busy <= 10 * 5, "{count} nodes: somebody sends in {busy} ms of 2,000");
        let each = before / count as u64;
        let neighbours = if count <= 8 { count as u64 - 1 } else { 8 };
        assert!(each <= 10 * neighbours, "{count} nodes: each sends {each} messages");
    }
}

#[test]
fn messages_of_strangers_and_old_ones_are_ignored() {
    use super::{Ignored, Liveness, Output};
    let ids: Vec<Id> = ["a", "b", "c", "d"].map(Id::of).to_vec();
    let members: BTreeSet<Id> = ids[..3].iter().copied().collect();
    let agent = |id: Id, epoch| {
        let mut agent = Liveness::new(id, epoch, 0);
        agent.members(0, &members);
        agent.tick(250);
        agent
    };
    let (mut one, mut other) = (agent(ids[0], 5), agent(ids[1], 5));
    let beats = |agent: &mut Liveness| {
        let sent = agent.outputs().into_iter().filter_map(|output| match output {
            Output::Send(beat) => Some(beat),
            _ => None,
        });
        sent.collect::<Vec<_>>()
    };
    let mine = beats(&mut other).into_iter().find(|beat| beat.to == ids[0]).unwrap();
    assert_eq!(one.receive(251, mine.clone()), Ok(()));
    assert_eq!(one.receive(252, mine.clone()), Err(Ignored::Old), "it came already");
    let wrong = super::Beat { to: ids[2], ..mine.clone() };
    assert_eq!(one.receive(252, wrong), Err(Ignored::NotForUs));
    let stranger = super::Beat { from: ids[3], ..mine.clone() };
    assert_eq!(one.receive(252, stranger), Err(Ignored::NoNeighbour));
    // A later life's message is new, and one of an earlier life is not, unless it answers.
    let later = super::Stamp { epoch: 6, number: 1 };
    assert_eq!(one.receive(253, super::Beat { stamp: later, ..mine.clone() }), Ok(()));
    assert_eq!(one.receive(254, mine.clone()), Err(Ignored::Old));
    let answered = beats(&mut one).into_iter().find(|beat| beat.to == ids[1]).unwrap();
    let answers = super::Beat { echo: Some(answered.stamp), ..mine };
    assert_eq!(one.receive(255, answers), Ok(()), "its clock went back");
}
