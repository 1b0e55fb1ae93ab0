//! A real server over a real store, driven through the entry that both listeners use.
#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]

#[path = "rest/cluster.rs"]
mod cluster;
#[path = "rest/services.rs"]
mod services;

use cluster::{Answer, Running, open, start};
use serde_json::{Value, json};
use std::sync::Arc;

const CONFIGMAPS: &str = "/api/v1/namespaces/default/configmaps";
const PODS: &str = "/api/v1/namespaces/default/pods";

fn configmap(name: &str, label: &str) -> Value {
    json!({"metadata": {"name": name, "labels": {"app": label}}, "data": {"a": "1"}})
}

fn pod(name: &str) -> Value {
    json!({"metadata": {"name": name}, "spec": {"containers": [{"name": "c", "image": "nginx"}]}})
}

fn message(answer: &Answer) -> &str {
    answer.body["message"].as_str().unwrap_or("")
}

#[tokio::test]
async fn objects_are_created_read_changed_and_deleted() {
    let cluster = start().await;
    let made = cluster.post(CONFIGMAPS, configmap("a", "x")).await;
    assert_eq!(made.code, 201, "{made:?}");
    let meta = &made.body["metadata"];
    assert!(
        meta["uid"].is_string()
            && meta["creationTimestamp"].is_string()
            && meta["resourceVersion"].is_string()
    );
    let again = cluster.post(CONFIGMAPS, configmap("a", "x")).await;
    assert_eq!((again.code, message(&again)), (409, "configmaps \"a\" already exists"));

    let path = format!("{CONFIGMAPS}/a");
    let read = cluster.get(&path).await;
    assert_eq!(read.body, made.body, "reads see what the write answered");
    let mut changed = read.body.clone();
    changed["data"]["a"] = "2".into();
    let updated = cluster.put(&path, changed.clone()).await;
    assert_eq!(updated.code, 200, "{updated:?}");
    assert_ne!(
        updated.body["metadata"]["resourceVersion"],
        read.body["metadata"]["resourceVersion"]
    );
    let same = cluster.put(&path, updated.body.clone()).await;
    assert_eq!(
        same.body["metadata"]["resourceVersion"], updated.body["metadata"]["resourceVersion"],
        "an update that changes nothing writes nothing"
    );
    let stale = cluster.put(&path, changed).await;
    assert_eq!(stale.code, 409);
    assert_eq!(
        message(&stale),
        "Operation cannot be fulfilled on configmaps \"a\": the object has been modified; please apply your changes to the latest version and try again"
    );
    let gone = cluster.delete(&path).await;
    assert_eq!(
        (gone.code, &gone.body["status"], &gone.body["details"]["kind"]),
        (200, &json!("Success"), &json!("configmaps"))
    );
    let missing = cluster.get(&path).await;
    assert_eq!((missing.code, message(&missing)), (404, "configmaps \"a\" not found"));
    let generated = cluster.post(CONFIGMAPS, json!({"metadata": {"generateName": "web-"}})).await;
    let name = generated.body["metadata"]["name"].as_str().unwrap();
    assert!(name.starts_with("web-") && name.len() == 9, "{name}");
    let dry = cluster.post(&format!("{CONFIGMAPS}?dryRun=All"), configmap("dry", "x")).await;
    assert_eq!(dry.code, 201);
    assert_eq!(cluster.get(&format!("{CONFIGMAPS}/dry")).await.code, 404);
}

#[tokio::test]
async fn lists_come_in_chunks_of_one_snapshot() {
    let cluster = start().await;
    for name in ["a", "b", "c", "d", "e"] {
        cluster.post(CONFIGMAPS, configmap(name, if name < "c" { "x" } else { "y" })).await;
    }
    let names = |answer: &Answer| -> Vec<String> {
        answer.body["items"]
            .as_array()
            .unwrap()
            .iter()
            .map(|item| item["metadata"]["name"].as_str().unwrap().to_owned())
            .collect()
    };
    let whole = cluster.get(CONFIGMAPS).await;
    assert_eq!(names(&whole), ["a", "b", "c", "d", "e"]);
    assert!(whole.body["items"][0].get("kind").is_none(), "the list says it for all");
    for _ in 0..3 {
        assert_eq!(
            cluster.get(CONFIGMAPS).await.body,
            whole.body,
            "repeated lists share their encoding"
        );
    }
    cluster.post(CONFIGMAPS, configmap("f", "y")).await;
    assert_eq!(names(&cluster.get(CONFIGMAPS).await).len(), 6);
    cluster.delete(&format!("{CONFIGMAPS}/f")).await;
    assert_eq!(names(&cluster.get(CONFIGMAPS).await).len(), 5);
    let first = cluster.get(&format!("{CONFIGMAPS}?limit=2")).await;
    assert_eq!(names(&first), ["a", "b"]);
    assert!(first.body["items"][0].get("apiVersion").is_none(), "also in a chunk");
    assert_eq!(first.body["metadata"]["remainingItemCount"], 3);
    cluster.delete(&format!("{CONFIGMAPS}/c")).await;
    let token = first.body["metadata"]["continue"].as_str().unwrap();
    let second = cluster.get(&format!("{CONFIGMAPS}?limit=10&continue={token}")).await;
    assert_eq!(names(&second), ["c", "d", "e"], "the snapshot of the first chunk");
    assert_eq!(
        second.body["metadata"]["resourceVersion"],
        first.body["metadata"]["resourceVersion"]
    );
    assert_eq!(second.body["metadata"]["continue"], Value::Null);
    assert_eq!(
        names(&cluster.get(&format!("{CONFIGMAPS}?labelSelector=app%3Dx")).await),
        ["a", "b"]
    );
    assert_eq!(
        names(&cluster.get(&format!("{CONFIGMAPS}?fieldSelector=metadata.name%3Dd")).await),
        ["d"]
    );
    assert_eq!(
        names(&cluster.get("/api/v1/configmaps?fieldSelector=metadata.namespace!=default").await),
        Vec::<String>::new()
    );
    let bad = cluster.get(&format!("{CONFIGMAPS}?fieldSelector=spec.x%3Dy")).await;
    assert_eq!(bad.code, 400);
    assert_eq!(
        message(&bad),
        "\"spec.x\" is not a known field selector: only \"metadata.name\", \"metadata.namespace\""
    );
    let exact = cluster.get(&format!("{CONFIGMAPS}?resourceVersionMatch=Exact")).await;
    assert_eq!(
        message(&exact),
        "ListOptions.meta.k8s.io \"\" is invalid: resourceVersionMatch: Forbidden: resourceVersionMatch is forbidden unless resourceVersion is provided"
    );
    let future = cluster.get(&format!("{CONFIGMAPS}?resourceVersion=999")).await;
    assert_eq!(future.code, 504);
    assert!(
        message(&future).starts_with("Too large resource version: 999, current: "),
        "{}",
        message(&future)
    );
}

#[tokio::test]
async fn watches_follow_selections_and_end_with_errors_when_too_old() {
    let cluster = start().await;
    let first = cluster.post(CONFIGMAPS, configmap("a", "x")).await;
    let from = first.body["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
    let mut all = cluster.watch(&format!("{CONFIGMAPS}?watch=true&resourceVersion={from}")).await;
    let mut selected = cluster.watch(&format!("{CONFIGMAPS}?watch=1&labelSelector=app%3Dx")).await;
    let streaming =
        "sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true";
    let mut streamed = cluster.watch(&format!("/api/v1/configmaps?watch=1&{streaming}")).await;
    assert_eq!(selected.names(1).await, ["ADDED a"]);
    assert_eq!(streamed.names(1).await, ["ADDED a"]);
    let (kind, bookmark) = streamed.next().await.unwrap();
    assert_eq!(
        (kind.as_str(), &bookmark["metadata"]["annotations"]["k8s.io/initial-events-end"]),
        ("BOOKMARK", &json!("true"))
    );

    cluster.post(CONFIGMAPS, configmap("b", "y")).await;
    cluster
        .patch(
            "merge-patch+json",
            &format!("{CONFIGMAPS}/b"),
            json!({"metadata": {"labels": {"app": "x"}}}),
        )
        .await;
    cluster
        .patch(
            "merge-patch+json",
            &format!("{CONFIGMAPS}/a"),
            json!({"metadata": {"labels": {"app": "y"}}}),
        )
        .await;
    cluster.delete(&format!("{CONFIGMAPS}/b")).await;
    assert_eq!(all.names(4).await, ["ADDED b", "MODIFIED b", "MODIFIED a", "DELETED b"]);
    assert_eq!(
        selected.names(3).await,
        ["ADDED b", "DELETED a", "DELETED b"],
        "moving in and out of the selection"
    );
    assert_eq!(streamed.names(4).await, ["ADDED b", "MODIFIED b", "MODIFIED a", "DELETED b"]);

    let mut ended =
        cluster.watch(&format!("{CONFIGMAPS}?watch=1&resourceVersion=0&timeoutSeconds=1")).await;
    assert_eq!(ended.names(1).await, ["ADDED a"]);
    assert!(ended.next().await.is_none(), "the watch ends at its timeout");
}

#[tokio::test]
async fn a_restart_keeps_objects_and_expires_old_watches() {
    let directory = tempfile::tempdir().unwrap();
    let server = open(directory.path()).await;
    let cluster = Running { server, _directory: tempfile::tempdir().unwrap() };
    cluster.post("/api/v1/namespaces", json!({"metadata": {"name": "default"}})).await;
    for name in ["a", "b"] {
        cluster.post(CONFIGMAPS, configmap(name, "x")).await;
    }
    let before = cluster.get(CONFIGMAPS).await;
    cluster.server.shutdown().await;
    let refused = cluster.post(CONFIGMAPS, configmap("late", "x")).await;
    assert_eq!(refused.code, 503);
    drop(cluster);
    let cluster =
        Running { server: open(directory.path()).await, _directory: tempfile::tempdir().unwrap() };
    assert_eq!(cluster.get(CONFIGMAPS).await.body, before.body);
    let mut old = cluster.watch(&format!("{CONFIGMAPS}?watch=1&resourceVersion=1")).await;
    let (kind, status) = old.next().await.unwrap();
    assert_eq!(
        (kind.as_str(), &status["code"], &status["reason"]),
        ("ERROR", &json!(410), &json!("Expired"))
    );
    assert!(
        status["message"].as_str().unwrap().starts_with("too old resource version: 1 ("),
        "{status}"
    );
    assert!(old.next().await.is_none());
}

#[tokio::test]
async fn pods_go_gracefully_and_finalizers_hold() {
    let cluster = start().await;
    cluster.post("/api/v1/nodes", json!({"metadata": {"name": "n"}})).await;
    assert_eq!(cluster.post(PODS, pod("a")).await.code, 201);
    let path = format!("{PODS}/a");
    let binding = json!({"metadata": {"name": "a"}, "target": {"kind": "Node", "name": "n"}});
    let bound = cluster.post(&format!("{path}/binding"), binding.clone()).await;
    assert_eq!((bound.code, &bound.body["status"]), (201, &json!("Success")), "{bound:?}");
    let again = cluster.post(&format!("{path}/binding"), binding).await;
    assert_eq!(again.code, 409);
    assert_eq!(
        message(&again),
        "Operation cannot be fulfilled on pods/binding \"a\": pod a is already assigned to node \"n\""
    );
    assert_eq!(cluster.get(&path).await.body["spec"]["nodeName"], "n");

    let marked = cluster.delete(&path).await;
    assert_eq!(marked.body["metadata"]["deletionGracePeriodSeconds"], 30, "{marked:?}");
    assert!(cluster.get(&path).await.body["metadata"]["deletionTimestamp"].is_string());
    let now =
        cluster.call("DELETE", &path, &[], json!({"gracePeriodSeconds": 0}).to_string()).await;
    assert_eq!(now.code, 200);
    assert_eq!(cluster.get(&path).await.code, 404);

    let mut held = configmap("held", "x");
    held["metadata"]["finalizers"] = json!(["example.com/hold"]);
    cluster.post(CONFIGMAPS, held).await;
    let path = format!("{CONFIGMAPS}/held");
    cluster.delete(&path).await;
    assert!(cluster.get(&path).await.body["metadata"]["deletionTimestamp"].is_string());
    cluster.patch("merge-patch+json", &path, json!({"metadata": {"finalizers": null}})).await;
    assert_eq!(cluster.get(&path).await.code, 404, "the last finalizer lets it go");

    let wrong = json!({"preconditions": {"uid": "other"}});
    cluster.post(CONFIGMAPS, configmap("kept", "x")).await;
    let refused =
        cluster.call("DELETE", &format!("{CONFIGMAPS}/kept"), &[], wrong.to_string()).await;
    assert_eq!(refused.code, 409);
    assert!(
        message(&refused)
            .contains("Precondition failed: UID in precondition: other, UID in object meta: ")
    );

    let refused = cluster.delete("/api/v1/namespaces/default").await;
    assert_eq!(
        (refused.code, message(&refused)),
        (403, "namespaces \"default\" is forbidden: this namespace may not be deleted")
    );
    let gone = json!({"metadata": {"name": "gone"}, "spec": {"finalizers": ["kubernetes"]}});
    assert_eq!(cluster.post("/api/v1/namespaces", gone).await.code, 201);
    let terminating = cluster.delete("/api/v1/namespaces/gone").await;
    assert_eq!(terminating.body["status"]["phase"], "Terminating", "{terminating:?}");
    let finalized = cluster
        .put("/api/v1/namespaces/gone/finalize", json!({"metadata": {"name": "gone"}, "spec": {}}))
        .await;
    assert_eq!(finalized.code, 200, "{finalized:?}");
    assert_eq!(cluster.get("/api/v1/namespaces/gone").await.code, 404);
}

/// Method, path, content type and body; code and message.
const REFUSED: [(&str, &str, &str, &str, u16, &str); 9] = [
    (
        "POST",
        CONFIGMAPS,
        "text/plain",
        "{}",
        415,
        "the body of the request was in an unknown format - accepted media types include: application/json, application/yaml, application/vnd.kubernetes.protobuf",
    ),
    (
        "POST",
        CONFIGMAPS,
        "application/json",
        "",
        400,
        "the object provided is unrecognized (must be of type ConfigMap): couldn't get version/kind; json parse error: unexpected end of JSON input (<empty>)",
    ),
    (
        "POST",
        CONFIGMAPS,
        "application/json",
        r#"{"apiVersion":"apps/v1","kind":"ConfigMap"}"#,
        400,
        "the API version in the data (apps/v1) does not match the expected API version (v1)",
    ),
    (
        "POST",
        CONFIGMAPS,
        "application/json",
        r#"{"metadata":{"name":"a","namespace":"b"}}"#,
        400,
        "the namespace of the provided object does not match the namespace sent on the request",
    ),
    (
        "POST",
        CONFIGMAPS,
        "application/json",
        r#"{"metadata":{"name":"a","resourceVersion":"3"}}"#,
        400,
        "resourceVersion should not be set on objects to be created",
    ),
    (
        "PUT",
        "/api/v1/namespaces/default/configmaps/x",
        "application/json",
        r#"{"metadata":{"name":"a"}}"#,
        400,
        "the name of the object (a) does not match the name on the URL (x)",
    ),
    (
        "PATCH",
        "/api/v1/namespaces/default/configmaps/x",
        "application/json",
        "{}",
        415,
        "the body of the request was in an unknown format - accepted media types include: application/json-patch+json, application/merge-patch+json, application/strategic-merge-patch+json, application/apply-patch+yaml",
    ),
    (
        "PATCH",
        "/api/v1/namespaces/default/configmaps/x",
        "application/apply-patch+yaml",
        "{}",
        422,
        "PatchOptions.meta.k8s.io \"\" is invalid: fieldManager: Required value: is required for apply patch",
    ),
    (
        "PUT",
        CONFIGMAPS,
        "application/json",
        "{}",
        405,
        "the server does not allow this method on the requested resource",
    ),
];

#[tokio::test]
async fn bad_requests_are_refused_in_upstreams_words() {
    let cluster = start().await;
    for (method, path, content, body, code, text) in REFUSED {
        let answer =
            cluster.call(method, path, &[("content-type", content)], body.to_owned()).await;
        assert_eq!((answer.code, message(&answer)), (code, text));
    }
    let big = cluster.call("POST", CONFIGMAPS, &[], vec![b' '; 3 * 1024 * 1024 + 1]).await;
    assert_eq!((big.code, message(&big)), (413, "Request entity too large: limit is 3145728"));
    let strange = cluster.call("GET", CONFIGMAPS, &[("accept", "text/html")], "").await;
    assert_eq!(strange.code, 406);
    assert_eq!(cluster.get("/api/v1/nothings").await.code, 404);
    let strict = json!({"metadata": {"name": "a"}, "bogus": 1}).to_string();
    let refused = cluster
        .call("POST", &format!("{CONFIGMAPS}?fieldValidation=Strict"), &[], strict.clone())
        .await;
    assert_eq!(
        (refused.code, message(&refused)),
        (
            400,
            "ConfigMap in version \"v1\" cannot be handled as a ConfigMap: strict decoding error: unknown field \"bogus\""
        )
    );
    let warned = cluster.call("POST", CONFIGMAPS, &[], strict).await;
    assert_eq!(
        (warned.code, warned.headers["warning"].to_str().unwrap()),
        (201, "299 - \"unknown field \\\"bogus\\\"\"")
    );
    assert_eq!(warned.body["bogus"], Value::Null);
    let patch = json!({"bogus": [1], "data": {"b": null, "a": "x"}}).to_string();
    let strategic = [("content-type", "application/strategic-merge-patch+json")];
    let path = format!("{CONFIGMAPS}/a?fieldValidation=Strict");
    let refused = cluster.call("PATCH", &path, &strategic, patch).await;
    assert_eq!(
        (refused.code, message(&refused)),
        (
            422,
            " \"\" is invalid: patch: Invalid value: \"map[bogus:[1] data:map[a:x b:<nil>]]\": strict decoding error: unknown field \"bogus\""
        )
    );
}

#[tokio::test]
async fn scale_and_eviction_are_doors_of_their_own() {
    let cluster = start().await;
    let labels = json!({"app": "web"});
    let deployment = json!({"metadata": {"name": "web"}, "spec": {"replicas": 2, "selector": {"matchLabels": labels},
        "template": {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "c", "image": "nginx"}]}}}});
    let path = "/apis/apps/v1/namespaces/default/deployments";
    assert_eq!(cluster.post(path, deployment).await.code, 201);
    let scale = cluster.get(&format!("{path}/web/scale")).await;
    assert_eq!(
        (&scale.body["kind"], &scale.body["spec"]["replicas"]),
        (&json!("Scale"), &json!(2))
    );
    assert_eq!(scale.body["status"]["selector"], "app=web");
    let scaled = cluster
        .patch("merge-patch+json", &format!("{path}/web/scale"), json!({"spec": {"replicas": 5}}))
        .await;
    assert_eq!((scaled.code, &scaled.body["spec"]["replicas"]), (200, &json!(5)), "{scaled:?}");
    assert_eq!(cluster.get(&format!("{path}/web")).await.body["spec"]["replicas"], 5);

    cluster.post(PODS, pod("a")).await;
    let evicted =
        cluster.post(&format!("{PODS}/a/eviction"), json!({"metadata": {"name": "a"}})).await;
    assert_eq!(evicted.code, 201, "{evicted:?}");
    assert_eq!(cluster.get(&format!("{PODS}/a")).await.code, 404);

    cluster.post(PODS, pod("b")).await;
    let former =
        json!({"apiVersion": "policy/v1beta1", "kind": "Eviction", "metadata": {"name": "b"}});
    let evicted = cluster.post(&format!("{PODS}/b/eviction"), former).await;
    assert_eq!(evicted.code, 201, "{evicted:?}");
}

#[tokio::test]
async fn tables_metadata_and_discovery_take_the_asked_form() {
    let cluster = start().await;
    cluster.post(CONFIGMAPS, configmap("a", "x")).await;
    let accept = [("accept", "application/json;as=Table;v=v1;g=meta.k8s.io,application/json")];
    let table = cluster.call("GET", CONFIGMAPS, &accept, "").await;
    assert_eq!(
        (&table.body["kind"], &table.body["rows"][0]["cells"][0]),
        (&json!("Table"), &json!("a"))
    );
    assert_eq!(table.body["rows"][0]["object"]["kind"], "PartialObjectMetadata");
    let accept = [("accept", "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io")];
    let partial = cluster.call("GET", CONFIGMAPS, &accept, "").await;
    assert_eq!(partial.body["kind"], "PartialObjectMetadataList");
    assert_eq!(partial.body["items"][0]["data"], Value::Null);

    assert_eq!(cluster.get("/api").await.body["versions"], json!(["v1"]));
    let resources = cluster.get("/apis/apps/v1").await.body["resources"].clone();
    assert!(
        resources
            .as_array()
            .unwrap()
            .iter()
            .any(|entry| entry["name"] == "deployments/scale" && entry["group"] == "autoscaling")
    );
    let accept = [(
        "accept",
        "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json",
    )];
    let all = cluster.call("GET", "/apis", &accept, "").await;
    assert_eq!(all.body["kind"], "APIGroupDiscoveryList");
    assert_eq!(
        all.headers["content-type"],
        "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"
    );
    assert_eq!(cluster.get("/readyz").await.body, "ok");
    assert_eq!(cluster.get("/version").await.body["minor"], "36");
    let metrics = cluster.get("/metrics").await;
    assert!(
        metrics
            .body
            .as_str()
            .unwrap()
            .contains("apiserver_request_total{code=\"201\",group=\"\",resource=\"configmaps\"")
    );
}

#[tokio::test]
async fn events_are_shared_by_both_groups() {
    let cluster = start().await;
    let event = json!({"metadata": {"name": "e"}, "involvedObject": {"kind": "Pod", "name": "a", "namespace": "default"},
        "message": "hello", "reason": "Started", "type": "Normal"});
    assert_eq!(cluster.post("/api/v1/namespaces/default/events", event).await.code, 201);
    let seen = cluster.get("/apis/events.k8s.io/v1/namespaces/default/events").await;
    assert_eq!(seen.body["items"][0]["note"], "hello", "{seen:?}");
    assert_eq!(seen.body["items"][0]["regarding"]["name"], "a");
}

#[tokio::test]
async fn concurrent_patches_all_count() {
    let cluster = Arc::new(start().await);
    cluster.post(CONFIGMAPS, configmap("a", "x")).await;
    let writers = (0..4).map(|number| {
        let cluster = Arc::clone(&cluster);
        tokio::spawn(async move {
            let patch = json!({"data": {format!("k{number}"): "v"}});
            cluster.patch("merge-patch+json", &format!("{CONFIGMAPS}/a"), patch).await.code
        })
    });
    for code in futures_util::future::join_all(writers).await {
        assert_eq!(code.unwrap(), 200);
    }
    let data = cluster.get(&format!("{CONFIGMAPS}/a")).await.body["data"].clone();
    assert_eq!(data.as_object().unwrap().len(), 5);
}

#[tokio::test]
async fn reviews_answer_and_bindings_bind_without_being_stored() {
    let cluster = start().await;
    let me = cluster.post("/apis/authentication.k8s.io/v1/selfsubjectreviews", json!({})).await;
    assert_eq!(
        (me.code, &me.body["status"]["userInfo"]["username"]),
        (201, &json!("admin")),
        "{me:?}"
    );
    let asked = json!({"spec": {"resourceAttributes": {"verb": "get", "resource": "pods", "namespace": "default"}}});
    let access =
        cluster.post("/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", asked).await;
    assert_eq!((access.code, &access.body["status"]["allowed"]), (201, &json!(true)), "{access:?}");
    cluster.post("/api/v1/nodes", json!({"metadata": {"name": "n"}})).await;
    cluster.post(PODS, pod("a")).await;
    let binding = json!({"metadata": {"name": "a"}, "target": {"kind": "Node", "name": "n"}});
    assert_eq!(cluster.post("/api/v1/namespaces/default/bindings", binding).await.code, 201);
    assert_eq!(cluster.get(&format!("{PODS}/a")).await.body["spec"]["nodeName"], "n");
}
