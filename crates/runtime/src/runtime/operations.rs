//! What can be done to pods and containers.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

use nix::fcntl::OFlag;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::sync::broadcast::error::RecvError;

use super::{Runtime, link};
use crate::cgroup::Cgroup;
use crate::error::RuntimeError;
use crate::exec::{self, Attach, Exec, ExecOutput, ExecSpec, Output};
use crate::pod::{ContainerSpec, ContainerState, ContainerStatus, PodSandbox};
use crate::rootfs;
use crate::shim::protocol::{ExecRequest, Exited, Request, SandboxFile};

/// Output of a probe or hook that is kept, bytes.
const EXEC_OUTPUT_BYTES_MAX: u64 = 1 << 20;
/// How long the end of a killed container may take.
const KILL_TIMEOUT: Duration = Duration::from_secs(30);
/// How long outputs of an ended exec may stay open in processes that it left behind.
const EXEC_DRAIN_TIMEOUT: Duration = Duration::from_secs(1);

impl Runtime {
    /// Starts the pod's shim and namespaces. Done already: does nothing.
    ///
    /// # Errors
    /// When the shim cannot start (such as a network namespace that does not exist), or the UID is no file name.
    pub async fn run_pod(&self, pod: PodSandbox) -> Result<(), RuntimeError> {
        let uid = pod.uid.clone();
        let odd = |c: char| !(c.is_ascii_alphanumeric() || c == '-' || c == '_' || c == '.');
        if uid.is_empty() || uid.starts_with('.') || uid.contains(odd) {
            return Err(RuntimeError::Refused(format!("invalid pod UID {uid:?}")));
        }
        let changing = self.inner.changing(&uid);
        let _held = changing.lock().await;
        let known = self.pod(&uid);
        if known.as_ref().is_some_and(|known| known.ready) {
            return Ok(());
        }
        if known.is_some() {
            self.clear(&uid).await?;
        }
        let parent = self.inner.options.cgroup_parent.trim_matches('/');
        let file = SandboxFile { sandbox: pod, cgroup: format!("/{parent}/pod{uid}") };
        let started = link::start(&self.inner, file).await;
        if started.is_err() {
            self.clear(&uid).await?;
        }
        started
    }

    /// Kills all containers and ends the shim; statuses and logs stay. Idempotent.
    ///
    /// # Errors
    /// When something does not end.
    pub async fn stop_pod(&self, uid: &str) -> Result<(), RuntimeError> {
        let changing = self.inner.changing(uid);
        let _held = changing.lock().await;
        self.stop(uid).await
    }

    async fn stop(&self, uid: &str) -> Result<(), RuntimeError> {
        let Some(pod) = self.pod(uid).filter(|pod| pod.ready) else { return Ok(()) };
        let mut seen = match self.inner.pods().get(&pod.sandbox.uid) {
            Some(pod) => pod.seen.subscribe(),
            None => return Ok(()),
        };
        // A shim that died meanwhile has stopped as well: the watch says so.
        let asked = link::ask(&self.inner, uid, Request::Stop, Vec::new()).await;
        if let Err(error) = asked
            && !matches!(error, RuntimeError::Shim { .. })
        {
            return Err(error);
        }
        let gone = tokio::time::timeout(KILL_TIMEOUT, seen.wait_for(Option::is_none)).await;
        gone.map(drop).map_err(|_| RuntimeError::Shim {
            pod: uid.into(),
            source: std::io::ErrorKind::TimedOut.into(),
        })
    }

    /// Stops the pod and removes its directory, mounts and control groups. Logs are the caller's. Idempotent.
    ///
    /// # Errors
    /// When something cannot be removed.
    pub async fn remove_pod(&self, uid: &str) -> Result<(), RuntimeError> {
        let changing = self.inner.changing(uid);
        let _held = changing.lock().await;
        if self.pod(uid).is_none() {
            return Ok(());
        }
        self.stop(uid).await?;
        self.clear(uid).await
    }

    /// Removes what is on disk and in the kernel of a pod without shim.
    async fn clear(&self, uid: &str) -> Result<(), RuntimeError> {
        let directory = self.inner.pod_dir(uid);
        let parent = self.inner.options.cgroup_parent.trim_matches('/');
        let cgroup = Cgroup::new(format!("/{parent}/pod{uid}"));
        let path = directory.clone();
        let cleared = tokio::task::spawn_blocking(move || {
            rootfs::unmount_below(&path);
            cgroup.remove();
            match fs::remove_dir_all(&path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
                _ => Ok(()),
            }
        });
        let cleared = cleared.await.map_err(std::io::Error::other).and_then(|done| done);
        cleared.map_err(RuntimeError::state("remove", directory))?;
        self.inner.pods().remove(uid);
        self.inner.tell(uid);
        Ok(())
    }

    /// Makes a container (file system, control group, namespaces, waiting process); returns its id.
    ///
    /// # Errors
    /// When the pod or image is missing, or it cannot be made, in the words that users of containerd see.
    pub async fn create_container(&self, spec: ContainerSpec) -> Result<String, RuntimeError> {
        let uid = spec.pod_uid.clone();
        if !self.pod(&uid).is_some_and(|pod| pod.ready) {
            return Err(RuntimeError::PodNotFound(uid));
        }
        let id = new_id()?;
        let directory = self.inner.pod_dir(&uid).join("containers").join(&id);
        let image = self.images().hold(&spec.image, &directory)?;
        let request = Request::Create { id: id.clone(), spec, image };
        let made = link::ask(&self.inner, &uid, request, Vec::new()).await;
        if made.is_err() {
            self.images().release(&directory);
        }
        made.map(|_| id)
    }

    async fn ask(&self, id: &str, request: Request) -> Result<(), RuntimeError> {
        let (uid, _) =
            self.inner.find(id).ok_or_else(|| RuntimeError::ContainerNotFound(id.into()))?;
        link::ask(&self.inner, &uid, request, Vec::new()).await.map(drop)
    }

    /// Starts the process of a created container.
    ///
    /// # Errors
    /// When it does not exist or was started before.
    pub async fn start_container(&self, id: &str) -> Result<(), RuntimeError> {
        self.ask(id, Request::Start { id: id.into() }).await
    }

    /// Sends a signal to a container's first process; nothing when it ended.
    ///
    /// # Errors
    /// When it does not exist.
    pub async fn signal_container(&self, id: &str, signal: i32) -> Result<(), RuntimeError> {
        let status =
            self.container(id).ok_or_else(|| RuntimeError::ContainerNotFound(id.into()))?;
        if status.state == ContainerState::Exited {
            return Ok(());
        }
        self.ask(id, Request::Signal { id: id.into(), signal }).await
    }

    /// Sends the image's stop signal (SIGTERM by default), waits up to `grace`, kills, and waits for the end.
    ///
    /// # Errors
    /// When it does not exist or does not end.
    pub async fn stop_container(&self, id: &str, grace: Duration) -> Result<(), RuntimeError> {
        let status =
            self.container(id).ok_or_else(|| RuntimeError::ContainerNotFound(id.into()))?;
        if !grace.is_zero() {
            let image = self.images().get(&status.image_id).unwrap_or_default();
            self.signal_container(id, signal_number(&image.config.stop_signal)).await?;
            if tokio::time::timeout(grace, self.wait_container(id)).await.is_ok() {
                return Ok(());
            }
        }
        self.signal_container(id, libc::SIGKILL).await?;
        let ended = tokio::time::timeout(KILL_TIMEOUT, self.wait_container(id)).await;
        ended
            .map_err(|_| RuntimeError::Refused(format!("container {id:?} does not end")))?
            .map(drop)
    }

    /// Kills it when it runs and removes it; its log stays. Idempotent.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub async fn remove_container(&self, id: &str) -> Result<(), RuntimeError> {
        let Some((uid, _)) = self.inner.find(id) else { return Ok(()) };
        let directory = self.inner.pod_dir(&uid).join("containers").join(id);
        let cgroup = {
            let pods = self.inner.pods();
            let pod = pods.get(&uid).ok_or_else(|| RuntimeError::PodNotFound(uid.clone()))?;
            if pod.seen.borrow().is_some() { None } else { Some(format!("{}/{id}", pod.cgroup)) }
        };
        if let Some(cgroup) = cgroup {
            rootfs::unmount_below(&directory);
            Cgroup::new(cgroup).remove();
            let _ = fs::remove_dir_all(&directory);
            if let Some(pod) = self.inner.pods().get_mut(&uid) {
                pod.containers.remove(id);
            }
            self.inner.tell(&uid);
        } else {
            self.ask(id, Request::Remove { id: id.into() }).await?;
        }
        self.images().release(&directory);
        Ok(())
    }

    /// Waits until the container has ended; returns its status.
    ///
    /// # Errors
    /// When it does not exist or is removed meanwhile.
    pub async fn wait_container(&self, id: &str) -> Result<ContainerStatus, RuntimeError> {
        let mut events = self.events();
        loop {
            let status =
                self.container(id).ok_or_else(|| RuntimeError::ContainerNotFound(id.into()))?;
            if status.state == ContainerState::Exited {
                return Ok(status);
            }
            if let Err(RecvError::Closed) = events.recv().await {
                return Err(RuntimeError::ContainerNotFound(id.into()));
            }
        }
    }

    /// Runs a command in a running container.
    ///
    /// # Errors
    /// When it does not run, or the command cannot be executed (`Refused`, in runc's words).
    pub async fn exec(&self, id: &str, spec: ExecSpec) -> Result<Exec, RuntimeError> {
        let (uid, _) =
            self.inner.find(id).ok_or_else(|| RuntimeError::ContainerNotFound(id.into()))?;
        let shim = |source| RuntimeError::Shim { pod: uid.clone(), source };
        let request = ExecRequest {
            argv: spec.argv,
            env: spec.env,
            tty: spec.tty,
            user: spec.user,
            cwd: spec.cwd,
        };
        let pipes = if spec.tty { None } else { Some(Pipes::new(spec.stdin).map_err(shim)?) };
        let (mine, theirs) = pipes.map_or((None, Vec::new()), Pipes::split);
        let request = Request::Exec { id: id.into(), exec: request };
        let answer = link::ask(&self.inner, &uid, request, theirs).await?;
        let terminal = answer.descriptors.into_iter().next();
        let mut exec = Exec {
            stdin: None,
            stdout: None,
            stderr: None,
            terminal: None,
            pid: answer.reply.pid,
            exit: wait_exit(answer.stream).map_err(shim)?,
        };
        if let Some(terminal) = terminal {
            let (input, output) = exec::terminal(&terminal).map_err(shim)?;
            exec.stdin = spec.stdin.then_some(input);
            exec.stdout = Some(output);
            exec.terminal = Some(terminal);
        } else if let Some(mine) = mine {
            exec.stdin = mine.input.map(exec::input).transpose().map_err(shim)?;
            exec.stdout = Some(exec::output(mine.out).map_err(shim)?);
            exec.stderr = Some(exec::output(mine.err).map_err(shim)?);
        }
        Ok(exec)
    }

    /// Runs a command to its end, for probes and hooks; at most 1 MiB of each output is kept.
    ///
    /// # Errors
    /// As [`Runtime::exec`], and [`RuntimeError::Timeout`], after which the process is killed.
    pub async fn exec_sync(
        &self,
        id: &str,
        argv: Vec<String>,
        timeout: Duration,
    ) -> Result<ExecOutput, RuntimeError> {
        let command = argv.join(" ");
        let mut exec = self.exec(id, ExecSpec { argv, ..ExecSpec::default() }).await?;
        let out = tokio::spawn(keep(exec.stdout.take()));
        let err = tokio::spawn(keep(exec.stderr.take()));
        let Ok(ended) = tokio::time::timeout(timeout, exec.wait()).await else {
            let kill = Request::SignalExec { pid: exec.pid, signal: libc::SIGKILL };
            self.ask(id, kill).await?;
            return Err(RuntimeError::Timeout { command });
        };
        let exit_code = ended?;
        let drained = |task| async move {
            tokio::time::timeout(EXEC_DRAIN_TIMEOUT, task).await.ok().and_then(Result::ok)
        };
        let stdout = drained(out).await.unwrap_or_default();
        let stderr = drained(err).await.unwrap_or_default();
        Ok(ExecOutput { exit_code, stdout, stderr })
    }

    /// Joins the stdio of a running container.
    ///
    /// # Errors
    /// When it does not run.
    pub async fn attach(&self, id: &str, stdin: bool) -> Result<Attach, RuntimeError> {
        let (uid, _) =
            self.inner.find(id).ok_or_else(|| RuntimeError::ContainerNotFound(id.into()))?;
        let shim = |source| RuntimeError::Shim { pod: uid.clone(), source };
        let pipe = || nix::unistd::pipe2(OFlag::O_CLOEXEC).map_err(std::io::Error::from);
        let ((out, their_out), (err, their_err)) = (pipe().map_err(shim)?, pipe().map_err(shim)?);
        let request = Request::Attach { id: id.into(), stdin };
        let answer = link::ask(&self.inner, &uid, request, vec![their_out, their_err]).await?;
        let mut attach = Attach {
            stdin: None,
            stdout: Some(exec::output(out).map_err(shim)?),
            stderr: Some(exec::output(err).map_err(shim)?),
            terminal: None,
        };
        if let Some(fd) = answer.descriptors.into_iter().next() {
            if nix::unistd::isatty(&fd).unwrap_or(false) {
                let (input, _) = exec::terminal(&fd).map_err(shim)?;
                attach.stdin = stdin.then_some(input);
                attach.stderr = None;
                attach.terminal = Some(fd);
            } else {
                attach.stdin = Some(exec::input(fd).map_err(shim)?);
            }
        }
        Ok(attach)
    }
}

/// The agent's ends of an exec's pipes.
struct Mine {
    input: Option<OwnedFd>,
    out: OwnedFd,
    err: OwnedFd,
}

struct Pipes {
    mine: Mine,
    theirs: Vec<OwnedFd>,
}

impl Pipes {
    fn new(stdin: bool) -> std::io::Result<Self> {
        let (out, their_out) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
        let (err, their_err) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
        let (their_in, input) = if stdin {
            let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
            (read, Some(write))
        } else {
            (OwnedFd::from(fs::File::open("/dev/null")?), None)
        };
        Ok(Self { mine: Mine { input, out, err }, theirs: vec![their_in, their_out, their_err] })
    }

    fn split(self) -> (Option<Mine>, Vec<OwnedFd>) {
        (Some(self.mine), self.theirs)
    }
}

/// Waits for the exit code on an exec's connection.
fn wait_exit(
    stream: std::os::unix::net::UnixStream,
) -> std::io::Result<tokio::task::JoinHandle<std::io::Result<i32>>> {
    stream.set_nonblocking(true)?;
    let stream = tokio::net::UnixStream::from_std(stream)?;
    Ok(tokio::spawn(async move {
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).await?;
        Ok(serde_json::from_str::<Exited>(&line)?.exit_code)
    }))
}

/// The beginning of an output; the rest is read and dropped, so that the writer is not held up.
async fn keep(output: Option<Output>) -> Vec<u8> {
    let mut kept = Vec::new();
    if let Some(mut output) = output {
        let _ = (&mut output).take(EXEC_OUTPUT_BYTES_MAX).read_to_end(&mut kept).await;
        let _ = tokio::io::copy(&mut output, &mut tokio::io::sink()).await;
    }
    kept
}

/// 256 random bits in hexadecimal, as containerd's ids.
fn new_id() -> Result<String, RuntimeError> {
    let path = PathBuf::from("/dev/urandom");
    let mut bytes = [0; 32];
    let read = fs::File::open(&path).and_then(|mut file| {
        use std::io::Read;
        file.read_exact(&mut bytes)
    });
    read.map_err(RuntimeError::state("read", path))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// The number of `SIGQUIT`, `QUIT` or `3`; SIGTERM for anything else.
fn signal_number(name: &str) -> i32 {
    let full = if name.starts_with("SIG") { name.to_owned() } else { format!("SIG{name}") };
    let named = full.parse::<nix::sys::signal::Signal>().map(|signal| signal as i32);
    named.ok().or_else(|| name.parse().ok()).unwrap_or(libc::SIGTERM)
}
