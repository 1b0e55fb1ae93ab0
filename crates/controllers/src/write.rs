//! Writes a [`Plan`] to the API: the one sink of all loops here.

use api::Kind;
use api::core::{Binding, ObjectReference, Pod};
use api::meta::ObjectMeta;
use client::{ApplyError, Client, DeleteOptions, Error, EventKind, Next, Patch, Recorder};
use futures_util::future::join_all;
use plan::action::{Action, Notice, Object, ObjectKind, Plan};

/// The writes of one component: its client and its events.
#[derive(Clone, Debug)]
pub(crate) struct Writer {
    pub(crate) client: Client,
    recorder: Recorder,
}

/// Runs `$body` with the object inside, whatever its kind.
macro_rules! with_object {
    ($object:expr, $one:ident => $body:expr) => {
        match $object {
            Object::Pod($one) => $body,
            Object::Node($one) => $body,
            Object::Namespace($one) => $body,
            Object::Service($one) => $body,
            Object::Endpoints($one) => $body,
            Object::ConfigMap($one) => $body,
            Object::Secret($one) => $body,
            Object::ServiceAccount($one) => $body,
            Object::PersistentVolume($one) => $body,
            Object::PersistentVolumeClaim($one) => $body,
            Object::Deployment($one) => $body,
            Object::ReplicaSet($one) => $body,
            Object::StatefulSet($one) => $body,
            Object::DaemonSet($one) => $body,
            Object::ControllerRevision($one) => $body,
            Object::Job($one) => $body,
            Object::CronJob($one) => $body,
            Object::EndpointSlice($one) => $body,
            Object::PodDisruptionBudget($one) => $body,
            Object::StorageClass($one) => $body,
            Object::ServiceCIDR($one) => $body,
            Object::IPAddress($one) => $body,
            Object::ResourceQuota($one) => $body,
            Object::ReplicationController($one) => $body,
        }
    };
}

/// Runs `$body` with `$K` as the type of the kind.
macro_rules! with_kind {
    ($kind:expr, $K:ident => $body:expr; $($variant:ident: $type:ty),* $(,)?) => {
        match $kind { $(ObjectKind::$variant => { type $K = $type; $body })* }
    };
    ($kind:expr, $K:ident => $body:expr) => {
        with_kind!($kind, $K => $body;
            Pod: api::core::Pod,
            Node: api::core::Node,
            Namespace: api::core::Namespace,
            Service: api::core::Service,
            Endpoints: api::core::Endpoints,
            ConfigMap: api::core::ConfigMap,
            Secret: api::core::Secret,
            ServiceAccount: api::core::ServiceAccount,
            PersistentVolume: api::core::PersistentVolume,
            PersistentVolumeClaim: api::core::PersistentVolumeClaim,
            Deployment: api::apps::Deployment,
            ReplicaSet: api::apps::ReplicaSet,
            StatefulSet: api::apps::StatefulSet,
            DaemonSet: api::apps::DaemonSet,
            ControllerRevision: api::apps::ControllerRevision,
            Job: api::batch::Job,
            CronJob: api::batch::CronJob,
            EndpointSlice: api::discovery::EndpointSlice,
            PodDisruptionBudget: api::policy::PodDisruptionBudget,
            StorageClass: api::storage::StorageClass,
            ServiceCIDR: api::networking::ServiceCIDR,
            IPAddress: api::networking::IPAddress,
            ResourceQuota: api::core::ResourceQuota,
            ReplicationController: api::core::ReplicationController,
        )
    };
}

impl Writer {
    /// Whether the object with this uid still exists.
    pub(crate) async fn exists(
        &self,
        kind: ObjectKind,
        name: &api::Name,
        uid: &str,
    ) -> Result<bool, Error> {
        let found = with_kind!(kind, K => {
            let got = Box::pin(self.client.get::<K>(&name.namespace, &name.name)).await;
            got.map(|object| object.uid() == uid)
        });
        match found {
            Err(error) if error.is_not_found() => Ok(false),
            found => found,
        }
    }

    /// A writer for `component`, which is also the source of its events.
    pub(crate) fn new(client: Client, component: &str) -> Self {
        let recorder = Recorder::new(&client, component, "");
        Self { client, recorder }
    }

    /// Writes all of `plan` in order, up to the first failure.
    pub(crate) async fn write(&self, plan: Plan) -> Result<Next, ApplyError> {
        for action in plan.actions {
            Box::pin(self.act(action)).await?;
        }
        Ok(plan.again.map_or(Next::Wait, Next::After))
    }

    /// As [`Writer::write`]. When the server refuses the pods of the plan, what `told` makes of its message is written as a
    /// status.
    pub(crate) async fn write_or_tell(
        &self,
        plan: Plan,
        told: impl FnOnce(&str) -> Option<Object>,
    ) -> Result<Next, ApplyError> {
        let creates = plan.actions.iter().any(|action| matches!(action, Action::CreatePods { .. }));
        let result = self.write(plan).await;
        if let Err(ApplyError::Api(Error::Status(error))) = &result
            && creates
            && let Some(object) = told(&error.message)
        {
            let status = Action::UpdateStatus(object);
            // The creation's own failure is the one to report and to retry.
            let _ = self.write(Plan { actions: vec![status], again: None }).await;
        }
        result
    }

    async fn act(&self, action: Action) -> Result<(), Error> {
        let client = &self.client;
        match action {
            Action::Create(object) => {
                with_object!(object, one => client.create(&*one).await.map(drop))
            }
            Action::Update(object) => {
                with_object!(object, one => client.update(&*one).await.map(drop))
            }
            Action::UpdateStatus(object) => {
                with_object!(object, one => client.update_status(&*one).await.map(drop))
            }
            Action::Patch { kind, name, status, patch } => {
                let (namespace, name, patch) = (&name.namespace, &name.name, Patch::Merge(patch));
                with_kind!(kind, K => if status {
                    client.patch_status::<K>(namespace, name, &patch).await.map(drop)
                } else {
                    client.patch::<K>(namespace, name, &patch).await.map(drop)
                })
            }
            Action::Delete { kind, name, uid, grace, propagation } => {
                let options = DeleteOptions {
                    grace_period_seconds: grace,
                    propagation_policy: propagation,
                    ..DeleteOptions::uid(&uid)
                };
                with_kind!(kind, K => client.delete::<K>(&name.namespace, &name.name, &options).await)
            }
            Action::CreatePods { owner, pods } => self.create_pods(&owner, &pods).await,
            Action::DeletePods { owner, pods } => self.delete_pods(&owner, &pods).await,
            Action::Bind { pod, uid, node } => self.bind(&pod, uid, node).await,
            Action::Event(notice) => {
                self.tell(notice);
                Ok(())
            }
        }
    }

    fn tell(&self, notice: Notice) {
        let kind = if notice.warning { EventKind::Warning } else { EventKind::Normal };
        self.recorder.event_at(notice.about, kind, notice.reason, notice.message);
    }

    /// In batches of 1, 2, 4, …, so that a quota or a broken template costs few failed requests.
    async fn create_pods(&self, owner: &ObjectReference, pods: &[Pod]) -> Result<(), Error> {
        let (mut rest, mut size) = (pods, 1);
        while !rest.is_empty() {
            let (batch, later) = rest.split_at(size.min(rest.len()));
            let results = join_all(batch.iter().map(|pod| self.client.create(pod))).await;
            let mut failure = None;
            for result in results {
                match result {
                    Ok(pod) => {
                        let message = format!("Created pod: {}", pod.name());
                        self.about(owner, EventKind::Normal, "SuccessfulCreate", message);
                    }
                    Err(error) => {
                        let message = format!("Error creating: {error}");
                        self.about(owner, EventKind::Warning, "FailedCreate", message);
                        failure = Some(error);
                    }
                }
            }
            if let Some(failure) = failure {
                return Err(failure);
            }
            (rest, size) = (later, size * 2);
        }
        Ok(())
    }

    async fn delete_pods(
        &self,
        owner: &ObjectReference,
        pods: &[(api::Name, String)],
    ) -> Result<(), Error> {
        let deletions = pods.iter().map(|(pod, uid)| async move {
            let options = DeleteOptions::uid(uid);
            let result = self.client.delete::<Pod>(&pod.namespace, &pod.name, &options).await;
            (pod, result)
        });
        let mut failure = None;
        for (pod, result) in join_all(deletions).await {
            match result {
                Ok(()) => {
                    let message = format!("Deleted pod: {}", pod.name);
                    self.about(owner, EventKind::Normal, "SuccessfulDelete", message);
                }
                Err(error) => {
                    let message = format!("Error deleting: {error}");
                    self.about(owner, EventKind::Warning, "FailedDelete", message);
                    failure = Some(error);
                }
            }
        }
        failure.map_or(Ok(()), Err)
    }

    fn about(&self, owner: &ObjectReference, kind: EventKind, reason: &str, message: String) {
        self.recorder.event_at(owner.clone(), kind, reason, message);
    }

    async fn bind(&self, pod: &api::Name, uid: String, node: String) -> Result<(), Error> {
        let binding = Binding {
            metadata: ObjectMeta {
                name: Some(pod.name.to_string()),
                namespace: Some(pod.namespace.to_string()),
                uid: Some(uid),
                ..ObjectMeta::default()
            },
            target: ObjectReference {
                api_version: Some("v1".into()),
                kind: Some("Node".into()),
                name: Some(node),
                ..ObjectReference::default()
            },
        };
        let posted: serde_json::Value =
            self.client.post::<Pod, _>(&pod.namespace, &pod.name, "binding", &binding).await?;
        drop(posted);
        Ok(())
    }
}
