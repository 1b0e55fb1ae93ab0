//! The virtual machine for tests: it boots, runs, answers, and has what the tests of this repository go there for.

use std::time::Duration;

use anyhow::{Result, ensure};
use testkit::machine::Machine;

#[test]
fn a_machine_runs_a_command_and_answers_its_status() -> Result<()> {
    let outcome = Machine::new()?.run("echo hello from $(uname -r); exit 7")?;
    ensure!(outcome.status == 7, "{outcome:?}");
    ensure!(outcome.output.contains("hello from 6."), "{outcome:?}");
    Ok(())
}

#[test]
fn a_machine_has_programs_with_their_libraries_and_modules_on_demand() -> Result<()> {
    let script = "set -e
ip -V
ip netns add n1
ip link add d0 type dummy
ip link add v0 type veth peer name v1 netns n1
nft add table ip t
nft 'add chain ip t c { type nat hook prerouting priority -100; tcp dport 1 dnat to 10.0.0.1:2; }'
modprobe ip_vs
modprobe sctp
cat /proc/net/ip_vs
iptables-nft -t nat -A OUTPUT -p tcp --dport 1 -m statistic --mode random --probability 0.5 -j DNAT --to-destination 10.0.0.1:2
iptables-legacy -t nat -A OUTPUT -p tcp --dport 1 -j DNAT --to-destination 10.0.0.1:2
test -e /sys/kernel/btf/vmlinux
test -e /sys/fs/cgroup/cgroup.controllers
test \"$(ls /sys/class/net | grep -c eth)\" = 0
";
    let outcome = Machine::new()?.program("ip")?.program("nft")?.iptables()?.run(script)?;
    ensure!(outcome.status == 0, "{}", outcome.output);
    ensure!(outcome.output.contains("IP Virtual Server"), "{}", outcome.output);
    Ok(())
}

#[test]
fn a_machine_that_does_not_end_is_ended() -> Result<()> {
    let outcome = Machine::new()?.patience(Duration::from_secs(2)).run("sleep 1000");
    let error = outcome.expect_err("it sleeps").to_string();
    ensure!(error.contains("did not end within 2 s"), "{error}");
    Ok(())
}

#[test]
fn a_test_runs_again_in_the_machine() -> Result<()> {
    let output = Machine::new()?.run_test("inside")?;
    ensure!(output.contains("process 1's name is init"), "{output}");
    ensure!(Machine::new()?.run_test("nobody").is_err(), "a test that is not there cannot pass");
    Ok(())
}

#[test]
#[ignore = "runs in the virtual machine"]
fn inside() -> Result<()> {
    let name = std::fs::read_to_string("/proc/1/comm")?;
    std::io::Write::write_all(
        &mut std::io::stdout(),
        format!("process 1's name is {name}").as_bytes(),
    )?;
    Ok(())
}
