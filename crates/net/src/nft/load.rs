//! Loads of the packet fields that rules are made of.

use super::{Expr, Family, MetaKey, PayloadBase, Reg};

/// The source address.
#[must_use]
pub fn source(family: Family, to: Reg) -> Expr {
    let offset = if family == Family::Ip { 12 } else { 8 };
    Expr::Payload { base: PayloadBase::Network, offset, len: family.address_len(), to }
}

/// The destination address.
#[must_use]
pub fn destination(family: Family, to: Reg) -> Expr {
    let offset = if family == Family::Ip { 16 } else { 24 };
    Expr::Payload { base: PayloadBase::Network, offset, len: family.address_len(), to }
}

/// The protocol number above IP.
#[must_use]
pub const fn l4proto(to: Reg) -> Expr {
    Expr::Meta { key: MetaKey::L4Proto, to }
}

/// The destination port.
#[must_use]
pub const fn destination_port(to: Reg) -> Expr {
    Expr::Payload { base: PayloadBase::Transport, offset: 2, len: 2, to }
}
