//! IPVS of a real kernel, in a virtual machine: what it is told, it shows; to this crate, and to `ipvsadm`.

use std::collections::BTreeSet;
use std::error::Error;
use std::net::SocketAddr;
use std::process::Command;

use kernel::ipvs::Ipvs;
use net::ipvs::{Choice, Held, Order, Server, State, carry_out, render};
use testkit::machine::Machine;

type Result<T = ()> = std::result::Result<T, Box<dyn Error>>;

const SCHEDULERS: [&str; 9] = ["rr", "wrr", "lc", "wlc", "dh", "sh", "sed", "nq", "mh"];

#[test]
fn ipvs_shows_what_it_was_told_in_a_virtual_machine() -> Result {
    Machine::new()?.program("ipvsadm")?.run_test("inside")?;
    Ok(())
}

#[test]
#[ignore = "runs in the virtual machine"]
fn inside() -> Result {
    let mut ipvs = Ipvs::open()?.ok_or("this kernel has no IPVS")?;
    let mut state = State::new();
    let mut tell = |ipvs: &mut Ipvs, orders: &[Order]| -> Result {
        ipvs.apply(orders)?;
        orders.iter().for_each(|order| carry_out(&mut state, order));
        assert_eq!(shown(ipvs)?, state, "after {orders:?}");
        assert_eq!(saved()?, render(&state).lines().map(str::to_owned).collect(), "{orders:?}");
        Ok(())
    };
    let mut servers = Vec::new();
    for (port, scheduler) in (80..).zip(SCHEDULERS) {
        for (protocol, address) in [(6, "10.96.0.1"), (17, "fd96::1"), (132, "10.96.0.2")] {
            let server = Server { address: SocketAddr::new(address.parse()?, port), protocol };
            let choice = Choice { scheduler: scheduler.to_owned(), persistence_s: None };
            let to = |number: u8| -> Result<SocketAddr> {
                let pod = if server.address.is_ipv4() { "10.244.0." } else { "fd44::" };
                Ok(SocketAddr::new(format!("{pod}{number}").parse()?, 8080))
            };
            let (one, two) = (to(1)?, to(2)?);
            let orders = [
                Order::AddServer(server, choice.clone()),
                Order::AddDestination(server, one, 1),
                Order::AddDestination(server, two, 1),
                Order::SetDestination(server, one, 0),
            ];
            assert_eq!(ipvs.server(&server)?, None);
            tell(&mut ipvs, &orders)?;
            assert_eq!(ipvs.server(&server)?, Some(choice.clone()));
            // What is there already is set.
            let sticky = Choice { persistence_s: Some(300), ..choice.clone() };
            tell(
                &mut ipvs,
                &[Order::AddServer(server, sticky), Order::AddDestination(server, one, 1)],
            )?;
            servers.push((server, choice, one));
        }
    }
    for (server, choice, one) in servers {
        let sticky = Choice { persistence_s: Some(600), ..choice };
        tell(
            &mut ipvs,
            &[Order::SetServer(server, sticky), Order::DeleteDestination(server, one)],
        )?;
        // What is gone already is no error.
        tell(&mut ipvs, &[Order::DeleteDestination(server, one), Order::DeleteServer(server)])?;
        tell(&mut ipvs, &[Order::DeleteServer(server)])?;
    }
    let server = Server { address: "10.96.0.1:80".parse()?, protocol: 6 };
    let nobody = Choice { scheduler: "nobody".to_owned(), persistence_s: None };
    let refused = ipvs.apply(&[Order::AddServer(server, nobody)]).expect_err("no such scheduler");
    assert!(refused.to_string().contains("10.96.0.1:80 (scheduler nobody)"), "{refused}");
    Ok(())
}

fn shown(ipvs: &mut Ipvs) -> Result<State> {
    let mut state = State::new();
    for (server, choice) in ipvs.servers()? {
        let destinations = ipvs.destinations(&server)?.into_iter().collect();
        state.insert(server, Held { choice, destinations });
    }
    Ok(state)
}

/// What `ipvsadm` shows, in the words in which it takes it.
fn saved() -> Result<BTreeSet<String>> {
    let output = Command::new("ipvsadm").args(["--save", "--numeric"]).output()?;
    let text = String::from_utf8(output.stdout)?;
    Ok(text.lines().map(|line| line.trim_end().to_owned()).collect())
}
