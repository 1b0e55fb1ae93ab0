//! The connections between the agent and its shims, and what is left when a shim dies.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::sync::watch;

use super::{Inner, Pod};
use crate::cgroup::Cgroup;
use crate::error::RuntimeError;
use crate::pod::{ContainerState, ContainerStatus};
use crate::rootfs;
use crate::shim::protocol::{
    self, CONTAINERS_DIR, Change, Failure, Reply, Request, SANDBOX_FILE, SOCKET_FILE, STATUS_FILE,
    SandboxFile,
};

/// Exit code of a container whose end nobody saw (kubelet's for `ContainerStatusUnknown`).
const UNKNOWN_EXIT_CODE: i32 = 137;

/// What a request brought back.
pub(super) struct Answer {
    pub(super) reply: Reply,
    pub(super) descriptors: Vec<OwnedFd>,
    pub(super) stream: UnixStream,
}

/// Connects to a shim by a short path: a socket's address holds 108 bytes.
fn connect(directory: &Path) -> io::Result<UnixStream> {
    let opened = File::open(directory)?;
    UnixStream::connect(format!("/proc/self/fd/{}/{SOCKET_FILE}", opened.as_raw_fd()))
}

/// Asks a shim and waits for its answer and for the changes that came before it.
pub(super) async fn ask(
    inner: &Inner,
    uid: &str,
    request: Request,
    descriptors: Vec<OwnedFd>,
) -> Result<Answer, RuntimeError> {
    let mut seen = {
        let pods = inner.pods();
        let pod = pods.get(uid).ok_or_else(|| RuntimeError::PodNotFound(uid.into()))?;
        pod.seen.subscribe()
    };
    let directory = inner.pod_dir(uid);
    let subject = subject(&request).to_owned();
    let asked = tokio::task::spawn_blocking(move || {
        let stream = connect(&directory)?;
        let fds: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
        protocol::send(&stream, &request, &fds)?;
        let (reply, descriptors) = protocol::receive::<Reply>(&stream)?;
        Ok(Answer { reply, descriptors, stream })
    })
    .await;
    let shim = |source| RuntimeError::Shim { pod: uid.into(), source };
    let mut answer = asked.map_err(|error| shim(io::Error::other(error)))?.map_err(shim)?;
    match answer.reply.error.take() {
        Some(Failure::NotFound) => return Err(RuntimeError::ContainerNotFound(subject)),
        Some(Failure::NotRunning) => return Err(RuntimeError::NotRunning(subject)),
        Some(Failure::Failed(text)) => return Err(RuntimeError::Refused(text)),
        None => {}
    }
    let wanted = answer.reply.seq;
    let _ = seen.wait_for(|seq| seq.is_none_or(|seq| seq >= wanted)).await;
    Ok(answer)
}

/// The container that a request is about.
fn subject(request: &Request) -> &str {
    match request {
        Request::Create { id, .. }
        | Request::Start { id }
        | Request::Signal { id, .. }
        | Request::Remove { id }
        | Request::Exec { id, .. }
        | Request::Attach { id, .. } => id,
        Request::SignalExec { .. } | Request::Watch | Request::Stop => "",
    }
}

/// Starts a shim and follows it.
pub(super) async fn start(inner: &Arc<Inner>, file: SandboxFile) -> Result<(), RuntimeError> {
    let uid = file.sandbox.uid.clone();
    let directory = inner.pod_dir(&uid);
    fs::create_dir_all(&directory).map_err(RuntimeError::state("create", &directory))?;
    let path = directory.join(SANDBOX_FILE);
    let text = serde_json::to_vec(&file).unwrap_or_default();
    fs::write(&path, text).map_err(RuntimeError::state("write", &path))?;
    let command = inner.options.shim.clone();
    let log = directory.join("shim.log");
    let started = {
        let directory = directory.clone();
        tokio::task::spawn_blocking(move || spawn(&command, &directory, &log)).await
    };
    let shim = |source| RuntimeError::Shim { pod: uid.clone(), source };
    let said = started.map_err(|error| shim(io::Error::other(error)))?.map_err(shim)?;
    if said != "ok" {
        let said = if said.is_empty() { "the shim ended at once".into() } else { said };
        return Err(RuntimeError::Refused(format!("failed to create pod sandbox: {said}")));
    }
    follow(inner, file).await.map_err(shim)
}

/// Runs the shim's command and returns what it says when it is ready.
fn spawn(command: &[String], directory: &Path, log: &Path) -> io::Result<String> {
    let (program, leading) = command.split_first().ok_or(io::ErrorKind::InvalidInput)?;
    let mut child = Command::new(program)
        .args(leading)
        .arg(directory)
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(File::create(log)?)
        .spawn()?;
    let mut said = String::new();
    if let Some(mut out) = child.stdout.take() {
        out.read_to_string(&mut said)?;
    }
    child.wait()?;
    Ok(said)
}

/// Connects to a shim, learns its containers and keeps learning.
async fn follow(inner: &Arc<Inner>, file: SandboxFile) -> io::Result<()> {
    let uid = file.sandbox.uid.clone();
    let stream = connect(&inner.pod_dir(&uid))?;
    protocol::send(&stream, &Request::Watch, &[])?;
    stream.set_nonblocking(true)?;
    let stream = tokio::net::UnixStream::from_std(stream)?;
    let (seen, mut first) = watch::channel(Some(0));
    let pod =
        Pod { sandbox: file.sandbox, cgroup: file.cgroup, containers: Default::default(), seen };
    inner.pods().insert(uid.clone(), pod);
    let (synced, ready) = tokio::sync::oneshot::channel();
    let weak = Arc::downgrade(inner);
    tokio::spawn(async move {
        let mut synced = Some(synced);
        let mut lines = BufReader::new(stream).lines();
        while let Ok(Some(line)) = lines.next_line().await {
            let (Some(inner), Ok(change)) = (weak.upgrade(), serde_json::from_str(&line)) else {
                return;
            };
            if matches!(change, Change::Synced { .. })
                && let Some(synced) = synced.take()
            {
                let _ = synced.send(()); // the opener may have given up
            }
            take(&inner, &uid, change);
        }
        if let Some(inner) = weak.upgrade() {
            let _ = tokio::task::spawn_blocking(move || lost(&inner, &uid)).await;
        }
    });
    first.mark_unchanged();
    ready.await.map_err(|_| io::Error::from(io::ErrorKind::UnexpectedEof))
}

fn take(inner: &Inner, uid: &str, change: Change) {
    {
        let mut pods = inner.pods();
        let Some(pod) = pods.get_mut(uid) else { return };
        let seq = match change {
            Change::Status { seq, status } => {
                pod.containers.insert(status.id.clone(), status);
                seq
            }
            Change::Removed { seq, id } => {
                pod.containers.remove(&id);
                seq
            }
            Change::Synced { seq } => seq,
        };
        pod.seen.send_replace(Some(seq));
    }
    inner.tell(uid);
}

/// The shim is gone: ends what it left running, and says so in the statuses.
fn lost(inner: &Inner, uid: &str) {
    let directory = inner.pod_dir(uid);
    let cgroup = match inner.pods().get(uid) {
        Some(pod) => Cgroup::new(pod.cgroup.clone()),
        None => return,
    };
    cgroup.kill();
    rootfs::unmount_below(&directory);
    if let Some(pod) = inner.pods().get_mut(uid) {
        for status in pod.containers.values_mut().filter(|one| one.state != ContainerState::Exited)
        {
            status.state = ContainerState::Exited;
            status.pid = 0;
            status.exit_code = UNKNOWN_EXIT_CODE;
            status.reason = "ContainerStatusUnknown".into();
            status.message =
                "The container could not be located when the pod was terminated".into();
            status.finished_at = Some(jiff::Timestamp::now());
            let path = directory.join(CONTAINERS_DIR).join(&status.id).join(STATUS_FILE);
            let _ = fs::write(path, serde_json::to_vec(status).unwrap_or_default());
        }
        pod.seen.send_replace(None);
    }
    inner.tell(uid);
}

/// Takes over a pod of an earlier agent: its shim when it runs, else the statuses on disk.
pub(super) async fn adopt(inner: &Arc<Inner>, uid: &str) {
    let directory = inner.pod_dir(uid);
    let file = fs::read(directory.join(SANDBOX_FILE)).ok();
    let Some(file) = file.and_then(|text| serde_json::from_slice::<SandboxFile>(&text).ok()) else {
        rootfs::unmount_below(&directory);
        let _ = fs::remove_dir_all(&directory);
        return;
    };
    if follow(inner, file.clone()).await.is_ok() {
        return;
    }
    let entries = fs::read_dir(directory.join(CONTAINERS_DIR));
    let paths = entries.into_iter().flatten().flatten().map(|one| one.path().join(STATUS_FILE));
    let texts = paths.filter_map(|path| fs::read(path).ok());
    let statuses = texts.filter_map(|text| serde_json::from_slice::<ContainerStatus>(&text).ok());
    let pod = Pod {
        sandbox: file.sandbox,
        cgroup: file.cgroup,
        containers: statuses.map(|status| (status.id.clone(), status)).collect(),
        seen: watch::channel(None).0,
    };
    inner.pods().insert(uid.to_owned(), pod);
    lost(inner, uid);
}
