//! Config maps and secrets that pods of this node refer to, each watched by name for as long as a pod needs it.
//! Upstream: `pkg/kubelet/util/manager/watch_based_manager.go`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use api::core::{ConfigMap, Pod, Secret};
use api::{Kind, Name};
use client::{Client, ListParams, Reflector};
use parking_lot::Mutex;
use tokio::sync::Notify;

/// Longest wait for the first list of an object; past it the object counts as missing and the pod retries.
const SYNC_MAX: Duration = Duration::from_secs(10);

/// How a pod's worker learns that something changed.
#[derive(Clone, Debug, Default)]
pub(super) struct Waker {
    notify: Arc<Notify>,
    sources: Arc<AtomicBool>,
}

impl Waker {
    /// Makes the worker look again.
    pub(super) fn wake(&self) {
        self.notify.notify_one();
    }

    /// Makes the worker look at its sources again.
    fn sources_changed(&self) {
        self.sources.store(true, Ordering::Release);
        self.notify.notify_one();
    }

    pub(super) async fn woken(&self) {
        self.notify.notified().await;
    }

    pub(super) fn take_sources_changed(&self) -> bool {
        self.sources.swap(false, Ordering::AcqRel)
    }
}

type Users = Arc<Mutex<BTreeMap<String, Waker>>>;

struct Watched<K> {
    reflector: Reflector<K>,
    users: Users,
}

/// Watched objects of one kind.
struct Collection<K> {
    objects: Mutex<BTreeMap<Name, Watched<K>>>,
}

impl<K: Kind> Collection<K> {
    fn new() -> Self {
        Self { objects: Mutex::default() }
    }

    /// The reflector of one object, started if this is its first user.
    fn watch(&self, client: &Client, name: &Name, uid: &str, waker: &Waker) -> Reflector<K> {
        let mut objects = self.objects.lock();
        let watched = objects.entry(name.clone()).or_insert_with(|| {
            let params = ListParams {
                namespace: name.namespace.to_string(),
                fields: format!("metadata.name={}", name.name),
                ..ListParams::default()
            };
            let reflector = Reflector::start(client, params);
            let users = Users::default();
            let listening = Arc::clone(&users);
            reflector.listen(move |_| {
                listening.lock().values().for_each(Waker::sources_changed);
            });
            Watched { reflector, users }
        });
        watched.users.lock().insert(uid.to_owned(), waker.clone());
        watched.reflector.clone()
    }

    fn release(&self, uid: &str) {
        self.objects.lock().retain(|_, watched| {
            let mut users = watched.users.lock();
            users.remove(uid);
            !users.is_empty()
        });
    }

    async fn get(
        &self,
        client: &Client,
        namespace: &str,
        names: Vec<String>,
        user: (&str, &Waker),
    ) -> BTreeMap<String, Arc<K>> {
        let mut found = BTreeMap::new();
        let names: BTreeSet<String> = names.into_iter().collect();
        let watched: Vec<_> = names
            .into_iter()
            .map(|name| {
                let key = Name::new(namespace, &name);
                (self.watch(client, &key, user.0, user.1), key, name)
            })
            .collect();
        for (reflector, key, name) in watched {
            let _ = tokio::time::timeout(SYNC_MAX, reflector.synced()).await;
            if let Some(object) = reflector.view().objects.get(&key) {
                found.insert(name, Arc::clone(object));
            }
        }
        found
    }
}

/// Everything that pods of this node refer to.
pub(super) struct ObjectCache {
    client: Client,
    config_maps: Collection<ConfigMap>,
    secrets: Collection<Secret>,
}

impl ObjectCache {
    pub(super) fn new(client: Client) -> Self {
        Self { client, config_maps: Collection::new(), secrets: Collection::new() }
    }

    /// The objects that `pod` refers to, as they are now; `waker` hears of later changes until [`Self::release`].
    pub(super) async fn of(
        &self,
        pod: &Pod,
        waker: &Waker,
    ) -> (BTreeMap<String, Arc<ConfigMap>>, BTreeMap<String, Arc<Secret>>) {
        let (maps, secrets) = plan::pods::volumes::references(pod);
        let (namespace, user) = (pod.namespace(), (pod.uid(), waker));
        tokio::join!(
            self.config_maps.get(&self.client, namespace, maps, user),
            self.secrets.get(&self.client, namespace, secrets, user),
        )
    }

    /// The pod needs nothing any more.
    pub(super) fn release(&self, uid: &str) {
        self.config_maps.release(uid);
        self.secrets.release(uid);
    }
}
