//! Addresses and node ports of Services are what is allocated. Decision: [`plan::repair`].

use std::collections::BTreeSet;
use std::time::Duration;

use client::{ApplyError, Inputs, Next, Reconcile, run};
use plan::action::Plan;
use plan::repair::{Snapshot, cluster_ips, parent, plan};

use crate::{Context, Reflectors, write::Writer};

/// All Services are looked at this often, as upstream does.
const INTERVAL: Duration = Duration::from_secs(3 * 60);

struct Repair(Writer);

impl Reconcile for Repair {
    const NAME: &'static str = "ipallocator-repair-controller";
    type Key = ();
    type Snapshot = Snapshot;
    type Plan = Plan;

    fn plan(&self, snapshot: &Snapshot, (): &()) -> Plan {
        plan(snapshot)
    }

    async fn apply(&mut self, (): &(), plan: Plan) -> Result<Next, ApplyError> {
        self.0.write(plan).await?;
        Ok(Next::After(INTERVAL))
    }
}

pub(crate) async fn start(context: Context) {
    let writer = context.writer(Repair::NAME);
    let Reflectors { services, addresses, service_cidrs, .. } = context.reflectors;
    let holders = services.clone();
    let inputs = Inputs::new()
        // Services come by in time; a range that is there or not concerns them at once.
        .on(&service_cidrs, |_, dirty: &mut BTreeSet<()>| {
            dirty.insert(());
        })
        // An address that goes while its Service stays.
        .on(&addresses, move |change, dirty| {
            let gone = change.old.filter(|_| change.new.is_none());
            let Some((gone, owner)) = gone.and_then(|gone| Some((gone, parent(gone)?))) else {
                return;
            };
            let holders = holders.view();
            let held =
                |ip: std::net::IpAddr| gone.metadata.name.as_deref() == Some(&*ip.to_string());
            if holders.objects.get(&owner).is_some_and(|owner| cluster_ips(owner).any(held)) {
                dirty.insert(());
            }
        });
    let client = writer.client.clone();
    let node_ports = context.options.node_ports;
    let snapshot = move || Snapshot {
        services: services.view().objects.clone(),
        addresses: addresses.view().objects.clone(),
        ranges: service_cidrs.view().objects.clone(),
        node_ports: node_ports.clone(),
        now: jiff::Timestamp::now(),
    };
    run(Repair(writer), client, inputs, snapshot, context.shutdown).await;
}
