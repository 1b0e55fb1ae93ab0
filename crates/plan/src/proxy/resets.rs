//! Open TCP connections to endpoints that are gone: left alone, unless the Service asks for their end
//! (`rhumb.dev/reset-connections`). Upstream has no counterpart; users asked in kubernetes#38456 and others.
//!
//! Compares what connection tracking shows with the endpoints of now, so that nothing depends on having seen a change. Time
//! counts from the moment when a connection was first seen to lead nowhere.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use net::nft::{
    Chain, ChainKind, CmpOp, CtKey, Direction, Expr, Family, Field, Fields, Hook, HookPoint, Key,
    PayloadBase, Reg, Reject, Rule, Set, Table, Verdict, load,
};

use crate::service::Reset;

/// The name of the table that answers connections with resets. It is there only while there are such.
pub const RESETS_TABLE: &str = "rhumb_resets";
/// The set of connections in it.
pub const RESETS_SET: &str = "gone";
/// How long a connection stays in the set: an end that is told goes at once, and one that says nothing is nudged again.
const ELEMENT_S: u32 = 60;
/// After connection tracking (-200), before any translation (-100): a packet to an endpoint that is gone may have no route.
const BEFORE_NAT: i32 = -150;
const CHECK: &str = "check";
const TCP: u8 = 6;
const RST: u8 = 4;
/// Between two tries.
const ROUND: Duration = Duration::from_secs(1);
/// After so many the connection is taken out of connection tracking: its client is gone, or comes back to another endpoint,
/// which refuses it.
const ROUNDS_MAX: u32 = 5;

/// Frontends whose Services ask for it.
pub type ResetFrontends = BTreeMap<SocketAddr, Reset>;

/// Where connections lead: from this frontend to this endpoint.
pub type Lead = (SocketAddr, SocketAddr);

/// What is to be done with connections now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Their time has not come.
    Wait,
    /// They are to be reset; how often that was tried before.
    Reset(u32),
    /// They do not answer: they are to be forgotten.
    Forget,
}

/// Which connections lead to endpoints that are gone, and since when.
#[derive(Clone, Debug, Default)]
pub struct Resets {
    gone: BTreeMap<Lead, Gone>,
}

#[derive(Clone, Copy, Debug)]
struct Gone {
    since: Duration,
    tries: u32,
    /// Not before.
    retry: Duration,
    /// When its time comes.
    due: Duration,
}

impl Resets {
    /// What to do with open connections that lead there, at a time on any clock that does not stop.
    pub fn judge(
        &mut self,
        leads: &BTreeSet<Lead>,
        frontends: &ResetFrontends,
        now: Duration,
    ) -> BTreeMap<Lead, Step> {
        let after = |(frontend, endpoint): &Lead| {
            let reset = frontends.get(frontend)?;
            (!reset.present.contains(endpoint)).then_some(reset.after)
        };
        self.gone.retain(|lead, _| leads.contains(lead) && after(lead).is_some());
        let stale = leads.iter().filter_map(|lead| Some((*lead, after(lead)?)));
        stale.map(|(lead, after)| (lead, self.step(lead, after, now))).collect()
    }

    fn step(&mut self, lead: Lead, after: Duration, now: Duration) -> Step {
        let first = Gone { since: now, tries: 0, retry: now, due: now };
        let gone = self.gone.entry(lead).or_insert(first);
        gone.due = (gone.since + after).max(gone.retry);
        if now < gone.due {
            return Step::Wait;
        }
        (gone.retry, gone.due) = (now + ROUND, now + ROUND);
        let tries = gone.tries;
        gone.tries += 1;
        if tries < ROUNDS_MAX { Step::Reset(tries) } else { Step::Forget }
    }

    /// When there is something to do though nothing changes.
    #[must_use]
    pub fn next(&self) -> Option<Duration> {
        self.gone.values().map(|gone| gone.due).min()
    }
}

/// A connection in the set: the client, the address that it knows, and the endpoint. The port of that address is left out,
/// because programs know types of five fields at most; a client has one connection from a port to an endpoint anyway.
#[must_use]
pub fn reset_key(client: SocketAddr, (frontend, endpoint): Lead) -> Key {
    let fields = Fields::new().address(client.ip()).port(client.port());
    fields.address(frontend.ip()).address(endpoint.ip()).port(endpoint.port()).key()
}

/// The table without connections.
#[must_use]
pub fn resets_table(family: Family) -> Table {
    let mut table = Table::new(family, RESETS_TABLE);
    let address = Field::address(family);
    let key = [address, Field::Port, address, address, Field::Port];
    let set = Set { timeout_s: ELEMENT_S, ..Set::of(key) };
    table.sets.insert(RESETS_SET.into(), set);
    table.chains.insert(CHECK.into(), Chain { hook: None, rules: vec![nudge(), answer(family)] });
    for (name, point) in [("prerouting", HookPoint::Prerouting), ("output", HookPoint::Output)] {
        let hook = Some(Hook { kind: ChainKind::Filter, point, priority: BEFORE_NAT });
        let jump = Expr::Verdict(Verdict::Jump(Arc::from(CHECK)));
        let rules = vec![Rule::new(tcp().into_iter().chain([jump]))];
        table.chains.insert(name.into(), Chain { hook, rules });
    }
    table
}

fn tcp() -> [Expr; 2] {
    [load::l4proto(Reg(0)), equals(&[TCP])]
}

fn equals(value: &[u8]) -> Expr {
    Expr::Cmp { from: Reg(0), op: CmpOp::Eq, value: value.into() }
}

fn header(offset: u32, len: u32) -> Expr {
    Expr::Payload { base: PayloadBase::Transport, offset, len, to: Reg(0) }
}

/// What makes an end speak passes: it acknowledges 0 and has no window.
fn nudge() -> Rule {
    let passes = Expr::Verdict(Verdict::Return);
    Rule::new([header(8, 4), equals(&[0; 4]), header(14, 2), equals(&[0; 2]), passes])
}

/// Whoever speaks is told that the connection is over; resets themselves pass.
fn answer(family: Family) -> Rule {
    let flags = Expr::Bitwise { from: Reg(0), to: Reg(0), mask: [RST].into(), xor: [0].into() };
    let mut exprs = vec![header(13, 1), flags, equals(&[0])];
    let words = u8::try_from(family.address_len() / 4).expect("an address has 1 or 4 words");
    let (sent, answered) = (Direction::Original, Direction::Reply);
    let keys = [
        (CtKey::Source(sent), words),
        (CtKey::SourcePort(sent), 1),
        (CtKey::Destination(sent), words),
        (CtKey::Source(answered), words),
        (CtKey::SourcePort(answered), 1),
    ];
    let mut at = 0;
    for (key, words) in keys {
        exprs.push(Expr::Ct { key, to: Reg(at) });
        at += words;
    }
    exprs.push(Expr::Lookup { set: RESETS_SET.into(), from: Reg(0), to: None, invert: false });
    exprs.extend([Expr::Counter, Expr::Reject(Reject::TcpReset)]);
    Rule::new(exprs)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    const FRONTEND: &str = "10.96.0.1:80";

    fn frontends(after_s: u64, present: &[&str]) -> ResetFrontends {
        let present = present.iter().map(|text| at(text)).collect();
        let reset = Reset { after: Duration::from_secs(after_s), present };
        [(at(FRONTEND), reset)].into()
    }

    fn leads(endpoints: &[&str]) -> BTreeSet<Lead> {
        endpoints.iter().map(|endpoint| (at(FRONTEND), at(endpoint))).collect()
    }

    const GONE: &str = "10.244.0.2:80";
    const THERE: &str = "10.244.0.3:80";

    fn steps(resets: &mut Resets, frontends: &ResetFrontends, now_s: u64) -> Vec<Step> {
        let now = Duration::from_secs(now_s);
        resets.judge(&leads(&[GONE, THERE]), frontends, now).into_values().collect()
    }

    #[test]
    fn the_grace_begins_when_a_connection_is_first_seen_to_lead_nowhere() {
        let (mut resets, frontends) = (Resets::default(), frontends(10, &[THERE]));
        assert_eq!(steps(&mut resets, &frontends, 100), [Step::Wait]);
        assert_eq!(resets.next(), Some(Duration::from_secs(110)));
        assert_eq!(steps(&mut resets, &frontends, 109), [Step::Wait]);
        assert_eq!(steps(&mut resets, &frontends, 110), [Step::Reset(0)]);
        assert_eq!(steps(&mut resets, &frontends, 110), [Step::Wait], "it was told just now");
    }

    #[test]
    fn an_endpoint_that_comes_back_is_gone_anew_later() {
        let mut resets = Resets::default();
        steps(&mut resets, &frontends(10, &[THERE]), 0);
        assert_eq!(steps(&mut resets, &frontends(10, &[THERE, GONE]), 9), []);
        assert_eq!(resets.next(), None);
        assert_eq!(steps(&mut resets, &frontends(10, &[THERE]), 11), [Step::Wait]);
    }

    #[test]
    fn another_grace_holds_at_once() {
        let mut resets = Resets::default();
        steps(&mut resets, &frontends(3600, &[THERE]), 0);
        assert_eq!(steps(&mut resets, &frontends(5, &[THERE]), 6), [Step::Reset(0)]);
    }

    #[test]
    fn who_never_answers_is_forgotten() {
        let (mut resets, frontends) = (Resets::default(), frontends(0, &[THERE]));
        let all: Vec<Step> =
            (0..=5).flat_map(|second| steps(&mut resets, &frontends, second)).collect();
        let mut expected: Vec<Step> = (0..ROUNDS_MAX).map(Step::Reset).collect();
        expected.push(Step::Forget);
        assert_eq!(all, expected);
        resets.judge(&BTreeSet::new(), &frontends, Duration::from_secs(6));
        assert_eq!(resets.next(), None);
    }

    #[test]
    fn services_that_do_not_ask_are_left_alone() {
        let mut resets = Resets::default();
        assert_eq!(steps(&mut resets, &ResetFrontends::new(), 0), []);
        assert_eq!(resets.next(), None);
    }

    #[test]
    fn the_table_reads_as_it_is_meant() {
        let mut table = resets_table(Family::Ip);
        let key = reset_key(at("10.244.0.9:40000"), (at(FRONTEND), at(GONE)));
        let elements = [(key, net::nft::Value::None)].into();
        table.elements.insert(RESETS_SET.into(), elements);
        let text = net::nft::render(&table);
        for line in [
            "10.244.0.9 . 40000 . 10.96.0.1 . 10.244.0.2 . 80",
            "type filter hook prerouting priority -150",
            "ct original ip saddr . ct original proto-src . ct original ip daddr . \
             ct reply ip saddr . ct reply proto-src @gone counter reject with tcp reset",
        ] {
            assert!(text.contains(line), "no {line} in {text}");
        }
    }
}
