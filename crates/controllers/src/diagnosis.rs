//! Why a Service does not work, as the condition `EndpointsReady` and as events. Decision: [`plan::diagnose`].
//!
//! While all is well nothing is done: a Service is looked at when it or its slices change, and its pods are only when its
//! slices have nobody. Changes of pods concern the Services that fail, all of them together after a pause.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use api::core::{Event, Pod, Service};
use api::discovery::EndpointSlice;
use api::{Name, Objects};
use client::{ApplyError, Index, Inputs, ListParams, Next, Reconcile, Reflector, run};
use parking_lot::Mutex;
use plan::action::{Action, Plan};
use plan::diagnose::Evidence;
use plan::diagnose::condition::{Outcome, plan};
use plan::endpointslice::service_of;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::{Context, Reflectors, write::Writer};

/// Changes of pods are collected this long before the Services that fail are looked at again.
const PAUSE: Duration = Duration::from_secs(1);
/// The pause grows by this for every Service that fails, so that many of them never take a core for themselves.
const PAUSE_EACH: Duration = Duration::from_millis(5);
/// The event is told again after this time, well before it expires (one hour).
const RENEWAL: Duration = Duration::from_secs(30 * 60);

/// The Services that fail.
type Failing = Arc<Mutex<BTreeSet<Name>>>;

struct Diagnosis {
    writer: Writer,
    failing: Failing,
    /// What was told of each Service that fails, and when.
    told: BTreeMap<Name, (String, Instant)>,
}

struct Snapshot {
    services: Objects<Service>,
    pods: Objects<Pod>,
    events: Objects<Event>,
    slices: Index<EndpointSlice>,
    now: jiff::Timestamp,
}

impl Reconcile for Diagnosis {
    const NAME: &'static str = "service-diagnosis-controller";
    type Key = Name;
    type Snapshot = Snapshot;
    type Plan = Outcome;

    fn plan(&self, snapshot: &Snapshot, key: &Name) -> Outcome {
        let Some(service) = snapshot.services.get(key) else { return Outcome::default() };
        let slices = snapshot.slices.get(key);
        let evidence = Evidence { pods: &snapshot.pods, slices: &slices, events: &snapshot.events };
        plan(service, &evidence, snapshot.now)
    }

    async fn apply(&mut self, key: &Name, outcome: Outcome) -> Result<Next, ApplyError> {
        if outcome.fails {
            self.failing.lock().insert(key.clone());
        } else {
            self.failing.lock().remove(key);
            self.told.remove(key);
        }
        let mut actions: Vec<Action> = outcome.write.into_iter().collect();
        let mut again = outcome.again;
        if let Some(notice) = outcome.notice {
            let known = self.told.get(key).filter(|(told, _)| *told == notice.message);
            let age = known.map(|(_, at)| at.elapsed());
            if age.is_none_or(|age| age >= RENEWAL) {
                self.told.insert(key.clone(), (notice.message.clone(), Instant::now()));
                actions.push(Action::Event(notice));
            }
            let left = age.and_then(|age| RENEWAL.checked_sub(age)).filter(|left| !left.is_zero());
            again = Some(left.unwrap_or(RENEWAL));
        }
        self.writer.write(Plan { actions, again }).await
    }
}

pub(crate) async fn start(context: Context) {
    let writer = context.writer(Diagnosis::NAME);
    let Reflectors { services, pods, slices, .. } = context.reflectors;
    let probes = ListParams::fields("involvedObject.kind=Pod,reason=Unhealthy");
    let events: Reflector<Event> = Reflector::start(&writer.client, probes);
    let index = Index::new(&slices, service_of);
    let failing = Failing::default();
    let changed: Arc<Mutex<BTreeSet<Arc<str>>>> = Arc::default();
    let wake = Arc::new(Notify::new());
    let note = {
        let (changed, wake) = (Arc::clone(&changed), Arc::clone(&wake));
        move |namespace: &Arc<str>| {
            if changed.lock().insert(Arc::clone(namespace)) {
                wake.notify_one();
            }
        }
    };
    let noted = note.clone();
    let inputs = Inputs::new()
        .on(&services, |change, dirty| {
            dirty.insert(change.name.clone());
        })
        .on(&slices, |change, dirty| dirty.extend(change.states().filter_map(service_of)))
        .on(&pods, move |change, _| note(&change.name.namespace))
        .on(&events, move |change, _| noted(&change.name.namespace));
    let poke = inputs.poke();
    let client = writer.client.clone();
    let (shutdown, known) = (context.shutdown.clone(), Arc::clone(&failing));
    let pauses = async move {
        loop {
            wake.notified().await;
            let failing = u32::try_from(known.lock().len()).unwrap_or(u32::MAX);
            tokio::time::sleep(PAUSE + PAUSE_EACH.saturating_mul(failing)).await;
            let namespaces = std::mem::take(&mut *changed.lock());
            let failing: Vec<Name> = known.lock().iter().cloned().collect();
            let concerned = failing.into_iter().filter(|name| namespaces.contains(&name.namespace));
            concerned.for_each(&poke);
        }
    };
    let snapshot = move || Snapshot {
        services: services.view().objects.clone(),
        pods: pods.view().objects.clone(),
        events: events.view().objects.clone(),
        slices: index.clone(),
        now: jiff::Timestamp::now(),
    };
    let component = Diagnosis { writer, failing, told: BTreeMap::new() };
    tokio::select! {
        () = pauses => {}
        () = run(component, client, inputs, snapshot, shutdown) => {}
    }
}
