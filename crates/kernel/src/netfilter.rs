//! A socket to the kernel's netfilter subsystems, and others that speak netlink: messages out, answers in.
//!
//! Shared by `nftables`, `conntrack`, `tc`, `ipvs` and `steer`. Netlink answers a message while it is being sent, so every answer to a
//! request is already in the socket's queue when `send` returns.

mod message;

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send,
    setsockopt, socket, sockopt,
};

pub(crate) use message::{Attributes, Builder, Reply, replies};

/// A transaction larger than this is refused: 250,000 endpoints take about 30 MB.
const SEND_BYTES_MAX: usize = 256 << 20;
/// Answers to one request wait here; a dump continues as it is read.
const RECEIVE_BYTES: usize = 4 << 20;
/// One datagram of a dump is at most this long (the kernel uses up to 32 KiB).
const DATAGRAM_BYTES: usize = 64 << 10;

/// Why the kernel did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum NetfilterError {
    /// No socket, or it failed.
    #[error("the netfilter socket failed")]
    Socket(#[from] io::Error),
    /// The kernel refused one message.
    #[error("the kernel refused to {action}{}", detail.as_ref().map(|text| format!(": {text}")).unwrap_or_default())]
    Refused {
        /// What the message was to do, naming the object.
        action: String,
        /// The kernel's own words, if it gave any.
        detail: Option<String>,
        /// The error number.
        #[source]
        source: io::Error,
    },
    /// Another change came between the parts of a dump, several times.
    #[error("the rules changed while they were read")]
    Interrupted,
    /// The kernel did not answer, or with something that is not netlink.
    #[error("the kernel's answer is not understood: {0}")]
    Answer(&'static str),
}

impl NetfilterError {
    /// The error number of a refusal.
    #[must_use]
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Refused { source, .. } => source.raw_os_error(),
            _ => None,
        }
    }
}

/// A netfilter netlink socket in the network namespace that the opening thread was in.
#[derive(Debug)]
pub(crate) struct Socket {
    fd: OwnedFd,
    sequence: u32,
    send_bytes: usize,
    /// For one datagram; kept, because making and clearing it costs more than a small answer.
    buffer: Vec<u8>,
}

impl Socket {
    pub(crate) fn open() -> io::Result<Self> {
        Self::open_to(SockProtocol::NetlinkNetFilter)
    }

    /// A socket to another of the kernel's subsystems.
    pub(crate) fn open_to(protocol: SockProtocol) -> io::Result<Self> {
        let (kind, flags) = (SockType::Raw, SockFlag::SOCK_CLOEXEC);
        let fd = socket(AddressFamily::Netlink, kind, flags, protocol)?;
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        setsockopt(&fd, sockopt::RcvBufForce, &RECEIVE_BYTES)?;
        extend(&fd)?;
        Ok(Self { fd, sequence: 0, send_bytes: 0, buffer: vec![0; DATAGRAM_BYTES] })
    }

    /// A sequence number that no pending answer has.
    pub(crate) fn next_sequence(&mut self, count: u32) -> u32 {
        let first = self.sequence.wrapping_add(1);
        self.sequence = self.sequence.wrapping_add(count);
        first
    }

    /// Sends one datagram, making room for it first.
    pub(crate) fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        if bytes.len() > SEND_BYTES_MAX {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "the transaction is too large",
            ));
        }
        if bytes.len() > self.send_bytes {
            let room = bytes.len() + (bytes.len() >> 1) + 4096;
            setsockopt(&self.fd, sockopt::SndBufForce, &room)?;
            self.send_bytes = bytes.len();
        }
        let sent = send(self.fd.as_raw_fd(), bytes, MsgFlags::empty())?;
        if sent == bytes.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
    }

    /// The next datagram that is already there; `None` when there is none.
    pub(crate) fn receive(&mut self) -> io::Result<Option<&[u8]>> {
        loop {
            match recv(self.fd.as_raw_fd(), &mut self.buffer, MsgFlags::MSG_DONTWAIT) {
                Ok(len) => return Ok(self.buffer.get(..len)),
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Ok(None),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Runs a dump: `request` carries the sequence number `sequence`; `each` gets every message of the answer.
    /// Returns whether the dump was whole: false when a change came between.
    pub(crate) fn dump(
        &mut self,
        request: &[u8],
        sequence: u32,
        action: &str,
        mut each: impl FnMut(&Reply<'_>),
    ) -> Result<bool, NetfilterError> {
        self.send(request)?;
        let mut whole = true;
        loop {
            let datagram = self.receive()?;
            let datagram = datagram.ok_or(NetfilterError::Answer("a dump has no end"))?;
            for reply in replies(datagram) {
                if reply.sequence != sequence {
                    continue;
                }
                whole &= !reply.is_interrupted();
                if let Some(error) = reply.error() {
                    return refused(error, reply.detail(), action).map(|()| whole);
                }
                if reply.is_done() {
                    return Ok(whole);
                }
                each(&reply);
            }
        }
    }

    /// Sends messages that are each acknowledged, the first under the sequence number `first`; `refusal` turns the error
    /// number of each that is refused into a result. All are tried; answers the first error.
    pub(crate) fn request(
        &mut self,
        messages: &[u8],
        first: u32,
        refusal: impl Fn(u32, i32, Option<String>) -> Result<(), NetfilterError>,
    ) -> Result<(), NetfilterError> {
        self.drain();
        self.send(messages)?;
        let mut result = Ok(());
        while let Some(datagram) = self.receive()? {
            for reply in replies(datagram) {
                if let Some(errno) = reply.error().filter(|errno| *errno != 0) {
                    let at = reply.sequence.wrapping_sub(first);
                    result = result.and(refusal(at, errno, reply.detail()));
                }
            }
        }
        result
    }

    /// Throws away what an earlier, failed request left.
    pub(crate) fn drain(&mut self) {
        // What does not fit into the buffer is thrown away as well.
        let mut start = [0; 16];
        while matches!(
            recv(self.fd.as_raw_fd(), &mut start, MsgFlags::MSG_DONTWAIT),
            Ok(_) | Err(Errno::EINTR)
        ) {}
    }
}

/// Turns an error number of the kernel (0 for success) into a result.
pub(crate) fn refused(
    errno: i32,
    detail: Option<String>,
    action: &str,
) -> Result<(), NetfilterError> {
    if errno == 0 {
        return Ok(());
    }
    let source = io::Error::from_raw_os_error(errno);
    Err(NetfilterError::Refused { action: action.to_owned(), detail, source })
}

/// Asks for the kernel's words with errors, and for errors without the whole request.
fn extend(fd: &impl AsFd) -> io::Result<()> {
    for option in [libc::NETLINK_EXT_ACK, libc::NETLINK_CAP_ACK] {
        set_netlink_option(fd, option)?;
    }
    Ok(())
}

#[expect(unsafe_code, reason = "nix has no netlink socket options")]
fn set_netlink_option(fd: &impl AsFd, option: libc::c_int) -> io::Result<()> {
    let one: libc::c_int = 1;
    let len = libc::socklen_t::try_from(size_of_val(&one)).expect("four fits");
    // SAFETY: `one` lives through the call and `len` is its size; the descriptor is open.
    let done = unsafe {
        libc::setsockopt(
            fd.as_fd().as_raw_fd(),
            libc::SOL_NETLINK,
            option,
            (&raw const one).cast(),
            len,
        )
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
