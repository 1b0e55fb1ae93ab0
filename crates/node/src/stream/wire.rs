//! The streams of an exec or attach, whichever protocol carries them.
//!
//! Upstream counterpart: `k8s.io/apimachinery/pkg/util/remotecommand` and `k8s.io/kubelet/pkg/cri/streaming`.

use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use serde::Deserialize;
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_util::sync::CancellationToken;

use super::mux::{Connection, STATUS_PROTOCOL, Stream, Writer};
use super::upgrade::{Io, part, web_socket};

/// Messages that wait to be written, each 32 KiB at most.
const MESSAGES_MAX: usize = 16;
/// For a client to open all streams that it asked for, as upstream.
const STREAMS_TIMEOUT: Duration = Duration::from_secs(30);
/// For a client to hang up after everything is said.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);
/// The first byte that ends a channel in `v5.channel.k8s.io`.
const CLOSE_CHANNEL: u8 = 255;

/// What the server sends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Channel {
    Stdout,
    Stderr,
    /// The Status at the end.
    Error,
}

/// Which streams a client asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Streams {
    pub(super) stdin: bool,
    pub(super) stdout: bool,
    pub(super) stderr: bool,
    pub(super) tty: bool,
}

/// A size of a terminal, as clients send it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Size {
    pub(super) width: u16,
    pub(super) height: u16,
}

/// The session's ends of the streams.
pub(super) struct Wire {
    /// Ends when the client has no more input.
    pub(super) stdin: mpsc::Receiver<Bytes>,
    pub(super) sizes: mpsc::Receiver<Size>,
    /// When the last is dropped, the client is told the end.
    pub(super) out: mpsc::Sender<(Channel, Bytes)>,
    /// Fires when the client is gone.
    pub(super) gone: CancellationToken,
}

/// The carrier's ends of them.
struct Ends {
    stdin: Option<mpsc::Sender<Bytes>>,
    sizes: mpsc::Sender<Size>,
    out: mpsc::Receiver<(Channel, Bytes)>,
    gone: CancellationToken,
}

fn wire() -> (Wire, Ends) {
    let (to_stdin, stdin) = mpsc::channel(MESSAGES_MAX);
    let (to_sizes, sizes) = mpsc::channel(MESSAGES_MAX);
    let (out, from_out) = mpsc::channel(MESSAGES_MAX);
    let gone = CancellationToken::new();
    (
        Wire { stdin, sizes, out, gone: gone.clone() },
        Ends { stdin: Some(to_stdin), sizes: to_sizes, out: from_out, gone },
    )
}

/// Carries a session over a WebSocket with a channel's number before each message.
pub(super) async fn over_web_socket<F: Future<Output = ()>>(
    io: Io,
    wanted: Streams,
    session: impl FnOnce(Wire) -> F,
) {
    let (mut sink, mut source) = web_socket(io).await.split();
    let (wire, mut ends) = wire();
    let gone = ends.gone.clone();
    if !wanted.stdin {
        ends.stdin = None;
    }
    let (mut out, heard) = (ends.out, gone.clone());
    let (mut stdin, sizes) = (ends.stdin, ends.sizes);
    let reading = async {
        while let Some(Ok(message)) = source.next().await {
            match message {
                Message::Close(_) => break,
                Message::Binary(data) => hear(data, &mut stdin, &sizes).await,
                Message::Text(text) => hear(text.into(), &mut stdin, &sizes).await,
                _ => {}
            }
        }
        drop(stdin.take());
        heard.cancel();
    };
    let writing = async {
        // Tells the client that the connection stands, as upstream does.
        let first = if wanted.stdout {
            1
        } else if wanted.stderr {
            2
        } else {
            3
        };
        let mut result = sink.send(message(first, &[])).await;
        while result.is_ok()
            && let Some((channel, data)) = out.recv().await
        {
            let number = match channel {
                Channel::Stdout => 1,
                Channel::Stderr => 2,
                Channel::Error => 3,
            };
            result = sink.send(message(number, &data)).await;
        }
        if result.is_err() {
            gone.cancel();
        }
        let normal = CloseFrame { code: CloseCode::Normal, reason: "".into() };
        let _ = sink.send(Message::Close(Some(normal))).await; // the client may be gone
        let _ = tokio::time::timeout(CLOSE_TIMEOUT, gone.cancelled()).await; // for its own Close
    };
    {
        // The reading goes on while the rest is written: it also answers pings.
        let talking = async { tokio::join!(session(wire), writing) };
        tokio::pin!(talking);
        tokio::select! {
            _ = &mut talking => {}
            () = reading => {
                talking.await;
            }
        }
    }
    part(sink, source).await;
}

/// A message on a channel.
pub(super) fn message(channel: u8, data: &[u8]) -> Message {
    let mut all = Vec::with_capacity(data.len() + 1);
    all.push(channel);
    all.extend_from_slice(data);
    Message::Binary(all.into())
}

async fn hear(
    mut data: Bytes,
    stdin: &mut Option<mpsc::Sender<Bytes>>,
    sizes: &mpsc::Sender<Size>,
) {
    if data.is_empty() {
        return;
    }
    let body = data.split_off(1);
    match data.first() {
        Some(0) if !body.is_empty() => {
            if let Some(to) = stdin {
                let _ = to.send(body).await; // the process may have ended
            }
        }
        Some(4) => resize(&body, sizes),
        Some(&CLOSE_CHANNEL) if body.first() == Some(&0) => drop(stdin.take()),
        _ => {}
    }
}

/// Sizes come in JSON; of many that wait, the oldest are as good as the newest to nobody, so a full queue drops them.
fn resize(json: &[u8], sizes: &mpsc::Sender<Size>) {
    if let Ok(size) = serde_json::from_slice(json) {
        let _ = sizes.try_send(size); // full: the user goes on dragging
    }
}

/// Carries a session over SPDY with a stream for each of stdin, stdout, stderr, error and resize.
pub(super) async fn over_spdy<F: Future<Output = ()>>(
    io: Io,
    wanted: Streams,
    session: impl FnOnce(Wire) -> F,
) {
    let mut connection = Connection::open(io);
    let collected = tokio::time::timeout(STREAMS_TIMEOUT, collect(&mut connection, wanted)).await;
    let Ok(Some(mut found)) = collected else {
        tracing::debug!(component = "kubelet", "a client did not open the streams it asked for");
        return;
    };
    let (wire, ends) = wire();
    let Ends { stdin, sizes, mut out, gone } = ends;
    let hung_up = connection.gone.clone();
    let hearing = tokio::spawn(hear_spdy(found.stdin.take(), found.resize.take(), stdin, sizes));
    let writing = async {
        while let Some((channel, data)) = out.recv().await {
            let writer = match channel {
                Channel::Stdout => found.stdout.as_ref(),
                Channel::Stderr => found.stderr.as_ref(),
                Channel::Error => found.error.as_ref(),
            };
            if let Some(writer) = writer
                && writer.send(data).await.is_err()
            {
                break;
            }
        }
        for writer in [&found.stdout, &found.stderr, &found.error].into_iter().flatten() {
            if writer.finish().await.is_err() {
                break;
            }
        }
    };
    let leaving = async {
        hung_up.cancelled().await;
        gone.cancel();
        std::future::pending::<()>().await;
    };
    tokio::select! {
        _ = async { tokio::join!(session(wire), writing) } => {}
        () = leaving => {}
    }
    hearing.abort();
    connection.close(CLOSE_TIMEOUT).await;
}

#[derive(Default)]
struct Found {
    stdin: Option<Stream>,
    resize: Option<Stream>,
    stdout: Option<Writer>,
    stderr: Option<Writer>,
    error: Option<Writer>,
}

/// Waits for the streams that were asked for; `None` when the client goes before.
async fn collect(connection: &mut Connection, wanted: Streams) -> Option<Found> {
    let mut found = Found::default();
    loop {
        let complete = found.error.is_some()
            && found.stdin.is_some() == wanted.stdin
            && found.stdout.is_some() == wanted.stdout
            && found.stderr.is_some() == wanted.stderr
            && found.resize.is_some() == wanted.tty;
        if complete {
            return Some(found);
        }
        let stream = connection.streams.recv().await?;
        match stream.header("streamtype") {
            "stdin" if wanted.stdin => found.stdin = Some(stream),
            "resize" if wanted.tty => found.resize = Some(stream),
            "stdout" if wanted.stdout => found.stdout = Some(stream.writer),
            "stderr" if wanted.stderr => found.stderr = Some(stream.writer),
            "error" => found.error = Some(stream.writer),
            _ => {
                stream.writer.reset(STATUS_PROTOCOL).await.ok()?;
            }
        }
    }
}

async fn hear_spdy(
    stdin: Option<Stream>,
    resize_stream: Option<Stream>,
    to_stdin: Option<mpsc::Sender<Bytes>>,
    sizes: mpsc::Sender<Size>,
) {
    let input = async {
        if let (Some(mut stream), Some(to)) = (stdin, to_stdin) {
            while let Some(data) = stream.data.recv().await {
                if to.send(data).await.is_err() {
                    return; // the process takes no more
                }
            }
        }
    };
    let terminal = async {
        let Some(mut stream) = resize_stream else { return };
        let mut held = Vec::new();
        while let Some(data) = stream.data.recv().await {
            held.extend_from_slice(&data);
            while let Some(end) = held.iter().position(|byte| *byte == b'}') {
                let rest = held.split_off(end + 1);
                resize(&held, &sizes);
                held = rest;
            }
            held.truncate(1024); // a size is some 30 bytes
        }
    };
    tokio::join!(input, terminal);
}
