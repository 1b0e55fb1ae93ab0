//! What every namespace has: the `default` ServiceAccount and the ConfigMap with the API server's certificate authority.
//!
//! Upstream counterparts: `pkg/controller/serviceaccount` and `pkg/controller/certificates/rootcacertpublisher`.

use std::collections::BTreeMap;
use std::sync::Arc;

use api::core::{ConfigMap, Namespace, ServiceAccount};
use api::meta::ObjectMeta;
use api::{Name, Objects};

use crate::action::{Action, Plan};

/// The ConfigMap that pods find the certificate authority in.
pub const ROOT_CA: &str = "kube-root-ca.crt";

/// What a namespace's basics are planned from.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// All namespaces.
    pub namespaces: Objects<Namespace>,
    /// All ServiceAccounts.
    pub service_accounts: Objects<ServiceAccount>,
    /// All ConfigMaps.
    pub config_maps: Objects<ConfigMap>,
    /// The certificate authority as PEM; empty publishes nothing.
    pub root_ca: Arc<str>,
}

/// Makes what is missing in one namespace, and mends the ConfigMap.
#[must_use]
pub fn plan(snapshot: &Snapshot, namespace: &str) -> Plan {
    let mut plan = Plan::none();
    let object = snapshot.namespaces.get(&Name::cluster(namespace));
    let phase = |one: &&Arc<Namespace>| one.status.as_ref().and_then(|status| status.phase.clone());
    let Some(_) = object.filter(|one| {
        one.metadata.deletion_timestamp.is_none() && phase(one).as_deref() != Some("Terminating")
    }) else {
        return plan;
    };
    let meta = |name: &str| ObjectMeta {
        name: Some(name.to_owned()),
        namespace: Some(namespace.to_owned()),
        ..ObjectMeta::default()
    };
    if !snapshot.service_accounts.contains_key(&Name::new(namespace, "default")) {
        let account = ServiceAccount { metadata: meta("default"), ..ServiceAccount::default() };
        plan.push(Action::Create(account.into()));
    }
    if snapshot.root_ca.is_empty() {
        return plan;
    }
    let data = BTreeMap::from([("ca.crt".to_owned(), snapshot.root_ca.to_string())]);
    match snapshot.config_maps.get(&Name::new(namespace, ROOT_CA)) {
        None => {
            let mut metadata = meta(ROOT_CA);
            let text = "Contains a CA bundle that can be used to verify the kube-apiserver when using internal endpoints such as the internal service IP or kubernetes.default.svc. No other usage is guaranteed across distributions of Kubernetes clusters.";
            metadata.annotations =
                Some(BTreeMap::from([("kubernetes.io/description".to_owned(), text.to_owned())]));
            let map = ConfigMap { metadata, data: Some(data), ..ConfigMap::default() };
            plan.push(Action::Create(map.into()));
        }
        Some(map) if map.data.as_ref() != Some(&data) => {
            let mut map = ConfigMap::clone(map);
            map.data = Some(data);
            plan.push(Action::Update(map.into()));
        }
        Some(_) => {}
    }
    plan
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_gets_what_it_lacks_and_a_terminating_one_nothing() {
        let mut namespace = Namespace::default();
        namespace.metadata.name = Some("a".into());
        let mut snapshot = Snapshot {
            namespaces: [(Name::cluster("a"), Arc::new(namespace.clone()))].into_iter().collect(),
            service_accounts: Objects::new(),
            config_maps: Objects::new(),
            root_ca: "PEM".into(),
        };
        assert_eq!(plan(&snapshot, "a").actions.len(), 2);
        assert_eq!(plan(&snapshot, "b"), Plan::none());
        let data = Some(BTreeMap::from([("ca.crt".into(), "other".into())]));
        let map = ConfigMap { data, ..ConfigMap::default() };
        snapshot.config_maps.insert(Name::new("a", ROOT_CA), Arc::new(map));
        snapshot.service_accounts.insert(Name::new("a", "default"), Arc::default());
        assert!(matches!(plan(&snapshot, "a").actions.as_slice(), [Action::Update(_)]));
        namespace.metadata.deletion_timestamp = Some(api::meta::Time(jiff::Timestamp::UNIX_EPOCH));
        snapshot.namespaces.insert(Name::cluster("a"), Arc::new(namespace));
        assert_eq!(plan(&snapshot, "a"), Plan::none());
    }
}
