//! A table as text in nft's language, for people: golden cases, `rhumb plan proxy`, logs.
//!
//! Rules are written by running them over symbols instead of packets: a register holds the words of what was loaded.

use std::fmt::Write as _;
use std::net::{Ipv4Addr, Ipv6Addr};

use super::{
    Chain, ChainKind, CmpOp, CtKey, Direction, DynOp, Expr, Field, HookPoint, Key, MetaKey,
    PayloadBase, Reg, Reject, Rule, Set, SetData, Table, Value, Verdict,
};

/// The whole table, elements included.
#[must_use]
pub fn render(table: &Table) -> String {
    let mut out = format!("table {} {} {{\n", table.family.word(), table.name);
    for (name, set) in &table.sets {
        let empty = super::Elements::new();
        let elements = table.elements.get(name).unwrap_or(&empty);
        render_set(&mut out, name, set, elements);
    }
    for (name, chain) in &table.chains {
        render_chain(&mut out, table, name, chain);
    }
    out.push_str("}\n");
    out
}

fn render_set(out: &mut String, name: &str, set: &Set, elements: &super::Elements) {
    let fields = |fields: &[Field]| fields.iter().map(|f| f.word()).collect::<Vec<_>>().join(" . ");
    let (word, data) = match &set.data {
        SetData::None => ("set", String::new()),
        SetData::Verdict => ("map", " : verdict".to_owned()),
        SetData::Fields(data) => ("map", format!(" : {}", fields(data))),
    };
    let _ = writeln!(out, "\t{word} {name} {{");
    let _ = writeln!(out, "\t\ttype {}{data}", fields(&set.key));
    if set.interval {
        out.push_str("\t\tflags interval\n");
    }
    if set.dynamic {
        out.push_str("\t\tflags dynamic,timeout\n");
    }
    if set.timeout_s > 0 {
        let _ = writeln!(out, "\t\ttimeout {}s", set.timeout_s);
    }
    if !elements.is_empty() {
        out.push_str("\t\telements = {\n");
        for (key, value) in elements {
            let _ = writeln!(out, "\t\t\t{}{},", key_text(set, key), value_text(set, value));
        }
        out.push_str("\t\t}\n");
    }
    out.push_str("\t}\n");
}

impl Field {
    /// nft's word for the type.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Ipv4 => "ipv4_addr",
            Self::Ipv6 => "ipv6_addr",
            Self::Proto => "inet_proto",
            Self::Port => "inet_service",
            Self::Mark => "mark",
            Self::IfName => "ifname",
        }
    }

    fn text(self, bytes: &[u8]) -> String {
        let four = || <[u8; 4]>::try_from(bytes).unwrap_or_default();
        match self {
            Self::Ipv4 => Ipv4Addr::from(four()).to_string(),
            Self::Ipv6 => {
                Ipv6Addr::from(<[u8; 16]>::try_from(bytes).unwrap_or_default()).to_string()
            }
            Self::Proto => match bytes[0] {
                6 => "tcp".to_owned(),
                17 => "udp".to_owned(),
                132 => "sctp".to_owned(),
                other => other.to_string(),
            },
            Self::Port => u16::from_be_bytes([bytes[0], bytes[1]]).to_string(),
            Self::Mark => u32::from_ne_bytes(four()).to_string(),
            Self::IfName => String::from_utf8_lossy(bytes).trim_end_matches('\0').to_owned(),
        }
    }
}

fn fields_text(fields: &[Field], bytes: &[u8]) -> Vec<String> {
    let mut rest = bytes;
    let mut texts = Vec::with_capacity(fields.len());
    for field in fields {
        let len = field.size() as usize;
        if rest.len() < len {
            break;
        }
        let (head, tail) = rest.split_at(len);
        texts.push(field.text(head));
        rest = tail;
    }
    texts
}

fn key_text(set: &Set, key: &Key) -> String {
    let (first, last) = key.ends();
    let pairs = fields_text(&set.key, first).into_iter().zip(fields_text(&set.key, last));
    let ranges = pairs.map(|(from, to)| if from == to { from } else { format!("{from}-{to}") });
    ranges.collect::<Vec<_>>().join(" . ")
}

fn value_text(set: &Set, value: &Value) -> String {
    match (value, &set.data) {
        (Value::None, _) => String::new(),
        (Value::Verdict(verdict), _) => format!(" : {}", verdict_text(verdict)),
        (Value::Data(bytes), SetData::Fields(fields)) => {
            format!(" : {}", fields_text(fields, bytes).join(" . "))
        }
        (Value::Data(bytes), _) => format!(" : {bytes:02x?}"),
    }
}

fn verdict_text(verdict: &Verdict) -> String {
    match verdict {
        Verdict::Accept => "accept".to_owned(),
        Verdict::Drop => "drop".to_owned(),
        Verdict::Return => "return".to_owned(),
        Verdict::Goto(chain) => format!("goto {chain}"),
        Verdict::Jump(chain) => format!("jump {chain}"),
    }
}

fn render_chain(out: &mut String, table: &Table, name: &str, chain: &Chain) {
    let _ = writeln!(out, "\tchain {name} {{");
    if let Some(hook) = chain.hook {
        let kind = match hook.kind {
            ChainKind::Filter => "filter",
            ChainKind::Nat => "nat",
            ChainKind::Route => "route",
        };
        let point = match hook.point {
            HookPoint::Prerouting => "prerouting",
            HookPoint::Input => "input",
            HookPoint::Forward => "forward",
            HookPoint::Output => "output",
            HookPoint::Postrouting => "postrouting",
        };
        let priority = hook.priority;
        let _ = writeln!(out, "\t\ttype {kind} hook {point} priority {priority}; policy accept;");
    }
    for rule in &chain.rules {
        let _ = writeln!(out, "\t\t{}", rule_text(table, rule));
    }
    out.push_str("\t}\n");
}

/// What the registers hold, in words.
struct Symbols<'a> {
    table: &'a Table,
    /// Words by register, and how many registers the value takes.
    words: [Option<(String, u32)>; 16],
}

impl Symbols<'_> {
    fn put(&mut self, to: Reg, words: String, bytes: u32) {
        let count = bytes.div_ceil(4);
        let first = usize::from(to.0);
        for slot in self.words.iter_mut().skip(first).take(count as usize) {
            *slot = None;
        }
        if let Some(slot) = self.words.get_mut(first) {
            *slot = Some((words, count));
        }
    }

    /// The words of `bytes` bytes from a register on, concatenated.
    fn get(&self, from: Reg, bytes: u32) -> String {
        let mut at = u32::from(from.0);
        let end = at + bytes.div_ceil(4);
        let mut parts = Vec::new();
        while at < end {
            match self.words.get(at as usize).and_then(Option::as_ref) {
                Some((words, count)) => {
                    parts.push(words.clone());
                    at += count.max(&1);
                }
                None => at += 1,
            }
        }
        parts.join(" . ")
    }

    fn set(&self, name: &str) -> (u32, u32) {
        self.table.sets.get(name).map_or((4, 4), |set| (set.key_len(), set.data_len()))
    }

    /// Data of a map: its words sit in the first register, and every later field is empty there.
    fn put_data(&mut self, to: Reg, words: String, bytes: u32) {
        self.put(to, words, bytes);
    }

    fn step(&mut self, expr: &Expr) -> Option<String> {
        match expr {
            Expr::Payload { base, offset, len, to } => {
                let words = payload_words(self.table, *base, *offset, *len);
                self.put(*to, words, *len);
                None
            }
            Expr::Meta { key, to } => {
                self.put(*to, meta_word(*key).to_owned(), 4);
                None
            }
            Expr::Ct { key, to } => {
                let (words, len) = ct_words(self.table, *key);
                self.put(*to, words, len);
                None
            }
            Expr::MetaSet { key, from } => {
                Some(format!("{} set {}", meta_word(*key), self.get(*from, 4)))
            }
            Expr::Bitwise { from, to, mask, xor } => {
                let len = u32::try_from(mask.len()).unwrap_or(4);
                let words = bitwise_words(&self.get(*from, len), mask, xor);
                self.put(*to, words, len);
                None
            }
            Expr::Immediate { to, value } => {
                self.put(*to, hex(value), u32::try_from(value.len()).unwrap_or(4));
                None
            }
            Expr::Numgen { modulus, to } => {
                self.put(*to, format!("numgen random mod {modulus}"), 4);
                None
            }
            Expr::FibSourceType { to } => {
                self.put(*to, "fib saddr type".to_owned(), 4);
                None
            }
            Expr::FibDestinationType { to } => {
                self.put(*to, "fib daddr type".to_owned(), 4);
                None
            }
            other => self.statement(other),
        }
    }

    fn statement(&mut self, expr: &Expr) -> Option<String> {
        match expr {
            Expr::Cmp { from, op, value } => {
                let sign = if *op == CmpOp::Eq { "" } else { "!= " };
                let len = u32::try_from(value.len()).unwrap_or(4);
                Some(comparison(&self.get(*from, len), sign, value))
            }
            Expr::Lookup { set, from, to: Some(to), .. } => {
                let (key, data) = self.set(set);
                let words = format!("{} map @{set}", self.get(*from, key));
                self.put_data(*to, words, data);
                None
            }
            Expr::Lookup { set, from, to: None, invert } => {
                let sign = if *invert { "!= " } else { "" };
                Some(format!("{} {sign}@{set}", self.get(*from, self.set(set).0)))
            }
            Expr::VerdictMap { map, from } => {
                Some(format!("{} vmap @{map}", self.get(*from, self.set(map).0)))
            }
            Expr::Dynset { set, op, key, data, timeout_s } => {
                let (key_len, data_len) = self.set(set);
                let word = if *op == DynOp::Update { "update" } else { "delete" };
                let timeout =
                    if *timeout_s == 0 { String::new() } else { format!(" timeout {timeout_s}s") };
                let data =
                    data.map_or_else(String::new, |reg| format!(" : {}", self.get(reg, data_len)));
                Some(format!("{word} @{set} {{ {}{timeout}{data} }}", self.get(*key, key_len)))
            }
            Expr::Dnat { addr, .. } => {
                Some(format!("dnat to {}", self.get(*addr, self.table.family.address_len())))
            }
            Expr::Masquerade => Some("masquerade fully-random".to_owned()),
            Expr::Reject(Reject::TcpReset) => Some("reject with tcp reset".to_owned()),
            Expr::Reject(Reject::PortUnreachable) => {
                Some("reject with icmp port-unreachable".to_owned())
            }
            Expr::Reject(Reject::AdminProhibited) => {
                Some("reject with icmp admin-prohibited".to_owned())
            }
            Expr::Verdict(verdict) => Some(verdict_text(verdict)),
            Expr::Counter => Some("counter".to_owned()),
            _ => None,
        }
    }
}

fn rule_text(table: &Table, rule: &Rule) -> String {
    let mut symbols = Symbols { table, words: Default::default() };
    let statements: Vec<String> = rule.exprs.iter().filter_map(|expr| symbols.step(expr)).collect();
    statements.join(" ")
}

fn payload_words(table: &Table, base: PayloadBase, offset: u32, len: u32) -> String {
    let family = table.family.word();
    match (base, offset, len) {
        (PayloadBase::Network, 12, 4) | (PayloadBase::Network, 8, 16) => format!("{family} saddr"),
        (PayloadBase::Network, 16, 4) | (PayloadBase::Network, 24, 16) => format!("{family} daddr"),
        (PayloadBase::Transport, 0, 2) => "th sport".to_owned(),
        (PayloadBase::Transport, 2, 2) => "th dport".to_owned(),
        (PayloadBase::Network, ..) => format!("@nh,{},{}", offset * 8, len * 8),
        (PayloadBase::Transport, ..) => format!("@th,{},{}", offset * 8, len * 8),
    }
}

/// The words and how many bytes they stand for.
fn ct_words(table: &Table, key: CtKey) -> (String, u32) {
    let way = |direction| match direction {
        Direction::Original => "original",
        Direction::Reply => "reply",
    };
    let (family, len) = (table.family.word(), table.family.address_len());
    match key {
        CtKey::State => ("ct state".to_owned(), 4),
        CtKey::Status => ("ct status".to_owned(), 4),
        CtKey::Mark => ("ct mark".to_owned(), 4),
        CtKey::Source(of) => (format!("ct {} {family} saddr", way(of)), len),
        CtKey::Destination(of) => (format!("ct {} {family} daddr", way(of)), len),
        CtKey::SourcePort(of) => (format!("ct {} proto-src", way(of)), 2),
        CtKey::DestinationPort(of) => (format!("ct {} proto-dst", way(of)), 2),
    }
}

const fn meta_word(key: MetaKey) -> &'static str {
    match key {
        MetaKey::Mark => "meta mark",
        MetaKey::L4Proto => "meta l4proto",
        MetaKey::IifName => "iifname",
        MetaKey::OifName => "oifname",
    }
}

/// The result of `(words & mask) ^ xor`: a prefix of an address, or bits of a mark.
fn bitwise_words(words: &str, mask: &[u8], xor: &[u8]) -> String {
    let plain = xor.iter().all(|byte| *byte == 0);
    match prefix_len(mask) {
        Some(len) if plain && is_address(words) => format!("{words} /{len}"),
        _ if plain => format!("{words} & {}", constant(words, mask)),
        _ if mask.iter().zip(xor).all(|(mask, xor)| *mask == !xor) => {
            format!("{words} | {}", constant(words, xor))
        }
        _ => format!("{words} & {} ^ {}", constant(words, mask), constant(words, xor)),
    }
}

fn comparison(words: &str, sign: &str, value: &[u8]) -> String {
    match words.rsplit_once(" /") {
        Some((address, len)) => format!("{address} {sign}{}/{len}", constant(address, value)),
        None => format!("{words} {sign}{}", constant(words, value)),
    }
}

fn is_address(words: &str) -> bool {
    words.ends_with(" saddr") || words.ends_with(" daddr")
}

/// The number of leading ones, when nothing but zeros follow.
fn prefix_len(mask: &[u8]) -> Option<u32> {
    let ones: u32 = mask.iter().map(|byte| byte.leading_ones()).sum();
    let all: u32 = mask.iter().map(|byte| byte.count_ones()).sum();
    let leading = mask.iter().take_while(|byte| **byte == 0xff).count();
    let rest = mask.get(leading + 1..).unwrap_or_default();
    (ones == all && rest.iter().all(|byte| *byte == 0)).then_some(all)
}

/// A constant that `words` are compared or changed with, as nft writes it.
fn constant(words: &str, bytes: &[u8]) -> String {
    let host = || <[u8; 4]>::try_from(bytes).map(u32::from_ne_bytes);
    if is_address(words) {
        let field = if bytes.len() == 4 { Field::Ipv4 } else { Field::Ipv6 };
        return field.text(bytes);
    }
    match words {
        "meta l4proto" => Field::Proto.text(bytes),
        "iifname" | "oifname" => Field::IfName.text(bytes),
        "th sport" | "th dport" => Field::Port.text(bytes),
        "fib saddr type" | "fib daddr type" => match host() {
            Ok(2) => "local".to_owned(),
            _ => hex(bytes),
        },
        // Marks and bits of connections are in the host's order.
        _ if words.starts_with("meta mark") || words.starts_with("ct ") => {
            host().map_or_else(|_| hex(bytes), |number| format!("{number:#x}"))
        }
        _ => hex(bytes),
    }
}

/// Bytes in network order as a number.
fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold("0x".to_owned(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
