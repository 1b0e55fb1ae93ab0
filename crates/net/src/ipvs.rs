//! IPVS as data: virtual servers, the destinations that each of them spreads connections over, and changes of both.
//!
//! Nothing here talks to a kernel: `kernel::ipvs` carries [`Order`]s out, [`carry_out`] does it to a [`State`].

use std::collections::BTreeMap;
use std::net::SocketAddr;

/// A virtual server: where clients send to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Server {
    /// Its address and port.
    pub address: SocketAddr,
    /// Its protocol's number in the IP header.
    pub protocol: u8,
}

/// How a virtual server chooses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Choice {
    /// The scheduler's name in the kernel: `rr`, `lc`, …
    pub scheduler: String,
    /// Seconds that a client stays with its destination; `None` for not at all.
    pub persistence_s: Option<u32>,
}

/// A destination as the kernel shows it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Destination {
    /// Its share of new connections; with 0 it gets none, and keeps those that it has.
    pub weight: u32,
    /// Connections that it has, made or just being made or ended.
    pub connections: u32,
}

/// What the kernel has of a virtual server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// How it chooses.
    pub choice: Choice,
    /// Among what.
    pub destinations: BTreeMap<SocketAddr, Destination>,
}

/// What the kernel has.
pub type State = BTreeMap<Server, Held>;

/// One change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Order {
    /// A new virtual server without destinations; one that is there is set.
    AddServer(Server, Choice),
    /// Another choice for a virtual server that is there.
    SetServer(Server, Choice),
    /// Deletes a virtual server with its destinations; one that is gone is no error.
    DeleteServer(Server),
    /// A new destination with this weight; one that is there is set.
    AddDestination(Server, SocketAddr, u32),
    /// Another weight for a destination that is there.
    SetDestination(Server, SocketAddr, u32),
    /// Deletes a destination; one that is gone is no error.
    DeleteDestination(Server, SocketAddr),
}

/// Does to a state what the kernel does to its own.
pub fn carry_out(state: &mut State, order: &Order) {
    match order {
        Order::AddServer(server, choice) | Order::SetServer(server, choice) => {
            state.entry(*server).or_default().choice = choice.clone();
        }
        Order::DeleteServer(server) => {
            state.remove(server);
        }
        Order::AddDestination(server, to, weight) | Order::SetDestination(server, to, weight) => {
            if let Some(held) = state.get_mut(server) {
                held.destinations.entry(*to).or_default().weight = *weight;
            }
        }
        Order::DeleteDestination(server, to) => {
            if let Some(held) = state.get_mut(server) {
                held.destinations.remove(to);
            }
        }
    }
}

/// The lines that `ipvsadm --restore` takes.
#[must_use]
pub fn render(state: &State) -> String {
    let mut text = String::new();
    for (server, Held { choice, destinations }) in state {
        let flag = match server.protocol {
            6 => "-t",
            17 => "-u",
            _ => "--sctp-service",
        };
        let at = format!("{flag} {}", server.address);
        let persistence = choice.persistence_s.map(|seconds| format!(" -p {seconds}"));
        text += &format!("-A {at} -s {}{}\n", choice.scheduler, persistence.unwrap_or_default());
        for (to, destination) in destinations {
            text += &format!("-a {at} -r {to} -m -w {}\n", destination.weight);
        }
    }
    text
}
