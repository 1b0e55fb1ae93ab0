//! The last step inside a container: checks and executes its command, with failures in runc's words
//! (upstream: runc's `finalizeNamespace` and `exec`).
#![expect(unsafe_code, reason = "signal dispositions are reset between clone and exec")]

use std::convert::Infallible;
use std::ffi::CString;
use std::path::{Path, PathBuf};

use libcontainer::workload::{Executor, ExecutorError, ExecutorValidationError};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use nix::unistd::{AccessFlags, access, execv};
use oci_spec::runtime::Spec;

/// Executes what the configuration says.
#[derive(Clone, Debug)]
pub(crate) struct Command;

fn arguments(spec: &Spec) -> Vec<String> {
    spec.process().as_ref().and_then(|process| process.args().clone()).unwrap_or_default()
}

/// The file that a command names, or runc's words for why there is none.
fn lookup(spec: &Spec) -> Result<PathBuf, String> {
    let Some(name) = arguments(spec).into_iter().next() else {
        return Err("no command specified".into());
    };
    if name.contains('/') {
        let path = PathBuf::from(&name);
        return match path.metadata() {
            Err(_) => Err(format!("exec: {name:?}: stat {name}: no such file or directory")),
            Ok(found) if found.is_dir() => Err(format!("exec: {name:?}: is a directory")),
            Ok(_) if access(&path, AccessFlags::X_OK).is_err() => {
                Err(format!("exec: {name:?}: permission denied"))
            }
            Ok(_) => Ok(path),
        };
    }
    let env = spec.process().as_ref().and_then(|process| process.env().clone()).unwrap_or_default();
    let search = env.iter().find_map(|one| one.strip_prefix("PATH=")).unwrap_or_default();
    let executable = |path: &PathBuf| {
        path.metadata().is_ok_and(|found| found.is_file())
            && access(path, AccessFlags::X_OK).is_ok()
    };
    let found = search.split(':').map(|one| Path::new(one).join(&name)).find(executable);
    found.ok_or_else(|| format!("exec: {name:?}: executable file not found in $PATH"))
}

impl Executor for Command {
    fn exec(&self, spec: &Spec) -> Result<(), ExecutorError> {
        let path = lookup(spec).map_err(ExecutorError::Other)?;
        let text = |text: &str| CString::new(text).map_err(|_| ExecutorError::InvalidArg);
        let file = text(&path.to_string_lossy())?;
        let words = arguments(spec);
        let words = words.iter().map(|one| text(one)).collect::<Result<Vec<_>, _>>()?;
        reset_signals();
        let failed: Result<Infallible, _> = execv(&file, &words);
        match failed {
            Ok(never) => match never {},
            Err(errno) => Err(ExecutorError::Other(format!("exec {}: {errno}", path.display()))),
        }
    }

    fn validate(&self, spec: &Spec) -> Result<(), ExecutorValidationError> {
        lookup(spec).map(drop).map_err(ExecutorValidationError::ArgValidationError)
    }
}

/// The shim blocks signals and Rust ignores SIGPIPE; a new program must not inherit either.
pub(crate) fn reset_signals() {
    let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
    // SAFETY: the default disposition runs no code of ours.
    let _ = unsafe { sigaction(Signal::SIGPIPE, &default) };
    let _ = SigSet::all().thread_unblock();
}
