//! CronJobs. Decision: [`plan::workloads::cronjob`].

use std::collections::BTreeMap;

use api::{Name, Objects, batch::CronJob};
use client::{ApplyError, Inputs, Next, Reconcile, run};
use jiff::tz::TimeZone;
use plan::action::Plan;
use plan::workloads::cronjob::{Snapshot, plan};

use crate::owners::controller;
use crate::{Context, Reflectors, write::Writer};

struct CronJobs(Writer);

impl Reconcile for CronJobs {
    const NAME: &'static str = "cronjob-controller";
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

/// The time zones that CronJobs name, as this machine knows them.
fn zones(cron_jobs: &Objects<CronJob>) -> BTreeMap<String, TimeZone> {
    let names = cron_jobs.values().filter_map(|cron| cron.spec.time_zone.clone());
    names.filter_map(|name| TimeZone::get(&name).ok().map(|zone| (name, zone))).collect()
}

pub(crate) async fn start(context: Context) {
    let writer = context.writer(CronJobs::NAME);
    let Reflectors { cron_jobs, jobs, .. } = context.reflectors;
    let inputs = Inputs::new()
        .on(&cron_jobs, |change, dirty| {
            dirty.insert(change.name.clone());
        })
        .on(&jobs, |change, dirty| {
            dirty.extend(change.states().filter_map(|job| controller(job, "CronJob")));
        });
    let client = writer.client.clone();
    let snapshot = move || {
        let cron_jobs = cron_jobs.view().objects.clone();
        Snapshot {
            zones: zones(&cron_jobs),
            cron_jobs,
            jobs: jobs.view().objects.clone(),
            local: TimeZone::system(),
            now: jiff::Timestamp::now(),
        }
    };
    run(CronJobs(writer), client, inputs, snapshot, context.shutdown).await;
}
