//! What all reports together say: who is silent, decided by each node for itself, in an alarm, and alike.
//!
//! An alarm begins with a report that is new, and spreads with it. As long as it goes on, neighbours also tell each other
//! who is there, and a node decides only while it knows that it is with a majority of all nodes.

use std::collections::{BTreeMap, BTreeSet};

use super::beat::{Presence, Report};
use super::ring::{Id, Ring};

/// How long an alarm goes on after the last new report, in milliseconds.
pub const ALARM_MS: u64 = 600;
/// Milliseconds between two messages to a neighbour in an alarm.
pub const ALARM_EVERY_MS: u64 = 25;
/// Who joins an alarm by hearsay joins so much less of it, so that every alarm ends.
const HEARSAY_MS: u64 = 50;
/// Who is there was there so lately. Less than the shortest time in which anybody is missed: what counts was said after
/// the network broke.
const PRESENT_MS: u64 = 200;
/// Without a majority of all its watchers, those who are there decide about a node after so long.
const SETTLED_MS: u64 = 150;
/// What could not be decided is looked at again after so long.
const AGAIN_MS: u64 = 5_000;
/// Reports that miss nobody are passed on for so long.
const FRESH_MS: u64 = 10_000;
/// In an alarm much comes at once; nobody decides more often.
const DECIDE_MS: u64 = 5;
/// The unit of ages.
const AGE_MS: u64 = 2;
/// The age of who is not known to be there.
const ABSENT: u8 = u8::MAX;

/// A node has fallen silent, or is heard again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Which node.
    pub node: Id,
    /// Whether it is silent.
    pub silent: bool,
}

#[derive(Clone, Debug)]
struct Kept {
    report: Report,
    learned_at: u64,
}

/// One node's share in deciding.
#[derive(Clone, Debug, Default)]
pub(super) struct Council {
    reports: BTreeMap<Id, Kept>,
    /// When each node was last known to be there.
    present: BTreeMap<Id, u64>,
    alarm_since: u64,
    alarm_until: u64,
    decided_at: u64,
    /// Whether something is reported that could not be decided.
    owes: bool,
    silent: BTreeSet<Id>,
    /// Decided in this alarm.
    untold: BTreeMap<Id, bool>,
    /// Where the reports that are passed on begin.
    turn: usize,
}

impl Council {
    pub(super) const fn silent(&self) -> &BTreeSet<Id> {
        &self.silent
    }

    /// Forgets who is no member.
    pub(super) fn keep(&mut self, ring: &Ring) {
        let is_member = |id: &Id| ring.members().binary_search(id).is_ok();
        self.reports.retain(|author, _| is_member(author));
        self.present.retain(|id, _| is_member(id));
        self.untold.retain(|id, _| is_member(id));
        self.silent.retain(is_member);
    }

    /// The alarm's rhythm, while there is one.
    pub(super) fn rhythm(&self, now: u64) -> Option<u64> {
        self.is_alarm(now).then_some(ALARM_EVERY_MS)
    }

    pub(super) const fn is_alarm(&self, now: u64) -> bool {
        now < self.alarm_until
    }

    /// How long the alarm goes on, for others.
    pub(super) fn alarm_ms(&self, now: u64) -> u16 {
        u16::try_from(self.alarm_until.saturating_sub(now)).unwrap_or(u16::MAX)
    }

    fn alarm(&mut self, now: u64, ms: u64) {
        if !self.is_alarm(now) {
            self.alarm_since = now;
            self.present.clear();
        }
        self.alarm_until = self.alarm_until.max(now + ms.min(ALARM_MS));
    }

    /// Somebody else has an alarm.
    pub(super) fn hearsay(&mut self, now: u64, ms: u16) {
        let ms = u64::from(ms).saturating_sub(HEARSAY_MS);
        if ms > 0 {
            self.alarm(now, ms);
        }
    }

    /// The report of an author, as far as it is known.
    pub(super) fn report(&self, author: Id) -> Option<&Report> {
        self.reports.get(&author).map(|kept| &kept.report)
    }

    /// Whether somebody misses a node.
    pub(super) fn is_missed(&self, node: Id) -> bool {
        self.reports.values().any(|kept| kept.report.missed.contains(&node))
    }

    /// Takes a report unless it is old; a new one is an alarm.
    pub(super) fn learn(&mut self, now: u64, report: Report) {
        let known = self.reports.get_mut(&report.author);
        let says_nothing = known.is_none() && report.missed.is_empty();
        if let Some(known) = known
            && known.report.version >= report.version
        {
            // An author whose clock went back hears of what it said before, and goes on from there.
            if known.report.version > report.version {
                known.learned_at = now;
            }
            return;
        }
        self.reports.insert(report.author, Kept { report, learned_at: now });
        if !says_nothing {
            self.alarm(now, ALARM_MS);
        }
    }

    /// Some of the reports that others should know, in turns.
    pub(super) fn passed_on(&mut self, now: u64, own: Id, room: usize) -> Vec<Report> {
        let matters = |kept: &&Kept| {
            kept.report.author != own
                && (!kept.report.missed.is_empty() || now < kept.learned_at + FRESH_MS)
        };
        let all: Vec<&Report> =
            self.reports.values().filter(matters).map(|kept| &kept.report).collect();
        let from = self.turn.checked_rem(all.len()).unwrap_or(0);
        let some = all.iter().cycle().skip(from).take(room.min(all.len()));
        let some = some.map(|report| (*report).clone()).collect();
        self.turn = from + room;
        some
    }

    /// `node` was there at `at`, and both directions to it work.
    pub(super) fn attends(&mut self, node: Id, at: u64) {
        let known = self.present.entry(node).or_default();
        *known = at.max(*known);
    }

    /// What a neighbour knows of who is there.
    pub(super) fn count(&mut self, now: u64, ring: &Ring, presence: &Presence) {
        if presence.digest != ring.digest() || presence.ages.len() != ring.members().len() {
            return;
        }
        for (member, age) in ring.members().iter().zip(&presence.ages) {
            let age_ms = u64::from(*age) * AGE_MS;
            if *age != ABSENT && age_ms <= PRESENT_MS {
                self.attends(*member, now.saturating_sub(age_ms));
            }
        }
    }

    /// The same for neighbours.
    pub(super) fn presence(&self, now: u64, ring: &Ring, me: Id) -> Presence {
        let age = |member: &Id| {
            let at = if *member == me { Some(&now) } else { self.present.get(member) };
            let age = at.map(|at| now.saturating_sub(*at).div_ceil(AGE_MS));
            age.and_then(|age| u8::try_from(age).ok()).unwrap_or(ABSENT)
        };
        Presence { digest: ring.digest(), ages: ring.members().iter().map(age).collect() }
    }

    fn is_present(&self, node: Id, me: Id, now: u64) -> bool {
        node == me || self.present.get(&node).is_some_and(|at| now <= at + PRESENT_MS)
    }

    /// Decides what can be decided.
    pub(super) fn decide(&mut self, now: u64, ring: &Ring, me: Id) -> Vec<Verdict> {
        if !self.is_alarm(now) {
            if self.owes && now >= self.alarm_until + AGAIN_MS {
                self.alarm(now, ALARM_MS);
            }
            return Vec::new();
        }
        if now < self.decided_at + DECIDE_MS {
            return Vec::new();
        }
        self.decided_at = now;
        let members = ring.members();
        let present = members.iter().filter(|id| self.is_present(**id, me, now)).count();
        let is_majority = 2 * present > members.len();
        let missed = self.reports.values().flat_map(|kept| &kept.report.missed);
        let questions: BTreeSet<Id> = missed.chain(&self.silent).copied().collect();
        let mut verdicts = Vec::new();
        self.owes = false;
        for node in questions.into_iter().filter(|node| *node != me) {
            match self.judge(now, ring, me, node) {
                Some(silent) if is_majority => verdicts.extend(self.rule(node, silent)),
                _ => self.owes = true,
            }
        }
        verdicts
    }

    /// Whether most of a node's watchers miss it, as far as they are there; `None` while that is open.
    fn judge(&self, now: u64, ring: &Ring, me: Id, node: Id) -> Option<bool> {
        let watchers = ring.neighbours(node);
        let all = watchers.len();
        let (mut miss, mut hear) = (0, 0);
        for watcher in watchers.filter(|watcher| self.is_present(*watcher, me, now)) {
            match self.report(watcher) {
                Some(report) if report.missed.contains(&node) => miss += 1,
                _ => hear += 1,
            }
        }
        let is_settled = now >= self.alarm_since + SETTLED_MS;
        // One alone is believed only where all others are gone.
        let gone = ring.neighbours(node).filter(|watcher| self.silent.contains(watcher)).count();
        let needed = if gone + 1 == all { 1 } else { 2 };
        if 2 * miss > all || is_settled && miss >= needed && miss > hear {
            Some(true)
        } else if 2 * hear >= all || is_settled && hear >= 1 && hear >= miss {
            Some(false)
        } else {
            None
        }
    }

    fn rule(&mut self, node: Id, silent: bool) -> Option<Verdict> {
        let is_new = if silent { self.silent.insert(node) } else { self.silent.remove(&node) };
        if !is_new {
            return None;
        }
        if self.untold.remove(&node).is_none() {
            self.untold.insert(node, silent);
        }
        Some(Verdict { node, silent })
    }

    /// After an alarm: what this node is to tell the cluster's users, for all others. It is the first of the watchers that
    /// saw it so.
    pub(super) fn told(&mut self, now: u64, ring: &Ring, me: Id) -> Vec<Verdict> {
        if self.is_alarm(now) {
            return Vec::new();
        }
        let untold = std::mem::take(&mut self.untold);
        let tells = |node: Id, silent: bool| {
            let saw = |watcher: &Id| {
                let misses = self.report(*watcher).is_some_and(|all| all.missed.contains(&node));
                misses == silent && !self.silent.contains(watcher)
            };
            ring.neighbours(node).find(saw) == Some(me)
        };
        let all = untold.into_iter().filter(|(node, silent)| tells(*node, *silent));
        all.map(|(node, silent)| Verdict { node, silent }).collect()
    }

    /// When something is to be done next.
    pub(super) fn wake(&self, now: u64) -> Option<u64> {
        if self.is_alarm(now) {
            return Some(self.alarm_until.min(now + DECIDE_MS));
        }
        self.owes.then_some(self.alarm_until + AGAIN_MS)
    }
}
