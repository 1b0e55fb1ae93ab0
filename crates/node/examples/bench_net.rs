//! Small network loads for `bench/`: connects, bulk bytes, HTTP requests counted by how they end, DNS questions one by
//! one, and the moment at which an address begins to answer. Standard library only, so that little of it is measured.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant, SystemTime};

use socket2::{Domain, Socket, Type};

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Bound on one connect, request or question.
const PATIENCE: Duration = Duration::from_secs(5);

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// Median and 99th percentile, in microseconds.
fn summary(times: &mut [u64]) -> String {
    times.sort_unstable();
    let at = |hundredths: usize| {
        let nanos = times[(times.len() - 1) * hundredths / 100];
        format!("{}.{:03}", nanos / 1000, nanos % 1000)
    };
    format!("p50-us {} p99-us {}", at(50), at(99))
}

/// Listeners of each address, each with a thread and a queue of its own; the kernel spreads connections over them.
const LISTENERS: usize = 2;

/// Connections that may wait for a listener's thread.
const BACKLOG: i32 = 4096;

fn listener(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// `serve ADDRESS…` closes connections at once, `echo ADDRESS…` sends every byte back.
fn listen(
    addresses: &[SocketAddr],
    take: impl Fn(TcpStream) + Copy + Send + 'static,
) -> Result<(), Failure> {
    let mut threads = Vec::new();
    for address in addresses.iter().flat_map(|address| [address; LISTENERS]) {
        let listener = listener(*address)?;
        threads.push(std::thread::spawn(move || listener.incoming().flatten().for_each(take)));
    }
    for thread in threads {
        thread.join().map_err(|_| "a listener failed")?;
    }
    Ok(())
}

/// Sends every byte back, until the client goes away.
fn echo(stream: TcpStream) {
    std::thread::spawn(move || {
        let _ = stream.set_nodelay(true);
        std::io::copy(&mut &stream, &mut &stream)
    });
}

/// `rounds COUNT ADDRESS`: the times of a byte there and back, on one connection.
fn rounds(count: u64, address: SocketAddr) -> Result<String, Failure> {
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let (mut times, mut byte) = (Vec::new(), [0]);
    for _ in 0..count {
        let start = Instant::now();
        stream.write_all(&byte)?;
        stream.read_exact(&mut byte)?;
        times.push(nanos(start.elapsed()));
    }
    Ok(summary(&mut times))
}

/// One connection: until the server has accepted and closed it, so that no client runs ahead of the listeners, then
/// ended by a reset, which leaves no port behind. Answers how long the connect alone took.
fn connection(address: &SocketAddr) -> Result<Duration, Failure> {
    let start = Instant::now();
    let mut stream = TcpStream::connect_timeout(address, PATIENCE)?;
    let time = start.elapsed();
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.read_to_end(&mut Vec::new())?;
    socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
    Ok(time)
}

/// `connect COUNT ADDRESS…`: the times of connects, one after another, in turn to the addresses.
fn connect(count: u64, addresses: &[SocketAddr]) -> Result<String, Failure> {
    let mut times = Vec::new();
    for (address, _) in addresses.iter().cycle().zip(0..count) {
        times.push(nanos(connection(address)?));
    }
    Ok(summary(&mut times))
}

/// `rate CLIENTS MILLISECONDS ADDRESS…`: whole connections a second of several clients at once, each in turn to the
/// addresses, each beginning with another.
fn rate(clients: usize, time: Duration, addresses: &[SocketAddr]) -> Result<String, Failure> {
    let begun = Instant::now();
    let mut threads = Vec::new();
    for client in 0..clients {
        let addresses = addresses.to_vec();
        threads.push(std::thread::spawn(move || {
            let mut count = 0_u128;
            let mut next = addresses.iter().cycle().skip(client % addresses.len());
            while begun.elapsed() < time {
                connection(next.next().ok_or("no address")?)?;
                count += 1;
            }
            Ok::<_, Failure>(count)
        }));
    }
    let mut count = 0;
    for thread in threads {
        count += thread.join().map_err(|_| "a client failed")??;
    }
    Ok(format!("rate {}", count * 1_000_000 / begun.elapsed().as_micros().max(1)))
}

/// `bulk ADDRESS SECONDS`: megabytes a second of one connection.
fn bulk(address: SocketAddr, seconds: u64) -> Result<String, Failure> {
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    let (chunk, begun, mut sent) = (vec![0_u8; 1 << 18], Instant::now(), 0_u128);
    while begun.elapsed() < Duration::from_secs(seconds) {
        sent += u128::try_from(stream.write(&chunk)?)?;
    }
    Ok(format!("mbytes {}", sent / begun.elapsed().as_micros().max(1)))
}

/// One HTTP request on a connection of its own, and how it ended.
fn request(address: SocketAddr) -> String {
    let ended = |stage: &str, error: &std::io::Error| match error.kind() {
        ErrorKind::TimedOut | ErrorKind::WouldBlock => format!("{stage}-timeout"),
        ErrorKind::ConnectionRefused => format!("{stage}-refused"),
        ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => format!("{stage}-reset"),
        ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable => {
            format!("{stage}-unreachable")
        }
        other => format!("{stage}-{other:?}"),
    };
    let mut stream = match TcpStream::connect_timeout(&address, PATIENCE) {
        Ok(stream) => stream,
        Err(error) => return ended("connect", &error),
    };
    let mut exchange = || {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(b"GET / HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n")?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        Ok::<_, std::io::Error>(answer)
    };
    match exchange() {
        Ok(answer) if answer.starts_with(b"HTTP/1.1 200") => "ok".to_owned(),
        Ok(answer) if answer.is_empty() => "closed-without-answer".to_owned(),
        Ok(answer) => String::from_utf8_lossy(answer.get(..12).unwrap_or(&answer)).into_owned(),
        Err(error) => ended("answer", &error),
    }
}

/// `requests ADDRESS CLIENTS PAUSE-MS`: until the standard input ends; counts by how each ended.
fn requests(address: SocketAddr, clients: u64, pause: Duration) -> Result<String, Failure> {
    let ended = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let mut threads = Vec::new();
    for _ in 0..clients {
        let ended = std::sync::Arc::clone(&ended);
        threads.push(std::thread::spawn(move || {
            let mut counts = BTreeMap::<String, u64>::new();
            while !ended.load(std::sync::atomic::Ordering::Relaxed) {
                *counts.entry(request(address)).or_default() += 1;
                std::thread::sleep(pause);
            }
            counts
        }));
    }
    std::io::stdin().read_to_end(&mut Vec::new())?;
    ended.store(true, std::sync::atomic::Ordering::Relaxed);
    let mut counts = BTreeMap::<String, u64>::new();
    for thread in threads {
        for (kind, count) in thread.join().map_err(|_| "a client failed")? {
            *counts.entry(kind).or_default() += count;
        }
    }
    Ok(serde_json::to_string(&counts)?)
}

/// `until ADDRESS`: the clock, in microseconds since 1970, when the first connect succeeded.
fn until(address: SocketAddr) -> Result<String, Failure> {
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(60) {
        if TcpStream::connect_timeout(&address, Duration::from_millis(100)).is_ok() {
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
            return Ok(now.as_micros().to_string());
        }
        std::thread::sleep(Duration::from_micros(500));
    }
    Err("it never answered".into())
}

/// `ask ADDRESS NAME COUNT`: one question for an A record after another.
fn ask(server: SocketAddr, name: &str, count: u64) -> Result<String, Failure> {
    let mut question = vec![0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        question.push(u8::try_from(label.len())?);
        question.extend(label.as_bytes());
    }
    question.extend([0, 0, 1, 0, 1]);
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.connect(server)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    let (mut times, mut answer) = (Vec::new(), [0_u8; 1500]);
    for number in 0..count {
        question[..2].copy_from_slice(&u16::try_from(number % 65536)?.to_be_bytes());
        let start = Instant::now();
        socket.send(&question)?;
        let length = socket.recv(&mut answer)?;
        times.push(nanos(start.elapsed()));
        if length < 12 || answer[3] & 15 != 0 || answer[7] == 0 {
            return Err(format!("no address for {name}").into());
        }
    }
    Ok(summary(&mut times))
}

fn parsed(addresses: &[&str]) -> Result<Vec<SocketAddr>, Failure> {
    Ok(addresses.iter().map(|address| address.parse()).collect::<Result<_, _>>()?)
}

#[expect(clippy::print_stdout, reason = "a benchmark's output")]
fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let parts: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let line = match *parts.as_slice() {
        ["serve", ref addresses @ ..] => return listen(&parsed(addresses)?, drop),
        ["echo", ref addresses @ ..] => return listen(&parsed(addresses)?, echo),
        ["connect", count, ref addresses @ ..] if !addresses.is_empty() => {
            connect(count.parse()?, &parsed(addresses)?)?
        }
        ["rate", clients, time, ref addresses @ ..] if !addresses.is_empty() => {
            let time = Duration::from_millis(time.parse()?);
            rate(clients.parse()?, time, &parsed(addresses)?)?
        }
        ["rounds", count, address] => rounds(count.parse()?, address.parse()?)?,
        ["bulk", address, seconds] => bulk(address.parse()?, seconds.parse()?)?,
        ["requests", address, clients, pause] => {
            requests(address.parse()?, clients.parse()?, Duration::from_millis(pause.parse()?))?
        }
        ["until", address] => until(address.parse()?)?,
        ["ask", server, name, count] => ask(server.parse()?, name, count.parse()?)?,
        _ => {
            return Err(
                "which: serve, connect, rate, echo, rounds, bulk, requests, until or ask".into()
            );
        }
    };
    println!("{line}");
    Ok(())
}
