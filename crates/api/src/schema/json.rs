//! JSON with duplicate keys reported and syntax errors in the words of Go's decoder.

use std::cell::RefCell;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// At most this many duplicates are reported.
const DUPLICATES_MAX: usize = 100;

pub(super) fn parse(bytes: &[u8]) -> Result<(Value, Vec<String>), String> {
    let duplicates = RefCell::new(Vec::new());
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let path = Path { parent: None, step: Step::Root };
    let parsed = Node { path: &path, duplicates: &duplicates }
        .deserialize(&mut reader)
        .and_then(|value| reader.end().map(|()| value));
    match parsed {
        Ok(value) => Ok((value, duplicates.into_inner())),
        Err(error) => Err(go_error(bytes, &error)),
    }
}

enum Step<'a> {
    Root,
    Key(&'a str),
    Index(usize),
}

/// A path as a chain on the stack; text is made only for duplicates.
struct Path<'a> {
    parent: Option<&'a Path<'a>>,
    step: Step<'a>,
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(parent) = self.parent else { return Ok(()) };
        parent.fmt(f)?;
        match self.step {
            Step::Root => Ok(()),
            Step::Key(key) if parent.parent.is_none() => f.write_str(key),
            Step::Key(key) => write!(f, ".{key}"),
            Step::Index(index) => write!(f, "[{index}]"),
        }
    }
}

#[derive(Clone, Copy)]
struct Node<'a> {
    path: &'a Path<'a>,
    duplicates: &'a RefCell<Vec<String>>,
}

impl<'de> DeserializeSeed<'de> for Node<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, reader: D) -> Result<Value, D::Error> {
        reader.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Node<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Number::from_f64(value).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        loop {
            let path = Path { parent: Some(self.path), step: Step::Index(items.len()) };
            match access.next_element_seed(Node { path: &path, duplicates: self.duplicates })? {
                Some(item) => items.push(item),
                None => return Ok(Value::Array(items)),
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut fields = Map::new();
        while let Some(key) = access.next_key::<String>()? {
            let path = Path { parent: Some(self.path), step: Step::Key(&key) };
            if fields.contains_key(&key) {
                let mut duplicates = self.duplicates.borrow_mut();
                let error = format!("duplicate field {:?}", path.to_string());
                if duplicates.len() < DUPLICATES_MAX && !duplicates.contains(&error) {
                    duplicates.push(error);
                }
            }
            let value =
                access.next_value_seed(Node { path: &path, duplicates: self.duplicates })?;
            fields.insert(key, value);
        }
        Ok(Value::Object(fields))
    }
}

/// Rewords a syntax error.
fn go_error(bytes: &[u8], error: &serde_json::Error) -> String {
    if error.is_eof() {
        return "unexpected end of JSON input".to_owned();
    }
    let text = error.to_string();
    let Some(found) = offender(bytes, error) else { return text };
    let has = |needle: &str| text.starts_with(needle);
    let context = if has("expected value") {
        "looking for beginning of value".to_owned()
    } else if has("key must be a string") || (has("trailing comma") && found == '}') {
        "looking for beginning of object key string".to_owned()
    } else if has("trailing comma") {
        "looking for beginning of value".to_owned()
    } else if has("expected `:`") {
        "after object key".to_owned()
    } else if has("expected `,` or `}`") {
        "after object key:value pair".to_owned()
    } else if has("expected `,` or `]`") {
        "after array element".to_owned()
    } else if has("trailing characters") {
        "after top-level value".to_owned()
    } else if has("invalid escape") {
        "in string escape code".to_owned()
    } else if has("control character") {
        "in string literal".to_owned()
    } else if has("invalid number") {
        "in numeric literal".to_owned()
    } else if has("expected ident") {
        literal_context(bytes, error)
    } else {
        return text;
    };
    format!("invalid character {} {context}", quote(found))
}

/// Byte offset of an error's place.
fn offset(bytes: &[u8], error: &serde_json::Error) -> usize {
    let line = error.line().saturating_sub(1);
    let start = match line {
        0 => 0,
        _ => bytes
            .iter()
            .enumerate()
            .filter(|(_, byte)| **byte == b'\n')
            .nth(line - 1)
            .map_or(0, |(at, _)| at + 1),
    };
    // A newline that is itself the error counts as column 0 of the next line.
    (start + error.column()).saturating_sub(1)
}

fn offender(bytes: &[u8], error: &serde_json::Error) -> Option<char> {
    let rest = bytes.get(offset(bytes, error)..)?;
    let end = rest.len().min(4);
    String::from_utf8_lossy(&rest[..end]).chars().next()
}

/// `in literal true (expecting 'r')`, from the letters before the error.
fn literal_context(bytes: &[u8], error: &serde_json::Error) -> String {
    let before = &bytes[..offset(bytes, error).min(bytes.len())];
    for literal in ["true", "false", "null"] {
        for length in (1..literal.len()).rev() {
            if before.ends_with(&literal.as_bytes()[..length]) {
                return format!("in literal {literal} (expecting '{}')", &literal[length..=length]);
            }
        }
    }
    "looking for beginning of value".to_owned()
}

/// As Go quotes a character in these errors.
fn quote(c: char) -> String {
    match c {
        '\'' => r"'\''".to_owned(),
        '"' => "'\"'".to_owned(),
        '\n' => r"'\n'".to_owned(),
        '\r' => r"'\r'".to_owned(),
        '\t' => r"'\t'".to_owned(),
        c if c.is_control() => format!("'\\x{:02x}'", u32::from(c)),
        c => format!("'{c}'"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::parse;

    #[test]
    fn syntax_errors_are_worded_as_gos_decoder_words_them() {
        let cases = [
            ("", "unexpected end of JSON input"),
            ("{", "unexpected end of JSON input"),
            ("x", "invalid character 'x' looking for beginning of value"),
            ("{x", "invalid character 'x' looking for beginning of object key string"),
            (r#"{"a" 1}"#, "invalid character '1' after object key"),
            (r#"{"a":1 "b"}"#, "invalid character '\"' after object key:value pair"),
            ("[1 2]", "invalid character '2' after array element"),
            ("[1,]", "invalid character ']' looking for beginning of value"),
            (r#"{"a":1,}"#, "invalid character '}' looking for beginning of object key string"),
            ("{} x", "invalid character 'x' after top-level value"),
            ("{\n  \"a\": tru}", "invalid character '}' in literal true (expecting 'e')"),
            (r#""\q""#, "invalid character 'q' in string escape code"),
            ("\"a\nb\"", r"invalid character '\n' in string literal"),
            ("-x", "invalid character 'x' in numeric literal"),
        ];
        for (text, wanted) in cases {
            assert_eq!(parse(text.as_bytes()).expect_err(text), wanted, "{text}");
        }
    }

    #[test]
    fn duplicates_are_named_by_their_path_and_the_last_wins() {
        let text = r#"{"spec":{"ports":[{"port":1,"port":2}]},"kind":"a","kind":"b"}"#;
        let (value, duplicates) = parse(text.as_bytes()).expect("is JSON");
        assert_eq!(value, json!({"spec": {"ports": [{"port": 2}]}, "kind": "b"}));
        assert_eq!(
            duplicates,
            [r#"duplicate field "spec.ports[0].port""#, r#"duplicate field "kind""#]
        );
    }
}
