//! ServiceCIDRs: ready while they are there, held while an address needs them. Decision: [`plan::servicecidr`].

use api::Name;
use client::{ApplyError, Inputs, Next, Reconcile, run};
use plan::action::Plan;
use plan::servicecidr::{Snapshot, plan};

use crate::{Context, Reflectors, write::Writer};

struct ServiceCidrs(Writer);

impl Reconcile for ServiceCidrs {
    const NAME: &'static str = "service-cidr-controller";
    type Key = Name;
    type Snapshot = Snapshot;
    type Plan = Plan;

    fn plan(&self, snapshot: &Snapshot, key: &Name) -> Plan {
        plan(snapshot, key)
    }

    async fn apply(&mut self, _: &Name, plan: Plan) -> Result<Next, ApplyError> {
        self.0.write(plan).await
    }
}

pub(crate) async fn start(context: Context) {
    let writer = context.writer(ServiceCidrs::NAME);
    let Reflectors { service_cidrs, addresses, .. } = context.reflectors;
    let going = service_cidrs.clone();
    let inputs = Inputs::new()
        .on(&service_cidrs, |change, dirty| {
            dirty.insert(change.name.clone());
        })
        .on(&addresses, move |change, dirty| {
            // Only a range that waits for its addresses to go depends on them.
            if change.new.is_none() {
                let ranges = going.view().objects.clone();
                let waits = ranges.iter().filter(|(_, range)| !plan::servicecidr::is_in_use(range));
                dirty.extend(waits.map(|(name, _)| name.clone()));
            }
        });
    let client = writer.client.clone();
    let snapshot = move || Snapshot {
        ranges: service_cidrs.view().objects.clone(),
        addresses: addresses.view().objects.clone(),
        now: jiff::Timestamp::now(),
    };
    run(ServiceCidrs(writer), client, inputs, snapshot, context.shutdown).await;
}
