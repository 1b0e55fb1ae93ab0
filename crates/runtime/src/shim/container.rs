//! One container in its shim: made, started, its output logged and copied, its end recorded
//! (upstream: runc's container and containerd-shim's process).

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use libcontainer::container::Container as Init;
use libcontainer::container::builder::ContainerBuilder;
use libcontainer::syscall::syscall::SyscallType;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use serde_json::Value;

use super::executor::Command;
use super::log::{Lines, Log};
use super::protocol::{ExecRequest, RootImage, STATUS_FILE};
use super::spec::{self, Parts};
use super::users;
use crate::cgroup::Cgroup;
use crate::image::make_directory;
use crate::pod::{ContainerSpec, ContainerState, ContainerStatus, PodSandbox};
use crate::rootfs;

/// Output that an attached client has not taken; beyond this it is cut off, so that it holds nobody up.
const ATTACHED_BYTES_MAX: usize = 1 << 20;

/// The exit code of a container whose first process could not be made, and its reason (containerd's).
const START_FAILED: i32 = 128;
const START_ERROR: &str = "StartError";

/// What a new container takes from its pod.
pub(crate) struct Pod<'a> {
    pub(crate) directory: &'a Path,
    pub(crate) sandbox: &'a PodSandbox,
    pub(crate) cgroup: &'a str,
    pub(crate) shm: &'a Path,
    pub(crate) pid_namespace: Option<i32>,
}

/// One output of a container.
pub(crate) struct Stream {
    pub(crate) name: &'static str,
    pub(crate) source: OwnedFd,
    lines: Lines,
}

/// One output of an attached client.
pub(crate) struct Attached {
    name: &'static str,
    pub(crate) target: OwnedFd,
    pub(crate) waiting: Vec<u8>,
}

/// A container of this shim.
pub(crate) struct Container {
    pub(crate) status: ContainerStatus,
    pub(crate) streams: Vec<Stream>,
    pub(crate) attached: Vec<Attached>,
    directory: PathBuf,
    state_root: PathBuf,
    config: Value,
    spec: ContainerSpec,
    cgroup: Cgroup,
    log: Option<Log>,
    /// Write end of stdin, or the terminal.
    stdin: Option<OwnedFd>,
    terminal: Option<OwnedFd>,
}

/// A process that an exec started.
pub(crate) struct Started {
    pub(crate) pid: i32,
    pub(crate) terminal: Option<OwnedFd>,
}

impl Container {
    /// Makes the container; its first process waits for [`Container::start`]. Undone on failure, but for a first
    /// process that cannot be made: that is for `start` to say.
    pub(crate) fn create(
        pod: &Pod<'_>,
        id: &str,
        spec: ContainerSpec,
        image: &RootImage,
    ) -> Result<Self, String> {
        let directory = pod.directory.join(super::protocol::CONTAINERS_DIR).join(id);
        let cgroup = Cgroup::new(format!("{}/{id}", pod.cgroup));
        fs::create_dir_all(&directory)
            .map_err(|error| format!("create {}: {error}", directory.display()))?;
        let made = Self::make(pod, id, spec, image, &directory);
        if made.is_err() {
            cgroup.remove();
            rootfs::unmount_below(&directory);
            let _ = fs::remove_dir_all(pod.directory.join("state").join(id));
            let _ = fs::remove_dir_all(&directory);
        }
        made
    }

    fn make(
        pod: &Pod<'_>,
        id: &str,
        spec: ContainerSpec,
        image: &RootImage,
        directory: &Path,
    ) -> Result<Self, String> {
        let root = rootfs::mount_layers(directory, Path::new(&image.layers_dir), &image.layers)?;
        let user = users::resolve(&root, &image.config.user, &spec.security)?;
        let cwd = spec::working_directory(&spec, image);
        make_directory(&root, &cwd).map_err(|errno| format!("mkdir {cwd}: {errno}"))?;
        let cgroup = format!("{}/{id}", pod.cgroup);
        let config = spec::config(&Parts {
            sandbox: pod.sandbox,
            spec: &spec,
            image,
            user: &user,
            cgroup: &cgroup,
            root: &root.to_string_lossy(),
            shm: &pod.shm.to_string_lossy(),
            pid_namespace: pod.pid_namespace.map(|pid| format!("/proc/{pid}/ns/pid")),
            oom_score_adj: settable_oom_score(spec.oom_score_adj),
        });
        write(&directory.join("config.json"), &config)?;
        let log = spec.log_path.as_deref().map(Log::open).transpose();
        let log = log.map_err(|error| format!("failed to create container logger: {error}"))?;
        let mut container = Self {
            status: ContainerStatus {
                id: id.into(),
                pod_uid: spec.pod_uid.clone(),
                name: spec.name.clone(),
                attempt: spec.attempt,
                image: spec.image.clone(),
                image_id: image.id.clone(),
                state: ContainerState::Created,
                created_at: Some(jiff::Timestamp::now()),
                log_path: spec.log_path.clone(),
                labels: spec.labels.clone(),
                ..ContainerStatus::default()
            },
            streams: Vec::new(),
            attached: Vec::new(),
            directory: directory.into(),
            state_root: pod.directory.join("state"),
            config,
            spec,
            cgroup: Cgroup::new(cgroup),
            log,
            stdin: None,
            terminal: None,
        };
        if let Err(why) = container.build(id) {
            container.fail(why);
        }
        Ok(container)
    }

    /// Whether its first process could not be made.
    pub(crate) fn never_ran(&self) -> bool {
        self.status.reason == START_ERROR
    }

    /// A container whose first process could not be made is one that ended: as with containerd, it is there to be
    /// looked at, counts as a run, and says why when it is started.
    fn fail(&mut self, why: String) {
        self.cgroup.remove();
        self.status.state = ContainerState::Exited;
        self.status.pid = 0;
        self.status.exit_code = START_FAILED;
        self.status.finished_at = Some(jiff::Timestamp::now());
        self.status.reason = START_ERROR.into();
        self.status.message = why;
    }

    fn build(&mut self, id: &str) -> Result<(), String> {
        fs::create_dir_all(&self.state_root).map_err(|error| format!("create state: {error}"))?;
        let builder = ContainerBuilder::new(id.to_owned(), SyscallType::default())
            .with_executor(Command)
            .with_root_path(&self.state_root)
            .map_err(|error| reason("create", &error))?;
        let own_score = fs::read_to_string("/proc/self/oom_score_adj").unwrap_or_default();
        let init = if self.spec.tty {
            let console = Console::listen(&self.directory)?;
            let init = builder
                .with_console_socket(Some(console.path.clone()))
                .as_init(&self.directory)
                .with_systemd(false)
                .build()
                .map_err(|error| reason("create", &error))?;
            let terminal = console.accept()?;
            self.streams.push(Stream::new("stdout", copy(&terminal)?)?);
            self.stdin = self.spec.stdin.then(|| copy(&terminal)).transpose()?;
            self.terminal = Some(terminal);
            init
        } else {
            let (out, child_out) = pipe()?;
            let (err, child_err) = pipe()?;
            let (child_in, input) = if self.spec.stdin {
                let (read, write) = pipe()?;
                (read, Some(write))
            } else {
                (null()?, None)
            };
            let init = builder
                .with_stdin(child_in)
                .with_stdout(child_out)
                .with_stderr(child_err)
                .as_init(&self.directory)
                .with_systemd(false)
                .build()
                .map_err(|error| reason("create", &error))?;
            self.streams.push(Stream::new("stdout", out)?);
            self.streams.push(Stream::new("stderr", err)?);
            self.stdin = input;
            init
        };
        let _ = fs::write("/proc/self/oom_score_adj", own_score.trim());
        self.status.pid = init.pid().map_or(0, |pid| pid.as_raw());
        Ok(())
    }

    /// Lets the first process execute its command.
    pub(crate) fn start(&mut self) -> Result<(), String> {
        if self.never_ran() {
            return Err(self.status.message.clone());
        }
        let mut init = Init::load(self.state_root.join(&self.status.id))
            .map_err(|error| reason("start", &error))?;
        init.start().map_err(|error| reason("start", &error))?;
        self.status.state = ContainerState::Running;
        self.status.started_at = Some(jiff::Timestamp::now());
        Ok(())
    }

    /// Runs a command beside it.
    pub(crate) fn exec(
        &self,
        number: u64,
        exec: &ExecRequest,
        stdio: Vec<OwnedFd>,
    ) -> Result<Started, String> {
        let root = self.directory.join("rootfs");
        let user = exec.user.map(|uid| {
            let wish = crate::pod::Security { run_as_user: Some(uid), ..Default::default() };
            users::resolve(&root, "", &wish)
        });
        let process = spec::exec_process(&self.config, exec, user.transpose()?.as_ref());
        let file = self.directory.join(format!("exec-{number}.json"));
        write(&file, &process)?;
        let own_score = fs::read_to_string("/proc/self/oom_score_adj").unwrap_or_default();
        let mut builder = ContainerBuilder::new(self.status.id.clone(), SyscallType::default())
            .with_executor(Command)
            .with_root_path(&self.state_root)
            .map_err(|error| reason("exec", &error))?;
        let console = if exec.tty {
            let console = Console::listen(&self.directory)?;
            builder = builder.with_console_socket(Some(console.path.clone()));
            Some(console)
        } else {
            let mut stdio = stdio.into_iter();
            if let (Some(input), Some(out), Some(err)) = (stdio.next(), stdio.next(), stdio.next())
            {
                builder = builder.with_stdin(input).with_stdout(out).with_stderr(err);
            }
            None
        };
        let built = builder.as_tenant().with_detach(true).with_process(Some(&file)).build();
        let _ = fs::remove_file(&file);
        let _ = fs::write("/proc/self/oom_score_adj", own_score.trim());
        let pid = built.map_err(|error| reason("exec", &error))?.as_raw();
        let terminal = console.map(|console| console.accept()).transpose()?;
        Ok(Started { pid, terminal })
    }

    /// Adds a client's outputs; returns what it writes to: the terminal, or stdin.
    pub(crate) fn attach(
        &mut self,
        stdin: bool,
        outputs: Vec<OwnedFd>,
    ) -> Result<Option<OwnedFd>, String> {
        for (name, target) in ["stdout", "stderr"].into_iter().zip(outputs) {
            nonblocking(&target)?;
            self.attached.push(Attached { name, target, waiting: Vec::new() });
        }
        if let Some(terminal) = &self.terminal {
            return copy(terminal).map(Some);
        }
        if stdin && self.spec.stdin_once {
            return Ok(self.stdin.take());
        }
        self.stdin.as_ref().filter(|_| stdin).map(copy).transpose()
    }

    /// Reads what an output has; false when it ended.
    pub(crate) fn copy_output(&mut self, index: usize) -> bool {
        let Some(stream) = self.streams.get_mut(index) else { return false };
        let mut data = [0; 32 << 10];
        let count = nix::unistd::read(&stream.source, &mut data);
        let (data, ended) = match count {
            Ok(0) => (&[][..], true),
            Ok(count) => (data.get(..count).unwrap_or_default(), false),
            Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EINTR) => return true,
            Err(_) => (&[][..], true), // EIO: the last holder of the terminal is gone
        };
        if let Some(log) = &mut self.log {
            log.write(stream.name, &mut stream.lines, data, ended);
        }
        for client in self.attached.iter_mut().filter(|one| one.name == stream.name) {
            client.waiting.extend_from_slice(data);
        }
        let name = stream.name;
        self.flush_attached();
        if ended {
            self.streams.remove(index);
            // The rest of what they were owed is written, then their end closes.
            self.attached.retain(|one| one.name != name || !one.waiting.is_empty());
        }
        !ended
    }

    /// Writes to attached clients what they take.
    pub(crate) fn flush_attached(&mut self) {
        let live: Vec<&str> = self.streams.iter().map(|one| one.name).collect();
        self.attached.retain_mut(|client| {
            while !client.waiting.is_empty() {
                match nix::unistd::write(&client.target, &client.waiting) {
                    Ok(count) => drop(client.waiting.drain(..count)),
                    Err(nix::errno::Errno::EAGAIN) => break,
                    Err(_) => return false,
                }
            }
            client.waiting.len() <= ATTACHED_BYTES_MAX
                && (!client.waiting.is_empty() || live.contains(&client.name))
        });
    }

    /// Records the end of its first process.
    pub(crate) fn ended(&mut self, exit_code: i32, signal: i32) {
        while (0..self.streams.len()).any(|index| self.pending(index)) {
            for index in (0..self.streams.len()).rev() {
                if self.pending(index) {
                    self.copy_output(index);
                }
            }
        }
        self.status.oom_killed = exit_code != 0 && self.cgroup.oom_kills() > 0;
        self.cgroup.kill();
        self.stdin = None;
        self.status.state = ContainerState::Exited;
        self.status.pid = 0;
        self.status.exit_code = exit_code;
        self.status.signal = signal;
        self.status.finished_at = Some(jiff::Timestamp::now());
        self.status.reason = match exit_code {
            0 => "Completed",
            _ if self.status.oom_killed => "OOMKilled",
            _ => "Error",
        }
        .into();
    }

    /// Whether an output can be read, or has ended.
    fn pending(&self, index: usize) -> bool {
        use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
        self.streams.get(index).is_some_and(|stream| {
            let mut one = [PollFd::new(stream.source.as_fd(), PollFlags::POLLIN)];
            poll(&mut one, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
        })
    }

    /// Kills all its processes.
    pub(crate) fn kill(&self) {
        self.cgroup.kill();
    }

    /// Keeps the state for an agent that comes after this shim.
    pub(crate) fn save(&self) {
        let path = self.directory.join(STATUS_FILE);
        let fresh = path.with_extension("new");
        let text = serde_json::to_vec(&self.status).unwrap_or_default();
        if fs::write(&fresh, text).and_then(|()| fs::rename(&fresh, &path)).is_err() {
            tracing::warn!(path = %path.display(), "status not saved");
        }
    }

    /// Removes what is left of an ended container.
    pub(crate) fn remove(&self) -> Result<(), String> {
        if !self.cgroup.remove() {
            return Err(format!("control group of container {} is busy", self.status.id));
        }
        rootfs::unmount_below(&self.directory);
        let _ = fs::remove_dir_all(self.state_root.join(&self.status.id));
        fs::remove_dir_all(&self.directory)
            .map_err(|error| format!("remove {}: {error}", self.directory.display()))
    }

    /// Lets go of the mounts, keeping the status.
    pub(crate) fn release(&self) {
        self.cgroup.remove();
        rootfs::unmount_below(&self.directory);
    }
}

impl Stream {
    fn new(name: &'static str, source: OwnedFd) -> Result<Self, String> {
        if name != "terminal" {
            nonblocking(&source)?;
        }
        Ok(Self { name, source, lines: Lines::default() })
    }
}

/// Where a container's terminal is handed over.
struct Console {
    listener: UnixListener,
    path: PathBuf,
}

impl Console {
    fn listen(directory: &Path) -> Result<Self, String> {
        let path = directory.join("console.sock");
        let _ = fs::remove_file(&path);
        // A socket's address holds 108 bytes: bind by a short relative name.
        let bound = nix::unistd::chdir(directory).map_err(std::io::Error::from);
        let bound = bound.and_then(|()| UnixListener::bind("console.sock"));
        let _ = nix::unistd::chdir("/");
        let listener = bound.map_err(|error| format!("console socket: {error}"))?;
        Ok(Self { listener, path })
    }

    fn accept(self) -> Result<OwnedFd, String> {
        use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
        use std::os::fd::AsRawFd;
        let _ = fs::remove_file(&self.path);
        let failed = |error: &dyn std::fmt::Display| format!("console socket: {error}");
        let (stream, _) = self.listener.accept().map_err(|error| failed(&error))?;
        let mut bytes = [0; 4096];
        let mut parts = [std::io::IoSliceMut::new(&mut bytes)];
        let mut space = nix::cmsg_space!([std::os::fd::RawFd; 1]);
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let got = recvmsg::<()>(stream.as_raw_fd(), &mut parts, Some(&mut space), flags)
            .map_err(|error| failed(&error))?;
        let messages = got.cmsgs().map_err(|error| failed(&error))?;
        for message in messages {
            if let ControlMessageOwned::ScmRights(fds) = message
                && let Some(fd) = fds.first()
            {
                return Ok(own(*fd));
            }
        }
        Err("console socket: no terminal came".into())
    }
}

#[expect(unsafe_code, reason = "a descriptor received from the kernel is ours from then on")]
fn own(fd: std::os::fd::RawFd) -> OwnedFd {
    use std::os::fd::FromRawFd;
    // SAFETY: the kernel has just installed it for this process, and nothing else knows its number.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

fn pipe() -> Result<(OwnedFd, OwnedFd), String> {
    nix::unistd::pipe2(OFlag::O_CLOEXEC).map_err(|error| format!("pipe: {error}"))
}

fn null() -> Result<OwnedFd, String> {
    File::open("/dev/null").map(OwnedFd::from).map_err(|error| format!("open /dev/null: {error}"))
}

fn copy(fd: &OwnedFd) -> Result<OwnedFd, String> {
    fd.try_clone().map_err(|error| format!("dup: {error}"))
}

fn nonblocking(fd: &OwnedFd) -> Result<(), String> {
    fcntl(fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))
        .map(drop)
        .map_err(|error| format!("fcntl: {error}"))
}

fn write(path: &Path, value: &Value) -> Result<(), String> {
    let text = serde_json::to_vec(value).unwrap_or_default();
    let written = File::create(path).and_then(|mut file| file.write_all(&text));
    written.map_err(|error| format!("write {}: {error}", path.display()))
}

/// The wish, or the nearest that the kernel lets this process set: less than its own needs `CAP_SYS_RESOURCE`.
fn settable_oom_score(wish: i32) -> i32 {
    const FILE: &str = "/proc/self/oom_score_adj";
    let mut own = String::new();
    let _ = File::open(FILE).and_then(|mut file| file.read_to_string(&mut own));
    let own = own.trim().parse().unwrap_or(0);
    let settable = fs::write(FILE, wish.to_string()).is_ok();
    let _ = fs::write(FILE, own.to_string());
    if settable { wish } else { own.max(wish) }
}

/// runc's sentence around the innermost cause that libcontainer gives.
fn reason(step: &str, error: &dyn std::error::Error) -> String {
    let mut chain = vec![error.to_string()];
    let mut source = error.source();
    while let Some(cause) = source {
        chain.push(cause.to_string());
        source = cause.source();
    }
    let text = chain.join(": ");
    let text = text.find("exec: \"").and_then(|start| text.get(start..)).unwrap_or(&text);
    let text = text.trim_end_matches(['\0', '"', ')', ' ']);
    match step {
        "exec" => format!(
            "OCI runtime exec failed: exec failed: unable to start container process: {text}: unknown"
        ),
        "start" => format!("OCI runtime start failed: {text}: unknown"),
        _ => {
            format!("OCI runtime create failed: unable to start container process: {text}: unknown")
        }
    }
}
