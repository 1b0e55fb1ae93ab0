//! What a request asks for, from its method, path and query. Upstream: `endpoints/request.RequestInfo`.

use api::ResourceScope;
use api::resource::{RESOURCES, Resource};
use http::{HeaderMap, Method, Uri, header};

/// A query string, decoded; the first value of a name counts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Query(Vec<(String, String)>);

impl Query {
    /// Parses `a=b&c=d` with percent and plus encoding.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let pairs = text.split('&').filter(|pair| !pair.is_empty());
        Self(
            pairs
                .map(|pair| {
                    let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
                    (decode(&name.replace('+', " ")), decode(&value.replace('+', " ")))
                })
                .collect(),
        )
    }

    /// The first value of a name, or empty.
    #[must_use]
    pub fn get(&self, name: &str) -> &str {
        self.0.iter().find(|(key, _)| key == name).map_or("", |(_, value)| value)
    }

    /// All values of a name.
    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// Whether the name is there at all.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.0.iter().any(|(key, _)| key == name)
    }

    /// Go's `strconv.ParseBool` as upstream applies it to options: absent and `0`, `false` are false, else true.
    #[must_use]
    pub fn flag(&self, name: &str) -> bool {
        self.has(name) && !matches!(self.get(name), "0" | "false")
    }
}

/// Percent decoding; what is no valid escape stays.
fn decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        let escaped =
            tail.get(..2).filter(|_| *first == b'%').and_then(|hex| std::str::from_utf8(hex).ok());
        if let Some(byte) = escaped.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            bytes.push(byte);
            rest = &tail[2..];
        } else {
            bytes.push(*first);
            rest = tail;
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// A parsed request.
#[derive(Clone, Debug)]
pub struct RequestInfo {
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, `deletecollection`; for paths the method in
    /// lower case.
    pub verb: &'static str,
    /// The row, when the path names a resource.
    pub resource: Option<&'static Resource>,
    /// API group of the path; empty for core.
    pub group: String,
    /// API version of the path.
    pub version: String,
    /// `status`, `log`, … or empty.
    pub subresource: String,
    /// Empty for cluster-scoped resources and lists of all namespaces.
    pub namespace: String,
    /// Empty for collections.
    pub name: String,
    /// What follows the subresource, with a slash at its start: the path beyond a proxy.
    pub tail: String,
    /// The whole path.
    pub path: String,
    /// The query.
    pub query: Query,
    /// From `User-Agent`: the field manager of callers that name none.
    pub agent: String,
}

impl RequestInfo {
    /// Reads a request's head. A path that names no known resource has `resource: None`.
    #[must_use]
    pub fn parse(method: &Method, uri: &Uri, headers: &HeaderMap) -> Self {
        let path = decode(uri.path());
        let query = Query::parse(uri.query().unwrap_or(""));
        let agent =
            headers.get(header::USER_AGENT).and_then(|agent| agent.to_str().ok()).unwrap_or("");
        let mut info = Self {
            verb: method_verb(method),
            resource: None,
            group: String::new(),
            version: String::new(),
            subresource: String::new(),
            namespace: String::new(),
            name: String::new(),
            tail: String::new(),
            path,
            query,
            agent: agent.split('/').next().unwrap_or("").to_owned(),
        };
        info.parse_resource(method);
        info
    }

    fn parse_resource(&mut self, method: &Method) {
        let path = self.path.clone();
        let mut parts = path.trim_matches('/').split('/');
        match parts.next() {
            Some("api") => {}
            Some("apis") => parts.next().unwrap_or("").clone_into(&mut self.group),
            _ => return,
        }
        parts.next().unwrap_or("").clone_into(&mut self.version);
        let mut parts: Vec<&str> = parts.collect();
        let watches = parts.first() == Some(&"watch");
        if watches {
            parts.remove(0);
        }
        let mut namespaced = false;
        if let ["namespaces", namespace, plural, ..] = parts[..] {
            // `namespaces/x/status` is a part of the namespace itself.
            if !(self.group.is_empty() && matches!(plural, "status" | "finalize")) {
                namespace.clone_into(&mut self.namespace);
                namespaced = true;
                parts.drain(..2);
            }
        }
        let Some(plural) = parts.first() else { return };
        self.resource = find(&self.group, &self.version, plural)
            .filter(|resource| !namespaced || resource.scope == ResourceScope::Namespaced);
        let part =
            |index: usize| parts.get(index).map_or_else(String::new, |part| (*part).to_owned());
        self.name = part(1);
        self.subresource = part(2);
        if let Some(tail) = parts.get(3..).filter(|tail| !tail.is_empty()) {
            self.tail = format!("/{}", tail.join("/"));
            if path.ends_with('/') {
                self.tail.push('/');
            }
        }
        let all_namespaces = self.namespace.is_empty()
            && self.resource.is_some_and(|resource| resource.scope == ResourceScope::Namespaced);
        if all_namespaces && !self.name.is_empty() {
            // A namespaced object has no path outside its namespace.
            self.resource = None;
        }
        if self.resource.is_some() {
            self.verb = self.resource_verb(method, watches);
        }
    }

    fn resource_verb(&self, method: &Method, watches: bool) -> &'static str {
        let collection = self.name.is_empty();
        match *method {
            Method::GET | Method::HEAD
                if self.subresource.is_empty() && (watches || self.query.flag("watch")) =>
            {
                "watch"
            }
            Method::GET | Method::HEAD if collection => "list",
            Method::GET | Method::HEAD => "get",
            Method::POST => "create",
            Method::PUT => "update",
            Method::PATCH => "patch",
            Method::DELETE if collection => "deletecollection",
            Method::DELETE => "delete",
            _ => "",
        }
    }

    /// Whether the object itself is meant, not a part of it.
    #[must_use]
    pub fn is_main(&self) -> bool {
        self.subresource.is_empty()
    }
}

fn method_verb(method: &Method) -> &'static str {
    match *method {
        Method::GET => "get",
        Method::HEAD => "head",
        Method::POST => "post",
        Method::PUT => "put",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        Method::OPTIONS => "options",
        _ => "",
    }
}

fn find(group: &str, version: &str, plural: &str) -> Option<&'static Resource> {
    RESOURCES.iter().find(|resource| {
        resource.plural == plural && resource.group == group && resource.version == version
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn parse(method: Method, uri: &str) -> RequestInfo {
        RequestInfo::parse(&method, &uri.parse().unwrap(), &HeaderMap::new())
    }

    #[test]
    fn paths_name_resources_and_verbs() {
        let info =
            parse(Method::GET, "/api/v1/namespaces/a/pods/b/log?follow=true&container=c%2Fd+e");
        assert_eq!(
            (info.verb, &*info.namespace, &*info.name, &*info.subresource),
            ("get", "a", "b", "log")
        );
        assert_eq!(info.resource.unwrap().plural, "pods");
        assert!(info.query.flag("follow") && !info.query.flag("previous"));
        assert_eq!(info.query.get("container"), "c/d e");
        let info = parse(Method::PUT, "/api/v1/namespaces/a/finalize");
        assert_eq!(
            (info.resource.unwrap().plural, &*info.name, &*info.subresource),
            ("namespaces", "a", "finalize")
        );
        assert_eq!(parse(Method::GET, "/apis/apps/v1/deployments?watch=1").verb, "watch");
        assert_eq!(parse(Method::DELETE, "/api/v1/namespaces/a/pods").verb, "deletecollection");
        assert!(
            parse(Method::GET, "/api/v1/pods/a").resource.is_none(),
            "no namespaced object without its namespace"
        );
        assert!(parse(Method::GET, "/api/v1/namespaces/a/nodes").resource.is_none());
        let info = parse(Method::GET, "/api/v1/namespaces/a/services/http:b:80/proxy/x/y/");
        assert_eq!((&*info.subresource, &*info.tail), ("proxy", "/x/y/"));
    }
}
