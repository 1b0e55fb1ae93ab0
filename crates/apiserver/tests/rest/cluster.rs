//! A server for tests, and how to talk to it.

use apiserver::auth::User;
use apiserver::{Body, Config, Server, full_body};
use http::{Request, Response};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;

/// A server that is thrown away with its data.
pub(crate) struct Running {
    pub(crate) server: Arc<Server>,
    pub(crate) _directory: tempfile::TempDir,
}

/// An answer that was read to its end.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) code: u16,
    pub(crate) headers: http::HeaderMap,
    pub(crate) body: Value,
}

pub(crate) async fn start() -> Running {
    let directory = tempfile::tempdir().unwrap();
    let server = open(directory.path()).await;
    let running = Running { server, _directory: directory };
    let namespace =
        json!({"metadata": {"name": "default"}, "spec": {"finalizers": ["kubernetes"]}});
    assert_eq!(running.post("/api/v1/namespaces", namespace).await.code, 201);
    let accounts = "/api/v1/namespaces/default/serviceaccounts";
    assert_eq!(running.post(accounts, json!({"metadata": {"name": "default"}})).await.code, 201);
    running
}

pub(crate) async fn open(path: &std::path::Path) -> Arc<Server> {
    Server::prepare(Config::new(path)).await.unwrap()
}

pub(crate) fn admin() -> User {
    User { name: "admin".to_owned(), groups: vec!["system:masters".to_owned()], ..User::default() }
}

impl Running {
    pub(crate) async fn send(&self, request: Request<Body>) -> Response<Body> {
        self.server.respond(admin(), request).await
    }

    pub(crate) async fn call(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<bytes::Bytes>,
    ) -> Answer {
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = self.send(request.body(full_body(body)).unwrap()).await;
        let (code, headers) = (response.status().as_u16(), response.headers().clone());
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        let body = serde_json::from_slice(&bytes)
            .unwrap_or_else(|_| String::from_utf8_lossy(&bytes).into());
        Answer { code, headers, body }
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.call("GET", path, &[], "").await
    }

    pub(crate) async fn post(&self, path: &str, body: Value) -> Answer {
        self.call("POST", path, &[], body.to_string()).await
    }

    pub(crate) async fn put(&self, path: &str, body: Value) -> Answer {
        self.call("PUT", path, &[], body.to_string()).await
    }

    pub(crate) async fn patch(&self, kind: &str, path: &str, body: Value) -> Answer {
        let content = format!("application/{kind}");
        self.call("PATCH", path, &[("content-type", &content)], body.to_string()).await
    }

    pub(crate) async fn delete(&self, path: &str) -> Answer {
        self.call("DELETE", path, &[], "").await
    }

    pub(crate) async fn watch(&self, path: &str) -> Events {
        let response = self.send(Request::get(path).body(full_body("")).unwrap()).await;
        assert_eq!(response.status(), 200);
        Events { body: response.into_body(), rest: Vec::new() }
    }
}

pub(crate) struct Events {
    pub(crate) body: Body,
    pub(crate) rest: Vec<u8>,
}

impl Events {
    /// The next event, or `None` at the end.
    pub(crate) async fn next(&mut self) -> Option<(String, Value)> {
        loop {
            if let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.rest.drain(..=end).collect();
                let mut event: Value = serde_json::from_slice(&line).unwrap();
                return Some((event["type"].as_str().unwrap().to_owned(), event["object"].take()));
            }
            let frame = tokio::time::timeout(Duration::from_secs(10), self.body.frame())
                .await
                .expect("an event in time")?;
            self.rest.extend_from_slice(&frame.unwrap().into_data().unwrap());
        }
    }

    /// Types and names of the next events.
    pub(crate) async fn names(&mut self, count: usize) -> Vec<String> {
        let mut names = Vec::new();
        for _ in 0..count {
            let (kind, object) = self.next().await.unwrap();
            names.push(format!("{kind} {}", object["metadata"]["name"].as_str().unwrap_or("-")));
        }
        names
    }
}
