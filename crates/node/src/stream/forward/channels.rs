//! Port-forward in plain WebSocket messages: two channels for each port, the way of clients that speak no SPDY.
//!
//! Upstream counterpart: `k8s.io/kubelet/pkg/cri/streaming/portforward/websocket.go`. The first byte of a message is its
//! channel: `2 n` carries the data of the port that was asked for as the n-th, `2 n + 1` what went wrong. Each begins
//! with the port's number.

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

use super::super::mux::Stream;
use super::super::query::Query;
use super::super::spdy::Frame;
use super::super::upgrade::{Io, part, web_socket};
use super::super::wire::message;
use super::{Target, forward};

pub(super) const PROTOCOL: &str = "v4.channel.k8s.io";
/// Ports of one connection: each takes two of the numbers of a byte.
const PORTS_MAX: usize = 128;
/// Parts that wait to be carried on, in each direction.
const PARTS_MAX: usize = 16;

/// The ports that a request names, in upstream's words when there are none.
pub(super) fn ports(query: &Query) -> Result<Vec<u16>, String> {
    let mut found = Vec::new();
    for text in query.all("port").flat_map(|value| value.split(',')) {
        let number = text
            .parse::<u16>()
            .map_err(|_| format!("unable to parse {text:?} as a port: invalid syntax"))?;
        if number < 1 {
            return Err(format!("port {text:?} must be > 0"));
        }
        found.push(number);
    }
    match found.len() {
        0 => Err("query parameter \"port\" is required".to_owned()),
        1..=PORTS_MAX => Ok(found),
        more => Err(format!("{more} ports are more than the {PORTS_MAX} that channels can carry")),
    }
}

/// Forwards all ports until the pod has said all on each, or the client hangs up.
pub(super) async fn serve(io: Io, ports: Vec<u16>, target: Target) {
    let (mut sink, mut source) = web_socket(io).await.split();
    let (frames, mut queue) = mpsc::channel(PARTS_MAX);
    let (mut inputs, mut pairs) = (Vec::new(), JoinSet::new());
    for (port, channel) in ports.into_iter().zip((0..u32::from(u8::MAX)).step_by(2)) {
        let (input, data) = mpsc::channel(PARTS_MAX);
        let (_, silence) = mpsc::channel(1); // nobody sends on an error channel
        let data = Stream::over(channel, data, frames.clone());
        let error = Stream::over(channel + 1, silence, frames.clone());
        inputs.push(input);
        pairs.spawn(pair(target.clone(), port, data, error));
    }
    drop(frames);
    let inward = async {
        while let Some(Ok(message)) = source.next().await {
            match message {
                Message::Binary(mut bytes) if !bytes.is_empty() => {
                    let channel = usize::from(bytes.split_to(1)[0]);
                    let input = inputs.get(channel / 2).filter(|_| channel.is_multiple_of(2));
                    if let Some(input) = input {
                        let _ = input.send(bytes).await; // the pod may have hung up
                    }
                }
                Message::Close(_) => break,
                _ => {}
            }
        }
    };
    let outward = async {
        while let Some(frame) = queue.recv().await {
            let Frame::Data { id, data, .. } = frame else { continue };
            let Some(channel) = u8::try_from(id).ok().filter(|_| !data.is_empty()) else {
                continue;
            };
            if sink.send(message(channel, &data)).await.is_err() {
                return;
            }
        }
        let normal = CloseFrame { code: CloseCode::Normal, reason: "".into() };
        let _ = sink.send(Message::Close(Some(normal))).await; // the client may be gone
    };
    tokio::select! {
        () = inward => {}
        () = outward => {}
    }
    part(sink, source).await;
}

async fn pair(target: Target, port: u16, data: Stream, error: Stream) {
    for stream in [&data, &error] {
        if stream.writer.send(Bytes::copy_from_slice(&port.to_le_bytes())).await.is_err() {
            return;
        }
    }
    forward(target, port, data, error).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_come_alone_or_in_lists() {
        let of = |text: &str| ports(&Query::parse(text));
        assert_eq!(of("port=80&port=81%2C82"), Ok(vec![80, 81, 82]));
        assert_eq!(of(""), Err("query parameter \"port\" is required".to_owned()));
        assert_eq!(of("port=0"), Err("port \"0\" must be > 0".to_owned()));
        assert!(of("port=http").is_err() && of("port=65536").is_err());
        let many = vec!["port=1"; 129].join("&");
        assert!(of(&many).is_err());
    }
}
