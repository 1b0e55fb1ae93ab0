//! Requests from inside a network namespace, each over a connection of its own, counted by how they end.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use nix::sched::{CloneFlags, setns};

/// A request that takes longer is lost: far beyond what a busy machine needs.
const PATIENCE: Duration = Duration::from_secs(5);
/// Between two requests of one client.
const PAUSE: Duration = Duration::from_millis(2);

/// How requests ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// With an answer.
    pub answered: u64,
    /// Without one, by the error.
    pub lost: BTreeMap<String, u64>,
}

/// Clients that ask until they are told to end.
#[derive(Debug)]
pub struct Load {
    ended: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
    clients: Vec<JoinHandle<Result<Counts>>>,
}

impl Load {
    /// Begins to ask `to` for `/` from the namespace at `netns`, with so many clients side by side.
    ///
    /// # Errors
    /// When there is no such namespace.
    pub fn start(netns: &Path, to: SocketAddr, clients: usize) -> Result<Self> {
        let (ended, answered) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let clients = (0..clients).map(|_| {
            let namespace = File::open(netns).with_context(|| netns.display().to_string())?;
            let (ended, answered) = (Arc::clone(&ended), Arc::clone(&answered));
            Ok(std::thread::spawn(move || {
                // A network namespace is each thread's own.
                setns(&namespace, CloneFlags::CLONE_NEWNET)?;
                Ok(ask(to, &ended, &answered))
            }))
        });
        let clients = clients.collect::<Result<_>>()?;
        Ok(Self { ended, answered, clients })
    }

    /// Answers so far.
    #[must_use]
    pub fn answered(&self) -> u64 {
        self.answered.load(Ordering::Relaxed)
    }

    /// Ends all clients.
    ///
    /// # Errors
    /// When one could not enter its namespace.
    pub fn end(self) -> Result<Counts> {
        self.ended.store(true, Ordering::Relaxed);
        let mut all = Counts::default();
        for client in self.clients {
            let counts = client.join().map_err(|_| anyhow!("a client panicked"))??;
            all.answered += counts.answered;
            for (error, count) in counts.lost {
                *all.lost.entry(error).or_default() += count;
            }
        }
        Ok(all)
    }
}

fn ask(to: SocketAddr, ended: &AtomicBool, answered: &AtomicU64) -> Counts {
    let mut counts = Counts::default();
    while !ended.load(Ordering::Relaxed) {
        match request(to) {
            Ok(()) => {
                counts.answered += 1;
                answered.fetch_add(1, Ordering::Relaxed);
            }
            Err(error) => *counts.lost.entry(format!("{error:#}")).or_default() += 1,
        }
        std::thread::sleep(PAUSE);
    }
    counts
}

fn request(to: SocketAddr) -> Result<()> {
    let mut stream = TcpStream::connect_timeout(&to, PATIENCE).context("connect")?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: load\r\nConnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).context("read")?;
    if !answer.starts_with(b"HTTP/1.1 200") {
        let line = answer.split(|byte| *byte == b'\r').next().unwrap_or_default();
        return Err(anyhow!("answered {:?}", String::from_utf8_lossy(line)));
    }
    Ok(())
}
