//! OpenAPI v2 as the protobuf message that clients of client-go before 1.27 ask for. Upstream: gnostic's
//! `OpenAPIv2.proto`; tags are its field numbers.

use serde_json::{Map, Value};

pub(super) fn encode(document: &Value) -> Vec<u8> {
    let mut out = Writer::default();
    out.text(1, text(document, "swagger"));
    out.message(2, |info| {
        let source = document.get("info").unwrap_or(&Value::Null);
        info.text(1, text(source, "title"));
        info.text(2, text(source, "version"));
    });
    out.message(8, |paths| {
        for (path, item) in entries(document.get("paths")) {
            paths.message(2, |named| {
                named.text(1, path);
                named.message(2, |out| path_item(out, item));
            });
        }
    });
    out.message(9, |definitions| {
        for (name, schema) in entries(document.get("definitions")) {
            definitions.message(1, |out| named_schema(out, name, schema));
        }
    });
    out.bytes
}

fn path_item(out: &mut Writer, item: &Value) {
    for (tag, verb) in [(2, "get"), (3, "put"), (4, "post"), (5, "delete"), (8, "patch")] {
        if let Some(source) = item.get(verb) {
            out.message(tag, |out| operation(out, source));
        }
    }
}

fn operation(out: &mut Writer, source: &Value) {
    out.text(5, text(source, "operationId"));
    for parameter in source.get("parameters").and_then(Value::as_array).into_iter().flatten() {
        // ParametersItem > Parameter > NonBodyParameter > QueryParameterSubSchema
        out.message(8, |out| {
            out.message(1, |out| {
                out.message(2, |out| {
                    out.message(3, |query| {
                        query.text(2, text(parameter, "in"));
                        query.text(4, text(parameter, "name"));
                        query.text(6, text(parameter, "type"));
                    });
                });
            });
        });
    }
    out.message(9, |responses| {
        for (code, response) in entries(source.get("responses")) {
            responses.message(1, |named| {
                named.text(1, code);
                named.message(2, |value| {
                    value.message(1, |out| out.text(1, text(response, "description")));
                });
            });
        }
    });
    extensions(out, 13, source);
}

fn named_schema(out: &mut Writer, name: &str, source: &Value) {
    out.text(1, name);
    out.message(2, |out| schema(out, source));
}

fn schema(out: &mut Writer, source: &Value) {
    out.text(1, text(source, "$ref"));
    out.text(2, text(source, "format"));
    out.text(4, text(source, "description"));
    if let Some(default) = source.get("default") {
        out.message(5, |any| any.text(2, &default.to_string()));
    }
    for name in source.get("required").and_then(Value::as_array).into_iter().flatten() {
        out.text(19, name.as_str().unwrap_or(""));
    }
    if let Some(inner) = source.get("additionalProperties") {
        out.message(21, |item| item.message(1, |out| schema(out, inner)));
    }
    if !text(source, "type").is_empty() {
        out.message(22, |item| item.text(1, text(source, "type")));
    }
    if let Some(inner) = source.get("items") {
        out.message(23, |item| item.message(1, |out| schema(out, inner)));
    }
    if source.get("properties").is_some() {
        out.message(25, |properties| {
            for (name, inner) in entries(source.get("properties")) {
                properties.message(1, |out| named_schema(out, name, inner));
            }
        });
    }
    extensions(out, 31, source);
}

/// `x-…` fields as YAML, of which JSON is a part.
fn extensions(out: &mut Writer, tag: u32, source: &Value) {
    for (name, value) in entries(Some(source)).filter(|(name, _)| name.starts_with("x-")) {
        out.message(tag, |named| {
            named.text(1, name);
            named.message(2, |any| any.text(2, &value.to_string()));
        });
    }
}

fn text<'a>(source: &'a Value, name: &str) -> &'a str {
    source.get(name).and_then(Value::as_str).unwrap_or("")
}

fn entries(source: Option<&Value>) -> impl Iterator<Item = (&String, &Value)> {
    source.and_then(Value::as_object).into_iter().flat_map(Map::iter)
}

#[derive(Default)]
struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    fn varint(&mut self, mut value: u64) {
        loop {
            let [low, ..] = value.to_le_bytes();
            value >>= 7;
            if value == 0 {
                self.bytes.push(low & 0x7f);
                return;
            }
            self.bytes.push(low | 0x80);
        }
    }

    fn field(&mut self, tag: u32, bytes: &[u8]) {
        self.varint(u64::from(tag) << 3 | 2);
        self.varint(bytes.len() as u64);
        self.bytes.extend_from_slice(bytes);
    }

    /// Empty text is left out.
    fn text(&mut self, tag: u32, text: &str) {
        if !text.is_empty() {
            self.field(tag, text.as_bytes());
        }
    }

    fn message(&mut self, tag: u32, write: impl FnOnce(&mut Self)) {
        let mut inner = Self::default();
        write(&mut inner);
        self.field(tag, &inner.bytes);
    }
}
