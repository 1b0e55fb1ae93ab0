//! Paths that are no resources: health, version, metrics, OpenAPI.

use std::sync::OnceLock;

use api::ResourceScope;
use api::openapi::{self, Served};
use api::resource::RESOURCES;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use serde_json::{Value, json};

use crate::metrics::Metrics;
use crate::request::Query;
use crate::{Body, empty_body, object, reply};

/// The Kubernetes version that this server speaks.
const VERSION: (&str, &str, &str) = ("1", "36", "v1.36.0");
/// What `/readyz?verbose` and its siblings list.
const CHECKS: [&str; 3] = ["ping", "log", "etcd"];

/// kubectl asks whether a kind that it does not find here is a custom one; without an answer it hides that there is no
/// such kind behind an error of its own. There are none, and none can be made.
const CUSTOM_RESOURCE_DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";

/// Answers a path; `None`: not one of these.
pub(crate) fn respond(
    path: &str,
    query: &Query,
    headers: &HeaderMap,
    metrics: &Metrics,
) -> Option<Response<Body>> {
    match path {
        "/healthz" | "/livez" | "/readyz" => Some(health(&path[1..], query)),
        "/version" | "/version/" => {
            Some(reply::json_bytes(StatusCode::OK, object::encode(&version())))
        }
        "/metrics" => {
            Some(reply::reply(StatusCode::OK, "text/plain; version=0.0.4", metrics.render()))
        }
        CUSTOM_RESOURCE_DEFINITIONS => Some(reply::json_bytes(
            StatusCode::OK,
            object::encode(&json!({
                "kind": "CustomResourceDefinitionList",
                "apiVersion": "apiextensions.k8s.io/v1",
                "metadata": {"resourceVersion": "1"},
                "items": [],
            })),
        )),
        "/openapi/v2" => Some(openapi_v2(headers)),
        "/openapi/v3" => Some(cached(headers, v3_index())),
        path => {
            if let Some(check) =
                ["/healthz/", "/livez/", "/readyz/"].iter().find_map(|root| path.strip_prefix(root))
            {
                return CHECKS.contains(&check).then(|| text("ok"));
            }
            openapi_group(path.strip_prefix("/openapi/v3/")?)
                .map(|document| cached(headers, document))
        }
    }
}

fn text(content: impl Into<Bytes>) -> Response<Body> {
    reply::reply(StatusCode::OK, "text/plain; charset=utf-8", content)
}

fn health(name: &str, query: &Query) -> Response<Body> {
    if !query.has("verbose") {
        return text("ok");
    }
    let mut lines: String = CHECKS.iter().map(|check| format!("[+]{check} ok\n")).collect();
    lines.push_str(&format!("{name} check passed\n"));
    text(lines)
}

fn version() -> Value {
    let (major, minor, git) = VERSION;
    json!({"major": major, "minor": minor, "gitVersion": format!("{git}+rhumb"), "gitCommit": "", "gitTreeState": "clean",
        "buildDate": "1970-01-01T00:00:00Z", "goVersion": "", "compiler": "rustc",
        "platform": format!("linux/{}", if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" })})
}

fn served() -> Vec<Served<'static>> {
    RESOURCES
        .iter()
        .map(|resource| Served {
            group: resource.group,
            version: resource.version,
            kind: resource.kind,
            plural: resource.plural,
            namespaced: resource.scope == ResourceScope::Namespaced,
        })
        .collect()
}

/// Clients before 1.27, and some after, ask for protobuf and take nothing else.
fn openapi_v2(headers: &HeaderMap) -> Response<Body> {
    static JSON: OnceLock<Bytes> = OnceLock::new();
    static PROTOBUF: OnceLock<Bytes> = OnceLock::new();
    let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or("");
    if accept.contains("protobuf") && !accept.contains("application/json") {
        let document =
            PROTOBUF.get_or_init(|| openapi::v2_protobuf(&openapi::v2(&served())).into());
        let mut response = cached(headers, document.clone());
        let content_type = HeaderValue::from_static(openapi::V2_PROTOBUF);
        response.headers_mut().insert(header::CONTENT_TYPE, content_type);
        return response;
    }
    let document = JSON.get_or_init(|| object::encode(&openapi::v2(&served())));
    cached(headers, document.clone())
}

fn v3_index() -> Bytes {
    static DOCUMENT: OnceLock<Bytes> = OnceLock::new();
    DOCUMENT.get_or_init(|| object::encode(&openapi::v3_index(&served()))).clone()
}

/// `api/v1` or `apis/group/version`.
fn openapi_group(path: &str) -> Option<Bytes> {
    let (group, version) = match path.trim_end_matches('/').split('/').collect::<Vec<_>>()[..] {
        ["api", version] => ("", version),
        ["apis", group, version] => (group, version),
        _ => return None,
    };
    openapi::v3_group(group, version, &served()).map(|document| object::encode(&document))
}

/// A document with its ETag; 304 when the client has it.
fn cached(headers: &HeaderMap, document: Bytes) -> Response<Body> {
    let digest = ring::digest::digest(&ring::digest::SHA256, &document);
    let hex: String = digest.as_ref().iter().take(16).map(|byte| format!("{byte:02X}")).collect();
    let tag = format!("\"{hex}\"");
    let known =
        headers.get(header::IF_NONE_MATCH).is_some_and(|value| value.as_bytes() == tag.as_bytes());
    let mut response = if known {
        let mut response = Response::new(empty_body());
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        response
    } else {
        reply::json_bytes(StatusCode::OK, document)
    };
    if let Ok(tag) = HeaderValue::from_str(&tag) {
        response.headers_mut().insert(header::ETAG, tag);
    }
    response
}
