//! Events of a watch stream: one JSON object a line.

use api::{Kind, Reason, StatusError};
use serde::Deserialize;
use serde_json::value::RawValue;

/// One event of a watch.
#[derive(Clone, Debug)]
pub enum WatchEvent<K> {
    /// The object is new to the watcher.
    Added(K),
    /// The object changed.
    Modified(K),
    /// The object is gone; its last state.
    Deleted(K),
    /// Nothing changed up to this revision.
    Bookmark {
        /// The revision reached.
        revision: u64,
        /// Whether the initial state is complete (`sendInitialEvents`).
        initial_end: bool,
    },
    /// The server ended the watch with an error; usually the revision has expired.
    Error(StatusError),
}

#[derive(Deserialize)]
struct Line<'a> {
    #[serde(rename = "type")]
    kind: &'a str,
    #[serde(borrow)]
    object: &'a RawValue,
}

#[derive(Deserialize)]
struct BookmarkObject {
    metadata: api::meta::ObjectMeta,
}

/// Decodes one line of a watch stream.
pub(crate) fn parse<K: Kind>(line: &[u8]) -> Result<WatchEvent<K>, serde_json::Error> {
    let line: Line<'_> = serde_json::from_slice(line)?;
    let text = line.object.get();
    Ok(match line.kind {
        "ADDED" => WatchEvent::Added(serde_json::from_str(text)?),
        "MODIFIED" => WatchEvent::Modified(serde_json::from_str(text)?),
        "DELETED" => WatchEvent::Deleted(serde_json::from_str(text)?),
        "BOOKMARK" => {
            let meta = serde_json::from_str::<BookmarkObject>(text)?.metadata;
            let revision = meta.resource_version.and_then(|text| text.parse().ok()).unwrap_or(0);
            let initial_end = meta
                .annotations
                .is_some_and(|notes| notes.contains_key("k8s.io/initial-events-end"));
            WatchEvent::Bookmark { revision, initial_end }
        }
        _ => WatchEvent::Error(status_error(text.as_bytes())),
    })
}

/// Reads a `Status` from an answer; anything else becomes an internal error with the text.
pub(crate) fn status_error(body: &[u8]) -> StatusError {
    let value: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
    let text = |key: &str| value[key].as_str().unwrap_or_default().to_owned();
    if text("kind") != "Status" {
        return StatusError::internal(String::from_utf8_lossy(body).trim());
    }
    StatusError {
        reason: reason(&text("reason"), value["code"].as_u64().unwrap_or(500)),
        message: text("message"),
        details: value["details"].clone(),
    }
}

fn reason(text: &str, code: u64) -> Reason {
    const REASONS: [Reason; 17] = [
        Reason::BadRequest,
        Reason::Unauthorized,
        Reason::Forbidden,
        Reason::NotFound,
        Reason::MethodNotAllowed,
        Reason::NotAcceptable,
        Reason::AlreadyExists,
        Reason::Conflict,
        Reason::Expired,
        Reason::RequestEntityTooLarge,
        Reason::UnsupportedMediaType,
        Reason::Invalid,
        Reason::TooManyRequests,
        Reason::InternalError,
        Reason::ServiceUnavailable,
        Reason::Timeout,
        Reason::InternalError,
    ];
    let named = REASONS.into_iter().find(|reason| format!("{reason:?}") == text);
    let by_code = || REASONS.into_iter().find(|reason| u64::from(reason.code()) == code);
    named.or_else(by_code).unwrap_or(Reason::InternalError)
}
