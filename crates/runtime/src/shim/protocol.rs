//! What the agent and a shim say to each other: one JSON line for each message over a unix stream
//! socket, file descriptors beside the first byte (upstream: containerd's ttrpc task service).

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;

use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recv, recvmsg, sendmsg};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::image::ImageConfig;
use crate::pod::{ContainerSpec, ContainerStatus, PodSandbox};

/// File names in a pod's directory.
pub(crate) const SANDBOX_FILE: &str = "sandbox.json";
/// The shim's socket.
pub(crate) const SOCKET_FILE: &str = "shim.sock";
/// A container's state, kept for after the shim.
pub(crate) const STATUS_FILE: &str = "status.json";
/// Directory of the containers.
pub(crate) const CONTAINERS_DIR: &str = "containers";
/// Longest message, bytes: a container's environment may be large, but not endless.
const MESSAGE_BYTES_MAX: usize = 16 << 20;

/// What the shim reads first.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct SandboxFile {
    pub(crate) sandbox: PodSandbox,
    /// Absolute path below the mounts of the control groups.
    pub(crate) cgroup: String,
}

/// The image's part of a new container.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct RootImage {
    pub(crate) id: String,
    pub(crate) config: ImageConfig,
    /// Directory that holds the layers.
    pub(crate) layers_dir: String,
    /// Names in it, lowest first.
    pub(crate) layers: Vec<String>,
}

/// A command to run in a container.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct ExecRequest {
    pub(crate) argv: Vec<String>,
    pub(crate) env: Vec<(String, String)>,
    pub(crate) tty: bool,
    pub(crate) user: Option<u32>,
    pub(crate) cwd: Option<String>,
}

/// Asked by the agent.
#[derive(Debug, Serialize, Deserialize)]
#[expect(clippy::large_enum_variant, reason = "one is made at a time and read at once")]
pub(crate) enum Request {
    Create {
        id: String,
        spec: ContainerSpec,
        image: RootImage,
    },
    Start {
        id: String,
    },
    Signal {
        id: String,
        signal: i32,
    },
    Remove {
        id: String,
    },
    /// With descriptors stdin, stdout, stderr; or none with a terminal.
    Exec {
        id: String,
        exec: ExecRequest,
    },
    /// Ends an exec's process.
    SignalExec {
        pid: i32,
        signal: i32,
    },
    /// With descriptors stdout, stderr and, when `stdin`, stdin.
    Attach {
        id: String,
        stdin: bool,
    },
    /// All statuses now, then each change.
    Watch,
    /// Kills everything and ends the shim.
    Stop,
}

/// Answered by the shim.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Reply {
    /// Changes up to this number were sent to watchers before.
    pub(crate) seq: u64,
    /// Why not.
    pub(crate) error: Option<Failure>,
    /// Process of an exec.
    pub(crate) pid: i32,
}

/// Why the shim refuses.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Failure {
    NotFound,
    NotRunning,
    Failed(String),
}

/// Told to watchers.
#[derive(Debug, Serialize, Deserialize)]
#[expect(clippy::large_enum_variant, reason = "one is made at a time and read at once")]
pub(crate) enum Change {
    Status {
        seq: u64,
        status: ContainerStatus,
    },
    Removed {
        seq: u64,
        id: String,
    },
    /// Everything known at the start was told.
    Synced {
        seq: u64,
    },
}

/// The last line on an exec's connection.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Exited {
    pub(crate) exit_code: i32,
}

/// Sends one message with descriptors.
pub(crate) fn send<T: Serialize>(
    stream: &UnixStream,
    message: &T,
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    let raw: Vec<_> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control: &[ControlMessage<'_>] = if raw.is_empty() { &[] } else { &rights };
    let mut sent = 0;
    while sent < line.len() {
        let part = [IoSlice::new(line.get(sent..).unwrap_or_default())];
        let control = if sent == 0 { control } else { &[] };
        sent += sendmsg::<()>(stream.as_raw_fd(), &part, control, MsgFlags::MSG_NOSIGNAL, None)?;
    }
    Ok(())
}

/// Receives one message and its descriptors; what follows the line stays in the socket.
#[expect(unsafe_code, reason = "descriptors received from the kernel are ours from then on")]
pub(crate) fn receive<T: DeserializeOwned>(stream: &UnixStream) -> io::Result<(T, Vec<OwnedFd>)> {
    let mut line = Vec::new();
    let mut descriptors = Vec::new();
    let mut chunk = vec![0u8; 64 << 10];
    loop {
        let seen = recv(stream.as_raw_fd(), &mut chunk, MsgFlags::MSG_PEEK)?;
        let end = chunk.iter().take(seen).position(|byte| *byte == b'\n');
        let part = chunk.get_mut(..end.map_or(seen, |end| end + 1)).unwrap_or_default();
        let count = {
            let mut space = nix::cmsg_space!([std::os::fd::RawFd; 4]);
            let mut parts = [IoSliceMut::new(part)];
            let flags = MsgFlags::MSG_CMSG_CLOEXEC;
            let got = recvmsg::<()>(stream.as_raw_fd(), &mut parts, Some(&mut space), flags)?;
            for message in got.cmsgs()? {
                if let ControlMessageOwned::ScmRights(received) = message {
                    // SAFETY: the kernel has just installed these descriptors for this process, and
                    // nothing else knows their numbers.
                    let owned = received.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) });
                    descriptors.extend(owned);
                }
            }
            got.bytes
        };
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        line.extend_from_slice(chunk.get(..count).unwrap_or_default());
        if line.len() > MESSAGE_BYTES_MAX {
            return Err(io::Error::other("message is too long"));
        }
        if line.ends_with(b"\n") {
            return Ok((serde_json::from_slice(&line)?, descriptors));
        }
    }
}
