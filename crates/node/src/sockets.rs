//! Sockets that listen in a network, and whose they are, from `/proc`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use plan::explain::Listener;

/// A socket's state in `/proc/net/tcp` when it listens (`TCP_LISTEN`).
pub(crate) const LISTEN: &str = "0A";
/// A socket's state in `/proc/net/udp` when it is bound and not connected (`TCP_CLOSE`).
const UNCONNECTED: &str = "07";

/// A socket that listens.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Socket {
    pub(crate) listener: Listener,
    /// Its number, by which a process's open files name it.
    pub(crate) inode: u64,
}

/// The listening sockets of the calling thread's network.
pub(crate) fn listening() -> Vec<Socket> {
    let mut found = Vec::new();
    for (file, protocol, state) in [
        ("tcp", "TCP", LISTEN),
        ("tcp6", "TCP", LISTEN),
        ("udp", "UDP", UNCONNECTED),
        ("udp6", "UDP", UNCONNECTED),
    ] {
        let text = std::fs::read_to_string(format!("/proc/thread-self/net/{file}"));
        found.extend(parse(&text.unwrap_or_default(), protocol, state));
    }
    found.sort();
    found.dedup();
    found
}

/// Reads a table of `/proc/net`: the second column is address and port in hexadecimal, the fourth the state, the tenth the
/// socket's number. Addresses are words of 4 bytes, each in host order.
pub(crate) fn parse(table: &str, protocol: &str, state: &str) -> Vec<Socket> {
    let line = |line: &str| {
        let mut columns = line.split_whitespace().skip(1);
        let (address, port) = columns.next()?.split_once(':')?;
        if columns.nth(1)? != state {
            return None;
        }
        let inode = columns.nth(5).and_then(|inode| inode.parse().ok()).unwrap_or(0);
        let word = |at: usize| {
            let word = u32::from_str_radix(address.get(at * 8..at * 8 + 8)?, 16).ok()?;
            Some(word.to_ne_bytes())
        };
        let address = if address.len() == 8 {
            IpAddr::from(Ipv4Addr::from(word(0)?))
        } else {
            let words = [word(0)?, word(1)?, word(2)?, word(3)?];
            let bytes = <[u8; 16]>::try_from(words.concat()).ok()?;
            IpAddr::from(Ipv6Addr::from(bytes)).to_canonical()
        };
        let port = u16::from_str_radix(port, 16).ok()?;
        Some(Socket { listener: Listener { protocol: protocol.to_owned(), address, port }, inode })
    };
    table.lines().skip(1).filter_map(line).collect()
}

/// The processes that have sockets open, such as `nginx (12)`; the one with the lowest number where several share it.
pub(crate) fn owners(inodes: &BTreeSet<u64>) -> BTreeMap<u64, String> {
    let mut owners: BTreeMap<u64, (u32, String)> = BTreeMap::new();
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    for process in processes {
        let Some(pid) = process.file_name().to_str().and_then(|name| name.parse::<u32>().ok())
        else {
            continue;
        };
        let files = std::fs::read_dir(process.path().join("fd")).into_iter().flatten().flatten();
        for file in files {
            let target = std::fs::read_link(file.path()).unwrap_or_default();
            let inode = target.to_str().and_then(|text| text.strip_prefix("socket:["));
            let inode = inode.and_then(|text| text.strip_suffix(']')?.parse::<u64>().ok());
            let Some(inode) = inode.filter(|inode| inodes.contains(inode)) else { continue };
            if owners.get(&inode).is_none_or(|(known, _)| pid < *known) {
                let name = std::fs::read_to_string(process.path().join("comm"));
                owners.insert(inode, (pid, format!("{} ({pid})", name.unwrap_or_default().trim())));
            }
        }
    }
    owners.into_iter().map(|(inode, (_, process))| (inode, process)).collect()
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;

    #[test]
    fn tables_of_sockets_are_read() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue\n   \
                     0: 00000000:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1 x\n   \
                     1: 0100007F:0035 00000000:0000 0A 00000000:00000000 00:00000000 00000000\n   \
                     2: 0100007F:9C40 0100007F:0035 01 00000000:00000000 00:00000000 00000000\n";
        let found = parse(table, "TCP", LISTEN);
        let shown: Vec<(String, u64)> = found
            .iter()
            .map(|one| (&one.listener, one.inode))
            .map(|(one, inode)| (SocketAddr::new(one.address, one.port).to_string(), inode))
            .collect();
        assert_eq!(shown, [("0.0.0.0:8080".into(), 4711), ("127.0.0.1:53".into(), 0)]);
        let table = "head\n 0: 00000000000000000000000000000000:0050 \
                     00000000000000000000000000000000:0000 0A 0\n";
        let found = parse(table, "TCP", LISTEN);
        assert_eq!(found[0].listener.address, IpAddr::from(Ipv6Addr::UNSPECIFIED));
    }

    #[test]
    fn a_socket_of_this_process_is_seen_and_known() {
        let socket = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = socket.local_addr().unwrap().port();
        let found = listening();
        let ours = |one: &&Socket| one.listener.port == port && one.listener.protocol == "TCP";
        let inode = found.iter().find(ours).unwrap().inode;
        let owner = owners(&[inode].into()).remove(&inode).unwrap();
        assert!(owner.ends_with(&format!("({})", std::process::id())), "{owner}");
    }
}
