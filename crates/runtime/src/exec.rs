//! Processes run in containers on request, and clients attached to a container's stdio
//! (upstream: CRI Exec, `ExecSync`, Attach). The streams are the process's own pipes or terminal: no byte
//! of an exec passes the shim.
#![expect(unsafe_code, reason = "terminals are sized by ioctl")]

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::unix::pipe::{Receiver, Sender};

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
    pub(crate) pid: i32,
    pub(crate) exit: tokio::task::JoinHandle<io::Result<i32>>,
}

/// What a command left behind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExecOutput {
    /// Exit code; 128 + signal when it was killed.
    pub exit_code: i32,
    /// Output, the first MiB.
    pub stdout: Vec<u8>,
    /// Error output, the first MiB.
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
        resize(self.terminal.as_ref(), columns, rows);
    }

    /// Waits for the end of the process: its exit code, 128 + signal when killed.
    ///
    /// # Errors
    /// When the shim went away meanwhile.
    pub async fn wait(&mut self) -> Result<i32, RuntimeError> {
        match (&mut self.exit).await {
            Ok(Ok(code)) => Ok(code),
            _ => Err(RuntimeError::Refused("the process was lost with its shim".into())),
        }
    }
}

impl Drop for Exec {
    fn drop(&mut self) {
        self.exit.abort();
    }
}

impl Attach {
    /// Changes the size of the container's terminal, in characters; nothing without one.
    pub fn resize(&self, columns: u16, rows: u16) {
        resize(self.terminal.as_ref(), columns, rows);
    }
}

fn resize(terminal: Option<&OwnedFd>, columns: u16, rows: u16) {
    let Some(terminal) = terminal else { return };
    let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the descriptor is open and the kernel only reads the structure.
    unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) };
}

/// The write end of a pipe.
pub(crate) fn input(fd: OwnedFd) -> io::Result<Input> {
    Ok(Box::new(Sender::from_owned_fd(fd)?))
}

/// The read end of a pipe.
pub(crate) fn output(fd: OwnedFd) -> io::Result<Output> {
    Ok(Box::new(Receiver::from_owned_fd(fd)?))
}

/// Both directions of a terminal.
pub(crate) fn terminal(fd: &OwnedFd) -> io::Result<(Input, Output)> {
    let nonblocking = nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK);
    nix::fcntl::fcntl(fd, nonblocking)?;
    let reader = Receiver::from_owned_fd_unchecked(fd.try_clone()?)?;
    let writer = Sender::from_owned_fd_unchecked(fd.try_clone()?)?;
    Ok((Box::new(TerminalInput { writer, ended: false }), Box::new(TerminalOutput(reader))))
}

/// A terminal's input: end of file is the character that means it.
struct TerminalInput {
    writer: Sender,
    ended: bool,
}

/// End of transmission, as a terminal takes it (Ctrl-D).
const END_OF_TRANSMISSION: &[u8] = &[4];

impl AsyncWrite for TerminalInput {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.writer).poll_write(context, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.writer).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.ended {
            match Pin::new(&mut self.writer).poll_write(context, END_OF_TRANSMISSION) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(_) => self.ended = true,
            }
        }
        Poll::Ready(Ok(()))
    }
}

/// A terminal's output: the kernel says EIO when its last user is gone.
struct TerminalOutput(Receiver);

impl AsyncRead for TerminalOutput {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match Pin::new(&mut self.0).poll_read(context, buffer) {
            Poll::Ready(Err(error)) if error.raw_os_error() == Some(libc::EIO) => {
                Poll::Ready(Ok(()))
            }
            other => other,
        }
    }
}
