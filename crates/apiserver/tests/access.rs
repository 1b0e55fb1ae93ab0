//! Who may do what, allocation, bootstrap and proxied streams, on a whole server.
#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use apiserver::auth::User;
use apiserver::{Config, Server, full_body};
use http::Request;
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;

struct Cluster {
    server: Arc<Server>,
    address: SocketAddr,
    _directory: tempfile::TempDir,
}

async fn start() -> Cluster {
    let directory = tempfile::tempdir().unwrap();
    let mut config = Config::new(directory.path());
    config.advertise_address = Ipv4Addr::new(198, 18, 0, 2).into();
    let server = Server::open(config).await.unwrap();
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let (serving, tls) = (Arc::clone(&server), server.pki().server_tls().unwrap());
    tokio::spawn(async move { serving.serve(listener, tls).await });
    let cluster = Cluster { server, address, _directory: directory };
    let account = json!({"metadata": {"name": "default"}});
    cluster.post("/api/v1/namespaces/default/serviceaccounts", account, 201).await;
    cluster
}

impl Cluster {
    async fn call(&self, user: User, method: &str, path: &str, body: Value) -> (u16, Value) {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("content-type", "application/json")
            .body(full_body(body))
            .unwrap();
        let response = self.server.respond(user, request).await;
        let status = response.status().as_u16();
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        (status, serde_json::from_slice(&bytes).unwrap_or(Value::Null))
    }

    async fn post(&self, path: &str, body: Value, wanted: u16) -> Value {
        let (status, answer) = self.call(User::component("test"), "POST", path, body).await;
        assert_eq!(status, wanted, "POST {path}: {answer}");
        answer
    }

    async fn get(&self, path: &str) -> (u16, Value) {
        self.call(User::component("test"), "GET", path, Value::Null).await
    }

    async fn delete(&self, path: &str) {
        let (status, answer) =
            self.call(User::component("test"), "DELETE", path, Value::Null).await;
        assert_eq!(status, 200, "{answer}");
    }

    /// Waits until the path answers; fails after ten seconds.
    async fn appears(&self, path: &str) -> Value {
        for _ in 0..500 {
            if let (200, object) = self.get(path).await {
                return object;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("{path} does not appear");
    }

    /// Sends raw bytes over TLS; with the certificate of a master, or without any.
    async fn connect(&self, with_certificate: bool) -> impl AsyncRead + AsyncWrite + Unpin + use<> {
        let mut tls = rustls::ClientConfig::clone(&self.server.pki().kubelet_tls().unwrap());
        if !with_certificate {
            tls.client_auth_cert_resolver = Arc::new(NoCertificate);
        }
        let stream = TcpStream::connect(self.address).await.unwrap();
        let name = "127.0.0.1".try_into().unwrap();
        TlsConnector::from(Arc::new(tls)).connect(name, stream).await.unwrap()
    }

    async fn raw(&self, with_certificate: bool, request: &str) -> String {
        let mut stream = self.connect(with_certificate).await;
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        // Servers may close without a TLS farewell.
        let _end = stream.read_to_end(&mut answer).await;
        String::from_utf8_lossy(&answer).into_owned()
    }

    async fn get_as(&self, token: &str, path: &str) -> String {
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\nConnection: close\r\n\r\n"
        );
        self.raw(false, &request).await
    }
}

#[derive(Debug)]
struct NoCertificate;

impl rustls::client::ResolvesClientCert for NoCertificate {
    fn resolve(
        &self,
        _hints: &[&[u8]],
        _schemes: &[rustls::SignatureScheme],
    ) -> Option<Arc<rustls::sign::CertifiedKey>> {
        None
    }

    fn has_certs(&self) -> bool {
        false
    }
}

fn web(name: &str, spec: &Value) -> Value {
    let mut service = json!({"metadata": {"name": name}, "spec": {"ports": [{"port": 80, "protocol": "TCP"}],
        "selector": {"app": name}}});
    for (key, value) in spec.as_object().unwrap() {
        service["spec"][key] = value.clone();
    }
    service
}

const SERVICES: &str = "/api/v1/namespaces/default/services";

#[tokio::test]
async fn a_cluster_begins_with_its_own_objects_and_keeps_them() {
    let cluster = start().await;
    let (_, kubernetes) = cluster.get(&format!("{SERVICES}/kubernetes")).await;
    assert_eq!(kubernetes["spec"]["clusterIP"], "10.96.0.1", "{kubernetes}");
    let slice = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/kubernetes";
    assert_eq!(cluster.get(slice).await.1["endpoints"][0]["addresses"], json!(["198.18.0.2"]));
    let (_, dns) = cluster.get("/api/v1/namespaces/kube-system/services/kube-dns").await;
    assert_eq!(dns["spec"]["clusterIP"], "10.96.0.10", "{dns}");
    for path in [format!("{SERVICES}/kubernetes"), slice.to_owned()] {
        let (_, before) = cluster.get(&path).await;
        cluster.delete(&path).await;
        let after = cluster.appears(&path).await;
        assert_ne!(before["metadata"]["uid"], after["metadata"]["uid"]);
    }
    let address = cluster.appears("/apis/networking.k8s.io/v1/ipaddresses/10.96.0.10").await;
    assert_eq!(address["spec"]["parentRef"]["name"], "kube-dns");
}

#[tokio::test]
async fn services_get_addresses_that_nobody_else_has() {
    let cluster = start().await;
    let made = cluster.post(SERVICES, web("a", &json!({"type": "NodePort"})), 201).await;
    let (address, port) = (&made["spec"]["clusterIP"], &made["spec"]["ports"][0]["nodePort"]);
    assert!(address.as_str().unwrap().starts_with("10."), "{made}");
    let taken = cluster.post(SERVICES, web("b", &json!({"clusterIP": address})), 422).await;
    let text = address.as_str().unwrap();
    let wanted = format!("failed to allocate IP {text}: provided IP is already allocated");
    assert!(taken["message"].as_str().unwrap().ends_with(&wanted), "{taken}");
    let ports = json!([{"port": 80, "protocol": "TCP", "nodePort": port}]);
    let taken =
        cluster.post(SERVICES, web("b", &json!({"type": "NodePort", "ports": ports})), 422).await;
    assert!(
        taken["message"].as_str().unwrap().ends_with("provided port is already allocated"),
        "{taken}"
    );
    let tried = cluster.post(&format!("{SERVICES}?dryRun=All"), web("c", &json!({})), 201).await;
    assert!(tried["spec"]["clusterIP"].is_string(), "a dry run shows an example");
    assert_eq!(cluster.get(&format!("{SERVICES}/c")).await.0, 404);
    let held = format!("/apis/networking.k8s.io/v1/ipaddresses/{text}");
    let (_, object) = cluster.get(&held).await;
    assert_eq!(object["spec"]["parentRef"]["name"], "a");
    assert_eq!(
        object["metadata"]["resourceVersion"], made["metadata"]["resourceVersion"],
        "nobody ever sees the Service without it"
    );
    // Whoever takes the address over takes the object over, in whatever state that is.
    cluster.delete(&format!("{SERVICES}/a")).await;
    cluster.post(SERVICES, web("b", &json!({"clusterIP": address})), 201).await;
    let (_, object) = cluster.get(&held).await;
    assert_eq!(object["spec"]["parentRef"]["name"], "b");
}

#[tokio::test]
async fn a_pod_gets_its_account_token_volume_and_rights() {
    let cluster = start().await;
    let pods = "/api/v1/namespaces/default/pods";
    let pod = json!({"metadata": {"name": "web"}, "spec": {"containers": [{"name": "web", "image": "nginx"}]}});
    let pod = cluster.post(pods, pod, 201).await;
    assert_eq!(pod["spec"]["serviceAccountName"], "default");
    assert!(
        pod["spec"]["volumes"][0]["name"].as_str().unwrap().starts_with("kube-api-access-"),
        "{pod}"
    );
    assert_eq!(pod["spec"]["priority"], 0);
    let strange = json!({"metadata": {"name": "x"}, "spec": {"serviceAccountName": "none",
        "containers": [{"name": "web", "image": "nginx"}]}});
    let refused = cluster.post(pods, strange, 403).await;
    assert_eq!(
        refused["message"],
        "pods \"x\" is forbidden: error looking up service account default/none: serviceaccount \"none\" not found"
    );

    let bound = json!({"spec": {"expirationSeconds": 600, "boundObjectRef":
        {"apiVersion": "v1", "kind": "Pod", "name": "web", "uid": pod["metadata"]["uid"]}}});
    let issued =
        cluster.post("/api/v1/namespaces/default/serviceaccounts/default/token", bound, 201).await;
    let token = issued["status"]["token"].as_str().unwrap();
    let refused = cluster.get_as(token, SERVICES).await;
    assert!(refused.starts_with("HTTP/1.1 403"), "{refused}");
    assert!(
        refused.contains(
            r#"services is forbidden: User \"system:serviceaccount:default:default\" cannot list resource \"services\" in API group \"\" in the namespace \"default\""#
        ),
        "{refused}"
    );
    let role = json!({"metadata": {"name": "view"}, "subjects": [{"kind": "ServiceAccount", "name": "default"}],
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "view"}});
    cluster
        .post("/apis/rbac.authorization.k8s.io/v1/namespaces/default/rolebindings", role, 201)
        .await;
    assert!(cluster.get_as(token, SERVICES).await.starts_with("HTTP/1.1 200"));
    assert!(
        cluster
            .get_as(token, "/api/v1/namespaces/default/secrets")
            .await
            .starts_with("HTTP/1.1 403")
    );
    let reviewed = cluster
        .post("/apis/authentication.k8s.io/v1/tokenreviews", json!({"spec": {"token": token}}), 201)
        .await;
    assert_eq!(reviewed["status"]["user"]["username"], "system:serviceaccount:default:default");

    cluster.delete(&format!("{pods}/web?gracePeriodSeconds=0")).await;
    let gone = cluster.get_as(token, SERVICES).await;
    assert!(gone.starts_with("HTTP/1.1 401") && gone.contains("Unauthorized"), "{gone}");
}

#[tokio::test]
async fn strangers_see_versions_and_nothing_else() {
    let cluster = start().await;
    let ask = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    assert!(cluster.raw(false, &ask("/version")).await.starts_with("HTTP/1.1 200"));
    let refused = cluster.raw(false, &ask("/api/v1/pods")).await;
    assert!(
        refused.contains(r#"User \"system:anonymous\" cannot list resource \"pods\""#),
        "{refused}"
    );
    assert!(cluster.raw(true, &ask("/api/v1/pods")).await.starts_with("HTTP/1.1 200"));
    assert!(cluster.get_as("junk", "/version").await.starts_with("HTTP/1.1 401"));
}

#[tokio::test]
async fn nobody_grants_more_than_they_have() {
    let cluster = start().await;
    let user = User {
        name: "bob".to_owned(),
        groups: vec!["system:authenticated".to_owned()],
        ..User::default()
    };
    let roles = "/apis/rbac.authorization.k8s.io/v1/namespaces/default/rolebindings";
    let binding = |role: &str| {
        json!({"metadata": {"name": role}, "subjects": [{"kind": "User", "name": "bob",
            "apiGroup": "rbac.authorization.k8s.io"}],
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role}})
    };
    cluster.post(roles, binding("admin"), 201).await;
    let (status, refused) = cluster.call(user, "POST", roles, binding("cluster-admin")).await;
    assert_eq!(status, 403, "{refused}");
    let message = refused["message"].as_str().unwrap();
    assert!(
        message.contains("user \"bob\" (groups=[\"system:authenticated\"]) is attempting to grant RBAC permissions"),
        "{message}"
    );
}

/// A backend that answers requests with their first line, and echoes after an upgrade.
async fn backend() -> SocketAddr {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(stream.read_u8().await.unwrap());
                }
                let head = String::from_utf8(head).unwrap();
                let line = head.lines().next().unwrap().to_owned();
                if head.to_ascii_lowercase().contains("upgrade: echo") {
                    let answer = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n";
                    stream.write_all(answer.as_bytes()).await.unwrap();
                    let (mut reader, mut writer) = stream.split();
                    tokio::io::copy(&mut reader, &mut writer).await.unwrap();
                } else {
                    let answer =
                        format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{line}", line.len());
                    stream.write_all(answer.as_bytes()).await.unwrap();
                }
            });
        }
    });
    address
}

#[tokio::test]
async fn pods_are_reached_through_the_proxy_also_by_upgraded_connections() {
    let cluster = start().await;
    let backend = backend().await;
    let pods = "/api/v1/namespaces/default/pods";
    let pod = json!({"metadata": {"name": "web"}, "spec": {"containers": [{"name": "web", "image": "nginx"}]}});
    cluster.post(pods, pod, 201).await;
    let exec = cluster.post(&format!("{pods}/web/exec?command=ls"), Value::Null, 400).await;
    assert_eq!(exec["message"], "pod web does not have a host assigned");
    let status = json!({"status": {"podIP": "127.0.0.1", "phase": "Running"}});
    let request = Request::builder()
        .method("PATCH")
        .uri(format!("{pods}/web/status"))
        .header("content-type", "application/merge-patch+json")
        .body(full_body(status.to_string()))
        .unwrap();
    assert!(cluster.server.respond(User::component("test"), request).await.status().is_success());
    let path = format!("{pods}/web:{}/proxy/a/b?c=d", backend.port());
    let answer = cluster
        .raw(true, &format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"))
        .await;
    assert!(answer.ends_with("GET /a/b?c=d HTTP/1.1"), "{answer}");

    let mut stream = cluster.connect(true).await;
    let request =
        format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    assert!(head.starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&head));
    stream.write_all(b"hello").await.unwrap();
    let mut echoed = [0; 5];
    stream.read_exact(&mut echoed).await.unwrap();
    assert_eq!(&echoed, b"hello");

    cluster.post(SERVICES, web("a", &json!({})), 201).await;
    let (status, refused) = cluster.get(&format!("{SERVICES}/a/proxy/")).await;
    assert_eq!(
        (status, &refused["message"]),
        (503, &json!("no endpoints available for service \"a\""))
    );
}
