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
            Ok(_) => {
                counts.answered += 1;
                answered.fetch_add(1, Ordering::Relaxed);
            }
            Err(error) => *counts.lost.entry(format!("{error:#}")).or_default() += 1,
        }
        std::thread::sleep(PAUSE);
    }
    counts
}

fn request(to: SocketAddr) -> Result<String> {
    let mut stream = TcpStream::connect_timeout(&to, PATIENCE).context("connect")?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: load\r\nConnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).context("read")?;
    good(&answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

fn good(answer: &[u8]) -> Result<()> {
    if answer.starts_with(b"HTTP/1.1 200") {
        return Ok(());
    }
    let line = answer.split(|byte| *byte == b'\r').next().unwrap_or_default();
    Err(anyhow!("answered {:?}", String::from_utf8_lossy(line)))
}

/// Asks each of `all` for `/` from the namespace at `netns`, one after the other; gives the answers with their heads.
///
/// # Errors
/// When there is no such namespace. That somebody does not answer is said in their place.
pub fn ask_each(netns: &Path, all: &[SocketAddr]) -> Result<Vec<Result<String>>> {
    let (namespace, all) = (File::open(netns)?, all.to_vec());
    let asked = std::thread::spawn(move || -> Result<Vec<Result<String>>> {
        setns(&namespace, CloneFlags::CLONE_NEWNET)?;
        Ok(all.into_iter().map(request).collect())
    });
    asked.join().map_err(|_| anyhow!("the client panicked"))?
}

/// One connection that is kept, with a request now and then.
#[derive(Debug)]
pub struct Held {
    ended: Arc<AtomicBool>,
    client: JoinHandle<Result<u64>>,
}

impl Held {
    /// Connects to `to` from the namespace at `netns`, and asks for `/` every `pause` over this one connection.
    ///
    /// # Errors
    /// When there is no such namespace.
    pub fn start(netns: &Path, to: SocketAddr, pause: Duration) -> Result<Self> {
        let namespace = File::open(netns).with_context(|| netns.display().to_string())?;
        let ended = Arc::<AtomicBool>::default();
        let until = Arc::clone(&ended);
        let client = std::thread::spawn(move || {
            setns(&namespace, CloneFlags::CLONE_NEWNET)?;
            let mut stream = TcpStream::connect_timeout(&to, PATIENCE).context("connect")?;
            stream.set_read_timeout(Some(PATIENCE))?;
            let (mut count, mut answer) = (0, vec![0; 4096]);
            while !until.load(Ordering::Relaxed) {
                let after = || format!("after {count} answers");
                stream.write_all(b"GET / HTTP/1.1\r\nHost: load\r\n\r\n").with_context(after)?;
                let length = stream.read(&mut answer).with_context(after)?;
                good(&answer[..length]).with_context(after)?;
                count += 1;
                std::thread::sleep(pause);
            }
            Ok(count)
        });
        Ok(Self { ended, client })
    }

    /// Ends the connection; gives the number of answers.
    ///
    /// # Errors
    /// When it was lost before, or never made.
    pub fn end(self) -> Result<u64> {
        self.ended.store(true, Ordering::Relaxed);
        self.client.join().map_err(|_| anyhow!("the client panicked"))?
    }
}
