//! The virtual machine for modes and rows that the kernel under the tests may lack something for.

use std::time::Duration;

use testkit::machine::Machine;

/// How long it may take: it is a slow one.
const PATIENCE: Duration = Duration::from_secs(560);
const PROGRAMS: [&str; 4] = ["ip", "nft", "ipvsadm", "cat"];
/// The kernel refuses whoever asks for a module while it loads it for somebody else.
const MODULES: [&str; 6] = ["veth", "bridge", "nf_conntrack", "nft_chain_nat", "nft_ct", "sctp"];

/// Runs one of the tests that are ignored outside, with these variables as they are here. Answers what it said.
pub(crate) fn run(test: &str, variables: &[&str]) -> String {
    let machine = Machine::new().and_then(Machine::iptables).unwrap();
    let mut machine = machine.memory_mb(1536).patience(PATIENCE);
    for program in PROGRAMS {
        machine = machine.program(program).unwrap();
    }
    for module in MODULES {
        machine = machine.module(module);
    }
    for name in variables {
        if let Ok(value) = std::env::var(name) {
            machine = machine.env(name, &value);
        }
    }
    machine.run_test(test).unwrap()
}
