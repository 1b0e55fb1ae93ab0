//! From HTTP to another protocol on the same connection: SPDY/3.1 or WebSocket, with a protocol of streams inside.

use std::future::Future;

use base64::Engine as _;
use futures_util::stream::{SplitSink, SplitStream};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use http_body_util::Empty;
use hyper::body::Incoming;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::io::AsyncWriteExt;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};

use super::{Body, boxed, plain};

/// The connection after its upgrade.
pub(super) type Io = TokioIo<Upgraded>;
/// Longest message of a WebSocket, bytes; clients send 32 KiB at most.
const MESSAGE_BYTES_MAX: usize = 4 << 20;
/// How Go spells the header.
const STREAM_PROTOCOL: &str = "x-stream-protocol-version";

/// The two halves of a WebSocket.
type Sink = SplitSink<WebSocketStream<Io>, Message>;
type Source = SplitStream<WebSocketStream<Io>>;

/// What a client asks to be upgraded to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    Spdy,
    WebSocket,
}

impl Wanted {
    /// `None` when the request is no upgrade to a protocol we speak.
    pub(super) fn of(headers: &HeaderMap) -> Option<Self> {
        if !tokens(headers, header::CONNECTION.as_str())
            .any(|one| one.eq_ignore_ascii_case("upgrade"))
        {
            return None;
        }
        let upgrade = headers.get(header::UPGRADE)?.to_str().ok()?;
        if upgrade.eq_ignore_ascii_case("SPDY/3.1") {
            return Some(Self::Spdy);
        }
        upgrade.eq_ignore_ascii_case("websocket").then_some(Self::WebSocket)
    }

    /// The protocols the client offers inside, its favourite first.
    pub(super) fn offers(self, headers: &HeaderMap) -> Vec<&str> {
        let name = match self {
            Self::Spdy => STREAM_PROTOCOL,
            Self::WebSocket => header::SEC_WEBSOCKET_PROTOCOL.as_str(),
        };
        tokens(headers, name).collect()
    }

    /// Answers 101 and goes on with `work` on the connection in the background.
    pub(super) fn accept<F: Future<Output = ()> + Send + 'static>(
        self,
        mut request: Request<Incoming>,
        protocol: &str,
        work: impl FnOnce(Io) -> F + Send + 'static,
    ) -> Response<Body> {
        let mut response = Response::new(boxed(Empty::new()));
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let headers = response.headers_mut();
        headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        let chosen = HeaderValue::from_str(protocol).ok();
        match self {
            Self::Spdy => {
                headers.insert(header::UPGRADE, HeaderValue::from_static("SPDY/3.1"));
                chosen.map(|chosen| headers.insert(STREAM_PROTOCOL, chosen));
            }
            Self::WebSocket => {
                let Some(answer) = accept_key(request.headers()) else {
                    return plain(StatusCode::BAD_REQUEST, "the WebSocket handshake has no key");
                };
                headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
                headers.insert(header::SEC_WEBSOCKET_ACCEPT, answer);
                let chosen = chosen.filter(|chosen| !chosen.is_empty());
                chosen.map(|chosen| headers.insert(header::SEC_WEBSOCKET_PROTOCOL, chosen));
            }
        }
        let upgrade = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            match upgrade.await {
                Ok(upgraded) => work(TokioIo::new(upgraded)).await,
                Err(error) => {
                    tracing::debug!(component = "kubelet", %error, "a connection was not upgraded");
                }
            }
        });
        response
    }
}

/// The refusal when a client offers nothing that we speak, in upstream's words.
pub(super) fn refused(offers: &[&str], ours: &[&str]) -> Response<Body> {
    let text = format!(
        "unable to upgrade: unable to negotiate protocol: client supports [{}], server accepts [{}]",
        offers.join(" "),
        ours.join(" ")
    );
    let mut response = plain(StatusCode::FORBIDDEN, &text);
    for one in ours {
        if let Ok(value) = HeaderValue::from_str(one) {
            response.headers_mut().append("x-accepted-stream-protocol-versions", value);
        }
    }
    response
}

/// The server's side of a WebSocket after the handshake.
pub(super) async fn web_socket(io: Io) -> WebSocketStream<Io> {
    let config = WebSocketConfig::default()
        .max_message_size(Some(MESSAGE_BYTES_MAX))
        .max_frame_size(Some(MESSAGE_BYTES_MAX));
    WebSocketStream::from_raw_socket(io, Role::Server, Some(config)).await
}

/// Ends the connection below a WebSocket, TLS's own goodbye included.
pub(super) async fn part(sink: Sink, source: Source) {
    if let Ok(mut socket) = sink.reunite(source) {
        let _ = socket.get_mut().shutdown().await; // the client may have hung up
    }
}

fn accept_key(headers: &HeaderMap) -> Option<HeaderValue> {
    let key = headers.get(header::SEC_WEBSOCKET_KEY)?;
    base64::prelude::BASE64_STANDARD.decode(key).ok().filter(|key| key.len() == 16)?;
    HeaderValue::from_str(&derive_accept_key(key.as_bytes())).ok()
}

fn tokens<'a>(headers: &'a HeaderMap, name: &str) -> impl Iterator<Item = &'a str> {
    let values = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim).filter(|token| !token.is_empty())
}
