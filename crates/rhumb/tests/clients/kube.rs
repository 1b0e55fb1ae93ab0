//! The `kube` crate: requests, watches that outlive the server, streams into pods, and a controller of one's own.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use api::apps::Deployment;
use api::core::{ConfigMap, Pod, Service};
use futures_util::StreamExt;
use kube::api::{
    Api, AttachParams, DeleteParams, ListParams, LogParams, Patch, PatchParams, PostParams,
};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::runtime::controller::{Action, Controller};
use kube::runtime::{WatchStreamExt, reflector, watcher};
use kube::{Client, Config, Resource, ResourceExt};
use serde_json::json;
use testkit::lab::Lab;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::BINARY;

/// How long anything may take to become true.
const PATIENCE: Duration = Duration::from_secs(60);

const WEB: &str = r"
apiVersion: v1
kind: Pod
metadata: {name: web, labels: {app: web}}
spec: {containers: [{name: web, image: 'mycompany/web-app:latest'}]}
";

fn value<K: serde::de::DeserializeOwned>(json: serde_json::Value) -> Result<K> {
    Ok(serde_json::from_value(json)?)
}

async fn client(lab: &Lab) -> Result<Client> {
    let file = Kubeconfig::read_from(lab.kubeconfig())?;
    let config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await?;
    Ok(Client::try_from(config)?)
}

/// Looks until it is so, for a minute.
async fn eventually(what: &str, mut look: impl AsyncFnMut() -> Result<bool>) -> Result<()> {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !look().await? {
        ensure!(tokio::time::Instant::now() < deadline, "never came true: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

/// The reason of a refusal.
fn reason<T>(answer: kube::Result<T>) -> Result<String> {
    match answer {
        Err(kube::Error::Api(status)) => Ok(status.reason.clone()),
        Err(error) => Err(error.into()),
        Ok(_) => bail!("it was not refused"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_kube_crate_works() -> Result<()> {
    let lab = Lab::up(BINARY, 1, &["web-app"])?;
    lab.apply(WEB)?;
    let client = client(&lab).await?;
    requests(&client).await?;
    Box::pin(reconciles(&client)).await?;
    lab.ready("app=web", 1)?;
    Box::pin(streams(&client)).await?;
    Box::pin(outlives_the_server(&lab, &client)).await
}

/// Every verb, typed.
async fn requests(client: &Client) -> Result<()> {
    let version = client.apiserver_version().await?;
    ensure!(version.major == "1", "{version:?}");
    let services: Api<Service> = Api::default_namespaced(client.clone());
    let wanted: Service =
        value(json!({"metadata": {"name": "shop"}, "spec": {"ports": [{"port": 80}]}}))?;
    let made = services.create(&PostParams::default(), &wanted).await?;
    ensure!(made.spec.as_ref().is_some_and(|spec| spec.cluster_ip.is_some()), "{made:?}");
    let again = reason(services.create(&PostParams::default(), &wanted).await)?;
    ensure!(again == "AlreadyExists", "{again}");
    let stale = made.clone();
    let patch = Patch::Merge(json!({"spec": {"sessionAffinity": "ClientIP"}}));
    let changed = services.patch("shop", &PatchParams::default(), &patch).await?;
    ensure!(changed.resource_version() != made.resource_version(), "it was written");
    let conflict = reason(services.replace("shop", &PostParams::default(), &stale).await)?;
    ensure!(conflict == "Conflict", "{conflict}");
    let apply = Patch::Apply(json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "shop", "labels": {"by": "kube"}},
    }));
    let applied = services.patch("shop", &PatchParams::apply("kube"), &apply).await?;
    ensure!(applied.labels().get("by").is_some_and(|by| by == "kube"), "{applied:?}");
    let listed = services.list(&ListParams::default().labels("by=kube")).await?;
    ensure!(listed.items.len() == 1, "{listed:?}");
    let metadata = services.list_metadata(&ListParams::default()).await?;
    ensure!(metadata.items.iter().any(|one| one.name_any() == "shop"), "metadata alone");
    ensure!(services.get_opt("nothing").await?.is_none(), "what is not there is none");
    services.delete("shop", &DeleteParams::default()).await?;
    let gone = reason(services.get("shop").await)?;
    ensure!(gone == "NotFound", "{gone}");
    let deployments: Api<Deployment> = Api::default_namespaced(client.clone());
    let idle = json!({"metadata": {"name": "idle"}, "spec": {
        "replicas": 0, "selector": {"matchLabels": {"app": "idle"}},
        "template": {"metadata": {"labels": {"app": "idle"}}, "spec": {"containers": [{"name": "a", "image": "a"}]}}}});
    deployments.create(&PostParams::default(), &value(idle)?).await?;
    let scale = deployments.get_scale("idle").await?;
    ensure!(scale.spec.and_then(|spec| spec.replicas).unwrap_or(0) == 0, "scale");
    let discovered = kube::Discovery::new(client.clone()).run().await?;
    ensure!(discovered.has_group("discovery.k8s.io"), "groups are discovered");
    Ok(())
}

/// C9: a controller makes a Service for each ConfigMap with a label, and makes it again.
async fn reconciles(client: &Client) -> Result<()> {
    let services: Api<Service> = Api::default_namespaced(client.clone());
    let configs: Api<ConfigMap> = Api::default_namespaced(client.clone());
    let reconcile = |config: Arc<ConfigMap>, services: Arc<Api<Service>>| async move {
        let owner = config.controller_owner_ref(&());
        let wanted = json!({"apiVersion": "v1", "kind": "Service",
            "metadata": {"name": config.name_any(), "ownerReferences": owner.as_slice()},
            "spec": {"ports": [{"port": 80}]}});
        let params = PatchParams::apply("operator").force();
        services.patch(&config.name_any(), &params, &Patch::Apply(wanted)).await?;
        Ok::<_, kube::Error>(Action::await_change())
    };
    let failed = |_: Arc<ConfigMap>, _: &kube::Error, _: Arc<Api<Service>>| {
        Action::requeue(Duration::from_millis(100))
    };
    let running =
        Controller::new(configs.clone(), watcher::Config::default().labels("exposed=yes"))
            .owns(services.clone(), watcher::Config::default())
            .run(reconcile, failed, Arc::new(services.clone()))
            .for_each(|_| async {});
    let looking = async {
        let config = json!({"metadata": {"name": "owned", "labels": {"exposed": "yes"}}});
        configs.create(&PostParams::default(), &value(config)?).await?;
        let there = async || services.get_opt("owned").await;
        eventually("the Service is made", async || Ok(there().await?.is_some())).await?;
        let first = there().await?.and_then(|one| one.uid());
        services.delete("owned", &DeleteParams::default()).await?;
        eventually("it is made again", async || {
            Ok(there().await?.is_some_and(|one| one.uid() != first))
        })
        .await?;
        configs.delete("owned", &DeleteParams::default()).await?;
        eventually("it goes with its owner", async || Ok(there().await?.is_none())).await
    };
    tokio::select! {
        () = running => bail!("the controller ended"),
        looked = looking => looked,
    }
}

/// Exec, logs and port-forward over WebSocket.
async fn streams(client: &Client) -> Result<()> {
    let pods: Api<Pod> = Api::default_namespaced(client.clone());
    let params = AttachParams::default().stdin(true).stderr(false);
    let mut session =
        pods.exec("web", ["sh", "-c", "read -r line; echo heard $line; exit 3"], &params).await?;
    let status = session.take_status().context("a status comes")?;
    session.stdin().context("there is stdin")?.write_all(b"this\n").await?;
    let mut said = String::new();
    session.stdout().context("there is stdout")?.read_to_string(&mut said).await?;
    ensure!(said == "heard this\n", "{said}");
    let status = status.await.context("a status came")?;
    ensure!(status.reason.as_deref() == Some("NonZeroExitCode"), "{status:?}");
    session.join().await?;
    let mut tunnel = pods.portforward("web", &[8080, 9]).await?;
    let mut web = tunnel.take_stream(8080).context("a stream for the port")?;
    let refused = tunnel.take_error(9).context("an error for the port")?;
    web.write_all(b"GET /tunnel HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n").await?;
    let mut answer = String::new();
    web.read_to_string(&mut answer).await?;
    ensure!(answer.contains("path=/tunnel"), "{answer}");
    let refused = refused.await.context("the other port tells")?;
    ensure!(refused.contains("connection refused"), "{refused}");
    drop(tunnel);
    let logs = pods.logs("web", &LogParams { tail_lines: Some(1), ..LogParams::default() }).await?;
    ensure!(logs.contains("/tunnel"), "{logs}");
    Ok(())
}

/// A reflector and a watcher go on over a server that is killed: nothing is lost, nothing is told twice.
async fn outlives_the_server(lab: &Lab, client: &Client) -> Result<()> {
    let configs: Api<ConfigMap> = Api::default_namespaced(client.clone());
    let config = || watcher::Config::default().labels("round");
    let (store, writer) = reflector::store();
    let reflecting = reflector(writer, watcher(configs.clone(), config()))
        .default_backoff()
        .for_each(|_| async {});
    let seen: Mutex<BTreeMap<String, Vec<String>>> = Mutex::default();
    // While the server is away, a watcher says so and goes on.
    let watching = watcher(configs.clone(), config()).default_backoff().for_each(|event| {
        if let Ok(watcher::Event::Apply(one)) = event {
            let version = one.resource_version().unwrap_or_default();
            seen.lock().expect("nobody panics").entry(one.name_any()).or_default().push(version);
        }
        std::future::ready(())
    });
    let restarting = async {
        store.wait_until_ready().await?;
        let mut wanted = BTreeSet::new();
        for round in 0..3 {
            for number in 0..10 {
                wanted.insert(add(&configs, round, number).await?);
            }
            let names = async || {
                let all: BTreeSet<String> =
                    store.state().iter().map(|one| one.name_any()).collect();
                Ok(all == wanted)
            };
            eventually("the reflector has all", names).await?;
            if round < 2 {
                kill_server(lab).await?;
            }
        }
        Ok::<_, anyhow::Error>(())
    };
    tokio::select! {
        () = reflecting => bail!("the reflector ended"),
        () = watching => bail!("the watcher ended"),
        done = restarting => done?,
    }
    let seen = seen.into_inner().expect("nobody panics");
    for (name, versions) in &seen {
        let once: BTreeSet<&String> = versions.iter().collect();
        ensure!(once.len() == versions.len(), "{name} was told twice: {versions:?}");
    }
    Ok(())
}

/// Makes a ConfigMap, whether the server is back yet or not.
async fn add(configs: &Api<ConfigMap>, round: u32, number: u32) -> Result<String> {
    let name = format!("c{round}-{number}");
    let config: ConfigMap =
        value(json!({"metadata": {"name": name, "labels": {"round": round.to_string()}}}))?;
    eventually("the server takes it", async || {
        match configs.create(&PostParams::default(), &config).await {
            Ok(_) => Ok(true),
            // Written before the server was killed, or not written at all.
            Err(kube::Error::Api(status)) => Ok(status.reason == "AlreadyExists"),
            Err(_) => Ok(false),
        }
    })
    .await?;
    Ok(name)
}

async fn kill_server(lab: &Lab) -> Result<()> {
    let pid = lab.pid("server")?;
    let killed = Command::new("kill").args(["-9", &pid.to_string()]).status()?;
    ensure!(killed.success(), "the server was not killed");
    eventually("the server is back", async || Ok(lab.pid("server").is_ok_and(|new| new != pid)))
        .await
}
