//! What can fail in the runtime, named for what failed (upstream: CRI's gRPC errors).

use std::path::PathBuf;

/// Failure of an operation on pods and containers.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// A file or directory of the runtime's state could not be read or written.
    #[error("{action} {path}")]
    State {
        /// What was tried, such as `create`.
        action: &'static str,
        /// The path.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// No pod sandbox with this UID.
    #[error("pod sandbox {0:?} not found")]
    PodNotFound(String),
    /// No container with this id.
    #[error("container {0:?} not found")]
    ContainerNotFound(String),
    /// The container is not running, so that nothing can be executed in it.
    #[error("container {0:?} is not running")]
    NotRunning(String),
    /// The shim of the pod does not answer.
    #[error("shim of pod {pod:?} does not answer")]
    Shim {
        /// UID of the pod.
        pod: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The shim refused: the message is what users see, such as
    /// `exec: "foo": executable file not found in $PATH`.
    #[error("{0}")]
    Refused(String),
    /// The image is not in the store or is damaged.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// `exec_sync` ran out of time; the process was killed.
    #[error("command {command:?} timed out")]
    Timeout {
        /// The command line.
        command: String,
    },
}

/// Failure of an operation on images; the texts are those that users of containerd see.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The reference has no valid form.
    #[error("couldn't parse image reference {reference:?}: invalid reference format")]
    InvalidReference {
        /// The text as given.
        reference: String,
    },
    /// A pull failed: `failed to pull and unpack image "…": cause`.
    #[error("failed to pull and unpack image {reference:?}: {cause}")]
    Pull {
        /// The normalised reference.
        reference: String,
        /// Why, in containerd's words.
        cause: String,
        /// Whether the registry says that there is no such image, or refuses us.
        not_found: bool,
    },
    /// Not in the local store.
    #[error("image {0:?} not found")]
    NotFound(String),
    /// An existing container uses the image.
    #[error("image {image:?} is used by container {container}")]
    InUse {
        /// Name or id as given.
        image: String,
        /// The container's directory.
        container: String,
    },
    /// An archive or layer that breaks its format, or tries to leave its root.
    #[error("invalid image {what}: {why}")]
    Invalid {
        /// The file, digest or entry.
        what: String,
        /// What is wrong with it.
        why: String,
    },
    /// Reading or writing the store failed.
    #[error("{action} {path}")]
    Store {
        /// What was tried.
        action: &'static str,
        /// The path.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

impl RuntimeError {
    /// A closure for `map_err` that names what was done to which path.
    pub(crate) fn state(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::State { action, path, source }
    }
}

impl ImageError {
    /// A closure for `map_err` that names what was done to which path.
    pub(crate) fn store(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Store { action, path, source }
    }

    /// An [`ImageError::Invalid`].
    pub(crate) fn invalid(what: impl Into<String>, why: impl Into<String>) -> Self {
        Self::Invalid { what: what.into(), why: why.into() }
    }
}
