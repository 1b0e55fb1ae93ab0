//! Asks other nodes how far they are with the EndpointSlices. One question at a time to each, over a connection that is
//! kept: who asks for less than is known already gets its answer at once.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use client::{BoxError, Tcp, Transport};
use http::{Request, StatusCode};
use http_body_util::BodyExt;
use parking_lot::Mutex;

use crate::stream::APPLIED;

/// How soon a node that did not answer is asked again.
const RETRY: Duration = Duration::from_millis(50);
/// An answer is a number.
const ANSWER_BYTES_MAX: usize = 64;

/// The nodes that were asked.
pub(super) struct Peers {
    tls: Arc<rustls::ClientConfig>,
    known: Mutex<BTreeMap<String, Arc<Peer>>>,
}

struct Peer {
    address: SocketAddr,
    transport: Tcp,
    /// The newest answer; locked while the next one is waited for.
    revision: tokio::sync::Mutex<u64>,
}

impl Peers {
    pub(super) fn new(tls: Arc<rustls::ClientConfig>) -> Self {
        Self { tls, known: Mutex::default() }
    }

    /// Waits until the node says that it has everything up to `revision`, for as long as it takes.
    pub(super) async fn reached(&self, node: &str, address: SocketAddr, revision: u64) {
        let peer = self.peer(node, address);
        let mut known = peer.revision.lock().await;
        while *known < revision {
            match ask(&peer.transport, revision).await {
                Ok(answer) => *known = answer,
                Err(error) => {
                    tracing::debug!(component = "kubelet", node, %error, "a node did not confirm");
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }

    /// The node as it is known; anew when its address changed.
    fn peer(&self, node: &str, address: SocketAddr) -> Arc<Peer> {
        let mut known = self.known.lock();
        if let Some(peer) = known.get(node).filter(|peer| peer.address == address) {
            return Arc::clone(peer);
        }
        let transport = Tcp::new(&address.to_string(), Arc::clone(&self.tls), None);
        let peer = Arc::new(Peer { address, transport, revision: tokio::sync::Mutex::default() });
        known.insert(node.to_owned(), Arc::clone(&peer));
        peer
    }
}

/// One question; the node answers when it is that far, or after a while as far as it is.
async fn ask(transport: &Tcp, revision: u64) -> Result<u64, BoxError> {
    let request = Request::get(format!("{APPLIED}?revision={revision}")).body(Bytes::new())?;
    let response = transport.send(request).await?;
    let status = response.status();
    let mut body = response.into_body();
    let mut answer = Vec::new();
    while let Some(frame) = body.frame().await {
        answer.extend_from_slice(&frame?.into_data().unwrap_or_default());
        if status != StatusCode::OK || answer.len() > ANSWER_BYTES_MAX {
            return Err(format!("it answers {status}").into());
        }
    }
    Ok(std::str::from_utf8(&answer)?.parse()?)
}
