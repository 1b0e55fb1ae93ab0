//! A cluster as an API server shows it, and what its nodes' agents add.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use api::core::Node;
use api::networking::ServiceCIDR;
use api::{Kind, Name, Objects};
use clap::Args;
use client::{Client, Kubeconfig, ListParams};
use futures_util::StreamExt as _;
use futures_util::future::join_all;
use futures_util::stream::FuturesUnordered;
use http::Method;
use ipnet::IpNet;
use plan::explain::{Cluster, Facts, Frontend, Told, Wanted};
use serde_json::Value;

use crate::cluster::{Cluster as Lab, DATA};

/// Agents asked at most about listening sockets: a Service of thousands of pods is told by a sample.
const PODS_MAX: usize = 20;
/// Agents asked at most about their settings; of the others the defaults are believed.
const NODES_MAX: usize = 50;
/// How long agents have to say what their proxies are told; of a node that others call silent nothing is waited for.
const TOLD_MAX: Duration = Duration::from_secs(1);

/// Which cluster to ask.
#[derive(Clone, Debug, Args)]
pub(crate) struct Reach {
    /// A cluster on this machine; without it $KUBECONFIG, then the cluster "default" of this machine, then ~/.kube/config
    #[arg(long)]
    name: Option<String>,
    /// Where clusters keep their data
    #[arg(long, default_value = DATA, env = "RHUMB_DATA_DIR")]
    data_dir: PathBuf,
    /// How to reach and enter the API server of any cluster
    #[arg(long, env = "KUBECONFIG")]
    kubeconfig: Option<PathBuf>,
    /// The cluster's DNS domain, where it is not one of this machine
    #[arg(long, default_value = "cluster.local")]
    dns_domain: String,
}

/// A way to a cluster.
pub(crate) struct Live {
    client: Client,
    domain: String,
}

impl Live {
    /// Finds the cluster that is meant.
    pub(crate) fn connect(reach: &Reach) -> Result<Self> {
        let lab = match (&reach.name, &reach.kubeconfig) {
            (Some(name), _) => Some(Lab::existing(&reach.data_dir, name)?),
            (None, Some(_)) => None,
            (None, None) => Lab::read(&reach.data_dir, "default")?,
        };
        let (path, domain) = match lab {
            Some(lab) => (lab.kubeconfig(), lab.dns_domain),
            None => (reach.user_file()?, reach.dns_domain.clone()),
        };
        Ok(Self { client: Kubeconfig::read(&path)?.client("rhumb")?, domain })
    }

    /// Everything that explanations depend on.
    pub(crate) async fn cluster(&self) -> Result<Cluster> {
        let every = ListParams::default();
        let (services, slices, pods, nodes, namespaces, events, cidrs) = tokio::join!(
            self.objects(),
            self.objects(),
            self.objects(),
            self.objects(),
            self.objects(),
            self.objects(),
            self.client.list::<ServiceCIDR>(&every),
        );
        // Before Kubernetes 1.33 there are no ServiceCIDRs; then it is not known which addresses are Services'.
        let cidrs = cidrs.map(|list| list.items).unwrap_or_default();
        let cidrs = cidrs.into_iter().filter_map(|cidr| cidr.spec?.cidrs).flatten();
        let nodes: Objects<Node> = nodes?;
        let (told, unheard) = self.told(&nodes).await;
        Ok(Cluster {
            told,
            unheard,
            services: services?,
            slices: slices?,
            pods: pods?,
            nodes,
            namespaces: namespaces?,
            // They only say more of what probes answered; who may not read them is told the rest.
            events: events.unwrap_or_default(),
            domain: self.domain.clone(),
            service_cidrs: cidrs.filter_map(|text| text.parse::<IpNet>().ok()).collect(),
            ..Cluster::default()
        })
    }

    /// What the agents say that their proxies are told, and which do not say it.
    async fn told(&self, nodes: &Objects<Node>) -> (BTreeMap<String, Told>, BTreeSet<String>) {
        let asked = || nodes.keys().take(NODES_MAX).map(|node| node.name.to_string());
        let ask = |node: String| async move { (self.ask::<Told>(&node, "settings").await, node) };
        let mut answers: FuturesUnordered<_> = asked().map(ask).collect();
        let (mut told, mut waiting): (BTreeMap<_, _>, BTreeSet<_>) =
            (BTreeMap::new(), asked().collect());
        let end = tokio::time::Instant::now() + TOLD_MAX;
        while !waiting.is_empty() {
            let answer = tokio::time::timeout_at(end, answers.next()).await;
            let Ok(Some((answer, node))) = answer else { break };
            waiting.remove(&node);
            if let Ok(answer) = answer {
                waiting.retain(|node| !answer.silent.contains(node));
                told.insert(node, answer);
            }
        }
        let unheard = asked().filter(|node| !told.contains_key(node)).collect();
        (told, unheard)
    }

    async fn objects<K: Kind>(&self) -> Result<Objects<K>> {
        let list = self.client.list::<K>(&ListParams::default()).await;
        let list = list.with_context(|| format!("cannot list {}", K::URL_PATH_SEGMENT))?;
        Ok(list.items.into_iter().map(|one| (one.object_name(), Arc::new(one))).collect())
    }

    /// Asks the agents of nodes for what only they know.
    pub(crate) async fn facts(&self, cluster: &Cluster, wanted: &Wanted) -> Facts {
        let kernels = wanted.kernels.iter().map(|(node, frontend)| async {
            (node.clone(), self.ask_heard(cluster, node, &kernel_query(frontend)).await)
        });
        let listeners = wanted.pods.iter().take(PODS_MAX).map(|(pod, node)| async {
            (pod.clone(), self.ask_heard(cluster, node, &listeners_query(pod)).await)
        });
        let (kernels, listeners) = tokio::join!(join_all(kernels), join_all(listeners));
        Facts { kernels: kernels.into_iter().collect(), listeners: listeners.into_iter().collect() }
    }

    /// Asks a node unless it did not answer before.
    async fn ask_heard<T: serde::de::DeserializeOwned>(
        &self,
        cluster: &Cluster,
        node: &str,
        question: &str,
    ) -> Result<T, String> {
        if cluster.unheard.contains(node) {
            return Err(no_agent(node));
        }
        self.ask(node, question).await
    }

    async fn ask<T: serde::de::DeserializeOwned>(
        &self,
        node: &str,
        question: &str,
    ) -> Result<T, String> {
        if node.is_empty() {
            return Err("the pod has no node yet".to_owned());
        }
        let path = format!("/api/v1/nodes/{node}/proxy/rhumb/v1/{question}");
        match self.client.request(Method::GET, &path, None).await {
            Ok(answer) => decode(answer, node),
            Err(error) if error.reason() == Some(api::Reason::Forbidden) => {
                Err(format!("asking node {node} needs the right to get nodes/proxy"))
            }
            Err(_) => Err(no_agent(node)),
        }
    }
}

fn decode<T: serde::de::DeserializeOwned>(answer: Value, node: &str) -> Result<T, String> {
    serde_json::from_value(answer).map_err(|_| no_agent(node))
}

fn no_agent(node: &str) -> String {
    format!("node {node} has no agent of Rhumb that answers")
}

fn kernel_query(frontend: &Frontend) -> String {
    let (address, port) = (frontend.address.ip(), frontend.address.port());
    format!("proxy?address={address}&port={port}&protocol={}", frontend.protocol.word())
}

fn listeners_query(pod: &Name) -> String {
    if pod.namespace.is_empty() {
        return "listeners".to_owned();
    }
    format!("listeners?namespace={}&pod={}", pod.namespace, pod.name)
}

impl Reach {
    /// The DNS domain of clusters that do not say theirs.
    pub(crate) fn dns_domain(&self) -> &str {
        &self.dns_domain
    }

    /// `$KUBECONFIG`'s first file that is there, else the user's own.
    fn user_file(&self) -> Result<PathBuf> {
        if let Some(listed) = &self.kubeconfig {
            let mut files = std::env::split_paths(listed);
            return Ok(files.find(|path| path.exists()).unwrap_or_else(|| listed.clone()));
        }
        let home = std::env::var_os("HOME").context(
            "there is no cluster \"default\" on this machine, and neither KUBECONFIG nor HOME is set",
        )?;
        Ok(Path::new(&home).join(".kube/config"))
    }
}

/// Runs `work` to its end.
pub(crate) fn block_on<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work)
}
