//! The end of a namespace: everything in it is deleted, then its finalizer is taken away. Decision: [`plan::namespaces`].

use std::sync::Arc;

use api::Kind;
use api::core::Namespace;
use client::{ApplyError, Client, Inputs, Next, Reconcile, run};
use http::Method;
use plan::namespaces::{Contents, Plan, RETRY, Resource, ended, plan, status};
use serde_json::Value;

use crate::{Context, Reflectors};

struct Namespaces(Client);

impl Reconcile for Namespaces {
    const NAME: &'static str = "namespace-controller";
    /// A namespace.
    type Key = Arc<str>;
    type Snapshot = api::Objects<Namespace>;
    type Plan = Plan;

    fn plan(&self, snapshot: &Self::Snapshot, key: &Arc<str>) -> Plan {
        plan(snapshot, key)
    }

    async fn apply(&mut self, _: &Arc<str>, plan: Plan) -> Result<Next, ApplyError> {
        let Plan::Empty(namespace) = plan else { return Ok(Next::Wait) };
        let resources = resources(&self.0).await?;
        let mut left = Contents::default();
        for resource in &resources {
            empty(&self.0, namespace.name(), resource, &mut left).await;
        }
        if left.is_empty() {
            let path = format!("{}/{}/finalize", Namespace::path(""), namespace.name());
            let body = serde_json::to_value(ended(&namespace)).map_err(client::Error::from)?;
            self.0.request(Method::PUT, &path, Some(&body)).await?;
            return Ok(Next::Wait);
        }
        if let Some(changed) = status(&namespace, &left, jiff::Timestamp::now()) {
            self.0.update_status(&changed).await?;
        }
        Ok(Next::After(RETRY))
    }
}

/// Every namespaced resource that can be listed and deleted, from discovery.
async fn resources(client: &Client) -> Result<Vec<Resource>, ApplyError> {
    let mut roots = vec!["/api/v1".to_owned()];
    let groups = client.request(Method::GET, "/apis", None).await?;
    for group in groups["groups"].as_array().into_iter().flatten() {
        let versions = group["versions"].as_array().into_iter().flatten();
        roots.extend(
            versions
                .filter_map(|one| one["groupVersion"].as_str())
                .map(|one| format!("/apis/{one}")),
        );
    }
    let mut resources = Vec::new();
    for root in roots {
        let list = client.request(Method::GET, &root, None).await?;
        resources.extend(Resource::deletable(&root, &list));
    }
    Ok(resources)
}

/// Deletes what is left of one resource and counts what stays.
async fn empty(client: &Client, namespace: &str, resource: &Resource, left: &mut Contents) {
    let path = resource.path(namespace);
    let items = match client.request(Method::GET, &path, None).await {
        Ok(list) => list["items"].as_array().cloned().unwrap_or_default(),
        Err(error) if error.is_not_found() => return,
        Err(error) => return left.fail(resource, &error.to_string()),
    };
    for item in &items {
        let Some(name) = item["metadata"]["name"].as_str() else { continue };
        if item["metadata"]["deletionTimestamp"].is_null() {
            let options = serde_json::json!({
                "kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": "Background",
            });
            let one = format!("{path}/{name}");
            match client.request(Method::DELETE, &one, Some(&options)).await {
                Err(error) if !error.is_not_found() => left.fail(resource, &error.to_string()),
                _ => {}
            }
        }
    }
    if items.is_empty() {
        return;
    }
    if let Ok(list) = client.request(Method::GET, &path, None).await {
        let none = Vec::<Value>::new();
        left.count(resource, list["items"].as_array().unwrap_or(&none));
    }
}

pub(crate) async fn start(context: Context) {
    let client = (context.clients)(Namespaces::NAME);
    let Reflectors { namespaces, .. } = context.reflectors;
    let inputs = Inputs::new().on(&namespaces, |change, dirty| {
        dirty.insert(Arc::clone(&change.name.name));
    });
    let snapshot = move || namespaces.view().objects.clone();
    run(Namespaces(client.clone()), client, inputs, snapshot, context.shutdown).await;
}
