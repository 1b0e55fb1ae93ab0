//! Looks whether processes of this node listen on Services' node ports. Decision: [`plan::portuse`].

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use api::Name;
use api::core::{Node, Service};
use client::{
    ApplyError, Client, EventKind, Inputs, Next, Patch, Reconcile, Recorder, Reflector, run,
};
use plan::action::{Action, Plan};
use plan::portuse::{Holder, Snapshot, node_ports, plan};
use plan::proxy::Settings;
use plan::service::Protocol;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::sockets;

/// Nobody tells of sockets that begin to listen: they are looked at this often, if there are node ports at all.
const INTERVAL: Duration = Duration::from_secs(30);
/// An event is told again after this time, well before it expires (one hour).
const RENEWAL: Duration = Duration::from_secs(30 * 60);

struct PortUse {
    client: Client,
    recorder: Recorder,
    settings: Settings,
    /// What was told of each Service, and when.
    told: BTreeMap<Name, (String, Instant)>,
}

impl Reconcile for PortUse {
    const NAME: &'static str = "port-use";
    type Key = ();
    type Snapshot = Snapshot;
    type Plan = (Plan, bool);

    fn plan(&self, snapshot: &Snapshot, (): &()) -> (Plan, bool) {
        (plan(snapshot, &self.settings), !node_ports(&snapshot.services).is_empty())
    }

    async fn apply(&mut self, (): &(), (plan, again): (Plan, bool)) -> Result<Next, ApplyError> {
        let before = std::mem::take(&mut self.told);
        for action in plan.actions {
            match action {
                Action::Event(notice) => {
                    let text = |text: &Option<String>| text.clone().unwrap_or_default();
                    let (about, message) = (&notice.about, notice.message);
                    let name = Name::new(&text(&about.namespace), &text(&about.name));
                    let known = before
                        .get(&name)
                        .filter(|(told, at)| *told == message && at.elapsed() < RENEWAL);
                    if let Some(known) = known {
                        self.told.insert(name, known.clone());
                        continue;
                    }
                    self.told.insert(name, (message.clone(), Instant::now()));
                    self.recorder.event_at(
                        notice.about,
                        EventKind::Warning,
                        notice.reason,
                        message,
                    );
                }
                Action::Patch { name, patch, .. } => {
                    let patch = Patch::Merge(patch);
                    let (namespace, name) = (&name.namespace, &name.name);
                    self.client.patch_status::<Service>(namespace, name, &patch).await?;
                }
                other => unreachable!("not planned here: {other:?}"),
            }
        }
        Ok(if again { Next::After(INTERVAL) } else { Next::Wait })
    }
}

/// The sockets of the calling thread's network that listen on one of `ports`.
#[must_use]
pub fn holders(ports: &BTreeSet<u16>) -> BTreeSet<Holder> {
    if ports.is_empty() {
        return BTreeSet::new();
    }
    let mut found = sockets::listening();
    found.retain(|socket| ports.contains(&socket.listener.port));
    if found.is_empty() {
        return BTreeSet::new();
    }
    let owners = sockets::owners(&found.iter().map(|socket| socket.inode).collect());
    // A socket that nobody has may have been closed while its owner was looked for; one that stays is the kernel's.
    if found.iter().any(|socket| !owners.contains_key(&socket.inode)) {
        let still = sockets::listening();
        found.retain(|socket| owners.contains_key(&socket.inode) || still.contains(socket));
    }
    let holder = |socket: sockets::Socket| {
        let process = owners.get(&socket.inode).cloned();
        Some(Holder {
            protocol: Protocol::of(Some(&socket.listener.protocol))?,
            address: socket.listener.address,
            port: socket.listener.port,
            process: process.unwrap_or_else(|| "an unknown process".to_owned()),
        })
    };
    found.into_iter().filter_map(holder).collect()
}

/// Starts to look. `settings` are the proxy's.
pub fn spawn(
    client: &Client,
    services: &Reflector<Service>,
    nodes: &Reflector<Node>,
    settings: Settings,
    shutdown: CancellationToken,
) {
    let client = client.component(PortUse::NAME);
    let inputs = Inputs::new().on(services, |change, dirty: &mut BTreeSet<()>| {
        let specs: Vec<_> = change.states().map(|service| &service.spec).collect();
        if specs.len() == 1 || specs[0] != specs[1] {
            dirty.insert(());
        }
    });
    let inputs = inputs.on(nodes, |change, dirty| {
        if change.old.is_none() || change.new.is_none() {
            dirty.insert(());
        }
    });
    let recorder = Recorder::new(&client, "kube-proxy", &settings.node);
    let component = PortUse { client: client.clone(), recorder, settings, told: BTreeMap::new() };
    let (services, nodes) = (services.clone(), nodes.clone());
    let snapshot = move || {
        let services = services.view().objects.clone();
        let holders = holders(&node_ports(&services));
        Snapshot {
            holders,
            services,
            nodes: nodes.view().objects.clone(),
            now: jiff::Timestamp::now(),
        }
    };
    tokio::spawn(run(component, client, inputs, snapshot, shutdown));
}
