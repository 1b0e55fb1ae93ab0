//! The server: owns the registry, listens with TLS, answers requests.

use std::sync::Arc;

use http::{Request, Response};

use crate::auth::User;
use crate::{Body, Config, Registry, empty_body};

/// The server could not start.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The store did not open.
    #[error("cannot open the store at {path}")]
    Store {
        /// The store's file.
        path: String,
        /// Why.
        #[source]
        source: store::StoreError,
    },
    /// The listener failed.
    #[error("cannot listen")]
    Listen(#[source] std::io::Error),
}

/// One API server.
pub struct Server {
    registry: Arc<Registry>,
}

impl Server {
    /// The objects and their rules.
    #[must_use]
    pub fn registry(&self) -> &Arc<Registry> {
        &self.registry
    }

    /// Answers one request of an authenticated user: authorization, admission, storage.
    pub async fn respond(&self, _user: User, _request: Request<Body>) -> Response<Body> {
        Response::new(empty_body())
    }
}
