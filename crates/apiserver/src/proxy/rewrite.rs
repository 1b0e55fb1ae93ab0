//! Answers of pods and Services as they look through the proxy: links of pages and redirects lead back through it.
//!
//! Upstream counterpart: `k8s.io/apimachinery/pkg/util/proxy.Transport`. Only values of attributes are changed; the rest
//! of a page stays as the backend wrote it.

use std::io::{Read, Write};

use bytes::{Bytes, BytesMut};
use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use futures_util::{StreamExt, stream};
use http::{HeaderMap, HeaderValue, Response, header};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};

use crate::{Body, full_body};

/// Pages above this many bytes, compressed or not, are passed on as they are: they have to be held in memory.
const PAGE_BYTES_MAX: usize = 8 * 1024 * 1024;

/// The attributes with URLs of each element, as HTML 4 and HTML 5 list them.
const ATTRIBUTES: &[(&str, &[&str])] = &[
    ("a", &["href"]),
    ("applet", &["codebase"]),
    ("area", &["href"]),
    ("audio", &["src"]),
    ("base", &["href"]),
    ("blockquote", &["cite"]),
    ("body", &["background"]),
    ("button", &["formaction"]),
    ("command", &["icon"]),
    ("del", &["cite"]),
    ("embed", &["src"]),
    ("form", &["action"]),
    ("frame", &["longdesc", "src"]),
    ("head", &["profile"]),
    ("html", &["manifest"]),
    ("iframe", &["longdesc", "src"]),
    ("img", &["longdesc", "src", "usemap"]),
    ("input", &["src", "usemap", "formaction"]),
    ("ins", &["cite"]),
    ("link", &["href"]),
    ("object", &["classid", "codebase", "data", "usemap"]),
    ("q", &["cite"]),
    ("script", &["src"]),
    ("source", &["src"]),
    ("video", &["poster", "src"]),
];
/// Elements whose content is text and never has tags.
const TEXT_ONLY: [&str; 4] = ["script", "style", "textarea", "title"];

/// Where a backend is seen through the proxy.
#[derive(Clone, Debug)]
pub(super) struct Prefix {
    /// The API's own path up to `proxy`, without a slash at its end.
    pub path: String,
    /// The hosts that mean the backend: its authority and the client's name of the API server.
    pub hosts: [String; 2],
}

impl Prefix {
    /// A URL of the backend as a client has to write it; URLs of others and relative ones stay.
    fn url(&self, url: &str) -> String {
        let local = match url.split_once("://") {
            Some((scheme, rest)) if !scheme.contains(['/', '?', '#']) => {
                self.of_host(rest).map(str::to_owned)
            }
            _ => match url.strip_prefix("//") {
                Some(rest) => self.of_host(rest).map(str::to_owned),
                None => url.starts_with('/').then(|| url.to_owned()),
            },
        };
        match local {
            None => url.to_owned(),
            Some(path) if path.starts_with(&self.path) => path,
            Some(path) => format!("{}{path}", self.path),
        }
    }

    /// Path, query and fragment of what follows `//`, when the host means the backend.
    fn of_host<'a>(&self, rest: &'a str) -> Option<&'a str> {
        let (host, path) = rest.split_at(rest.find('/')?);
        self.hosts.iter().any(|known| known == host).then_some(path)
    }

    /// A page with its links rewritten.
    fn page(&self, page: &str) -> String {
        let mut out = String::with_capacity(page.len() + 256);
        let mut rest = page;
        while let Some(start) = rest.find('<') {
            let (text, tag) = rest.split_at(start);
            out.push_str(text);
            let end = if tag.starts_with("<!--") {
                tag.find("-->").map_or(tag.len(), |end| end + 3)
            } else {
                tag_end(tag)
            };
            let (tag, after) = tag.split_at(end);
            let name = element(tag);
            out.push_str(&self.tag(tag, &name));
            let skip = if TEXT_ONLY.contains(&name.as_str()) { closing(after, &name) } else { 0 };
            out.push_str(&after[..skip]);
            rest = &after[skip..];
        }
        out.push_str(rest);
        out
    }

    /// One start tag with its URLs rewritten; any other piece of a page as it is.
    fn tag(&self, tag: &str, name: &str) -> String {
        let urls = ATTRIBUTES.iter().find(|(element, _)| *element == name);
        let Some((_, urls)) = urls else { return tag.to_owned() };
        let (mut out, mut rest) = tag.split_at(1 + name.len());
        let mut written = out.to_owned();
        while !rest.is_empty() {
            let space = |c: char| c.is_ascii_whitespace() || c == '/' || c == '>';
            let gap = rest.find(|c| !space(c)).unwrap_or(rest.len());
            (out, rest) = rest.split_at(gap);
            written.push_str(out);
            let key_end = rest.find(|c| space(c) || c == '=').unwrap_or(rest.len()).max(1);
            let Some((key, after)) = rest.split_at_checked(key_end) else { break };
            written.push_str(key);
            rest = after;
            let value = rest.trim_start();
            let Some(value) = value.strip_prefix('=').map(str::trim_start) else { continue };
            written.push_str(&rest[..rest.len() - value.len()]);
            let (quote, raw, after) = value_of(value);
            written.push_str(quote);
            if urls.contains(&key.to_ascii_lowercase().as_str()) {
                written.push_str(&self.url(raw));
            } else {
                written.push_str(raw);
            }
            written.push_str(quote);
            rest = after;
        }
        written
    }
}

/// The first byte after a tag; quoted values may have a `>`.
fn tag_end(tag: &str) -> usize {
    let mut quote = None;
    for (at, c) in tag.char_indices() {
        match quote {
            Some(open) if c == open => quote = None,
            None if c == '>' => return at + 1,
            None if matches!(c, '"' | '\'') && tag[..at].trim_end().ends_with('=') => {
                quote = Some(c);
            }
            _ => {}
        }
    }
    tag.len()
}

/// The element of a start tag in lower case; empty for everything else.
fn element(tag: &str) -> String {
    let name = tag.get(1..).unwrap_or_default();
    let end = name.find(|c: char| !c.is_ascii_alphanumeric()).unwrap_or(name.len());
    name[..end].to_ascii_lowercase()
}

/// Where the end tag of an element begins.
fn closing(text: &str, name: &str) -> usize {
    let ends = text.match_indices("</").find(|(at, _)| {
        text.as_bytes()
            .get(at + 2..at + 2 + name.len())
            .is_some_and(|found| found.eq_ignore_ascii_case(name.as_bytes()))
    });
    ends.map_or(text.len(), |(at, _)| at)
}

/// The quote of a value, the value, and what follows.
fn value_of(text: &str) -> (&str, &str, &str) {
    for quote in ["\"", "'"] {
        if let Some((value, after)) =
            text.strip_prefix(quote).and_then(|inner| inner.split_once(quote))
        {
            return (quote, value, after);
        }
    }
    let end = text.find(|c: char| c.is_ascii_whitespace() || c == '>').unwrap_or(text.len());
    let (value, after) = text.split_at(end);
    ("", value, after)
}

/// The answer as the client is to see it.
pub(super) async fn answer(prefix: &Prefix, response: Response<Body>) -> Response<Body> {
    let (mut parts, body) = response.into_parts();
    let text = |headers: &HeaderMap, name: header::HeaderName| {
        headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned()
    };
    let location = text(&parts.headers, header::LOCATION);
    if !location.is_empty() {
        if let Ok(value) = HeaderValue::from_str(&prefix.url(&location)) {
            parts.headers.insert(header::LOCATION, value);
        }
        return Response::from_parts(parts, body);
    }
    let kind = text(&parts.headers, header::CONTENT_TYPE);
    let encoding = text(&parts.headers, header::CONTENT_ENCODING);
    let is_page = kind.split(';').next().unwrap_or_default().trim() == "text/html";
    if !is_page || !matches!(encoding.as_str(), "" | "gzip") {
        return Response::from_parts(parts, body);
    }
    let page = match collect(body).await {
        Ok(page) => page,
        Err(body) => return Response::from_parts(parts, body),
    };
    if let Some(new) = rewritten(prefix, &page, encoding == "gzip") {
        if parts.headers.remove(header::CONTENT_LENGTH).is_some() {
            parts.headers.insert(header::CONTENT_LENGTH, new.len().into());
        }
        return Response::from_parts(parts, full_body(new));
    }
    Response::from_parts(parts, full_body(page))
}

/// The bytes of a page with its links rewritten; none when it is no text, is too large, or has nothing (as after HEAD).
fn rewritten(prefix: &Prefix, page: &Bytes, compressed: bool) -> Option<Vec<u8>> {
    if page.is_empty() {
        return None;
    }
    if !compressed {
        return Some(prefix.page(std::str::from_utf8(page).ok()?).into_bytes());
    }
    let bound = u64::try_from(PAGE_BYTES_MAX).ok()?;
    let mut text = String::new();
    GzDecoder::new(&page[..]).take(bound + 1).read_to_string(&mut text).ok()?;
    if text.len() > PAGE_BYTES_MAX {
        return None;
    }
    let mut gzip = GzEncoder::new(Vec::new(), Compression::default());
    gzip.write_all(prefix.page(&text).as_bytes()).ok()?;
    gzip.finish().ok()
}

/// The whole body, or when it is too large or breaks off, a body that says the same.
async fn collect(mut body: Body) -> Result<Bytes, Body> {
    let mut read = BytesMut::new();
    loop {
        let broken = match body.frame().await {
            None => return Ok(read.freeze()),
            Some(Ok(frame)) => {
                read.extend_from_slice(&frame.into_data().unwrap_or_default());
                if read.len() <= PAGE_BYTES_MAX {
                    continue;
                }
                None
            }
            Some(Err(error)) => Some(Err(error)),
        };
        let first = stream::iter([Ok(Frame::data(read.freeze()))].into_iter().chain(broken));
        return Err(BodyExt::boxed_unsync(StreamBody::new(
            first.chain(http_body_util::BodyStream::new(body)),
        )));
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn prefix() -> Prefix {
        Prefix {
            path: "/api/v1/namespaces/a/pods/b:80/proxy".to_owned(),
            hosts: ["10.244.0.1:80".to_owned(), "127.0.0.1:8001".to_owned()],
        }
    }

    #[test]
    fn urls_of_the_backend_lead_through_the_proxy() {
        let prefix = prefix();
        let root = prefix.path.clone();
        assert_eq!(prefix.url("/x?y#z"), format!("{root}/x?y#z"));
        assert_eq!(prefix.url("http://10.244.0.1:80/x/"), format!("{root}/x/"));
        assert_eq!(prefix.url("//127.0.0.1:8001/x"), format!("{root}/x"));
        for same in
            ["x", "../x", "", "#a", "?a=/b://c", "http://example.com/x", &format!("{root}/x")]
        {
            assert_eq!(prefix.url(same), same);
        }
    }

    #[test]
    fn only_links_of_a_page_change() {
        let prefix = prefix();
        let root = &prefix.path;
        for (page, wanted) in [
            (r#"<a href="/rewriteme">test</a>"#, format!(r#"<a href="{root}/rewriteme">test</a>"#)),
            ("<A title='/t' HREF=/x>", format!("<A title='/t' HREF={root}/x>")),
            (r#"<img alt=">" src='/i'/>"#, format!(r#"<img alt=">" src='{root}/i'/>"#)),
            (
                "<script src = '/s'>\"<a href='/no'>\"</script><p>",
                format!("<script src = '{root}/s'>\"<a href='/no'>\"</script><p>"),
            ),
            ("<!-- <a href='/no'> --> a < b <a", "<!-- <a href='/no'> --> a < b <a".to_owned()),
            ("<p>don't</p><a href=/x", format!("<p>don't</p><a href={root}/x")),
            ("<a =x ü='1' href>é</a>", "<a =x ü='1' href>é</a>".to_owned()),
        ] {
            assert_eq!(prefix.page(page), wanted);
        }
    }

    #[tokio::test]
    async fn redirects_and_pages_are_answered_rewritten() {
        let prefix = prefix();
        let redirect = Response::builder().header("location", "/x").body(full_body("")).unwrap();
        let seen = answer(&prefix, redirect).await;
        assert_eq!(seen.headers()["location"], format!("{}/x", prefix.path));
        let page = |kind: &str| {
            let response =
                Response::builder().header("content-type", kind).header("content-length", 13);
            response.body(full_body("<a href='/x'>")).unwrap()
        };
        let seen = answer(&prefix, page("text/html; charset=utf-8")).await;
        let wanted = format!("<a href='{}/x'>", prefix.path);
        assert_eq!(seen.headers()["content-length"], wanted.len().to_string());
        assert_eq!(seen.into_body().collect().await.unwrap().to_bytes(), wanted);
        let seen = answer(&prefix, page("text/plain")).await;
        assert_eq!(seen.into_body().collect().await.unwrap().to_bytes(), "<a href='/x'>");
    }

    #[test]
    fn compressed_pages_stay_compressed() {
        let mut gzip = GzEncoder::new(Vec::new(), Compression::default());
        gzip.write_all(b"<a href='/x'>").unwrap();
        let page = Bytes::from(gzip.finish().unwrap());
        let mut text = String::new();
        let new = rewritten(&prefix(), &page, true).unwrap();
        GzDecoder::new(&new[..]).read_to_string(&mut text).unwrap();
        assert_eq!(text, format!("<a href='{}/x'>", prefix().path));
    }
}
