//! Which nodes are silent: nodes watch each other over their own network, and leave alone whom most watchers miss.
//!
//! A state machine: times and messages come in; messages, echo requests and verdicts come out. Every node watches a few
//! neighbours, who watch it. A message carries the newest stamp that came from its receiver, so that each proves both
//! directions at once. Who is late is asked more often, and its kernel by echo requests, too: a node is silent, not its
//! agent. Who misses a neighbour says so in a report; reports are passed on from neighbour to neighbour, and each node
//! decides by them for itself, as long as it is with the majority of all nodes.
//!
//! Sources of the ideas: SWIM (Das, Gupta, Motivala 2002), Lifeguard (Dadgar, Phillips, Currey 2018), Rapid (Suresh and
//! others 2018). Why it is otherwise: `docs/decisions/0014-nodes-watch-each-other.md`.

mod beat;
mod council;
mod ring;
#[cfg(test)]
mod simulation;
mod watch;

use std::collections::{BTreeMap, BTreeSet};

pub use beat::{Beat, Malformed, Presence, Report, Stamp};
use council::Council;
pub use council::{ALARM_EVERY_MS, ALARM_MS, Verdict};
pub use ring::{Id, Ring};
use watch::Watch;
pub use watch::{BEAT_MS, MISSED_MS};

/// A machine that is woken later than it asked was busy or stopped; less than this is nothing unusual.
const LATENESS_MS: u64 = 30;
/// Who is there is believed of a neighbour that answers within so long: else the way to it may be gone.
const PROMPT_MS: u64 = 150;
/// How early a beat goes out together with another, or with a neighbour's; with its first one, whatever the time.
const JOIN_MS: u64 = BEAT_MS / 4;
/// When to look again who is to be watched, where nobody is.
const IDLE_MS: u64 = 1_000;
/// Reports of others in a message without an alarm.
const CALM_REPORTS: usize = 2;

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Send a message.
    Send(Beat),
    /// Ask a node's kernel for an echo, with this number.
    Ping(Id, u16),
    /// A node is to be left alone, or to be used again.
    Verdict(Verdict),
    /// Tell the cluster's users; one node does, for all.
    Tell(Verdict),
}

/// Why a message was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Ignored {
    /// It is for another node.
    NotForUs,
    /// Its sender is no neighbour.
    NoNeighbour,
    /// It was sent before another that came, or came before.
    Old,
}

/// One node's liveness. Times are in milliseconds, of one clock that never goes back.
#[derive(Clone, Debug)]
pub struct Liveness {
    me: Id,
    ring: Ring,
    stamp: Stamp,
    watches: BTreeMap<Id, Watch>,
    council: Council,
    /// When the machine wanted to be woken.
    wake: u64,
    outputs: Vec<Output>,
}

impl Liveness {
    /// The node `me`, which begins at `epoch`: milliseconds of a clock that is not the one of `now`, and outlives restarts.
    #[must_use]
    pub fn new(me: Id, epoch: u64, now: u64) -> Self {
        Self {
            me,
            ring: Ring::default(),
            stamp: Stamp { epoch, number: 0 },
            watches: BTreeMap::new(),
            council: Council::default(),
            wake: now,
            outputs: Vec::new(),
        }
    }

    /// The members of the cluster, this node among them, or nobody watches.
    pub fn members(&mut self, now: u64, members: &BTreeSet<Id>) {
        self.excuse(now);
        let ring = Ring::new(members);
        if ring == self.ring {
            return;
        }
        self.ring = ring;
        self.council.keep(&self.ring);
        let neighbours: BTreeSet<Id> = self.ring.neighbours(self.me).collect();
        self.watches.retain(|id, _| neighbours.contains(id));
        for id in neighbours {
            // Not all nodes at once where all begin at once.
            let phase = self.me.0 % BEAT_MS;
            let watch = self.watches.entry(id).or_insert_with(|| Watch::new(now, phase));
            if self.council.is_missed(id) {
                watch.is_spoken_of(now);
            }
        }
        self.tick(now);
    }

    /// Takes a message.
    ///
    /// # Errors
    /// When it is not to be heeded.
    pub fn receive(&mut self, now: u64, beat: Beat) -> Result<(), Ignored> {
        self.excuse(now);
        if beat.to != self.me {
            return Err(Ignored::NotForUs);
        }
        let watch = self.watches.get_mut(&beat.from).ok_or(Ignored::NoNeighbour)?;
        let echo = beat.echo.filter(|echo| echo.epoch == self.stamp.epoch);
        let sent = echo.and_then(|echo| watch.sent(echo.number));
        let is_first = watch.theirs.is_none();
        if !watch.follows(beat.stamp, sent.is_some()) {
            return Err(Ignored::Old);
        }
        let (from, asks) = (beat.from, beat.asks);
        if let Some(sent) = sent {
            watch.answered(sent, now);
            self.listen(now, sent.at, beat);
        }
        if asks {
            self.send(now, from, false);
        }
        self.step(now, Some(if is_first { BEAT_MS } else { JOIN_MS }));
        Ok(())
    }

    /// A node's kernel has answered the echo request of this number.
    pub fn pong(&mut self, now: u64, from: Id, number: u16) {
        self.excuse(now);
        if let Some(watch) = self.watches.get_mut(&from)
            && let Some(sent) = watch.pinged(number)
        {
            watch.pong(sent, now);
            self.tick(now);
        }
    }

    /// Does what is due.
    pub fn tick(&mut self, now: u64) {
        self.step(now, None);
    }

    /// The same; beats that would be due within `join` milliseconds go out, too.
    fn step(&mut self, now: u64, join: Option<u64>) {
        self.excuse(now);
        let mut changed = false;
        for watch in self.watches.values_mut() {
            changed |= watch.judge(now);
        }
        let was_calm = !self.council.is_alarm(now);
        if changed {
            self.report(now);
        }
        let told = self.council.told(now, &self.ring, self.me);
        let verdicts = self.council.decide(now, &self.ring, self.me);
        self.outputs.extend(told.into_iter().map(Output::Tell));
        self.outputs.extend(verdicts.into_iter().map(Output::Verdict));
        self.send_due(now, was_calm && self.council.is_alarm(now), join);
        self.wake = self.next(now);
    }

    /// When to call [`Self::tick`], if nothing comes before.
    #[must_use]
    pub const fn wake(&self) -> u64 {
        self.wake
    }

    /// What is to be done since this was asked last.
    pub fn outputs(&mut self) -> Vec<Output> {
        std::mem::take(&mut self.outputs)
    }

    /// The nodes to be left alone.
    #[must_use]
    pub const fn silent(&self) -> &BTreeSet<Id> {
        self.council.silent()
    }

    /// Neighbours that this node itself misses.
    pub fn missed(&self) -> impl Iterator<Item = Id> + '_ {
        self.watches.iter().filter(|(_, watch)| watch.is_missed()).map(|(id, _)| *id)
    }

    /// Whether nothing is going on: no alarm, and nobody is late.
    #[must_use]
    pub fn is_calm(&self, now: u64) -> bool {
        !self.council.is_alarm(now) && self.watches.values().all(|watch| !watch.asks(now))
    }

    /// How many neighbours this node watches.
    #[must_use]
    pub fn watched(&self) -> usize {
        self.watches.len()
    }

    /// While this node did not look, it cannot say that it heard nothing. Source: Lifeguard, section IV.A, the local
    /// health.
    fn excuse(&mut self, now: u64) {
        let lateness = now.saturating_sub(self.wake);
        if lateness > LATENESS_MS {
            self.watches.values_mut().for_each(|watch| watch.excuse(lateness));
        }
        self.wake = self.wake.max(now);
    }

    /// Takes what a neighbour says that has answered what was sent at `sent_at`.
    fn listen(&mut self, now: u64, sent_at: u64, beat: Beat) {
        let was_calm = !self.council.is_alarm(now);
        for report in beat.reports {
            if report.author == self.me {
                self.remember(now, report);
            } else {
                self.learn(now, report);
            }
        }
        self.council.hearsay(now, beat.alarm_ms);
        if now <= sent_at + PROMPT_MS {
            self.council.attends(beat.from, now);
            if let Some(presence) = &beat.presence {
                self.council.count(now, &self.ring, presence);
            }
        }
        if was_calm && self.council.is_alarm(now) {
            self.send_due(now, true, None);
        }
    }

    fn learn(&mut self, now: u64, report: Report) {
        for missed in &report.missed {
            if let Some(watch) = self.watches.get_mut(missed) {
                watch.is_spoken_of(now);
            }
        }
        self.council.learn(now, report);
    }

    /// What this node said before it was started anew still stands, until it sees for itself.
    fn remember(&mut self, now: u64, report: Report) {
        let known = self.council.report(self.me).map(|known| known.version);
        if known.is_some_and(|known| known >= report.version) {
            return;
        }
        for missed in report.missed.iter().filter(|_| known.is_none()) {
            if let Some(watch) = self.watches.get_mut(missed) {
                watch.was_missed();
            }
        }
        self.council.learn(now, report);
        self.report(now);
    }

    /// Says whom this node misses.
    fn report(&mut self, now: u64) {
        let known = self.council.report(self.me).map_or(0, |known| known.version);
        let version = self.stamp.epoch.max(known + 1);
        let missed = self.missed().collect();
        self.council.learn(now, Report { author: self.me, version, missed });
    }

    /// Sends what is due. Beats are no hurry and go out together: all with the first one, and with a neighbour's. So all nodes
    /// come to beat at the same time, and wake up once for it and not for each neighbour twice.
    fn send_due(&mut self, now: u64, all: bool, join: Option<u64>) {
        let rhythm = self.council.rhythm(now);
        let due = |watch: &Watch| all && !watch.is_missed() || watch.is_due(now, rhythm);
        let join = join.or_else(|| self.watches.values().any(due).then_some(JOIN_MS));
        let joins = |watch: &Watch| join.is_some_and(|ms| watch.joins(now, ms, rhythm));
        let due = |watch: &Watch| due(watch) || joins(watch);
        let due: Vec<Id> =
            self.watches.iter().filter(|(_, watch)| due(watch)).map(|(id, _)| *id).collect();
        for to in due {
            let asks = self.watches.get(&to).is_some_and(|watch| watch.asks(now));
            self.send(now, to, asks);
        }
    }

    fn send(&mut self, now: u64, to: Id, asks: bool) {
        let alarm = self.council.is_alarm(now);
        let presence = alarm.then(|| self.council.presence(now, &self.ring, self.me));
        let members = self.ring.members().len();
        let room = if alarm { Beat::room(members) - 1 } else { CALM_REPORTS };
        let own = self.council.report(self.me).cloned();
        let reports = own.into_iter().chain(self.council.passed_on(now, self.me, room)).collect();
        let Some(watch) = self.watches.get_mut(&to) else { return };
        self.stamp.number = self.stamp.number.wrapping_add(1);
        let (from, stamp, echo) = (self.me, self.stamp, watch.theirs);
        watch.sends(stamp.number, now);
        let alarm_ms = self.council.alarm_ms(now);
        let beat = Beat { from, to, stamp, echo, asks, alarm_ms, reports, presence };
        self.outputs.push(Output::Send(beat));
        if watch.pings(now) {
            let number = u16::try_from(stamp.number & 0xffff).expect("half of the bits");
            self.outputs.push(Output::Ping(to, number));
        }
    }

    fn next(&self, now: u64) -> u64 {
        let rhythm = self.council.rhythm(now);
        let watches = self.watches.values().map(|watch| watch.wake(now, rhythm));
        watches.chain(self.council.wake(now)).min().unwrap_or(now + IDLE_MS)
    }
}
