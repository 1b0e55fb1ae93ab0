//! The shim alone, for tests of this crate; the product's binary has it as a hidden command.

use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    runtime::shim_main(&args)
}
