//! An unmodified kubectl against a real server over TLS. Passes without doing anything where no kubectl is installed.
#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;

use apiserver::{Config, Server};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use tokio::process::Command;

/// A server on a port of its own, and how to reach it.
struct Running {
    server: Arc<Server>,
    directory: tempfile::TempDir,
}

async fn start() -> Running {
    let directory = tempfile::tempdir().unwrap();
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let url = format!("https://{}", listener.local_addr().unwrap());
    let server = Server::open(Config::new(directory.path().join("data"))).await.unwrap();
    let pki = server.pki();
    let kubeconfig = pki.kubeconfig(&url, "test", "kubernetes-admin", &pki.admin().unwrap());
    std::fs::write(directory.path().join("kubeconfig"), kubeconfig).unwrap();
    let tls = pki.server_tls().unwrap();
    let serving = Arc::clone(&server);
    tokio::spawn(async move { serving.serve(listener, tls).await });
    Running { server, directory }
}

fn kubectls() -> Vec<PathBuf> {
    let named = std::env::var_os("RHUMB_TEST_KUBECTL").map(PathBuf::from);
    named
        .into_iter()
        .chain([PathBuf::from("/usr/bin/kubectl")])
        .filter(|path| path.exists())
        .collect()
}

impl Running {
    /// Output of kubectl; fails the test when kubectl fails, unless `fails`.
    async fn run(&self, kubectl: &Path, arguments: &str, input: &str, fails: bool) -> String {
        let mut child = Command::new(kubectl)
            .arg("--kubeconfig")
            .arg(self.directory.path().join("kubeconfig"))
            .args(arguments.split(' '))
            .env("HOME", self.directory.path())
            .env_remove("KUBECONFIG")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(input.as_bytes()).await.unwrap();
        drop(stdin);
        let limit = std::time::Duration::from_secs(30);
        let output = tokio::time::timeout(limit, child.wait_with_output())
            .await
            .expect("kubectl ends")
            .unwrap();
        let text = format!(
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        assert_eq!(output.status.success(), !fails, "kubectl {arguments}: {text}");
        text
    }
}

const DEPLOYMENT: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, labels: {app: web}}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
      - {name: web, image: 'nginx:stable', ports: [{containerPort: 80}]}
";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubectl_works_unmodified() {
    for kubectl in kubectls() {
        let cluster = start().await;
        let run = async |arguments: &str| cluster.run(&kubectl, arguments, "", false).await;
        assert_eq!(run("get service kubernetes -o jsonpath={.spec.clusterIP}").await, "10.96.0.1");
        assert_eq!(run("auth can-i list pods").await, "yes\n");
        let other = "auth can-i list pods --as system:serviceaccount:default:x";
        assert!(cluster.run(&kubectl, other, "", true).await.starts_with("no"));
        assert!(run("auth can-i --list").await.contains("selfsubjectaccessreviews"));
        assert_eq!(run("create configmap a --from-literal=k=v").await, "configmap/a created\n");
        assert!(run("get configmaps").await.starts_with("NAME"));
        assert_eq!(run("get configmap a -o jsonpath={.data.k}").await, "v");
        assert_eq!(
            cluster.run(&kubectl, "apply -f -", DEPLOYMENT, false).await,
            "deployment.apps/web created\n"
        );
        assert_eq!(
            cluster.run(&kubectl, "apply -f -", DEPLOYMENT, false).await,
            "deployment.apps/web unchanged\n"
        );
        let changed = DEPLOYMENT.replace("replicas: 2", "replicas: 3");
        assert_eq!(
            cluster.run(&kubectl, "apply -f -", &changed, false).await,
            "deployment.apps/web configured\n"
        );
        assert_eq!(run("get deploy web -o jsonpath={.spec.replicas}").await, "3");
        assert_eq!(run("scale deployment web --replicas=4").await, "deployment.apps/web scaled\n");
        assert_eq!(
            run("label deployment web tier=front").await.trim_end(),
            "deployment.apps/web labeled"
        );
        assert_eq!(
            run("set image deployment/web web=nginx:2").await,
            "deployment.apps/web image updated\n"
        );
        assert!(run("get deployments.apps -o wide --show-labels").await.contains("tier=front"));
        assert_eq!(run("create secret generic s --from-literal=p=q").await, "secret/s created\n");
        assert!(run("get all --all-namespaces").await.contains("deployment.apps/web"));
        assert!(run("api-resources").await.contains("deployments"));
        assert!(run("describe secret s").await.contains("p:"));
        assert_eq!(
            cluster.run(&kubectl, "get configmap none", "", true).await,
            "Error from server (NotFound): configmaps \"none\" not found\n"
        );
        assert!(
            run("wait --for=jsonpath={.spec.replicas}=4 deployment/web --timeout=5s")
                .await
                .contains("condition met")
        );
        assert!(run("delete deployment web").await.starts_with("deployment.apps \"web\" deleted"));
        cluster.server.shutdown().await;
    }
}
