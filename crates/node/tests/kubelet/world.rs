//! One agent with its runtime, its network namespace and its API server.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use api::core::Pod;
use client::DeleteOptions;
use futures_util::future::BoxFuture;
use node::kubelet::{
    self, KubeletHandle, Options, PODS_MAX, PORT, PodAttachment, PodNetRequest, PodNetwork,
};
use runtime::{ImageStore, Runtime};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::fake_api::FakeApi;
use crate::image;

/// Longest wait for anything.
const WAIT_MAX: Duration = Duration::from_secs(20);

/// Every pod gets the one namespace and one address: enough for a kubelet.
struct OneNamespace(String);

impl PodNetwork for OneNamespace {
    fn add<'a>(&'a self, _: &'a PodNetRequest) -> BoxFuture<'a, Result<PodAttachment, String>> {
        let netns = Path::new("/run/netns").join(&self.0);
        let ips = vec!["10.244.1.5".parse().unwrap()];
        Box::pin(async move { Ok(PodAttachment { netns, ips }) })
    }

    fn del<'a>(&'a self, _: &'a str) -> BoxFuture<'a, ()> {
        Box::pin(async {})
    }
}

pub(crate) struct World {
    pub(crate) api: FakeApi,
    pub(crate) handle: KubeletHandle,
    name: String,
    directory: tempfile::TempDir,
    runtime: Option<Runtime>,
    agent: Option<(CancellationToken, tokio::task::JoinHandle<()>)>,
}

/// Writes a line for whoever watches the test.
pub(crate) fn say(text: &str) {
    let _ = writeln!(std::io::stdout(), "{text}");
}

fn ip(args: &[&str]) {
    assert!(Command::new("ip").args(args).status().unwrap().success(), "ip {args:?}");
}

impl World {
    pub(crate) async fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let name = format!("rhumb-kubelet-{}", std::process::id());
        ip(&["netns", "add", &name]);
        image::layout(&directory.path().join("layout"), "busybox:1");
        let handle = KubeletHandle::new();
        let api = FakeApi::default();
        let mut world = Self { api, handle, name, directory, runtime: None, agent: None };
        world.images().import(&world.directory.path().join("layout"), &[]).unwrap();
        world.start_agent().await;
        world
    }

    fn images(&self) -> ImageStore {
        ImageStore::open(self.directory.path().join("images"), BTreeMap::new()).unwrap()
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    pub(crate) fn runtime(&self) -> &Runtime {
        self.runtime.as_ref().unwrap()
    }

    pub(crate) async fn start_agent(&mut self) {
        let state = self.directory.path().join("state");
        let options =
            runtime::Options::new(state, format!("rhumb-test/{}", self.name), self.images());
        let runtime = Runtime::open(options).await.unwrap();
        self.runtime = Some(runtime.clone());
        self.handle = KubeletHandle::new();
        let resolv_conf = self.directory.path().join("resolv.conf");
        std::fs::write(&resolv_conf, "").unwrap();
        let options = Options {
            node_name: "n1".to_owned(),
            node_ips: vec!["192.0.2.1".parse().unwrap()],
            data_dir: self.data(),
            dns_service_ip: Some("10.96.0.10".parse().unwrap()),
            cluster_domain: "cluster.local".to_owned(),
            labels: BTreeMap::new(),
            taints: Vec::new(),
            network: Arc::new(OneNamespace(self.name.clone())),
            runtime,
            resolv_conf,
            pods_max: PODS_MAX,
            port: PORT,
            use_present_images: false,
            guard: None,
            handle: self.handle.clone(),
        };
        let shutdown = CancellationToken::new();
        let (client, stop) = (self.api.client(), shutdown.clone());
        let task = tokio::spawn(async move {
            kubelet::run(options, client, stop).await.unwrap();
        });
        self.agent = Some((shutdown, task));
    }

    pub(crate) async fn stop_agent(&mut self) {
        let (shutdown, task) = self.agent.take().unwrap();
        shutdown.cancel();
        task.await.unwrap();
        self.runtime = None;
    }

    /// Takes everything down, also what a failed test left.
    pub(crate) async fn end(mut self) {
        let runtime = self.runtime().clone();
        self.stop_agent().await;
        for pod in runtime.pods() {
            runtime.remove_pod(&pod.sandbox.uid).await.unwrap();
        }
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
        let own = self.directory.path().to_string_lossy().into_owned();
        for path in mounts.lines().filter_map(|line| line.split(' ').nth(1)) {
            if path.starts_with(&own) {
                let _ = nix::mount::umount(path);
            }
        }
        ip(&["netns", "del", &self.name]);
        for hierarchy in std::fs::read_dir("/sys/fs/cgroup").unwrap().flatten() {
            let _ = std::fs::remove_dir(hierarchy.path().join("rhumb-test").join(&self.name));
        }
    }

    /// Creates a pod that is bound to the node.
    pub(crate) fn pod(&self, name: &str, mut spec: Value) {
        spec["nodeName"] = "n1".into();
        let object = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": "default", "generation": 1},
            "spec": spec,
        });
        self.api.put("pods", object);
    }

    pub(crate) async fn delete(&self, name: &str, grace: i64) {
        let options =
            DeleteOptions { grace_period_seconds: Some(grace), ..DeleteOptions::default() };
        self.api.client().delete::<Pod>("default", name, &options).await.unwrap();
    }

    /// Waits until the object is as `wanted`.
    pub(crate) async fn until(
        &self,
        plural: &str,
        namespace: &str,
        name: &str,
        wanted: impl Fn(&Value) -> bool,
    ) -> Value {
        let begin = Instant::now();
        loop {
            let object = self.api.get(plural, namespace, name);
            if let Some(object) = object.as_ref().filter(|object| wanted(object)) {
                say(&format!("{plural}/{name}: after {:?}", begin.elapsed()));
                return object.clone();
            }
            let events = self.api.list("events");
            let told = || events.iter().map(|e| format!("{} {}", e["reason"], e["message"]));
            assert!(
                begin.elapsed() < WAIT_MAX,
                "{plural}/{name} stays {object:#?}\n{:#?}",
                told().collect::<Vec<_>>()
            );
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    pub(crate) async fn until_true(&self, wanted: impl Fn() -> bool) {
        let begin = Instant::now();
        while !wanted() {
            assert!(begin.elapsed() < WAIT_MAX, "in vain; runtime: {:#?}", self.runtime().pods());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Waits until the file holds `part`; returns all of it.
    pub(crate) async fn read_until(&self, path: &Path, part: &str) -> String {
        let text = || std::fs::read_to_string(path).unwrap_or_default();
        let begin = Instant::now();
        while !text().contains(part) {
            assert!(begin.elapsed() < WAIT_MAX, "{part:?} does not appear in {}", text());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        text()
    }

    /// The reasons of a pod's events that are among `wanted`, in order of their times, once there are as many.
    pub(crate) async fn reasons(&self, pod: &str, wanted: &[&str]) -> Vec<String> {
        let found = || -> Vec<String> {
            let mut events = self.api.list("events");
            events.retain(|event| event["involvedObject"]["name"] == pod);
            events.sort_by_key(|event| event["metadata"]["name"].to_string());
            let reasons = events.iter().filter_map(|event| event["reason"].as_str());
            reasons.filter(|reason| wanted.contains(reason)).map(ToOwned::to_owned).collect()
        };
        let begin = Instant::now();
        while found().len() < wanted.len() {
            assert!(begin.elapsed() < WAIT_MAX, "{:#?}", self.api.list("events"));
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        found()
    }
}
