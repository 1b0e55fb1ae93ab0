//! A packet's way through iptables rules, tried with every draw: knows iptables, and nothing of Services.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use net::iptables::{Saved, TableId};

use crate::decide::Packet;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Outcome {
    Pass,
    Reject,
    Drop,
    /// To an endpoint; whether masqueraded.
    Forward(SocketAddr, bool),
}

/// Where a chain ends.
enum End {
    Return,
    Accept,
    Drop,
    Reject,
    Dnat(SocketAddr),
}

struct Walk<'a> {
    chains: &'a BTreeMap<String, Vec<String>>,
    packet: Packet,
    mark: u32,
    /// Which of the draws to take, and how many were met.
    take: usize,
    met: usize,
}

/// Everything that may happen to the first packet of a connection.
pub(super) fn outcomes(kernel: &Saved, packet: &Packet, is_own: bool) -> BTreeSet<Outcome> {
    let (last, draws) = one(kernel, packet, is_own, 0);
    let others = (1..=draws).map(|take| one(kernel, packet, is_own, take).0);
    others.chain([last]).collect()
}

fn one(kernel: &Saved, packet: &Packet, is_own: bool, take: usize) -> (Outcome, usize) {
    let mut walk =
        Walk { chains: &kernel.tables[&TableId::Nat], packet: *packet, mark: 0, take, met: 0 };
    let end = walk.chain(if packet.from_node { "OUTPUT" } else { "PREROUTING" });
    let to = match end {
        End::Dnat(to) => Some(to),
        End::Return | End::Accept => None,
        End::Drop | End::Reject => panic!("the table nat cannot do that"),
    };
    walk.packet.destination = to.unwrap_or(packet.destination);
    walk.chains = &kernel.tables[&TableId::Filter];
    let hooks: &[&str] = match (packet.from_node, is_own && to.is_none()) {
        (true, true) => &["OUTPUT", "INPUT"],
        (true, false) => &["OUTPUT"],
        (false, true) => &["INPUT"],
        (false, false) => &["FORWARD"],
    };
    for hook in hooks {
        match walk.chain(hook) {
            End::Drop => return (Outcome::Drop, walk.met),
            End::Reject => return (Outcome::Reject, walk.met),
            End::Return | End::Accept => {}
            End::Dnat(_) => panic!("the table filter cannot do that"),
        }
    }
    walk.chains = &kernel.tables[&TableId::Nat];
    let masquerade = matches!(walk.chain("POSTROUTING"), End::Accept);
    assert_eq!(walk.mark & 0x4000, 0, "the mark leaves the node");
    let outcome = match to {
        Some(to) => Outcome::Forward(to, masquerade),
        None => Outcome::Pass,
    };
    (outcome, walk.met)
}

impl Walk<'_> {
    fn chain(&mut self, name: &str) -> End {
        let chains = self.chains;
        for rule in chains.get(name).unwrap_or_else(|| panic!("no chain {name}")) {
            let words = words(rule);
            if !self.matches(&words) {
                continue;
            }
            let at = words.iter().position(|word| word == "-j");
            let Some((target, rest)) = at.and_then(|at| words[at + 1..].split_first()) else {
                continue;
            };
            match target.as_str() {
                "RETURN" => return End::Return,
                "ACCEPT" | "MASQUERADE" => return End::Accept,
                "DROP" => return End::Drop,
                "REJECT" => return End::Reject,
                "DNAT" => return End::Dnat(rest[1].parse().unwrap()),
                "MARK" => {
                    let bits = u32::from_str_radix(rest[1].trim_start_matches("0x"), 16).unwrap();
                    match rest[0].as_str() {
                        "--or-mark" => self.mark |= bits,
                        "--xor-mark" => self.mark ^= bits,
                        other => panic!("{other}"),
                    }
                }
                chain => match self.chain(chain) {
                    End::Return => {}
                    end => return end,
                },
            }
        }
        End::Return
    }

    /// Whether the packet meets every match before `-j`.
    fn matches(&mut self, words: &[String]) -> bool {
        let packet = self.packet;
        let mut words = words.iter().map(String::as_str);
        let mut negate = false;
        while let Some(word) = words.next() {
            let mut next = || words.next().unwrap();
            let met = match word {
                "-j" => return true,
                "!" => {
                    negate = true;
                    continue;
                }
                "-m" | "--comment" | "--mode" | "--name" | "--seconds" => {
                    next();
                    continue;
                }
                "--reap" | "--set" => continue,
                "-s" => within(next(), packet.source),
                "-d" => within(next(), packet.destination.ip()),
                "-p" => next() == packet.protocol.word().to_lowercase(),
                "--dport" => next() == packet.destination.port().to_string(),
                "-i" => (next() == "lo") == packet.from_node,
                "--src-type" => (next() == "LOCAL") && packet.from_node,
                "--ctstate" => next().split(',').any(|state| state == "NEW"),
                "--mark" => {
                    let bits = next().split_once("/0x").unwrap().1;
                    self.mark & u32::from_str_radix(bits, 16).unwrap() != 0
                }
                "--probability" => {
                    next();
                    self.met += 1;
                    self.met == self.take
                }
                // Nobody is remembered.
                "--rcheck" => false,
                other => panic!("{other}"),
            };
            if met == negate {
                return false;
            }
            negate = false;
        }
        true
    }
}

fn within(net: &str, address: IpAddr) -> bool {
    let net = net.parse::<IpNet>().or_else(|_| net.parse().map(|ip: IpAddr| ip.into()));
    net.unwrap().contains(&address)
}

fn words(rule: &str) -> Vec<String> {
    let mut words = Vec::new();
    for (at, part) in rule.split('"').enumerate() {
        if at % 2 == 1 {
            words.push(part.to_owned());
        } else {
            words.extend(part.split_ascii_whitespace().map(str::to_owned));
        }
    }
    words
}
