//! Gratuitous ARP: tells the neighbours that an address now lives here (RFC 5227, section 3).
#![expect(unsafe_code, reason = "nix has no safe constructor for link-level addresses")]

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;

use nix::sys::socket::{
    AddressFamily, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrLike, sendto,
    socket,
};

use crate::link::Link;

const BROADCAST: [u8; 6] = [0xff; 6];

/// Announces `address` at `link` in the namespace of the calling thread, as request and as reply, because some
/// neighbours update their caches on one kind only.
///
/// # Errors
/// When the kernel gives no packet socket (CAP_NET_RAW) or the link is gone.
pub fn announce(link: &Link, address: Ipv4Addr) -> io::Result<()> {
    let mac: [u8; 6] = link
        .mac
        .as_slice()
        .try_into()
        .map_err(|_| io::Error::other("the link has no Ethernet address"))?;
    let socket = socket(
        AddressFamily::Packet,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::EthAll,
    )?;
    let target = broadcast(link.index)?;
    for operation in [1, 2] {
        sendto(socket.as_raw_fd(), &packet(operation, mac, address), &target, MsgFlags::empty())?;
    }
    Ok(())
}

/// An ARP packet in which sender and target are both `address`.
fn packet(operation: u8, mac: [u8; 6], address: Ipv4Addr) -> Vec<u8> {
    let mut packet = vec![0, 1, 8, 0, 6, 4, 0, operation];
    packet.extend(mac);
    packet.extend(address.octets());
    packet.extend(BROADCAST);
    packet.extend(address.octets());
    packet
}

/// The link-level broadcast address for ARP at a link.
fn broadcast(index: u32) -> io::Result<LinkAddr> {
    let index = i32::try_from(index).map_err(io::Error::other)?;
    let mut hardware = [0; 8];
    hardware[..6].copy_from_slice(&BROADCAST);
    let raw = libc::sockaddr_ll {
        sll_family: u16::try_from(libc::AF_PACKET).map_err(io::Error::other)?,
        sll_protocol: 0x0806_u16.to_be(),
        sll_ifindex: index,
        sll_hatype: 1,
        sll_pkttype: 0,
        sll_halen: 6,
        sll_addr: hardware,
    };
    let length = u32::try_from(size_of::<libc::sockaddr_ll>()).map_err(io::Error::other)?;
    // SAFETY: `raw` is a complete sockaddr_ll and `length` is its size.
    let address = unsafe { LinkAddr::from_raw((&raw const raw).cast(), Some(length)) };
    address.ok_or_else(|| io::Error::other("the link address has the wrong shape"))
}
