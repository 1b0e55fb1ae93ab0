//! Load on an API server by clients that cost little themselves: creates by blocking TLS connections, one a thread, and
//! the delay until 500 watchers have an event. `bench/api.py` runs it and says what its lines mean.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Any failure ends the run.
type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Where the server is and who asks.
#[derive(Clone)]
struct Target {
    address: String,
    token: String,
    tls: Arc<rustls::ClientConfig>,
}

type Tls = rustls::StreamOwned<rustls::ClientConnection, TcpStream>;

impl Target {
    /// From the arguments: `ADDRESS CA-FILE TOKEN-FILE`.
    fn read(arguments: &mut impl Iterator<Item = String>) -> Result<Self, Failure> {
        let mut next = || arguments.next().ok_or("too few arguments");
        let (address, authority, token) = (next()?, PathBuf::from(next()?), next()?);
        let mut roots = rustls::RootCertStore::empty();
        for certificate in CertificateDer::pem_file_iter(authority)? {
            roots.add(certificate?)?;
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let token = std::fs::read_to_string(token)?.trim().to_owned();
        Ok(Self { address, token, tls: Arc::new(tls) })
    }

    fn name(&self) -> Result<ServerName<'static>, Failure> {
        let host = self.address.rsplit_once(':').map_or(&*self.address, |(host, _)| host);
        Ok(ServerName::try_from(host.to_owned())?)
    }

    fn connect(&self) -> Result<Tls, Failure> {
        let stream = TcpStream::connect(&self.address)?;
        stream.set_nodelay(true)?;
        let connection = rustls::ClientConnection::new(Arc::clone(&self.tls), self.name()?)?;
        Ok(rustls::StreamOwned::new(connection, stream))
    }

    fn post(&self, body: &str) -> String {
        format!(
            "POST /api/v1/namespaces/default/services HTTP/1.1\r\nHost: {}\r\nAuthorization: Bearer {}\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            self.address,
            self.token,
            body.len()
        )
    }
}

/// With a ClusterIP, or of type ExternalName: no controller writes because of such a one.
fn service(name: &str, external: bool) -> String {
    let spec = if external {
        r#""type":"ExternalName","externalName":"a.example""#
    } else {
        r#""ports":[{"port":80}]"#
    };
    format!(
        r#"{{"apiVersion":"v1","kind":"Service","metadata":{{"name":"{name}","namespace":"default"}},"spec":{{{spec}}}}}"#
    )
}

/// Sends one request and reads its whole answer; 201 is the only good one.
fn exchange(connection: &mut Tls, request: &str) -> Result<(), Failure> {
    connection.write_all(request.as_bytes())?;
    connection.flush()?;
    let (mut answer, mut chunk) = (Vec::new(), [0_u8; 16384]);
    loop {
        let count = connection.read(&mut chunk)?;
        if count == 0 {
            return Err("the server closed the connection".into());
        }
        answer.extend_from_slice(&chunk[..count]);
        let Some(head) = answer.windows(4).position(|window| window == b"\r\n\r\n") else {
            continue;
        };
        let text = String::from_utf8_lossy(&answer[..head]).to_lowercase();
        let length = text
            .split("content-length: ")
            .nth(1)
            .and_then(|rest| rest.split("\r\n").next()?.parse::<usize>().ok());
        let done = match length {
            Some(length) => answer.len() >= head + 4 + length,
            None => answer.ends_with(b"0\r\n\r\n"),
        };
        if done {
            let good = text.starts_with("http/1.1 201");
            return if good {
                Ok(())
            } else {
                Err(String::from_utf8_lossy(&answer).into_owned().into())
            };
        }
    }
}

fn percentile(sorted: &[u64], share: f64) -> f64 {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "an index into measured values"
    )]
    let index = ((sorted.len() - 1) as f64 * share).round() as usize;
    #[expect(clippy::cast_precision_loss, reason = "microseconds of a short run")]
    let value = sorted[index] as f64;
    value / 1000.0
}

/// `create … CLIENTS SECONDS PREFIX` and `create-external …`: creates Services as fast as the answers come.
#[expect(clippy::print_stdout, reason = "a benchmark's output")]
fn create(
    target: &Target,
    arguments: &mut impl Iterator<Item = String>,
    external: bool,
) -> Result<(), Failure> {
    let mut next = || arguments.next().ok_or("too few arguments");
    let (clients, seconds, prefix) = (next()?.parse::<u32>()?, next()?.parse::<f64>()?, next()?);
    let begun = Instant::now();
    let until = begun + Duration::from_secs_f64(seconds);
    let mut threads = Vec::new();
    for client in 0..clients {
        let (target, prefix) = (target.clone(), prefix.clone());
        threads.push(std::thread::spawn(move || -> Result<Vec<u64>, Failure> {
            let mut connection = target.connect()?;
            let mut times = Vec::new();
            while Instant::now() < until {
                let request =
                    target.post(&service(&format!("{prefix}-{client}-{}", times.len()), external));
                let sent = Instant::now();
                exchange(&mut connection, &request)?;
                times.push(u64::try_from(sent.elapsed().as_nanos())? / 1000);
            }
            Ok(times)
        }));
    }
    let mut times = Vec::new();
    for thread in threads {
        times.extend(thread.join().map_err(|_| "a client failed")??);
    }
    let elapsed = begun.elapsed().as_secs_f64();
    times.sort_unstable();
    println!(
        "count {} seconds {elapsed:.3} p50-ms {:.3} p99-ms {:.3}",
        times.len(),
        percentile(&times, 0.5),
        percentile(&times, 0.99)
    );
    Ok(())
}

/// What the watchers have in common.
struct Shared {
    origin: Instant,
    /// Watchers whose answer has begun.
    ready: AtomicU64,
    /// For each watcher, at how many microseconds after the origin each event was read.
    seen: Mutex<Vec<Vec<u64>>>,
}

impl Shared {
    fn now(&self) -> Result<u64, Failure> {
        Ok(u64::try_from(self.origin.elapsed().as_micros())?)
    }
}

/// Finds the ends of events that tell of new objects, in the bytes of a watch with the frames of HTTP's chunks. A line
/// that ends in a bare newline is an event; controllers' later changes of the same objects are not counted.
#[derive(Default)]
struct Lines {
    before: u8,
    column: usize,
    object: bool,
    kind: u8,
}

impl Lines {
    fn ends(&mut self, byte: u8) -> bool {
        if self.column == 0 {
            self.object = byte == b'{';
        }
        // `{"type":"ADDED"`: the tenth byte tells the type.
        if self.column == 9 && self.object {
            self.kind = byte;
        }
        let line = byte == b'\n';
        let ends = line && self.before != b'\r' && self.kind == b'A';
        self.before = byte;
        self.column = if line { 0 } else { self.column + 1 };
        ends
    }
}

/// Reads a watch and notes at which moment each event ended.
async fn watch(
    target: Target,
    since: Arc<str>,
    number: usize,
    shared: Arc<Shared>,
) -> Result<(), Failure> {
    let stream = tokio::net::TcpStream::connect(&target.address).await?;
    stream.set_nodelay(true)?;
    let mut stream = tokio_rustls::TlsConnector::from(Arc::clone(&target.tls))
        .connect(target.name()?, stream)
        .await?;
    let request = format!(
        "GET /api/v1/namespaces/default/services?watch=true&resourceVersion={since} HTTP/1.1\r\nHost: {}\r\nAuthorization: Bearer {}\r\nAccept: application/json\r\n\r\n",
        target.address, target.token
    );
    stream.write_all(request.as_bytes()).await?;
    stream.flush().await?;
    let (mut chunk, mut lines, mut head) = (vec![0_u8; 16384], Lines::default(), true);
    loop {
        let count = stream.read(&mut chunk).await?;
        let now = u64::try_from(shared.origin.elapsed().as_nanos())? / 1000;
        if count == 0 {
            return Err("a watch ended".into());
        }
        if head {
            if !chunk.starts_with(b"HTTP/1.1 200") {
                return Err(String::from_utf8_lossy(&chunk[..count]).into_owned().into());
            }
            head = false;
            shared.ready.fetch_add(1, Ordering::SeqCst);
        }
        for byte in &chunk[..count] {
            if lines.ends(*byte) {
                let mut seen = shared.seen.lock().map_err(|_| "a watcher failed")?;
                seen[number].push(now);
            }
        }
    }
}

/// Starts the watchers and waits until each has the head of its answer.
fn start(
    runtime: &tokio::runtime::Runtime,
    target: &Target,
    watchers: usize,
    since: &str,
) -> Result<Arc<Shared>, Failure> {
    let shared = Arc::new(Shared {
        origin: Instant::now(),
        ready: AtomicU64::new(0),
        seen: Mutex::new(vec![Vec::new(); watchers]),
    });
    let since: Arc<str> = since.into();
    let mut tasks: Vec<_> = (0..watchers)
        .map(|number| {
            runtime.spawn(watch(target.clone(), Arc::clone(&since), number, Arc::clone(&shared)))
        })
        .collect();
    let wanted = u64::try_from(watchers)?;
    while shared.ready.load(Ordering::SeqCst) < wanted {
        if let Some(ended) = tasks.iter().position(tokio::task::JoinHandle::is_finished) {
            runtime.block_on(tasks.swap_remove(ended))??;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(shared)
}

/// `watch … WATCHERS WRITES PREFIX SINCE`: one write after another; each watcher's delay from the write's sending.
#[expect(clippy::print_stdout, reason = "a benchmark's output")]
fn watchers(target: &Target, arguments: &mut impl Iterator<Item = String>) -> Result<(), Failure> {
    let mut next = || arguments.next().ok_or("too few arguments");
    let (watchers, writes, prefix) =
        (next()?.parse::<usize>()?, next()?.parse::<usize>()?, next()?);
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let shared = start(&runtime, target, watchers, &next()?)?;
    let mut connection = target.connect()?;
    let (mut sent, mut answered) = (Vec::new(), Vec::new());
    for write in 0..writes {
        let request = target.post(&service(&format!("{prefix}-{write}"), true));
        let now = shared.now()?;
        exchange(&mut connection, &request)?;
        sent.push(now);
        answered.push(shared.now()? - now);
        std::thread::sleep(Duration::from_millis(100));
    }
    std::thread::sleep(Duration::from_secs(1));
    let seen = shared.seen.lock().map_err(|_| "a watcher failed")?;
    if let Some(short) = seen.iter().find(|events| events.len() != writes) {
        return Err(format!("a watcher saw {} of {writes} events", short.len()).into());
    }
    let delays = |events: &Vec<u64>| {
        events.iter().zip(&sent).map(|(at, sent)| at.saturating_sub(*sent)).collect::<Vec<_>>()
    };
    let mut all: Vec<u64> = seen.iter().flat_map(delays).collect();
    all.sort_unstable();
    answered.sort_unstable();
    println!(
        "p50-ms {:.3} p99-ms {:.3} answer-p50-ms {:.3}",
        percentile(&all, 0.5),
        percentile(&all, 0.99),
        percentile(&answered, 0.5),
    );
    Ok(())
}

fn main() -> Result<(), Failure> {
    let mut arguments = std::env::args().skip(1);
    let what = arguments.next().ok_or("which: create, create-external or watch")?;
    let target = Target::read(&mut arguments)?;
    match &*what {
        "create" => create(&target, &mut arguments, false),
        "create-external" => create(&target, &mut arguments, true),
        "watch" => watchers(&target, &mut arguments),
        other => Err(format!("no load is called {other}").into()),
    }
}
