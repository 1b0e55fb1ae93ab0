//! Nodes and the network between them: messages late, twice, out of order or never, links that carry one way, agents that
//! stop, are slow, end and begin anew, kernels that answer without them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::super::{Beat, Id, Liveness, Output, Verdict};
use crate::simulation::chance::Chance;

/// Messages that wait for a busy agent; the rest is lost, as in a socket.
const QUEUE_MAX: usize = 256;

/// What travels.
#[derive(Clone)]
enum Packet {
    Beat(Beat),
    Ping { from: usize, number: u16 },
    Pong { from: usize, number: u16 },
}

enum Event {
    Arrive { to: usize, packet: Packet },
    Wake { node: usize },
}

/// How the network is.
#[derive(Clone, Copy)]
pub(super) struct Weather {
    /// Of a thousand packets, so many are lost.
    pub(super) loss: usize,
    /// Of a thousand packets, so many come twice.
    pub(super) twice: usize,
    /// Milliseconds that a packet takes, at least.
    pub(super) latency: u64,
    /// And so many more, by chance: packets overtake each other.
    pub(super) jitter: u64,
}

pub(super) const FINE: Weather = Weather { loss: 0, twice: 0, latency: 0, jitter: 2 };
pub(super) const FOUL: Weather = Weather { loss: 100, twice: 20, latency: 1, jitter: 20 };

/// One node.
pub(super) struct Node {
    pub(super) id: Id,
    pub(super) powered: bool,
    pub(super) agent: Option<Liveness>,
    /// Its agent gets the processor so rarely, in milliseconds; then it takes everything that waits.
    pub(super) slow: u64,
    epoch: u64,
    busy_until: u64,
    queue: VecDeque<Packet>,
    wake: Option<(u64, u64)>,
}

/// A verdict of one node about another.
#[derive(Clone, Copy, Debug)]
pub(super) struct Said {
    pub(super) at: u64,
    pub(super) by: usize,
    pub(super) of: usize,
    pub(super) silent: bool,
}

/// A cluster.
pub(super) struct Net {
    pub(super) now: u64,
    pub(super) nodes: Vec<Node>,
    pub(super) weather: Weather,
    /// From whom to whom nothing travels.
    pub(super) cut: BTreeSet<(usize, usize)>,
    pub(super) said: Vec<Said>,
    pub(super) told: Vec<(usize, Verdict)>,
    /// Messages and their bytes, where that is wanted.
    pub(super) sent: Option<(u64, u64)>,
    pub(super) chance: Chance,
    places: BTreeMap<Id, usize>,
    events: BTreeMap<(u64, u64), Event>,
    order: u64,
}

impl Net {
    pub(super) fn new(count: usize, seed: u64, weather: Weather) -> Self {
        let node = |index: usize| Node {
            id: Id::of(&format!("n{index}")),
            powered: true,
            agent: None,
            slow: 0,
            epoch: 1_000_000,
            busy_until: 0,
            queue: VecDeque::new(),
            wake: None,
        };
        let nodes: Vec<Node> = (0..count).map(node).collect();
        let mut net = Self {
            now: 0,
            weather,
            cut: BTreeSet::new(),
            said: Vec::new(),
            told: Vec::new(),
            sent: None,
            places: nodes.iter().enumerate().map(|(index, node)| (node.id, index)).collect(),
            chance: Chance::new(seed),
            events: BTreeMap::new(),
            order: 0,
            nodes,
        };
        for index in 0..count {
            net.start(index);
        }
        net.run(2_000);
        net
    }

    pub(super) fn ids(&self) -> BTreeSet<Id> {
        self.nodes.iter().map(|node| node.id).collect()
    }

    /// The agent begins anew, with a clock that may have gone back.
    pub(super) fn start(&mut self, index: usize) {
        let (now, ids, back) = (self.now, self.ids(), self.chance.below(4) == 0);
        let node = &mut self.nodes[index];
        node.epoch = if back { node.epoch - 5_000 } else { node.epoch + 1_000 };
        node.queue.clear();
        node.busy_until = now;
        let mut agent = Liveness::new(node.id, node.epoch, now);
        agent.members(now, &ids);
        node.agent = Some(agent);
        self.act(index);
    }

    /// The agent is killed.
    pub(super) fn kill(&mut self, index: usize) {
        self.nodes[index].agent = None;
        self.nodes[index].queue.clear();
        self.act(index);
    }

    /// The node loses its power.
    pub(super) fn power_off(&mut self, index: usize) {
        self.nodes[index].powered = false;
        self.kill(index);
    }

    pub(super) fn power_on(&mut self, index: usize) {
        self.nodes[index].powered = true;
        self.start(index);
    }

    /// The agent stands still, as after SIGSTOP.
    pub(super) fn pause(&mut self, index: usize, ms: u64) {
        let node = &mut self.nodes[index];
        node.busy_until = node.busy_until.max(self.now) + ms;
        self.act(index);
    }

    /// Nothing travels from `these` to all others; nor back, if `both`.
    pub(super) fn part(&mut self, these: &BTreeSet<usize>, both: bool) {
        for one in these {
            for other in (0..self.nodes.len()).filter(|other| !these.contains(other)) {
                self.cut.insert((*one, other));
                if both {
                    self.cut.insert((other, *one));
                }
            }
        }
    }

    pub(super) fn run(&mut self, ms: u64) {
        let end = self.now + ms;
        while let Some(entry) = self.events.first_entry() {
            if entry.key().0 > end {
                break;
            }
            self.now = entry.key().0;
            match entry.remove() {
                Event::Arrive { to, packet } => self.arrive(to, packet),
                Event::Wake { node } => self.wake(node),
            }
        }
        self.now = end;
    }

    fn arrive(&mut self, to: usize, packet: Packet) {
        let node = &mut self.nodes[to];
        if !node.powered {
            return;
        }
        if let Packet::Ping { from, number } = packet {
            self.travel(to, from, &Packet::Pong { from: to, number });
        } else if node.agent.is_some() && self.now < node.busy_until {
            if node.queue.len() < QUEUE_MAX {
                node.queue.push_back(packet);
            }
        } else {
            self.take(to, packet);
            self.nodes[to].busy_until = self.now + self.nodes[to].slow;
            self.act(to);
        }
    }

    fn take(&mut self, to: usize, packet: Packet) {
        let (now, ids) = (self.now, &self.nodes);
        let from = match &packet {
            Packet::Pong { from, .. } | Packet::Ping { from, .. } => Some(ids[*from].id),
            Packet::Beat(_) => None,
        };
        let node = &mut self.nodes[to];
        let Some(agent) = &mut node.agent else { return };
        match packet {
            // What is not to be heeded is lost.
            Packet::Beat(beat) => drop(agent.receive(now, beat)),
            Packet::Pong { number, .. } => agent.pong(now, from.expect("as above"), number),
            Packet::Ping { .. } => {}
        }
    }

    fn wake(&mut self, index: usize) {
        let now = self.now;
        self.nodes[index].wake = None;
        if now >= self.nodes[index].busy_until {
            while let Some(packet) = self.nodes[index].queue.pop_front() {
                self.take(index, packet);
            }
            let node = &mut self.nodes[index];
            node.busy_until = now + node.slow;
            if let Some(agent) = &mut node.agent {
                agent.tick(now);
            }
        }
        self.act(index);
    }

    /// Does what the agent wants, and remembers when it wants to be woken.
    fn act(&mut self, index: usize) {
        let outputs = self.nodes[index].agent.as_mut().map(Liveness::outputs).unwrap_or_default();
        for output in outputs {
            match output {
                Output::Send(beat) => {
                    let to = self.index(beat.to);
                    if let Some((messages, bytes)) = &mut self.sent {
                        *messages += 1;
                        *bytes += beat.encode().len() as u64;
                    }
                    self.travel(index, to, &Packet::Beat(beat));
                }
                Output::Ping(to, number) => {
                    let to = self.index(to);
                    self.travel(index, to, &Packet::Ping { from: index, number });
                }
                Output::Verdict(Verdict { node, silent }) => {
                    let of = self.index(node);
                    self.said.push(Said { at: self.now, by: index, of, silent });
                }
                Output::Tell(verdict) => self.told.push((index, verdict)),
            }
        }
        if let Some(key) = self.nodes[index].wake.take() {
            self.events.remove(&key);
        }
        let node = &self.nodes[index];
        let Some(agent) = &node.agent else { return };
        let wanted = if node.queue.is_empty() { agent.wake() } else { node.busy_until };
        let at = wanted.max(node.busy_until).max(self.now);
        let key = self.schedule(at, Event::Wake { node: index });
        self.nodes[index].wake = Some(key);
    }

    fn index(&self, id: Id) -> usize {
        self.places[&id]
    }

    fn travel(&mut self, from: usize, to: usize, packet: &Packet) {
        if self.cut.contains(&(from, to)) || !self.nodes[from].powered {
            return;
        }
        let weather = self.weather;
        let copies = if self.chance.below(1_000) < weather.twice { 2 } else { 1 };
        for _ in 0..copies {
            if self.chance.below(1_000) < weather.loss {
                continue;
            }
            let late = self.chance.number() % weather.jitter.max(1);
            let at = self.now + weather.latency + late;
            self.schedule(at, Event::Arrive { to, packet: packet.clone() });
        }
    }

    fn schedule(&mut self, at: u64, event: Event) -> (u64, u64) {
        self.order += 1;
        self.events.insert((at, self.order), event);
        (at, self.order)
    }

    /// What each powered node with an agent leaves alone.
    pub(super) fn views(&self) -> Vec<(usize, BTreeSet<usize>)> {
        let all = self.nodes.iter().enumerate();
        all.filter_map(|(index, node)| {
            let silent = node.agent.as_ref()?.silent();
            Some((index, silent.iter().map(|id| self.index(*id)).collect()))
        })
        .collect()
    }
}
