//! New connections from inside a network namespace, one after another at a steady pace, whatever became of those before:
//! who waits for an answer does not see what is sent meanwhile.

use std::fs::File;
use std::net::SocketAddrV4;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow};
use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockProtocol, SockType, SockaddrIn, connect, getpeername, getsockopt,
    socket, sockopt,
};

/// Between two connections.
const PAUSE: Duration = Duration::from_millis(5);
/// A connection that is not made by then is lost. The kernel tries again after one second and after three, so that a server that
/// was too busy once does not count.
const PATIENCE: Duration = Duration::from_millis(3_500);

/// One connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Knock {
    /// When it was begun.
    pub at: Instant,
    /// Whether it was made.
    pub answered: bool,
    /// How long it took: more than a second where the first try was not answered.
    pub took: Duration,
}

/// Somebody who knocks until told to end.
#[derive(Debug)]
pub struct Knocks {
    ended: Arc<AtomicBool>,
    thread: JoinHandle<Result<Vec<Knock>>>,
}

impl Knocks {
    /// Begins to knock at `to` from the namespace at `netns`.
    ///
    /// # Errors
    /// When there is no such namespace.
    pub fn start(netns: &Path, to: SocketAddrV4) -> Result<Self> {
        let namespace = File::open(netns).with_context(|| netns.display().to_string())?;
        let ended = Arc::<AtomicBool>::default();
        let stop = Arc::clone(&ended);
        let thread = std::thread::spawn(move || {
            setns(&namespace, CloneFlags::CLONE_NEWNET)?;
            knock(to, &stop)
        });
        Ok(Self { ended, thread })
    }

    /// All of them, in the order in which they were begun.
    ///
    /// # Errors
    /// When a connection could not even be begun.
    pub fn end(self) -> Result<Vec<Knock>> {
        self.ended.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow!("who knocked panicked"))?
    }
}

fn knock(to: SocketAddrV4, ended: &AtomicBool) -> Result<Vec<Knock>> {
    let (mut done, mut open) = (Vec::new(), Vec::new());
    while !ended.load(Ordering::Relaxed) || !open.is_empty() {
        if !ended.load(Ordering::Relaxed) {
            open.push((Instant::now(), begin(to)?));
        }
        open.retain(|(at, socket)| {
            let settled = if at.elapsed() > PATIENCE { Some(false) } else { outcome(socket) };
            let took = at.elapsed();
            done.extend(settled.map(|answered| Knock { at: *at, answered, took }));
            settled.is_none()
        });
        std::thread::sleep(PAUSE);
    }
    done.sort_by_key(|knock| knock.at);
    Ok(done)
}

fn begin(to: SocketAddrV4) -> Result<OwnedFd> {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let socket = socket(AddressFamily::Inet, SockType::Stream, flags, SockProtocol::Tcp)?;
    match connect(socket.as_raw_fd(), &SockaddrIn::from(to)) {
        Ok(()) | Err(Errno::EINPROGRESS) => Ok(socket),
        Err(error) => Err(error.into()),
    }
}

/// Whether the connection was made; `None` as long as that is open.
fn outcome(socket: &OwnedFd) -> Option<bool> {
    if getpeername::<SockaddrIn>(socket.as_raw_fd()).is_ok() {
        return Some(true);
    }
    let error = getsockopt(socket, sockopt::SocketError).unwrap_or(0);
    (error != 0).then_some(false)
}
