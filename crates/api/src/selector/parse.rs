//! The grammar of label selectors: tokens, then requirements, with upstream's messages.

use super::Requirement;
use crate::validation::names;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    End,
    Close,
    Comma,
    Not,
    DoubleEquals,
    Equals,
    Above,
    Below,
    In,
    NotIn,
    NotEquals,
    Open,
    Word,
}

#[derive(Clone, Debug)]
struct Token {
    kind: Kind,
    text: String,
}

const OPERATORS: &str = "in, notin, =, ==, !=, gt, lt";

/// Parses a selector.
pub(super) fn selector(text: &str) -> Result<Vec<Requirement>, String> {
    let mut parser = Parser { tokens: tokens(text), position: 0 };
    let mut requirements = Vec::new();
    loop {
        let next = parser.peek();
        match next.kind {
            Kind::End => return Ok(requirements),
            Kind::Word | Kind::Not => {}
            _ => {
                return Err(format!(
                    "found '{}', expected: !, identifier, or 'end of string'",
                    next.text
                ));
            }
        }
        let requirement = parser.requirement();
        requirements
            .push(requirement.map_err(|error| format!("unable to parse requirement: {error}"))?);
        let token = parser.take();
        match token.kind {
            Kind::End => return Ok(requirements),
            Kind::Comma => {
                let next = parser.peek();
                if ![Kind::Word, Kind::Not].contains(&next.kind) {
                    return Err(format!("found '{}', expected: identifier after ','", next.text));
                }
            }
            _ => return Err(format!("found '{}', expected: ',' or 'end of string'", token.text)),
        }
    }
}

fn is_special(character: char) -> bool {
    "=!(),><".contains(character)
}

fn is_space(character: char) -> bool {
    " \t\r\n".contains(character)
}

fn tokens(text: &str) -> Vec<Token> {
    let mut tokens = Vec::new();
    let mut rest = text.trim_start_matches(is_space);
    while !rest.is_empty() {
        let (token, length) = if rest.starts_with(is_special) {
            symbol(rest)
        } else {
            let end = rest.find(|c| is_special(c) || is_space(c)).unwrap_or(rest.len());
            let word = &rest[..end];
            let kind = match word {
                "in" => Kind::In,
                "notin" => Kind::NotIn,
                _ => Kind::Word,
            };
            (Token { kind, text: word.to_owned() }, end)
        };
        tokens.push(token);
        rest = rest[length..].trim_start_matches(is_space);
    }
    tokens.push(Token { kind: Kind::End, text: String::new() });
    tokens
}

fn symbol(rest: &str) -> (Token, usize) {
    let known = [
        ("==", Kind::DoubleEquals),
        ("!=", Kind::NotEquals),
        ("=", Kind::Equals),
        ("!", Kind::Not),
        ("(", Kind::Open),
        (")", Kind::Close),
        (",", Kind::Comma),
        (">", Kind::Above),
    ];
    for (text, kind) in known {
        if rest.starts_with(text) {
            return (Token { kind, text: text.to_owned() }, text.len());
        }
    }
    (Token { kind: Kind::Below, text: "<".to_owned() }, 1)
}

struct Parser {
    tokens: Vec<Token>,
    position: usize,
}

impl Parser {
    /// The next token, with the words of operators as plain words.
    fn peek(&self) -> Token {
        let mut token = self.raw(self.position);
        if [Kind::In, Kind::NotIn].contains(&token.kind) {
            token.kind = Kind::Word;
        }
        token
    }

    fn raw(&self, position: usize) -> Token {
        let last = self.tokens.len() - 1;
        self.tokens[position.min(last)].clone()
    }

    fn take(&mut self) -> Token {
        let token = self.peek();
        self.position += 1;
        token
    }

    fn requirement(&mut self) -> Result<Requirement, String> {
        let mut token = self.take();
        let absent = token.kind == Kind::Not;
        if absent {
            token = self.take();
        }
        if token.kind != Kind::Word {
            return Err(format!("found '{}', expected: identifier", token.text));
        }
        let key = token.text;
        let wrong = names::label_key(&key);
        if !wrong.is_empty() {
            return Err(format!("<nil>: Invalid value: {key:?}: {}", wrong.join("; ")));
        }
        if absent {
            return Ok(Requirement::Absent(key));
        }
        if [Kind::End, Kind::Comma].contains(&self.peek().kind) {
            return Ok(Requirement::Exists(key));
        }
        let operator = self.raw(self.position);
        self.position += 1;
        let many = [Kind::In, Kind::NotIn].contains(&operator.kind);
        let known = many
            || [Kind::Equals, Kind::DoubleEquals, Kind::NotEquals, Kind::Above, Kind::Below]
                .contains(&operator.kind);
        if !known {
            return Err(format!("found '{}', expected: {OPERATORS}", operator.text));
        }
        let mut values = if many { self.values()? } else { vec![self.value()?] };
        values.sort();
        values.dedup();
        build(key, operator.kind, values)
    }

    fn values(&mut self) -> Result<Vec<String>, String> {
        let open = self.take();
        if open.kind != Kind::Open {
            return Err(format!("found '{}' expected: '('", open.text));
        }
        let first = self.peek();
        match first.kind {
            Kind::Close => {
                self.take();
                Ok(vec![String::new()])
            }
            Kind::Word | Kind::Comma => self.list(),
            _ => Err(format!("found '{}', expected: ',', ')' or identifier", first.text)),
        }
    }

    /// The values up to and with the closing parenthesis; a value may be empty.
    fn list(&mut self) -> Result<Vec<String>, String> {
        let mut values = Vec::new();
        loop {
            let token = self.take();
            match token.kind {
                Kind::Word => {
                    values.push(token.text);
                    let next = self.peek();
                    match next.kind {
                        Kind::Comma => {}
                        Kind::Close => break,
                        _ => return Err(format!("found '{}', expected: ',' or ')'", next.text)),
                    }
                }
                Kind::Comma => {
                    if values.is_empty() || [Kind::Close, Kind::Comma].contains(&self.peek().kind) {
                        values.push(String::new());
                    }
                    if self.peek().kind == Kind::Close {
                        break;
                    }
                }
                _ => return Err(format!("found '{}', expected: ',', or identifier", token.text)),
            }
        }
        self.take();
        Ok(values)
    }

    fn value(&mut self) -> Result<String, String> {
        let next = self.peek();
        match next.kind {
            Kind::End | Kind::Comma => Ok(String::new()),
            Kind::Word => {
                self.take();
                Ok(next.text)
            }
            _ => Err(format!("found '{}', expected: identifier", next.text)),
        }
    }
}

fn build(key: String, operator: Kind, values: Vec<String>) -> Result<Requirement, String> {
    let mut errors = Vec::new();
    let bound = values.first().and_then(|value| value.parse::<i64>().ok());
    if [Kind::Above, Kind::Below].contains(&operator) && bound.is_none() {
        let value = values.first().map_or("", String::as_str);
        errors.push(format!(
            "values[0]: Invalid value: {value:?}: for 'Gt', 'Lt' operators, the value must be an integer"
        ));
    }
    for (index, value) in values.iter().enumerate() {
        let wrong = names::label_value(value);
        if !wrong.is_empty() {
            errors.push(format!(
                "values[{index}][{key}]: Invalid value: {value:?}: {}",
                wrong.join("; ")
            ));
        }
    }
    match errors.len() {
        0 => {}
        1 => return Err(errors.remove(0)),
        _ => return Err(format!("[{}]", errors.join(", "))),
    }
    Ok(match operator {
        Kind::NotIn | Kind::NotEquals => Requirement::NotIn(key, values),
        Kind::Above => Requirement::Above(key, bound.unwrap_or_default()),
        Kind::Below => Requirement::Below(key, bound.unwrap_or_default()),
        _ => Requirement::In(key, values),
    })
}
