//! The shim: one single-threaded process for each pod (upstream: containerd-shim-runc-v2).
//!
//! Everything happens in one loop over `poll`: signals (children that ended), the agent's connections,
//! the containers' outputs. A container's end is kept on disk, so that an agent that was away learns of it.
#![expect(unsafe_code, reason = "the shim forks while single-threaded")]

mod container;
mod executor;
mod log;
pub(crate) mod protocol;
mod sandbox;
mod spec;
mod users;

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork, setgroups, setsid};

use crate::cgroup::Cgroup;
use crate::pod::ContainerState;
use crate::rootfs;
use container::{Container, Pod};
use protocol::{Change, Exited, Failure, Reply, Request, SANDBOX_FILE, SOCKET_FILE, SandboxFile};

/// How long one message of the agent may take; afterwards the connection is dropped.
const PEER_TIMEOUT: Duration = Duration::from_secs(5);

/// Entry of the hidden command `shim <pod directory>`; `args` are those after the word `shim`.
/// Must be called before any thread is started. Says `ok` or why not on standard output.
#[must_use]
pub fn shim_main(args: &[String]) -> ExitCode {
    let [directory] = args else { return ExitCode::from(2) };
    // SAFETY: no thread was started.
    match unsafe { fork() } {
        Ok(ForkResult::Parent { .. }) => return ExitCode::SUCCESS,
        Ok(ForkResult::Child) => {}
        Err(_) => return ExitCode::FAILURE,
    }
    let _ = setsid();
    log_to_stderr_file();
    let mut ready = std::io::stdout();
    match Shim::open(Path::new(directory)) {
        Ok(mut shim) => {
            let _ = ready.write_all(b"ok").and_then(|()| ready.flush());
            if let Ok(null) = fs::OpenOptions::new().read(true).write(true).open("/dev/null") {
                let _ = nix::unistd::dup2_stdout(&null);
            }
            shim.run();
            ExitCode::SUCCESS
        }
        Err(error) => {
            let _ = ready.write_all(error.as_bytes()).and_then(|()| ready.flush());
            ExitCode::FAILURE
        }
    }
}

/// Standard error is a file in the pod's directory. A descriptor of its own is used, because libcontainer's
/// children log too, after their standard error has become the container's.
fn log_to_stderr_file() {
    if let Ok(file) = std::io::stderr().as_fd().try_clone_to_owned() {
        let file = std::sync::Mutex::new(fs::File::from(file));
        let log = tracing_subscriber::fmt().with_max_level(tracing::Level::ERROR).with_ansi(false);
        let _ = log.with_writer(file).try_init();
    }
}

/// An exec whose end somebody waits for.
struct Waiter {
    pid: i32,
    peer: UnixStream,
}

struct Shim {
    directory: PathBuf,
    file: SandboxFile,
    shm: PathBuf,
    pause: Option<Pid>,
    listener: UnixListener,
    signals: SignalFd,
    containers: BTreeMap<String, Container>,
    watchers: Vec<UnixStream>,
    waiters: Vec<Waiter>,
    seq: u64,
    execs: u64,
    /// The agent that asked for the end.
    stopping: Option<UnixStream>,
}

/// What a polled descriptor stands for.
#[derive(Clone)]
enum Source {
    Signals,
    Listener,
    Output(String, usize),
    Attached(String),
    Watcher,
}

impl Shim {
    fn open(directory: &Path) -> Result<Self, String> {
        let text = fs::read(directory.join(SANDBOX_FILE)).map_err(|error| error.to_string())?;
        let file: SandboxFile = serde_json::from_slice(&text).map_err(|error| error.to_string())?;
        let _ = setgroups(&[]);
        let _ = nix::sys::prctl::set_child_subreaper(true);
        let _ = nix::sys::prctl::set_name(c"rhumb-shim");
        let mut mask = SigSet::empty();
        mask.add(Signal::SIGCHLD);
        mask.thread_block().map_err(|error| format!("block signals: {error}"))?;
        let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
            .map_err(|error| format!("signalfd: {error}"))?;
        sandbox::enter(&file.sandbox)?;
        Cgroup::new(&file.cgroup)
            .create(&file.sandbox.resources)
            .map_err(|error| format!("create control group {}: {error}", file.cgroup))?;
        Cgroup::new(&file.cgroup).join_beside();
        let shm = sandbox::shared_memory(directory, &file.sandbox)?;
        let share = file.sandbox.share_pid && !file.sandbox.host_pid;
        let pause = if share { Some(sandbox::start_pid_namespace()?) } else { None };
        if let Some(pid) = pause {
            let group = Cgroup::new(format!("{}/pause", file.cgroup));
            group.create(&Default::default()).map_err(|error| format!("control group: {error}"))?;
            group.add(pid.as_raw());
        }
        nix::unistd::chdir(directory).map_err(|error| format!("chdir: {error}"))?;
        let _ = fs::remove_file(SOCKET_FILE);
        let listener = UnixListener::bind(SOCKET_FILE).map_err(|error| format!("bind: {error}"))?;
        nix::unistd::chdir("/").map_err(|error| format!("chdir: {error}"))?;
        Ok(Self {
            directory: directory.into(),
            file,
            shm,
            pause,
            listener,
            signals,
            containers: BTreeMap::new(),
            watchers: Vec::new(),
            waiters: Vec::new(),
            seq: 0,
            execs: 0,
            stopping: None,
        })
    }

    fn run(&mut self) {
        loop {
            for source in self.ready() {
                match source {
                    Source::Signals => self.reap(),
                    Source::Listener => self.accept(),
                    Source::Output(id, index) => {
                        if let Some(container) = self.containers.get_mut(&id) {
                            container.copy_output(index);
                        }
                    }
                    Source::Attached(id) => {
                        if let Some(container) = self.containers.get_mut(&id) {
                            container.flush_attached();
                        }
                    }
                    Source::Watcher => self.watchers.retain(|peer| !closed(peer)),
                }
            }
            if self.stopping.is_some() && self.stopped() {
                return;
            }
        }
    }

    /// Waits until something can be done. Outputs come last first, since one that ends is taken out.
    fn ready(&self) -> Vec<Source> {
        let mut all: Vec<(Source, BorrowedFd<'_>, PollFlags)> = vec![
            (Source::Signals, self.signals.as_fd(), PollFlags::POLLIN),
            (Source::Listener, self.listener.as_fd(), PollFlags::POLLIN),
        ];
        for (id, container) in &self.containers {
            for (index, stream) in container.streams.iter().enumerate().rev() {
                let source = Source::Output(id.clone(), index);
                all.push((source, stream.source.as_fd(), PollFlags::POLLIN));
            }
            for client in container.attached.iter().filter(|one| !one.waiting.is_empty()) {
                all.push((Source::Attached(id.clone()), client.target.as_fd(), PollFlags::POLLOUT));
            }
        }
        all.extend(
            self.watchers.iter().map(|peer| (Source::Watcher, peer.as_fd(), PollFlags::POLLIN)),
        );
        let mut polled: Vec<PollFd<'_>> =
            all.iter().map(|(_, fd, flags)| PollFd::new(*fd, *flags)).collect();
        if poll(&mut polled, PollTimeout::NONE).is_err() {
            return Vec::new();
        }
        let answered = polled.iter().map(|one| one.any().unwrap_or(true));
        let found = all.iter().zip(answered).filter(|(_, ready)| *ready);
        let mut found: Vec<Source> = found.map(|((source, ..), _)| source.clone()).collect();
        // Outputs before signals: what a process said comes before its end.
        found.sort_by_key(|source| matches!(source, Source::Signals | Source::Listener));
        found
    }

    fn reap(&mut self) {
        while let Ok(Some(_)) = self.signals.read_signal() {}
        loop {
            let (pid, code, signal) = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) => (pid.as_raw(), code, 0),
                Ok(WaitStatus::Signaled(pid, signal, _)) => {
                    let number = signal as i32;
                    (pid.as_raw(), 128 + number, number)
                }
                Ok(WaitStatus::StillAlive) | Err(_) => return,
                Ok(_) => continue,
            };
            self.ended(pid, code, signal);
        }
    }

    fn ended(&mut self, pid: i32, code: i32, signal: i32) {
        let own = self.containers.iter().find(|(_, one)| one.status.pid == pid);
        if let Some(id) = own.map(|(id, _)| id.clone()) {
            if let Some(container) = self.containers.get_mut(&id) {
                container.ended(code, signal);
            }
            self.changed(&id);
        }
        if let Some(index) = self.waiters.iter().position(|one| one.pid == pid) {
            let waiter = self.waiters.swap_remove(index);
            let _ = protocol::send(&waiter.peer, &Exited { exit_code: code }, &[]);
        }
    }

    /// Saves a container's state and tells everybody.
    fn changed(&mut self, id: &str) {
        self.seq += 1;
        let Some(container) = self.containers.get(id) else { return };
        container.save();
        let change = Change::Status { seq: self.seq, status: container.status.clone() };
        self.watchers.retain(|peer| protocol::send(peer, &change, &[]).is_ok());
    }

    fn accept(&mut self) {
        let Ok((peer, _)) = self.listener.accept() else { return };
        let _ = peer.set_read_timeout(Some(PEER_TIMEOUT));
        let _ = peer.set_write_timeout(Some(PEER_TIMEOUT));
        let Ok((request, descriptors)) = protocol::receive::<Request>(&peer) else { return };
        let outcome = match request {
            Request::Create { id, spec, image } => self.create(&id, spec, &image),
            Request::Start { id } => self.start(&id),
            Request::Signal { id, signal } => self.signal(&id, signal),
            Request::Remove { id } => self.remove(&id),
            Request::Exec { id, exec } => return self.exec(&id, &exec, descriptors, peer),
            Request::SignalExec { pid, signal } => {
                if self.waiters.iter().any(|one| one.pid == pid) {
                    send_signal(pid, signal);
                }
                Ok(())
            }
            Request::Attach { id, stdin } => return self.attach(&id, stdin, descriptors, &peer),
            Request::Watch => return self.watch(peer),
            Request::Stop => return self.stop(peer),
        };
        let reply = Reply { seq: self.seq, error: outcome.err(), pid: 0 };
        let _ = protocol::send(&peer, &reply, &[]);
    }

    fn create(
        &mut self,
        id: &str,
        spec: crate::pod::ContainerSpec,
        image: &protocol::RootImage,
    ) -> Result<(), Failure> {
        if self.stopping.is_some() {
            return Err(Failure::NotRunning);
        }
        let pod = Pod {
            directory: &self.directory,
            sandbox: &self.file.sandbox,
            cgroup: &self.file.cgroup,
            shm: &self.shm,
            pid_namespace: self.pause.map(Pid::as_raw),
        };
        let made = Container::create(&pod, id, spec, image).map_err(Failure::Failed)?;
        self.containers.insert(id.to_owned(), made);
        self.changed(id);
        Ok(())
    }

    fn find(&mut self, id: &str) -> Result<&mut Container, Failure> {
        self.containers.get_mut(id).ok_or(Failure::NotFound)
    }

    fn start(&mut self, id: &str) -> Result<(), Failure> {
        let container = self.find(id)?;
        if container.status.state != ContainerState::Created && !container.never_ran() {
            return Err(Failure::Failed(format!(
                "container {id:?} is in {:?} state, cannot start",
                container.status.state
            )));
        }
        container.start().map_err(Failure::Failed)?;
        self.changed(id);
        Ok(())
    }

    fn signal(&mut self, id: &str, signal: i32) -> Result<(), Failure> {
        let container = self.find(id)?;
        if container.status.pid > 0 {
            if signal == libc::SIGKILL {
                container.kill();
            }
            send_signal(container.status.pid, signal);
        }
        Ok(())
    }

    fn remove(&mut self, id: &str) -> Result<(), Failure> {
        let Some(container) = self.containers.get(id) else { return Ok(()) };
        let pid = container.status.pid;
        if pid > 0 {
            container.kill();
            send_signal(pid, libc::SIGKILL);
            let _ = waitpid(Pid::from_raw(pid), None);
            self.ended(pid, 128 + libc::SIGKILL, libc::SIGKILL);
        }
        if let Some(container) = self.containers.get(id) {
            container.remove().map_err(Failure::Failed)?;
        }
        self.containers.remove(id);
        self.seq += 1;
        let change = Change::Removed { seq: self.seq, id: id.to_owned() };
        self.watchers.retain(|peer| protocol::send(peer, &change, &[]).is_ok());
        Ok(())
    }

    fn exec(
        &mut self,
        id: &str,
        exec: &protocol::ExecRequest,
        stdio: Vec<std::os::fd::OwnedFd>,
        peer: UnixStream,
    ) {
        self.execs += 1;
        let number = self.execs;
        let started = self.find(id).and_then(|container| match container.status.state {
            ContainerState::Running => container.exec(number, exec, stdio).map_err(Failure::Failed),
            _ => Err(Failure::NotRunning),
        });
        match started {
            Ok(started) => {
                let reply = Reply { seq: self.seq, error: None, pid: started.pid };
                let fds: Vec<BorrowedFd<'_>> = started.terminal.iter().map(AsFd::as_fd).collect();
                if protocol::send(&peer, &reply, &fds).is_ok() {
                    self.waiters.push(Waiter { pid: started.pid, peer });
                }
            }
            Err(failure) => {
                let reply = Reply { seq: self.seq, error: Some(failure), pid: 0 };
                let _ = protocol::send(&peer, &reply, &[]);
            }
        }
    }

    fn attach(
        &mut self,
        id: &str,
        stdin: bool,
        outputs: Vec<std::os::fd::OwnedFd>,
        peer: &UnixStream,
    ) {
        let input = self.find(id).and_then(|container| match container.status.state {
            ContainerState::Exited => Err(Failure::NotRunning),
            _ => container.attach(stdin, outputs).map_err(Failure::Failed),
        });
        let (input, error) = match input {
            Ok(input) => (input, None),
            Err(failure) => (None, Some(failure)),
        };
        let fds: Vec<BorrowedFd<'_>> = input.iter().map(AsFd::as_fd).collect();
        let _ = protocol::send(peer, &Reply { seq: self.seq, error, pid: 0 }, &fds);
    }

    fn watch(&mut self, peer: UnixStream) {
        let seq = self.seq;
        let statuses = self.containers.values().map(|one| one.status.clone());
        let known = statuses.map(|status| Change::Status { seq, status });
        let all = known.chain(std::iter::once(Change::Synced { seq }));
        if all.into_iter().all(|change| protocol::send(&peer, &change, &[]).is_ok()) {
            self.watchers.push(peer);
        }
    }

    fn stop(&mut self, peer: UnixStream) {
        for container in self.containers.values().filter(|one| one.status.pid > 0) {
            container.kill();
            send_signal(container.status.pid, libc::SIGKILL);
        }
        self.stopping = Some(peer);
    }

    /// Ends the pod when nothing runs any more.
    fn stopped(&mut self) -> bool {
        if self.containers.values().any(|one| one.status.pid > 0) {
            return false;
        }
        if let Some(pid) = self.pause {
            send_signal(pid.as_raw(), libc::SIGKILL);
            let _ = waitpid(pid, None);
        }
        for container in self.containers.values() {
            container.release();
        }
        rootfs::unmount_below(&self.directory);
        Cgroup::leave_beside();
        Cgroup::new(&self.file.cgroup).remove();
        let _ = fs::remove_file(self.directory.join(SOCKET_FILE));
        if let Some(peer) = self.stopping.take() {
            let _ = protocol::send(&peer, &Reply { seq: self.seq, ..Reply::default() }, &[]);
        }
        true
    }
}

fn send_signal(pid: i32, number: i32) {
    if let Ok(signal) = Signal::try_from(number) {
        let _ = kill(Pid::from_raw(pid), signal);
    }
}

fn closed(peer: &UnixStream) -> bool {
    use std::io::Read;
    let _ = peer.set_nonblocking(true);
    let ended = matches!((&mut &*peer).read(&mut [0; 16]), Ok(0));
    let _ = peer.set_nonblocking(false);
    ended
}
