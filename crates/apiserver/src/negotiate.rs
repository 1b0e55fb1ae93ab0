//! Which form an answer takes and which form a body has. Upstream: `endpoints/handlers/negotiation`.

use api::{Reason, StatusError};
use http::{HeaderMap, header};

/// Media types of request bodies and plain answers.
pub(crate) const MEDIA_TYPES: [&str; 3] =
    ["application/json", "application/yaml", "application/vnd.kubernetes.protobuf"];

/// The form of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// The object or list itself.
    Plain,
    /// A Table of rows, of the meta.k8s.io version.
    Table(&'static str),
    /// Only metadata.
    Partial(&'static str),
}

/// A form and whether it is written as YAML instead of JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Accept {
    /// What is written.
    pub form: Form,
    /// YAML instead of JSON.
    pub yaml: bool,
}

/// Reads `Accept`; the first media range that can be served counts.
///
/// # Errors
/// 406 in upstream's words.
pub(crate) fn accept(headers: &HeaderMap) -> Result<Accept, StatusError> {
    let mut ranges = headers
        .get_all(header::ACCEPT)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .filter(|range| !range.is_empty())
        .peekable();
    if ranges.peek().is_none() {
        return Ok(Accept { form: Form::Plain, yaml: false });
    }
    ranges.find_map(accept_range).ok_or_else(not_acceptable)
}

/// 406 that lists the plain forms.
pub(crate) fn not_acceptable() -> StatusError {
    let message =
        format!("only the following media types are accepted: {}", MEDIA_TYPES.join(", "));
    StatusError::new(Reason::NotAcceptable, message)
}

fn accept_range(range: &str) -> Option<Accept> {
    let mut parts = range.split(';').map(str::trim);
    let yaml = match parts.next()? {
        "application/json" | "application/*" | "*/*" => false,
        "application/yaml" => true,
        _ => return None,
    };
    let (mut kind, mut group, mut version) = ("", "", "");
    for part in parts {
        match part.split_once('=') {
            Some(("as", value)) => kind = value,
            Some(("g", value)) => group = value,
            Some(("v", value)) => version = value,
            _ => {}
        }
    }
    let version = match version {
        "v1beta1" => "v1beta1",
        _ => "v1",
    };
    let form = match (kind, group) {
        ("", _) => Form::Plain,
        ("Table", "meta.k8s.io") => Form::Table(version),
        ("PartialObjectMetadata" | "PartialObjectMetadataList", "meta.k8s.io") => {
            Form::Partial(version)
        }
        _ => return None,
    };
    Some(Accept { form, yaml })
}

/// The form of a request body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    /// JSON; also when nothing is said.
    Json,
    /// YAML.
    Yaml,
    /// Upstream's protobuf envelope.
    Protobuf,
}

/// `Content-Type` without parameters.
pub(crate) fn content_type(headers: &HeaderMap) -> &str {
    let value =
        headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or("");
    value.split(';').next().unwrap_or("").trim()
}

/// The form of the body of a create, update or delete.
///
/// # Errors
/// 415 in upstream's words.
pub(crate) fn content(headers: &HeaderMap) -> Result<Content, StatusError> {
    match content_type(headers) {
        "" | "application/json" | "*/*" => Ok(Content::Json),
        "application/yaml" => Ok(Content::Yaml),
        "application/vnd.kubernetes.protobuf" => Ok(Content::Protobuf),
        _ => Err(unsupported(&MEDIA_TYPES)),
    }
}

/// 415 that lists what would be taken.
pub(crate) fn unsupported(accepted: &[&str]) -> StatusError {
    StatusError::new(
        Reason::UnsupportedMediaType,
        format!(
            "the body of the request was in an unknown format - accepted media types include: {}",
            accepted.join(", ")
        ),
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn of(text: &str) -> Result<Accept, StatusError> {
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT, text.parse().unwrap());
        accept(&headers)
    }

    #[test]
    fn the_first_range_that_can_be_served_counts() {
        let table = of(
            "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json",
        );
        assert_eq!(table.unwrap(), Accept { form: Form::Table("v1"), yaml: false });
        let plain = Accept { form: Form::Plain, yaml: false };
        assert_eq!(of("application/vnd.kubernetes.protobuf,application/json").unwrap(), plain);
        assert_eq!(of("*/*").unwrap(), plain);
        assert_eq!(
            of("application/vnd.kubernetes.protobuf;as=Table;v=v1;g=meta.k8s.io,application/json")
                .unwrap(),
            plain
        );
        assert_eq!(
            of("text/html").unwrap_err().message,
            "only the following media types are accepted: application/json, application/yaml, application/vnd.kubernetes.protobuf"
        );
    }
}
