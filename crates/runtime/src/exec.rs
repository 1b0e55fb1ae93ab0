//! Processes run in containers on request, and clients attached to a container's stdio
//! (upstream: CRI Exec, `ExecSync`, Attach). The streams are the process's own pipes or terminal: no byte passes the shim for exec.

use std::os::fd::OwnedFd;

use tokio::io::{AsyncRead, AsyncWrite};

use crate::error::RuntimeError;

/// Input of a process.
pub type Input = Box<dyn AsyncWrite + Send + Unpin>;
/// Output of a process.
pub type Output = Box<dyn AsyncRead + Send + Unpin>;

/// A command to run in a running container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExecSpec {
    /// The command; the first is looked up in the container's `$PATH`.
    pub argv: Vec<String>,
    /// Added to the container's environment.
    pub env: Vec<(String, String)>,
    /// A pseudo-terminal: stdout and stderr are one.
    pub tty: bool,
    /// Gives the process an open stdin; otherwise it reads nothing.
    pub stdin: bool,
    /// User id; None is the container's.
    pub user: Option<u32>,
    /// Working directory; None is the container's.
    pub cwd: Option<String>,
}

/// A command that runs.
pub struct Exec {
    /// Its input, when asked for; dropping it is end of file (for pipes).
    pub stdin: Option<Input>,
    /// Its output; ends with the last process that holds it.
    pub stdout: Option<Output>,
    /// Its error output; None with a terminal.
    pub stderr: Option<Output>,
    pub(crate) terminal: Option<OwnedFd>,
    pub(crate) exit: tokio::sync::oneshot::Receiver<i32>,
}

/// What a command left behind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExecOutput {
    /// Exit code; 128 + signal when it was killed.
    pub exit_code: i32,
    /// Output, the first 16 KiB… see [`crate::Runtime::exec_sync`].
    pub stdout: Vec<u8>,
    /// Error output.
    pub stderr: Vec<u8>,
}

/// A client of a container's stdio.
pub struct Attach {
    /// Input, when asked for and the container has one.
    pub stdin: Option<Input>,
    /// Output from now on.
    pub stdout: Option<Output>,
    /// Error output; None with a terminal.
    pub stderr: Option<Output>,
    pub(crate) terminal: Option<OwnedFd>,
}

impl Exec {
    /// Changes the size of the terminal, in characters; nothing without one.
    pub fn resize(&self, columns: u16, rows: u16) {
        let _ = (&self.terminal, columns, rows);
    }

    /// Waits for the end of the process: its exit code, 128 + signal when killed.
    ///
    /// # Errors
    /// When the shim went away meanwhile.
    pub async fn wait(&mut self) -> Result<i32, RuntimeError> {
        (&mut self.exit).await.map_err(|_| RuntimeError::Refused("exec was lost with its shim".into()))
    }
}

impl Attach {
    /// Changes the size of the container's terminal, in characters; nothing without one.
    pub fn resize(&self, columns: u16, rows: u16) {
        let _ = (&self.terminal, columns, rows);
    }
}
