//! `rhumb`: Kubernetes Services, whole, in one binary.

mod agent;
mod carry;
mod cli;
mod cluster;
mod down;
mod egress;
mod explain;
mod exposed;
mod images;
mod kubeconfig;
mod lab;
mod manifests;
mod nodes;
mod plan;
mod processes;
mod progress;
mod proxy_flags;
mod server;
mod shape;
mod status;
mod supervise;
mod telemetry;
mod tls;
mod up;
mod watch_flags;

use std::process::ExitCode;

fn main() -> ExitCode {
    // A pod's shim must be single-threaded and knows nothing of the rest.
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let Some((command, rest)) = args.split_first()
        && command == "shim"
    {
        return runtime::shim_main(rest);
    }
    cli::main()
}
