//! The streams of one SPDY/3.1 connection, as channels of bytes.
//!
//! `moby/spdystream`, the peer, neither keeps flow control windows nor sends updates of them: who waited for its windows
//! would stop after 64 KiB. So nothing is waited for here; TCP and bounded channels hold back both sides, and updates
//! are sent for what is taken, for peers that do keep windows.

use std::collections::BTreeMap;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::spdy::{Decoder, Encoder, Frame, Headers};

/// Streams of one connection at a time: a browser behind a forwarded port opens some dozens.
const STREAMS_MAX: usize = 1024;
/// Frames of a stream that wait to be read.
const FRAMES_MAX: usize = 16;
/// Frames of a connection that wait to be written.
const WRITES_MAX: usize = 32;
/// Bytes read at once.
const READ_BYTES: usize = 32 << 10;
/// Bytes gathered before they are written.
const WRITE_BYTES: usize = 64 << 10;

/// `PROTOCOL_ERROR`.
pub(super) const STATUS_PROTOCOL: u32 = 1;
const STATUS_REFUSED: u32 = 3;
const STATUS_CANCEL: u32 = 5;

/// A stream that the client opened.
pub(super) struct Stream {
    /// Odd, and higher than of those before.
    pub(super) id: u32,
    /// What the client says of it, names in lower case.
    pub(super) headers: Headers,
    /// What it sends; ends with its half.
    pub(super) data: mpsc::Receiver<Bytes>,
    /// Our half.
    pub(super) writer: Writer,
}

impl Stream {
    /// A stream of something else than SPDY: `data` is what comes, `frames` takes what goes.
    pub(super) fn over(id: u32, data: mpsc::Receiver<Bytes>, frames: mpsc::Sender<Frame>) -> Self {
        Self { id, headers: Headers::new(), data, writer: Writer { id, frames } }
    }

    /// A header; empty when it is missing.
    pub(super) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }
}

/// Our half of a stream.
#[derive(Clone)]
pub(super) struct Writer {
    id: u32,
    frames: mpsc::Sender<Frame>,
}

/// The client is gone.
#[derive(Debug)]
pub(super) struct Gone;

impl Writer {
    /// Sends bytes.
    pub(super) async fn send(&self, data: Bytes) -> Result<(), Gone> {
        self.put(Frame::Data { id: self.id, fin: false, data }).await
    }

    /// Ends our half.
    pub(super) async fn finish(&self) -> Result<(), Gone> {
        self.put(Frame::Data { id: self.id, fin: true, data: Bytes::new() }).await
    }

    /// Gives up the stream.
    pub(super) async fn reset(&self, status: u32) -> Result<(), Gone> {
        self.put(Frame::RstStream { id: self.id, status }).await
    }

    async fn put(&self, frame: Frame) -> Result<(), Gone> {
        self.frames.send(frame).await.map_err(|_| Gone)
    }
}

/// One side of a connection.
pub(super) struct Connection {
    /// The streams that the client opens; ends with the connection.
    pub(super) streams: mpsc::Receiver<Stream>,
    /// Fires when the client is gone.
    pub(super) gone: CancellationToken,
    frames: mpsc::Sender<Frame>,
    tasks: [tokio::task::JoinHandle<()>; 2],
}

impl Connection {
    /// Takes over an upgraded connection.
    pub(super) fn open<T>(io: T) -> Self
    where
        T: AsyncRead + AsyncWrite + Send + 'static,
    {
        let (read, write) = tokio::io::split(io);
        let (frames, queue) = mpsc::channel(WRITES_MAX);
        let (opened, streams) = mpsc::channel(STREAMS_MAX);
        let gone = CancellationToken::new();
        let reader = Reader { known: BTreeMap::new(), opened, frames: frames.clone(), last: 0 };
        let (ends, breaks) = (gone.clone(), gone.clone());
        let reading = tokio::spawn(async move {
            reader.run(read).await;
            ends.cancel();
        });
        let writing = tokio::spawn(async move {
            if write_frames(write, queue).await.is_err() {
                breaks.cancel();
            }
        });
        Self { streams, gone, frames, tasks: [reading, writing] }
    }

    /// Says that no more comes, and gives the client the time to read it.
    pub(super) async fn close(self, patience: std::time::Duration) {
        let sent = self.frames.send(Frame::GoAway { last: 0, status: 0 }).await;
        if sent.is_ok() {
            let _ = tokio::time::timeout(patience, self.gone.cancelled()).await; // or else it hangs up later
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.gone.cancel();
        self.tasks.iter().for_each(tokio::task::JoinHandle::abort);
    }
}

/// Writes frames until the last sender is gone or the client is told to go.
async fn write_frames(
    mut write: impl AsyncWrite + Unpin,
    mut queue: mpsc::Receiver<Frame>,
) -> std::io::Result<()> {
    let (mut encoder, mut out) = (Encoder::default(), BytesMut::new());
    let mut closing = false;
    while !closing && let Some(frame) = queue.recv().await {
        let mut next = Some(frame);
        while let Some(frame) = next {
            closing |= matches!(frame, Frame::GoAway { .. });
            encoder.encode(&frame, &mut out);
            next = if out.len() < WRITE_BYTES && !closing { queue.try_recv().ok() } else { None };
        }
        write.write_all(&out).await?;
        write.flush().await?;
        out.clear();
    }
    write.shutdown().await
}

struct Reader {
    /// Streams whose client's half is open.
    known: BTreeMap<u32, mpsc::Sender<Bytes>>,
    opened: mpsc::Sender<Stream>,
    frames: mpsc::Sender<Frame>,
    last: u32,
}

impl Reader {
    async fn run(mut self, mut read: impl AsyncRead + Unpin) {
        let mut decoder = Decoder::new();
        let mut buffer = vec![0; READ_BYTES];
        loop {
            match read.read(&mut buffer).await {
                Ok(0) | Err(_) => return, // a client that hangs up is no error
                Ok(length) => decoder.feed(buffer.get(..length).unwrap_or_default()),
            }
            loop {
                match decoder.next() {
                    Ok(None) => break,
                    Ok(Some(frame)) => {
                        if self.take(frame).await.is_err() {
                            return;
                        }
                    }
                    Err(error) => {
                        tracing::debug!(component = "kubelet", %error, "a SPDY connection broke");
                        return;
                    }
                }
            }
        }
    }

    async fn take(&mut self, frame: Frame) -> Result<(), Gone> {
        match frame {
            Frame::SynStream { id, fin, headers } => self.open(id, fin, headers).await,
            Frame::Data { id, fin, data } => {
                self.data(id, data).await?;
                if fin {
                    self.known.remove(&id);
                }
                Ok(())
            }
            Frame::Headers { id, fin: true, .. } | Frame::RstStream { id, .. } => {
                self.known.remove(&id);
                Ok(())
            }
            Frame::Ping(id) if id % 2 == 1 => self.put(Frame::Ping(id)).await,
            _ => Ok(()),
        }
    }

    async fn open(&mut self, id: u32, fin: bool, headers: Headers) -> Result<(), Gone> {
        self.known.retain(|_, stream| !stream.is_closed());
        if id.is_multiple_of(2) || id <= self.last {
            return self.put(Frame::RstStream { id, status: STATUS_PROTOCOL }).await;
        }
        self.last = id;
        if self.known.len() >= STREAMS_MAX {
            return self.put(Frame::RstStream { id, status: STATUS_REFUSED }).await;
        }
        self.put(Frame::SynReply { id, fin: false, headers: Headers::new() }).await?;
        let (sender, data) = mpsc::channel(FRAMES_MAX);
        if !fin {
            self.known.insert(id, sender);
        }
        let writer = Writer { id, frames: self.frames.clone() };
        self.opened.send(Stream { id, headers, data, writer }).await.map_err(|_| Gone)
    }

    async fn data(&mut self, id: u32, data: Bytes) -> Result<(), Gone> {
        if data.is_empty() {
            return Ok(());
        }
        let delta = u32::try_from(data.len()).unwrap_or(u32::MAX);
        let Some(stream) = self.known.get(&id) else {
            return Ok(()); // what was on the way when we gave it up
        };
        if stream.send(data).await.is_err() {
            self.known.remove(&id);
            return self.put(Frame::RstStream { id, status: STATUS_CANCEL }).await;
        }
        self.put(Frame::WindowUpdate { id, delta }).await?;
        self.put(Frame::WindowUpdate { id: 0, delta }).await
    }

    async fn put(&self, frame: Frame) -> Result<(), Gone> {
        self.frames.send(frame).await.map_err(|_| Gone)
    }
}
