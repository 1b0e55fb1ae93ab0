//! The shim: one single-threaded process for each pod (upstream: containerd-shim-runc-v2).

use std::process::ExitCode;

/// Entry of the hidden command `shim <pod directory>`; `args` are those after the word `shim`.
/// Must be called before any thread is started.
#[must_use]
pub fn shim_main(args: &[String]) -> ExitCode {
    let _ = args;
    ExitCode::FAILURE
}
