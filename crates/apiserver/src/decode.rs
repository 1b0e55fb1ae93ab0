//! From request bodies to objects. Upstream: `runtime/serializer` and `handlers/create.go` (`transformDecodeError`).

use api::resource::{FieldError, Resource};
use api::{StatusError, schema};
use bytes::Bytes;
use http::HeaderMap;
use serde_json::Value;

use crate::negotiate::{Content, content};
use crate::registry::api_version;
use crate::request::Query;

/// `fieldValidation`: what becomes of unknown and duplicate fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FieldValidation {
    /// Dropped silently.
    Ignore,
    /// Dropped, with a `Warning` header each.
    Warn,
    /// 400.
    Strict,
}

impl FieldValidation {
    /// Reads the option; `options` is the kind that errors name.
    ///
    /// # Errors
    /// 422 in upstream's words.
    pub(crate) fn parse(query: &Query, options: &str) -> Result<Self, StatusError> {
        match query.get("fieldValidation") {
            "" | "Warn" => Ok(Self::Warn),
            "Ignore" => Ok(Self::Ignore),
            "Strict" => Ok(Self::Strict),
            other => {
                let supported = ["", "Ignore", "Strict", "Warn"];
                let error = FieldError::unsupported("fieldValidation", &other.into(), &supported);
                Err(StatusError::invalid("meta.k8s.io", options, "", &[error]))
            }
        }
    }
}

/// Reads `dryRun`; `options` is the kind that errors name.
///
/// # Errors
/// 422 in upstream's words.
pub(crate) fn dry_run(query: &Query, options: &str) -> Result<bool, StatusError> {
    match query.all("dryRun").find(|value| *value != "All") {
        None => Ok(query.has("dryRun")),
        Some(_) => {
            let given: Value = query.all("dryRun").collect();
            let error = FieldError::unsupported("dryRun", &given, &["All"]);
            Err(StatusError::invalid("meta.k8s.io", options, "", &[error]))
        }
    }
}

/// A decoded body.
pub(crate) struct Decoded {
    /// The object, with kind and apiVersion.
    pub object: Value,
    /// Texts for `Warning` headers.
    pub warnings: Vec<String>,
}

/// What a body is expected to be.
#[derive(Clone, Copy)]
pub(crate) struct Expected<'a> {
    /// API group; empty for core.
    pub group: &'a str,
    /// API version.
    pub version: &'a str,
    /// Kind.
    pub kind: &'a str,
}

impl<'a> Expected<'a> {
    /// An object of a resource.
    pub(crate) fn of(resource: &'a Resource) -> Self {
        Self { group: resource.group, version: resource.version, kind: resource.kind }
    }

    /// `group/version`, or `v1`.
    pub(crate) fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.to_owned()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }
}

/// Kinds that are also taken in a former version with the same fields: `kubectl drain` before 1.22 evicts with it.
const FORMER: [(&str, &str, &str); 1] = [("Eviction", "policy/v1", "policy/v1beta1")];

/// Decodes a body and checks it against the expected kind.
///
/// # Errors
/// 415 for other content types; 400 in upstream's words for what cannot be decoded.
pub(crate) fn object(
    headers: &HeaderMap,
    body: &Bytes,
    expected: Expected<'_>,
    validation: FieldValidation,
) -> Result<Decoded, StatusError> {
    let (mut object, mut strict) = parse(content(headers)?, body, expected.kind)?;
    let wanted = expected.api_version();
    let Some(map) = object.as_object_mut() else {
        let why = format!(
            "couldn't get version/kind; json parse error: json: cannot unmarshal {} into Go value of type struct \
             {{ APIVersion string \"json:\\\"apiVersion,omitempty\\\"\"; Kind string \"json:\\\"kind,omitempty\\\"\" }}",
            go_name(&object)
        );
        return Err(unrecognized(expected.kind, &why, body));
    };
    let named = |field: &str| map.get(field).and_then(Value::as_str).unwrap_or("").to_owned();
    let (version, kind) = (named("apiVersion"), named("kind"));
    let is_former = FORMER.contains(&(expected.kind, &wanted, &version));
    if !version.is_empty() && version != wanted && !is_former {
        return Err(StatusError::bad_request(format!(
            "the API version in the data ({version}) does not match the expected API version ({wanted})"
        )));
    }
    if !kind.is_empty() && kind != expected.kind {
        let (own, version) = (expected.kind, expected.version);
        // Upstream converts to its internal type, whose package is named for the group.
        let package = match expected.group.split('.').next() {
            None | Some("") => "core",
            Some(package) => package,
        };
        return Err(StatusError::bad_request(format!(
            "{kind} in version {version:?} cannot be handled as a {own}: converting ({version}.{kind}) to ({package}.{own}): unknown conversion"
        )));
    }
    map.insert("apiVersion".to_owned(), wanted.into());
    map.insert("kind".to_owned(), expected.kind.into());
    let unhandled = |why: &str| {
        let (kind, version) = (expected.kind, expected.version);
        StatusError::bad_request(format!(
            "{kind} in version {version:?} cannot be handled as a {kind}: {why}"
        ))
    };
    strict.extend(
        schema::check(expected.group, expected.version, expected.kind, &object)
            .map_err(|error| unhandled(&error))?,
    );
    match validation {
        FieldValidation::Ignore => Ok(Decoded { object, warnings: Vec::new() }),
        FieldValidation::Warn => Ok(Decoded { object, warnings: strict }),
        FieldValidation::Strict if strict.is_empty() => Ok(Decoded { object, warnings: strict }),
        FieldValidation::Strict => {
            Err(unhandled(&format!("strict decoding error: {}", strict.join(", "))))
        }
    }
}

/// Bytes to a value and the duplicate fields in it.
fn parse(content: Content, body: &Bytes, kind: &str) -> Result<(Value, Vec<String>), StatusError> {
    let failed = |why: String| unrecognized(kind, &why, body);
    match content {
        Content::Json => {
            let parsed = schema::parse_json(body);
            parsed.map_err(|error| {
                failed(format!("couldn't get version/kind; json parse error: {error}"))
            })
        }
        Content::Yaml => {
            Ok((yaml(body).map_err(|error| failed(format!("yaml: {error}")))?, Vec::new()))
        }
        Content::Protobuf => Ok((api::protobuf::decode(body).map_err(failed)?, Vec::new())),
    }
}

/// YAML as kubectl reads it.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn yaml(body: &[u8]) -> Result<Value, String> {
    let text = std::str::from_utf8(body).map_err(|error| error.to_string())?;
    let options = serde_saphyr::options! { legacy_octal_numbers: true };
    serde_saphyr::from_str_with_options(text, options).map_err(|error| {
        // The lines below the first show the place in the text.
        let text = error.to_string();
        let line = text.lines().next().unwrap_or_default();
        line.strip_prefix("error: ").unwrap_or(line).to_owned()
    })
}

fn unrecognized(kind: &str, why: &str, body: &[u8]) -> StatusError {
    StatusError::bad_request(format!(
        "the object provided is unrecognized (must be of type {kind}): {why} ({})",
        summarize(body)
    ))
}

/// The first bytes of a body: text when it looks like JSON, else hexadecimal.
fn summarize(body: &[u8]) -> String {
    const BYTES_MAX: usize = 30;
    let more = if body.len() > BYTES_MAX { " ..." } else { "" };
    let start = &body[..body.len().min(BYTES_MAX)];
    match body.first() {
        None => "<empty>".to_owned(),
        Some(b'{') => format!("{}{more}", String::from_utf8_lossy(start)),
        Some(_) => {
            format!("{}{more}", start.iter().map(|byte| format!("{byte:02x}")).collect::<String>())
        }
    }
}

/// Go's name of a JSON type.
fn go_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

/// A patched object, checked against its resource; errors name the patch and show it as `shown` writes it.
///
/// # Errors
/// 422 in upstream's words.
pub(crate) fn check_patched(
    resource: &Resource,
    patched: &Value,
    validation: FieldValidation,
    shown: impl Fn() -> String,
) -> Result<Vec<String>, StatusError> {
    let invalid = |why: &str| {
        let error = FieldError::invalid("patch", &Value::from(shown()), why);
        StatusError::invalid("", "", "", &[error])
    };
    let expected = api_version(resource);
    let found = patched["apiVersion"].as_str().unwrap_or("");
    if found != expected {
        return Err(StatusError::bad_request(format!(
            "the API version in the data ({found}) does not match the expected API version ({expected})"
        )));
    }
    let strict = schema::check(resource.group, resource.version, resource.kind, patched)
        .map_err(|error| invalid(&error))?;
    match validation {
        FieldValidation::Ignore => Ok(Vec::new()),
        FieldValidation::Strict if !strict.is_empty() => {
            Err(invalid(&format!("strict decoding error: {}", strict.join(", "))))
        }
        _ => Ok(strict),
    }
}
