//! Options of lists and watches, checked as upstream checks them: `metav1.ListOptions`.

use api::resource::{FieldError, Resource};
use api::{Reason, StatusError};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use crate::request::{Query, RequestInfo};
use crate::select::Selector;

/// `resourceVersionMatch`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Match {
    /// Not given.
    Unset,
    /// That very revision.
    Exact,
    /// That revision or any later one.
    NotOlderThan,
}

/// Options of a list or watch.
#[derive(Clone, Debug)]
pub(crate) struct ListOptions {
    /// Labels, fields and namespace.
    pub selector: Selector,
    /// `resourceVersion` as given: empty, `0` or a number.
    pub revision: Option<u64>,
    /// How `revision` is meant.
    pub matching: Match,
    /// Items at most; 0: all.
    pub limit: usize,
    /// Where a list goes on.
    pub start: Option<Continue>,
    /// Bookmarks are wanted.
    pub bookmarks: bool,
    /// `sendInitialEvents`.
    pub initial_events: Option<bool>,
    /// Seconds until a watch ends.
    pub timeout_seconds: Option<u64>,
}

impl ListOptions {
    /// Reads the options of a request.
    ///
    /// # Errors
    /// 400 and 422 in upstream's words.
    pub(crate) fn parse(
        info: &RequestInfo,
        resource: &'static Resource,
    ) -> Result<Self, StatusError> {
        let query = &info.query;
        let revision = match query.get("resourceVersion") {
            "" => None,
            text => Some(text.parse::<u64>().map_err(|_error| bad_revision(resource, text))?),
        };
        let matching = match query.get("resourceVersionMatch") {
            "Exact" => Match::Exact,
            "NotOlderThan" => Match::NotOlderThan,
            _ => Match::Unset,
        };
        let initial_events =
            query.has("sendInitialEvents").then(|| query.flag("sendInitialEvents"));
        let options = Self {
            selector: Selector::parse(info, resource)?,
            revision,
            matching,
            limit: usize::try_from(integer(query, "limit")?).unwrap_or(0),
            start: match query.get("continue") {
                "" => None,
                token => Some(Continue::decode(token)?),
            },
            bookmarks: query.flag("allowWatchBookmarks"),
            initial_events,
            timeout_seconds: u64::try_from(integer(query, "timeoutSeconds")?)
                .ok()
                .filter(|seconds| *seconds > 0),
        };
        let errors = options.check(info);
        if errors.is_empty() {
            Ok(options)
        } else {
            Err(StatusError::invalid("meta.k8s.io", "ListOptions", "", &errors))
        }
    }

    fn check(&self, info: &RequestInfo) -> Vec<FieldError> {
        let mut errors = Vec::new();
        let matching = info.query.get("resourceVersionMatch");
        let watches = info.verb == "watch";
        if self.initial_events.is_some() {
            if !watches {
                errors.push(FieldError::forbidden(
                    "sendInitialEvents",
                    "sendInitialEvents is forbidden for list",
                ));
            } else if self.matching != Match::NotOlderThan {
                errors.push(FieldError::forbidden(
                    "resourceVersionMatch",
                    "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
                ));
            }
            return errors;
        }
        if matching.is_empty() {
            return errors;
        }
        if watches {
            let why =
                "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided";
            errors.push(FieldError::forbidden("resourceVersionMatch", why));
            return errors;
        }
        if self.revision.is_none() {
            let why = "resourceVersionMatch is forbidden unless resourceVersion is provided";
            errors.push(FieldError::forbidden("resourceVersionMatch", why));
        }
        if self.start.is_some() {
            let why = "resourceVersionMatch is forbidden when continue is provided";
            errors.push(FieldError::forbidden("resourceVersionMatch", why));
        }
        if self.matching == Match::Unset {
            errors.push(FieldError::unsupported(
                "resourceVersionMatch",
                &matching.into(),
                &["Exact", "NotOlderThan", ""],
            ));
        }
        if self.matching == Match::Exact && self.revision == Some(0) {
            let why = "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"";
            errors.push(FieldError::forbidden("resourceVersionMatch", why));
        }
        errors
    }
}

fn bad_revision(resource: &Resource, text: &str) -> StatusError {
    let why = format!("strconv.ParseUint: parsing {text:?}: invalid syntax");
    let error = FieldError::invalid("resourceVersion", &Value::from(text), &why);
    StatusError::invalid(resource.group, resource.plural, "", &[error])
}

/// A continue token: the revision of the snapshot and the last key of the chunk before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Continue {
    /// The snapshot; `None`: whatever is there now.
    pub revision: Option<u64>,
    /// The key, without the prefix of the list.
    pub after: String,
}

impl Continue {
    /// The token.
    pub(crate) fn encode(&self) -> String {
        let revision = self.revision.map_or(json!(-1), |revision| json!(revision));
        URL_SAFE_NO_PAD.encode(
            json!({"v": "meta.k8s.io/v1", "rv": revision, "start": format!("{}\0", self.after)})
                .to_string(),
        )
    }

    /// Reads a token.
    ///
    /// # Errors
    /// 400 in upstream's words.
    pub(crate) fn decode(token: &str) -> Result<Self, StatusError> {
        let bad = |why: &str| {
            StatusError::bad_request(format!(
                "invalid continue token: continue key is not valid: {why}"
            ))
        };
        let bytes = URL_SAFE_NO_PAD
            .decode(token.trim_end_matches('='))
            .map_err(|error| bad(&error.to_string()))?;
        let value: Value =
            serde_json::from_slice(&bytes).map_err(|error| bad(&error.to_string()))?;
        if value["v"] != "meta.k8s.io/v1" {
            let version = value["v"].as_str().unwrap_or("");
            return Err(bad(&format!("server does not recognize this encoded version {version}")));
        }
        let start = value["start"].as_str().filter(|start| !start.is_empty());
        let start = start.ok_or_else(|| bad("encoded start key empty (version meta.k8s.io/v1)"))?;
        let after = start.trim_end_matches('\0').to_owned();
        if value["rv"] == 0 {
            return Err(bad("incorrect encoded start resourceVersion (version meta.k8s.io/v1)"));
        }
        Ok(Self { revision: value["rv"].as_u64(), after })
    }
}

/// A whole number of the query, 0 when it is not there.
///
/// # Errors
/// 400 in upstream's words, which are Go's.
fn integer(query: &Query, name: &str) -> Result<i64, StatusError> {
    let text = query.get(name);
    if text.is_empty() && !query.has(name) {
        return Ok(0);
    }
    text.parse().map_err(|error: std::num::ParseIntError| {
        use std::num::IntErrorKind::{NegOverflow, PosOverflow};
        let why = match error.kind() {
            NegOverflow | PosOverflow => "value out of range",
            _ => "invalid syntax",
        };
        StatusError::bad_request(format!("strconv.ParseInt: parsing {text:?}: {why}"))
    })
}

/// 410 for a list whose snapshot is gone, with a token that goes on inconsistently.
pub(crate) fn expired_continue(after: &str) -> (StatusError, String) {
    let message = "The provided continue parameter is too old to display a consistent list result. You can start a new \
                   list without the continue parameter, or use the continue token in this response to retrieve the \
                   remainder of the results. Continuing with the provided token results in an inconsistent list - \
                   objects that were created, modified, or deleted between the time the first chunk was returned and \
                   now may show up in the list.";
    let token = Continue { revision: None, after: after.to_owned() }.encode();
    (StatusError::new(Reason::Expired, message), token)
}

/// 504 for a revision that does not exist yet.
pub(crate) fn too_large(wanted: u64, current: u64) -> StatusError {
    let mut error = StatusError::new(
        Reason::Timeout,
        format!("Too large resource version: {wanted}, current: {current}"),
    );
    error.details = json!({
        "causes": [{"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}],
        "retryAfterSeconds": 1,
    });
    error
}

/// 410 of a watch or exact list from a forgotten revision.
pub(crate) fn too_old(wanted: u64, oldest: u64) -> StatusError {
    StatusError::new(Reason::Expired, format!("too old resource version: {wanted} ({oldest})"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn continue_tokens_come_back() {
        for revision in [Some(7), None] {
            let token = Continue { revision, after: "ns/name".to_owned() };
            assert_eq!(Continue::decode(&token.encode()).unwrap(), token);
        }
        assert!(Continue::decode("!").unwrap_err().message.starts_with("invalid continue token: "));
    }
}
