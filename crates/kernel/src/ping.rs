//! Echo requests (RFC 792, RFC 4443): whether a host's kernel answers, whatever runs on it.

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};

use socket2::{Domain, Protocol, SockRef, Socket, Type};

/// Type of the request and of the reply, for IPv4 and for IPv6.
const V4: (u8, u8) = (8, 0);
const V6: (u8, u8) = (128, 129);
/// Bytes of the header: type, code, checksum, identifier, number.
const HEADER: usize = 8;
/// Replies are as short as requests, with an IPv4 header of at most 60 bytes before.
const REPLY_BYTES_MAX: usize = 128;
/// Room for so many bytes of what came meanwhile: the socket also gets what others asked for.
const QUEUE_BYTES: usize = 64 * 1024;

/// A socket that asks, in the network namespace of the thread that opened it.
#[derive(Debug)]
pub struct Ping {
    /// A raw socket, which is read and written as a datagram socket is.
    socket: UdpSocket,
    ipv4: bool,
    identifier: u16,
}

impl Ping {
    /// A socket for one family; `identifier` tells its replies from others'. It never waits.
    ///
    /// # Errors
    /// When the kernel gives no raw socket (CAP_NET_RAW).
    pub fn open(ipv4: bool, identifier: u16) -> io::Result<Self> {
        let (domain, protocol) =
            if ipv4 { (Domain::IPV4, Protocol::ICMPV4) } else { (Domain::IPV6, Protocol::ICMPV6) };
        let socket = Socket::new(domain, Type::RAW, Some(protocol))?;
        socket.set_nonblocking(true)?;
        socket.set_recv_buffer_size(QUEUE_BYTES)?;
        Ok(Self { socket: socket.into(), ipv4, identifier })
    }

    /// Asks `host`.
    ///
    /// # Errors
    /// When there is no way to it, or no room to send.
    pub fn send(&self, host: IpAddr, number: u16) -> io::Result<()> {
        let (request, _) = if self.ipv4 { V4 } else { V6 };
        let packet = packet(request, self.identifier, number);
        SockRef::from(&self.socket).send_to(&packet, &SocketAddr::new(host, 0).into()).map(drop)
    }

    /// Takes one packet: who replied to which number. `None` for what is no reply to this socket.
    ///
    /// # Errors
    /// `WouldBlock` when nothing has come.
    pub fn receive(&self) -> io::Result<Option<(IpAddr, u16)>> {
        let mut buffer = [0; REPLY_BYTES_MAX];
        let (length, from) = self.socket.recv_from(&mut buffer)?;
        let packet = buffer.get(..length).unwrap_or_default();
        let number = if self.ipv4 {
            reply_v4(packet, self.identifier)
        } else {
            reply(packet, V6.1, self.identifier)
        };
        Ok(number.map(|number| (from.ip(), number)))
    }
}

impl AsFd for Ping {
    /// To wait for what comes.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// A request without content. The kernel computes the checksum of IPv6 itself, for it covers the addresses.
fn packet(kind: u8, identifier: u16, number: u16) -> [u8; HEADER] {
    let ([i0, i1], [n0, n1]) = (identifier.to_be_bytes(), number.to_be_bytes());
    let mut packet = [kind, 0, 0, 0, i0, i1, n0, n1];
    let [c0, c1] = checksum(&packet).to_be_bytes();
    (packet[2], packet[3]) = (c0, c1);
    packet
}

/// RFC 1071.
fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)])));
    let sum: u32 = words.sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let folded = (folded & 0xffff) + (folded >> 16);
    !u16::try_from(folded & 0xffff).expect("sixteen bits")
}

/// The number of a reply with this identifier.
fn reply(packet: &[u8], kind: u8, identifier: u16) -> Option<u16> {
    let [found, 0, _, _, i0, i1, n0, n1, ..] = packet else { return None };
    let is_ours = *found == kind && u16::from_be_bytes([*i0, *i1]) == identifier;
    is_ours.then(|| u16::from_be_bytes([*n0, *n1]))
}

/// IPv4 packets come with their header, which says how long it is.
fn reply_v4(packet: &[u8], identifier: u16) -> Option<u16> {
    let header = usize::from(packet.first()? & 0x0f) * 4;
    reply(packet.get(header..)?, V4.1, identifier)
}

#[cfg(test)]
mod tests {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

    use super::*;

    #[test]
    fn a_request_has_a_sum_that_checks() {
        let packet = packet(8, 0x1234, 0xfffe);
        assert_eq!(checksum(&packet), 0);
        assert_eq!(packet[4..], [0x12, 0x34, 0xff, 0xfe]);
    }

    #[test]
    fn this_hosts_kernel_replies() {
        for (host, ipv4) in [("127.0.0.1", true), ("::1", false)] {
            let ping = Ping::open(ipv4, 0x3412).unwrap();
            let host: IpAddr = host.parse().unwrap();
            ping.send(host, 77).unwrap();
            loop {
                poll(&mut [PollFd::new(ping.as_fd(), PollFlags::POLLIN)], PollTimeout::NONE)
                    .unwrap();
                // The socket also sees the request, and what others ask for.
                if let Ok(Some(reply)) = ping.receive() {
                    assert_eq!(reply, (host, 77));
                    break;
                }
            }
        }
    }

    #[test]
    fn only_replies_to_this_socket_count() {
        let mut bytes = vec![0x45, 0, 0, 28, 0, 0, 0, 0, 64, 1, 0, 0, 198, 18, 0, 2, 198, 18, 0, 1];
        bytes.extend(packet(0, 7, 9));
        assert_eq!(reply_v4(&bytes, 7), Some(9));
        assert_eq!(reply_v4(&bytes, 8), None);
        assert_eq!(reply_v4(&bytes[..27], 7), None);
        bytes[20] = 8;
        assert_eq!(reply_v4(&bytes, 7), None, "somebody else's request");
        assert_eq!(reply_v4(&[], 7), None);
    }
}
