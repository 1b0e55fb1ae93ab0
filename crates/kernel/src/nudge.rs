//! Makes one end of a TCP connection say where it is: a segment out of any order is answered with an acknowledgement that
//! has the right numbers (RFC 9293, section 3.10.7.4). So a connection can be reset by rules though nobody sends anything.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use socket2::{Domain, Protocol, Socket, Type};

/// `IPPROTO_RAW`: packets come with their own IP header.
const RAW: i32 = 255;
const TCP: u8 = 6;
const TCP_BYTES: u16 = 20;
const IPV4_BYTES: u16 = 20;
const HOPS_MAX: u8 = 64;
/// The length of the header in words, in the high half of its byte.
const DATA_OFFSET: u8 = 5 << 4;
const ACK: u8 = 0x10;

/// Sends such segments in the network namespace that the opening thread was in.
#[derive(Debug)]
pub struct Nudger {
    v4: Socket,
    /// None where the kernel has no IPv6.
    v6: Option<Socket>,
}

impl Nudger {
    /// Opens raw sockets.
    ///
    /// # Errors
    /// When the kernel gives none; needs CAP_NET_RAW.
    pub fn open() -> io::Result<Self> {
        let raw = |domain| {
            let socket = Socket::new(domain, Type::RAW, Some(Protocol::from(RAW)))?;
            socket.set_nonblocking(true).map(|()| socket)
        };
        Ok(Self { v4: raw(Domain::IPV4)?, v6: raw(Domain::IPV6).ok() })
    }

    /// Sends `to` an empty segment that says it is from `from`. It acknowledges 0 and offers a window of 0, as no segment
    /// of a connection does but by a rare chance.
    ///
    /// # Errors
    /// When the addresses are of different families, or there is no way to `to`.
    pub fn nudge(&self, from: SocketAddr, to: SocketAddr, sequence: u32) -> io::Result<()> {
        let mut segment = segment(from.port(), to.port(), sequence);
        let no_such = || io::Error::from(io::ErrorKind::AddrNotAvailable);
        let (socket, packet) = match (from.ip(), to.ip()) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let pseudo = [&source.octets()[..], &destination.octets()].concat();
                seal(&mut segment, &pseudo);
                (&self.v4, [&ipv4(source, destination)[..], &segment].concat())
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let pseudo = [&source.octets()[..], &destination.octets()].concat();
                seal(&mut segment, &pseudo);
                let socket = self.v6.as_ref().ok_or_else(no_such)?;
                (socket, [&ipv6(source, destination)[..], &segment].concat())
            }
            _ => return Err(no_such()),
        };
        // The port would be taken for a protocol's number.
        socket.send_to(&packet, &SocketAddr::new(to.ip(), 0).into()).map(|_| ())
    }
}

/// A TCP header without its checksum.
fn segment(from: u16, to: u16, sequence: u32) -> [u8; TCP_BYTES as usize] {
    let mut segment = [0; TCP_BYTES as usize];
    segment[0..2].copy_from_slice(&from.to_be_bytes());
    segment[2..4].copy_from_slice(&to.to_be_bytes());
    segment[4..8].copy_from_slice(&sequence.to_be_bytes());
    segment[12] = DATA_OFFSET;
    segment[13] = ACK;
    segment
}

/// Writes the checksum over both addresses, the protocol, the length and the segment.
fn seal(segment: &mut [u8; TCP_BYTES as usize], addresses: &[u8]) {
    let rest = [u16::from(TCP), TCP_BYTES].map(u16::to_be_bytes).concat();
    let words = [addresses, &rest, &segment[..]].concat();
    let sum: u32 =
        words.chunks_exact(2).map(|two| u32::from(two[0]) << 8 | u32::from(two[1])).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let folded = (folded & 0xffff) + (folded >> 16);
    let sum = u16::try_from(folded).expect("the carries are folded in");
    segment[16..18].copy_from_slice(&(!sum).to_be_bytes());
}

/// An IPv4 header; the kernel writes its checksum and number.
fn ipv4(source: Ipv4Addr, destination: Ipv4Addr) -> [u8; IPV4_BYTES as usize] {
    let mut header = [0; IPV4_BYTES as usize];
    header[0] = 0x45;
    header[2..4].copy_from_slice(&(IPV4_BYTES + TCP_BYTES).to_be_bytes());
    header[8] = HOPS_MAX;
    header[9] = TCP;
    header[12..16].copy_from_slice(&source.octets());
    header[16..20].copy_from_slice(&destination.octets());
    header
}

/// An IPv6 header.
fn ipv6(source: Ipv6Addr, destination: Ipv6Addr) -> [u8; 40] {
    let mut header = [0; 40];
    header[0] = 0x60;
    header[4..6].copy_from_slice(&TCP_BYTES.to_be_bytes());
    header[6] = TCP;
    header[7] = HOPS_MAX;
    header[8..24].copy_from_slice(&source.octets());
    header[24..40].copy_from_slice(&destination.octets());
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_makes_the_sum_of_all_words_all_ones() {
        let addresses: Vec<u8> = (1..=32).map(|byte| byte * 7).collect();
        for addresses in [&addresses[..8], &addresses[..]] {
            let mut segment = segment(65_535, 80, 0xc000_0000);
            seal(&mut segment, addresses);
            let words = [addresses, &[0, TCP, 0, 20], &segment].concat();
            let sum: u64 = words
                .chunks_exact(2)
                .map(|two| u64::from(u16::from_be_bytes([two[0], two[1]])))
                .sum();
            assert_eq!(sum % 0xffff, 0);
        }
    }
}
