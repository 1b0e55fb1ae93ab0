//! Claims and volumes. Decision: [`plan::volumes`].

use client::{ApplyError, Inputs, Next, Reconcile, run};
use plan::action::Plan;
use plan::volumes::{Key, Snapshot, plan};

use crate::{Context, write::Writer};

struct Volumes(Writer);

impl Reconcile for Volumes {
    const NAME: &'static str = "persistentvolume-controller";
    type Key = Key;
    type Snapshot = Snapshot;
    type Plan = Plan;

    fn plan(&self, snapshot: &Snapshot, key: &Key) -> Plan {
        plan(snapshot, key)
    }

    async fn apply(&mut self, _: &Key, plan: Plan) -> Result<Next, ApplyError> {
        self.0.write(plan).await
    }
}

pub(crate) async fn start(context: Context) {
    let writer = context.writer(Volumes::NAME);
    let all = context.reflectors;
    let (claims, deleted) = (all.claims.clone(), all.claims.clone());
    let inputs = Inputs::new()
        .on(&all.claims, |change, dirty| {
            dirty.insert(Key::Claim(change.name.clone()));
            let named =
                change.states().filter_map(|claim| claim.spec.as_ref()?.volume_name.as_deref());
            dirty.extend(named.map(|name| Key::Volume(api::Name::cluster(name))));
        })
        .on(&all.volumes, move |change, dirty| {
            dirty.insert(Key::Volume(change.name.clone()));
            let named =
                change.states().filter_map(|volume| volume.spec.as_ref()?.claim_ref.as_ref());
            dirty.extend(named.filter_map(|claim| {
                let name = api::Name::new(claim.namespace.as_deref()?, claim.name.as_deref()?);
                Some(Key::Claim(name))
            }));
            // A volume that becomes free may serve any claim that waits.
            let view = claims.view();
            let waiting = view.objects.iter().filter(|(_, claim)| {
                claim.spec.as_ref().is_some_and(|spec| spec.volume_name.is_none())
            });
            dirty.extend(waiting.map(|(name, _)| Key::Claim(name.clone())));
        })
        .on(&all.classes, {
            let claims = all.claims.clone();
            move |_, dirty| dirty.extend(claims.view().objects.keys().cloned().map(Key::Claim))
        })
        // A deleted claim goes when its last pod does.
        .on(&all.pods, move |change, dirty| {
            let view = deleted.view();
            let namespace = &change.name.namespace;
            let going = view.objects.iter().filter(|(name, claim)| {
                name.namespace == *namespace && api::Kind::is_deleting(claim.as_ref())
            });
            dirty.extend(going.map(|(name, _)| Key::Claim(name.clone())));
        });
    let client = writer.client.clone();
    let directory = context.options.volumes_directory;
    let snapshot = move || Snapshot {
        claims: all.claims.view().objects.clone(),
        volumes: all.volumes.view().objects.clone(),
        classes: all.classes.view().objects.clone(),
        pods: all.pods.view().objects.clone(),
        nodes: all.nodes.view().objects.clone(),
        directory: directory.clone(),
    };
    run(Volumes(writer), client, inputs, snapshot, context.shutdown).await;
}
