//! What a pod's containers share: namespaces that the shim itself enters, /dev/shm, the pid namespace's
//! first process (upstream: the sandbox container and its pause process).
#![expect(unsafe_code, reason = "the shim forks while single-threaded")]

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork, sethostname};

use crate::pod::PodSandbox;

/// Says what failed, for the agent's error.
fn because<T, E: std::fmt::Display>(what: &str, result: Result<T, E>) -> Result<T, String> {
    result.map_err(|error| format!("{what}: {error}"))
}

/// Joins and makes the namespaces of the pod; afterwards every container inherits them.
pub(crate) fn enter(sandbox: &PodSandbox) -> Result<(), String> {
    if let Some(path) = &sandbox.netns {
        let what = format!("join network namespace {}", path.display());
        let file = because(&what, File::open(path))?;
        because(&what, setns(&file, CloneFlags::CLONE_NEWNET))?;
    }
    let mut flags = CloneFlags::CLONE_NEWUTS;
    if !sandbox.host_ipc {
        flags |= CloneFlags::CLONE_NEWIPC;
    }
    because("unshare", unshare(flags))?;
    if !sandbox.hostname.is_empty() {
        because("set host name", sethostname(&sandbox.hostname))?;
    }
    if !sandbox.domainname.is_empty() {
        let set = fs::write("/proc/sys/kernel/domainname", &sandbox.domainname);
        because("set domain name", set)?;
    }
    for (name, value) in &sandbox.sysctls {
        let path = Path::new("/proc/sys").join(name.replace('.', "/"));
        because(&format!("set sysctl {name}"), fs::write(path, value))?;
    }
    Ok(())
}

/// The directory that containers see as /dev/shm.
pub(crate) fn shared_memory(pod: &Path, sandbox: &PodSandbox) -> Result<PathBuf, String> {
    if sandbox.host_ipc {
        return Ok("/dev/shm".into());
    }
    let path = pod.join("shm");
    because("create shm", fs::create_dir_all(&path))?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let options = Some("mode=1777,size=65536k");
    because("mount shm", mount(Some("shm"), &path, Some("tmpfs"), flags, options))?;
    Ok(path)
}

/// Starts the first process of a pid namespace for the whole pod; it only reaps.
pub(crate) fn start_pid_namespace() -> Result<Pid, String> {
    let (mut reader, mut writer) = because("pipe", io::pipe())?;
    // SAFETY: the shim has one thread, so the child may do anything.
    match because("fork", unsafe { fork() })? {
        ForkResult::Child => {
            drop(reader);
            let started = unshare(CloneFlags::CLONE_NEWPID).and_then(|()| {
                // SAFETY: as above.
                match unsafe { fork() }? {
                    ForkResult::Child => reap_forever(),
                    ForkResult::Parent { child } => Ok(child.as_raw()),
                }
            });
            let _ = writer.write_all(&started.unwrap_or(-1).to_le_bytes());
            // SAFETY: ends this short-lived child without running the shim's destructors.
            unsafe { libc::_exit(0) }
        }
        ForkResult::Parent { child } => {
            drop(writer);
            let mut bytes = [0; 4];
            because("read pid", reader.read_exact(&mut bytes))?;
            let _ = waitpid(child, None);
            match i32::from_le_bytes(bytes) {
                pid if pid > 0 => Ok(Pid::from_raw(pid)),
                _ => Err("create pid namespace: operation failed".into()),
            }
        }
    }
}

fn reap_forever() -> ! {
    let _ = nix::sys::prctl::set_name(c"pause");
    super::executor::reset_signals();
    let mut children = SigSet::empty();
    children.add(Signal::SIGCHLD);
    let _ = children.thread_block();
    for number in 0..1024 {
        // SAFETY: this process uses no descriptor any more; numbers that are not open fail harmlessly.
        unsafe { libc::close(number) };
    }
    loop {
        let _ = children.wait();
        let reaped = || waitpid(None, Some(WaitPidFlag::WNOHANG));
        while reaped().is_ok_and(|one| one != WaitStatus::StillAlive) {}
    }
}
