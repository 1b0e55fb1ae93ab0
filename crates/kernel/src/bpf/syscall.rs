//! What of bpf(2) and sockets the libraries do not show.
#![expect(unsafe_code, reason = "neither nix nor aya has these calls")]

use std::ffi::CString;
use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

/// Commands of bpf(2), from `linux/bpf.h`.
const OBJ_GET: libc::c_int = 7;
const OBJ_GET_INFO_BY_FD: libc::c_int = 15;
const LINK_TYPE_CGROUP: u32 = 3;

#[repr(C)]
struct Get {
    path: u64,
    fd: u32,
    flags: u32,
}

#[repr(C)]
struct InfoByFd {
    fd: u32,
    length: u32,
    info: u64,
}

/// The head of `struct bpf_link_info`, with what it has for control groups.
#[repr(C)]
#[derive(Default)]
struct LinkInfo {
    kind: u32,
    id: u32,
    program: u32,
    zero: u32,
    cgroup: u64,
    attached_as: u32,
    zero_too: u32,
}

fn bpf<T>(command: libc::c_int, argument: &mut T) -> io::Result<libc::c_long> {
    // SAFETY: the argument is a whole structure of the command's, whose pointers the callers keep alive.
    let done = unsafe {
        libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(argument), size_of::<T>())
    };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(done) }
}

fn address<T>(of: *const T) -> u64 {
    u64::try_from(of.addr()).expect("an address has 64 bits at most")
}

/// The number of the control group that a pinned link is attached to; 0 when it was detached.
pub(super) fn link_cgroup(path: &Path) -> io::Result<u64> {
    let path = CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)?;
    let fd = bpf(OBJ_GET, &mut Get { path: address(path.as_ptr()), fd: 0, flags: 0 })?;
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the kernel just made this descriptor, and nobody else has it.
    let link = unsafe { OwnedFd::from_raw_fd(fd) };
    let mut info = LinkInfo::default();
    let length = u32::try_from(size_of::<LinkInfo>()).expect("it is 32 bytes");
    let fd = u32::try_from(link.as_raw_fd()).expect("a descriptor is no negative number");
    bpf(OBJ_GET_INFO_BY_FD, &mut InfoByFd { fd, length, info: address(&raw mut info) })?;
    if info.kind != LINK_TYPE_CGROUP {
        return Err(io::ErrorKind::InvalidData.into());
    }
    Ok(info.cgroup)
}

pub(super) fn netns_cookie() -> io::Result<u64> {
    let socket = socket(AddressFamily::Unix, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    let mut cookie = 0_u64;
    let mut length = libc::socklen_t::try_from(size_of::<u64>()).expect("it is 8");
    // SAFETY: the pointers are to a number of 8 bytes and to that length.
    let done = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(cookie) }
}
