//! Numbers of the nftables netlink protocol (`linux/netfilter/nf_tables.h`).

use net::nft::{Family, Verdict};

use crate::netfilter::{Attributes, Builder};

pub(super) const SUBSYSTEM: u16 = 10;
pub(super) const BATCH_BEGIN: u16 = 0x10;
pub(super) const BATCH_END: u16 = 0x11;

pub(super) const NLM_F_REQUEST: u16 = 1;
pub(super) const NLM_F_ACK: u16 = 4;
pub(super) const NLM_F_DUMP: u16 = 0x300;
pub(super) const NLM_F_CREATE: u16 = 0x400;
pub(super) const NLM_F_APPEND: u16 = 0x800;

pub(super) mod msg {
    pub(in super::super) const NEW_TABLE: u16 = 0;
    pub(in super::super) const GET_TABLE: u16 = 1;
    pub(in super::super) const DELETE_TABLE: u16 = 2;
    pub(in super::super) const NEW_CHAIN: u16 = 3;
    pub(in super::super) const GET_CHAIN: u16 = 4;
    pub(in super::super) const DELETE_CHAIN: u16 = 5;
    pub(in super::super) const NEW_RULE: u16 = 6;
    pub(in super::super) const GET_RULE: u16 = 7;
    pub(in super::super) const DELETE_RULE: u16 = 8;
    pub(in super::super) const NEW_SET: u16 = 9;
    pub(in super::super) const GET_SET: u16 = 10;
    pub(in super::super) const DELETE_SET: u16 = 11;
    pub(in super::super) const NEW_ELEMENTS: u16 = 12;
    pub(in super::super) const GET_ELEMENTS: u16 = 13;
    pub(in super::super) const DELETE_ELEMENTS: u16 = 14;
    pub(in super::super) const GET_GENERATION: u16 = 16;
}

/// `NFTA_LIST_ELEM`: a member of any list.
pub(super) const LIST_ELEM: u16 = 1;
pub(super) const GEN_ID: u16 = 1;
pub(super) const TABLE_NAME: u16 = 1;

pub(super) mod chain {
    pub(in super::super) const TABLE: u16 = 1;
    pub(in super::super) const NAME: u16 = 3;
    pub(in super::super) const HOOK: u16 = 4;
    pub(in super::super) const POLICY: u16 = 5;
    pub(in super::super) const TYPE: u16 = 7;
    pub(in super::super) const HOOK_NUMBER: u16 = 1;
    pub(in super::super) const HOOK_PRIORITY: u16 = 2;
}

pub(super) mod rule {
    pub(in super::super) const TABLE: u16 = 1;
    pub(in super::super) const CHAIN: u16 = 2;
    pub(in super::super) const EXPRESSIONS: u16 = 4;
}

pub(super) mod set {
    pub(in super::super) const TABLE: u16 = 1;
    pub(in super::super) const NAME: u16 = 2;
    pub(in super::super) const FLAGS: u16 = 3;
    pub(in super::super) const KEY_TYPE: u16 = 4;
    pub(in super::super) const KEY_LEN: u16 = 5;
    pub(in super::super) const DATA_TYPE: u16 = 6;
    pub(in super::super) const DATA_LEN: u16 = 7;
    pub(in super::super) const DESCRIPTION: u16 = 9;
    pub(in super::super) const ID: u16 = 10;
    pub(in super::super) const TIMEOUT: u16 = 11;
    pub(in super::super) const DESCRIPTION_SIZE: u16 = 1;
    pub(in super::super) const DESCRIPTION_CONCAT: u16 = 2;
    pub(in super::super) const FIELD_LEN: u16 = 1;

    pub(in super::super) const FLAG_INTERVAL: u32 = 0x04;
    pub(in super::super) const FLAG_MAP: u32 = 0x08;
    pub(in super::super) const FLAG_TIMEOUT: u32 = 0x10;
    pub(in super::super) const FLAG_EVAL: u32 = 0x20;
    pub(in super::super) const FLAG_CONCAT: u32 = 0x80;
    pub(in super::super) const DATA_VERDICT: u32 = 0xffff_ff00;
}

pub(super) mod element {
    pub(in super::super) const TABLE: u16 = 1;
    pub(in super::super) const SET: u16 = 2;
    pub(in super::super) const LIST: u16 = 3;
    pub(in super::super) const KEY: u16 = 1;
    pub(in super::super) const DATA: u16 = 2;
    pub(in super::super) const KEY_END: u16 = 10;
}

pub(super) const DATA_VALUE: u16 = 1;
pub(super) const DATA_VERDICT: u16 = 2;
const VERDICT_CODE: u16 = 1;
const VERDICT_CHAIN: u16 = 2;
const DROP: u32 = 0;
const ACCEPT: u32 = 1;
const JUMP: u32 = 0xffff_fffd;
const GOTO: u32 = 0xffff_fffc;
const RETURN: u32 = 0xffff_fffb;

/// The protocol family's number.
pub(super) fn family(family: Family) -> u8 {
    match family {
        Family::Ip => 2,
        Family::Ip6 => 10,
    }
}

/// The type of a message.
pub(super) fn kind(message: u16) -> u16 {
    SUBSYSTEM << 8 | message
}

/// A verdict as `NFTA_DATA_VERDICT` inside `attribute`.
pub(super) fn put_verdict(builder: &mut Builder, attribute: u16, verdict: &Verdict) {
    let data = builder.open(attribute);
    let nest = builder.open(DATA_VERDICT);
    let (code, chain) = match verdict {
        Verdict::Drop => (DROP, None),
        Verdict::Accept => (ACCEPT, None),
        Verdict::Return => (RETURN, None),
        Verdict::Jump(chain) => (JUMP, Some(chain)),
        Verdict::Goto(chain) => (GOTO, Some(chain)),
    };
    builder.be32(VERDICT_CODE, code);
    if let Some(chain) = chain {
        builder.text(VERDICT_CHAIN, chain);
    }
    builder.close(&nest);
    builder.close(&data);
}

/// Reads what [`put_verdict`] writes; `None` for verdicts that Rhumb does not use.
pub(super) fn get_verdict(verdict: Attributes<'_>) -> Option<Verdict> {
    let chain = || verdict.text(VERDICT_CHAIN).map(Into::into);
    Some(match verdict.be32(VERDICT_CODE)? {
        DROP => Verdict::Drop,
        ACCEPT => Verdict::Accept,
        RETURN => Verdict::Return,
        JUMP => Verdict::Jump(chain()?),
        GOTO => Verdict::Goto(chain()?),
        _ => return None,
    })
}

/// A constant as `NFTA_DATA_VALUE` inside `attribute`.
pub(super) fn put_value(builder: &mut Builder, attribute: u16, value: &[u8]) {
    let nest = builder.open(attribute);
    builder.raw(DATA_VALUE, value);
    builder.close(&nest);
}
