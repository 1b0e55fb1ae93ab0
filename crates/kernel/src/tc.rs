//! eBPF programs at links: they see what comes in before netfilter does. Through classic traffic control, which holds a
//! program until its link goes, whether the agent lives or not.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};

use nix::sys::socket::SockProtocol;

use crate::netfilter::{Builder, NetfilterError, Reply, Socket, refused, replies};

const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_DUMP: u16 = 0x300;
const NLM_F_REPLACE: u16 = 0x100;
const NLM_F_CREATE: u16 = 0x400;
const NLM_F_EXCL: u16 = 0x200;

const GET_LINK: u16 = 18;
const GET_ADDRESS: u16 = 22;
const NEW_QDISC: u16 = 36;
const NEW_FILTER: u16 = 44;
const DELETE_FILTER: u16 = 45;
const GET_FILTER: u16 = 46;

/// `tcmsg` and `ifinfomsg`: what precedes the attributes.
const TC_BYTES: usize = 20;
const LINK_BYTES: usize = 16;
/// `ifaddrmsg`, and the attributes of an address: of the other end, and the own one where that differs.
const ADDRESS_BYTES: usize = 8;
const ADDRESS: u16 = 1;
const LOCAL: u16 = 2;
const LINK_NAME: u16 = 3;
/// `ARPHRD_ETHER`.
const ETHERNET: [u8; 2] = 1_u16.to_ne_bytes();
/// The parents of `clsact`, and of filters for what comes in.
const CLSACT: u32 = 0xffff_fff1;
const CLSACT_HANDLE: u32 = 0xffff_0000;
const INGRESS: u32 = 0xffff_fff2;
/// Ours among the filters of others: a priority and a handle that nobody takes by chance, "Rh" and "um".
const PRIORITY: u32 = 0x5268;
const HANDLE: u32 = 0x756d;
/// `ETH_P_ALL`.
const ALL_PROTOCOLS: u16 = 3;

const KIND: u16 = 1;
const OPTIONS: u16 = 2;
const BPF_FD: u16 = 6;
const BPF_NAME: u16 = 7;
const BPF_FLAGS: u16 = 8;
const BPF_ID: u16 = 11;
const DIRECT_ACTION: u32 = 1;

/// Programs at the links of the network namespace that the opening thread was in.
#[derive(Debug)]
pub struct Tc {
    socket: Socket,
}

impl Tc {
    /// Opens a connection.
    ///
    /// # Errors
    /// When there is no such socket.
    pub fn open() -> Result<Self, NetfilterError> {
        Ok(Self { socket: Socket::open_to(SockProtocol::NetlinkRoute)? })
    }

    /// All Ethernet links: index to name.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn links(&mut self) -> Result<BTreeMap<u32, String>, NetfilterError> {
        let mut links = BTreeMap::new();
        self.dump(GET_LINK, &[0; 3], "list the links", |reply| {
            let name = reply.attributes_after(LINK_BYTES).text(LINK_NAME);
            let is_ethernet = reply.word(0).is_some_and(|word| word.to_ne_bytes()[2..] == ETHERNET);
            if let (true, Some(index), Some(name)) = (is_ethernet, reply.word(4), name) {
                links.insert(index, name.to_owned());
            }
        })?;
        Ok(links)
    }

    /// The addresses of all links, with the links' indices.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn addresses(&mut self) -> Result<Vec<(u32, IpAddr)>, NetfilterError> {
        let mut addresses = Vec::new();
        self.dump(GET_ADDRESS, &[0], "list the addresses", |reply| {
            let attributes = reply.attributes_after(ADDRESS_BYTES);
            let bytes = attributes.find(LOCAL).or_else(|| attributes.find(ADDRESS));
            if let (Some(index), Some(address)) = (reply.word(4), bytes.and_then(address)) {
                addresses.push((index, address));
            }
        })?;
        Ok(addresses)
    }

    /// Shows everything that comes in at a link to a program, instead of the one that was there before.
    ///
    /// # Errors
    /// When the link is gone or the kernel refuses.
    pub fn attach(&mut self, link: u32, program: BorrowedFd<'_>) -> Result<(), NetfilterError> {
        let action = format!("attach a program to link {link}");
        let flags = NLM_F_CREATE | NLM_F_EXCL;
        let there =
            self.ask(NEW_QDISC, flags, &[link, CLSACT_HANDLE, CLSACT, 0], &action, |message| {
                message.text(KIND, "clsact");
            });
        match there {
            Err(error) if error.errno() == Some(libc::EEXIST) => {}
            other => other?,
        }
        let fd = u32::try_from(program.as_raw_fd()).expect("open descriptors are not negative");
        let flags = NLM_F_CREATE | NLM_F_REPLACE;
        self.ask(NEW_FILTER, flags, &filter(link), &action, |message| {
            message.text(KIND, "bpf");
            let options = message.open(OPTIONS);
            message.raw(BPF_FD, &fd.to_ne_bytes());
            message.text(BPF_NAME, "rhumb");
            message.raw(BPF_FLAGS, &DIRECT_ACTION.to_ne_bytes());
            message.close(&options);
        })
    }

    /// Takes the program away; none there is no error.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn detach(&mut self, link: u32) -> Result<(), NetfilterError> {
        let action = format!("detach the program of link {link}");
        match self.ask(DELETE_FILTER, 0, &filter(link), &action, |message| {
            message.text(KIND, "bpf");
        }) {
            Err(error)
                if matches!(error.errno(), Some(libc::ENOENT | libc::EINVAL | libc::ENODEV)) =>
            {
                Ok(())
            }
            other => other,
        }
    }

    /// The number of the program that is attached to a link.
    ///
    /// # Errors
    /// When the kernel refuses, or the link is gone.
    pub fn attached(&mut self, link: u32) -> Result<Option<u32>, NetfilterError> {
        let mut found = None;
        self.dump(GET_FILTER, &[link, 0, INGRESS, 0], "list the programs", |reply| {
            let is_ours = reply.word(8) == Some(HANDLE)
                && reply.word(16).is_some_and(|info| info >> 16 == PRIORITY);
            let options = reply.attributes_after(TC_BYTES).nested(OPTIONS);
            if let Some(id) = options.filter(|_| is_ours).and_then(|options| options.find(BPF_ID)) {
                found = id.try_into().ok().map(u32::from_ne_bytes);
            }
        })?;
        Ok(found)
    }

    /// Sends one request and waits for its acknowledgement. `words` follow the header's first four bytes.
    fn ask(
        &mut self,
        kind: u16,
        flags: u16,
        words: &[u32],
        action: &str,
        attributes: impl FnOnce(&mut Builder),
    ) -> Result<(), NetfilterError> {
        self.socket.drain();
        let sequence = self.socket.next_sequence(1);
        let mut message = Builder::default();
        message.begin(kind, flags | NLM_F_REQUEST | NLM_F_ACK, sequence, 0, 0);
        message.words(words);
        attributes(&mut message);
        message.end();
        self.socket.send(message.bytes())?;
        while let Some(datagram) = self.socket.receive()? {
            for reply in replies(datagram).filter(|reply| reply.sequence == sequence) {
                if let Some(error) = reply.error() {
                    return refused(error, reply.detail(), action);
                }
            }
        }
        Err(NetfilterError::Answer("a request is not acknowledged"))
    }

    fn dump(
        &mut self,
        kind: u16,
        words: &[u32],
        action: &str,
        each: impl FnMut(&Reply<'_>),
    ) -> Result<(), NetfilterError> {
        self.socket.drain();
        let sequence = self.socket.next_sequence(1);
        let mut message = Builder::default();
        message.begin(kind, NLM_F_REQUEST | NLM_F_DUMP, sequence, 0, 0);
        message.words(words);
        message.end();
        // Links that come or go meanwhile are seen at the next look.
        self.socket.dump(message.bytes(), sequence, action, each).map(|_| ())
    }
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        _ => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
    }
}

/// The rest of the header that names our filter at a link.
fn filter(link: u32) -> [u32; 4] {
    let protocol = u32::from(ALL_PROTOCOLS.to_be());
    [link, HANDLE, INGRESS, PRIORITY << 16 | protocol]
}
