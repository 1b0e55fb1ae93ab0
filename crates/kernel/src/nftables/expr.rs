//! Rule expressions as netlink attributes: the name of each and its own numbering.

use net::nft::{CmpOp, CtKey, Direction, DynOp, Expr, Family, MetaKey, PayloadBase, Reg, Reject};

use super::wire::{LIST_ELEM, family as family_number, put_value, put_verdict};
use crate::netfilter::Builder;

const NAME: u16 = 1;
const DATA: u16 = 2;
/// `NFT_REG32_00`: the first 32-bit register.
const REG32: u32 = 8;
/// The verdict register.
const REG_VERDICT: u32 = 0;
const RANDOM_FULLY: u32 = 1 << 4;

fn reg(reg: Reg) -> u32 {
    REG32 + u32::from(reg.0)
}

/// Adds one expression to an open list of expressions.
pub(super) fn put_expr(builder: &mut Builder, family: Family, expr: &Expr) {
    let element = builder.open(LIST_ELEM);
    builder.text(NAME, name(expr));
    let data = builder.open(DATA);
    put_data(builder, family, expr);
    builder.close(&data);
    builder.close(&element);
}

fn name(expr: &Expr) -> &'static str {
    match expr {
        Expr::Payload { .. } => "payload",
        Expr::Meta { .. } | Expr::MetaSet { .. } => "meta",
        Expr::Ct { .. } => "ct",
        Expr::Cmp { .. } => "cmp",
        Expr::Bitwise { .. } => "bitwise",
        Expr::Immediate { .. } | Expr::Verdict(_) => "immediate",
        Expr::Lookup { .. } | Expr::VerdictMap { .. } => "lookup",
        Expr::Numgen { .. } => "numgen",
        Expr::FibSourceType { .. } | Expr::FibDestinationType { .. } => "fib",
        Expr::Dnat { .. } => "nat",
        Expr::Masquerade => "masq",
        Expr::Reject(_) => "reject",
        Expr::Dynset { .. } => "dynset",
        Expr::Counter => "counter",
    }
}

fn put_data(builder: &mut Builder, family: Family, expr: &Expr) {
    match expr {
        Expr::Payload { base, offset, len, to } => {
            builder.be32(1, reg(*to));
            builder.be32(2, if *base == PayloadBase::Network { 1 } else { 2 });
            builder.be32(3, *offset);
            builder.be32(4, *len);
        }
        Expr::Meta { key, to } => {
            builder.be32(1, reg(*to));
            builder.be32(2, meta_key(*key));
        }
        Expr::MetaSet { key, from } => {
            builder.be32(2, meta_key(*key));
            builder.be32(3, reg(*from));
        }
        Expr::Ct { key, to } => {
            builder.be32(1, reg(*to));
            let (number, direction) = ct_key(family, *key);
            builder.be32(2, number);
            if let Some(direction) = direction {
                builder.byte(3, if direction == Direction::Original { 0 } else { 1 });
            }
        }
        Expr::Cmp { from, op, value } => {
            builder.be32(1, reg(*from));
            builder.be32(2, if *op == CmpOp::Eq { 0 } else { 1 });
            put_value(builder, 3, value);
        }
        Expr::Bitwise { from, to, mask, xor } => {
            builder.be32(1, reg(*from));
            builder.be32(2, reg(*to));
            builder.be32(3, u32::try_from(mask.len()).expect("a mask is at most 16 bytes"));
            put_value(builder, 4, mask);
            put_value(builder, 5, xor);
        }
        Expr::Immediate { to, value } => {
            builder.be32(1, reg(*to));
            put_value(builder, 2, value);
        }
        Expr::Verdict(verdict) => {
            builder.be32(1, REG_VERDICT);
            put_verdict(builder, 2, verdict);
        }
        other => put_action(builder, family, other),
    }
}

fn put_action(builder: &mut Builder, family: Family, expr: &Expr) {
    match expr {
        Expr::Lookup { set, from, to, invert } => {
            builder.text(1, set);
            builder.be32(2, reg(*from));
            if let Some(to) = to {
                builder.be32(3, reg(*to));
            }
            if *invert {
                builder.be32(5, 1);
            }
        }
        Expr::VerdictMap { map, from } => {
            builder.text(1, map);
            builder.be32(2, reg(*from));
            builder.be32(3, REG_VERDICT);
        }
        Expr::Numgen { modulus, to } => {
            builder.be32(1, reg(*to));
            builder.be32(2, *modulus);
            builder.be32(3, 1);
            builder.be32(4, 0);
        }
        Expr::FibSourceType { to } => put_fib(builder, *to, 1),
        Expr::FibDestinationType { to } => put_fib(builder, *to, 2),
        Expr::Dnat { addr, port } => {
            builder.be32(1, 1);
            builder.be32(2, u32::from(family_number(family)));
            builder.be32(3, reg(*addr));
            if let Some(port) = port {
                builder.be32(5, reg(*port));
            }
        }
        Expr::Masquerade => builder.be32(1, RANDOM_FULLY),
        Expr::Reject(reject) => put_reject(builder, family, *reject),
        Expr::Dynset { set, op, key, data, timeout_s } => {
            builder.text(1, set);
            builder.be32(3, if *op == DynOp::Update { 1 } else { 2 });
            builder.be32(4, reg(*key));
            if let Some(data) = data {
                builder.be32(5, reg(*data));
            }
            if *timeout_s > 0 {
                builder.be64(6, u64::from(*timeout_s) * 1000);
            }
        }
        _ => {}
    }
}

fn put_fib(builder: &mut Builder, to: Reg, flags: u32) {
    builder.be32(1, reg(to));
    builder.be32(2, 3);
    builder.be32(3, flags);
}

fn put_reject(builder: &mut Builder, family: Family, reject: Reject) {
    let (kind, code) = match (reject, family) {
        (Reject::TcpReset, _) => (1, 0),
        (Reject::PortUnreachable, Family::Ip) => (0, 3),
        (Reject::PortUnreachable, Family::Ip6) => (0, 4),
        (Reject::AdminProhibited, Family::Ip) => (0, 13),
        (Reject::AdminProhibited, Family::Ip6) => (0, 1),
    };
    builder.be32(1, kind);
    builder.byte(2, code);
}

/// Addresses by the keys that say their family: programs cannot show the others in a concatenation.
fn ct_key(family: Family, key: CtKey) -> (u32, Option<Direction>) {
    let of_family = |v4, v6| if family == Family::Ip { v4 } else { v6 };
    match key {
        CtKey::State => (0, None),
        CtKey::Status => (2, None),
        CtKey::Mark => (3, None),
        CtKey::Source(direction) => (of_family(19, 21), Some(direction)),
        CtKey::Destination(direction) => (of_family(20, 22), Some(direction)),
        CtKey::SourcePort(direction) => (11, Some(direction)),
        CtKey::DestinationPort(direction) => (12, Some(direction)),
    }
}

fn meta_key(key: MetaKey) -> u32 {
    match key {
        MetaKey::Mark => 3,
        MetaKey::IifName => 6,
        MetaKey::OifName => 7,
        MetaKey::L4Proto => 16,
    }
}
