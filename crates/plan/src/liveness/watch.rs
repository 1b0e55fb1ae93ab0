//! One neighbour, as the node that watches it sees it.

use std::collections::VecDeque;

use super::beat::Stamp;

/// Milliseconds between two beats to a neighbour that answers.
pub const BEAT_MS: u64 = 200;
/// A neighbour is late when nothing has come for so long: one beat, and time to travel.
pub(super) const LATE_MS: u64 = BEAT_MS + 50;
/// Milliseconds between tries while a neighbour is late.
const TRY_MS: u64 = 50;
/// A neighbour is missed after so much silence; by then four tries and four echo requests found no answer.
pub const MISSED_MS: u64 = 450;
/// A node whose kernel alone answers is asked so often: by echo requests, of which each counts.
const KERNEL_MS: u64 = 100;
/// A neighbour that was missed must answer for so long before it is not missed any more; doubled with each time that it
/// fell silent lately.
const STEADY_MS: u64 = 100;
/// Doublings at most: 3.2 seconds.
const FALLS_MAX: u32 = 5;
/// After so long, silence is forgotten.
const FORGOTTEN_MS: u64 = 60_000;
/// Messages whose time of sending is remembered, to date what comes back.
const SENT_MAX: usize = 64;

/// A message to the neighbour.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sent {
    number: u32,
    /// When it was sent.
    pub(super) at: u64,
    /// The watcher's excuses until then.
    excused: u64,
}

/// What the watcher knows of a neighbour. Times are in milliseconds of the watcher's clock.
#[derive(Clone, Debug)]
pub(super) struct Watch {
    /// The newest message that came.
    pub(super) theirs: Option<Stamp>,
    sent: VecDeque<Sent>,
    sent_at: u64,
    /// Time in which this node did not look, all in all.
    excused: u64,
    heard_at: u64,
    /// Whether its agent has ever been heard, here or elsewhere: who has never spoken is not missed.
    spoke: bool,
    /// Whether its kernel answers and its agent does not.
    kernel: bool,
    missed: bool,
    back_since: Option<u64>,
    falls: u32,
    fell_at: Option<u64>,
}

impl Watch {
    /// A neighbour of whom nothing is known; the first beat goes out `phase` from now.
    pub(super) fn new(now: u64, phase: u64) -> Self {
        Self {
            theirs: None,
            sent: VecDeque::new(),
            sent_at: (now + phase).saturating_sub(BEAT_MS),
            excused: 0,
            heard_at: now,
            spoke: false,
            kernel: false,
            missed: false,
            back_since: None,
            falls: 0,
            fell_at: None,
        }
    }

    /// Whether it is missed.
    pub(super) const fn is_missed(&self) -> bool {
        self.missed
    }

    /// Whether an answer is wanted at once.
    pub(super) const fn asks(&self, now: u64) -> bool {
        self.missed || self.is_late(now)
    }

    /// Whether its kernel is to be asked, too.
    pub(super) const fn pings(&self, now: u64) -> bool {
        self.spoke && (self.kernel || self.asks(now))
    }

    const fn is_late(&self, now: u64) -> bool {
        now.saturating_sub(self.heard_at) > LATE_MS
    }

    /// Time in which the watcher did not look says nothing about the neighbour.
    pub(super) fn excuse(&mut self, ms: u64) {
        self.heard_at += ms;
        self.excused += ms;
    }

    /// Others say that it is silent, so it did speak.
    pub(super) fn is_spoken_of(&mut self, now: u64) {
        if !self.spoke {
            (self.spoke, self.heard_at) = (true, now);
        }
    }

    /// It was missed when this node ran before.
    pub(super) fn was_missed(&mut self) {
        (self.spoke, self.missed, self.back_since) = (true, true, None);
    }

    /// A message of this number goes out.
    pub(super) fn sends(&mut self, number: u32, now: u64) {
        if self.sent.len() == SENT_MAX {
            self.sent.pop_front();
        }
        self.sent.push_back(Sent { number, at: now, excused: self.excused });
        self.sent_at = now;
    }

    /// The message of this number, if it went out lately.
    pub(super) fn sent(&self, number: u32) -> Option<Sent> {
        self.find(|sent| sent == number)
    }

    /// The same for an echo request, which has room for half of the number.
    pub(super) fn pinged(&self, number: u16) -> Option<Sent> {
        self.find(|sent| sent & 0xffff == u32::from(number))
    }

    fn find(&self, is_it: impl Fn(u32) -> bool) -> Option<Sent> {
        self.sent.iter().rev().find(|sent| is_it(sent.number)).copied()
    }

    /// Takes a message's stamp unless it is old. After a restart with a clock that went back, only a message that answers
    /// one sent lately is believed to be new.
    pub(super) fn follows(&mut self, stamp: Stamp, answers: bool) -> bool {
        let is_new = match self.theirs {
            Some(known) if known.epoch == stamp.epoch => stamp.number > known.number,
            Some(known) => stamp.epoch > known.epoch || answers,
            None => true,
        };
        if is_new {
            self.theirs = Some(stamp);
        }
        is_new
    }

    /// Its agent has answered `sent`. An answer proves no more than that it was there when the
    /// question came, so that who speaks and does not hear falls silent, too.
    pub(super) fn answered(&mut self, sent: Sent, now: u64) {
        (self.spoke, self.kernel) = (true, false);
        self.heard(sent, now);
    }

    /// Its kernel has answered `sent`.
    pub(super) fn pong(&mut self, sent: Sent, now: u64) {
        if self.spoke {
            self.kernel = true;
            self.heard(sent, now);
        }
    }

    fn heard(&mut self, sent: Sent, now: u64) {
        let proven = now.min(sent.at + LATE_MS + self.excused - sent.excused);
        self.heard_at = self.heard_at.max(proven);
        if self.missed && !self.is_late(now) {
            self.back_since.get_or_insert(now);
        }
    }

    /// Decides anew whether it is missed; answers whether that changed.
    pub(super) fn judge(&mut self, now: u64) -> bool {
        let before = self.missed;
        if self.missed {
            if self.is_late(now) {
                self.back_since = None;
            }
            self.missed = self.back_at().is_none_or(|at| now < at);
        } else if self.spoke && now >= self.heard_at + MISSED_MS {
            let lately = self.fell_at.is_some_and(|fell_at| now < fell_at + FORGOTTEN_MS);
            self.falls = if lately { (self.falls + 1).min(FALLS_MAX) } else { 0 };
            (self.missed, self.back_since, self.fell_at) = (true, None, Some(now));
        }
        before != self.missed
    }

    /// When it has answered for long enough, if it goes on.
    fn back_at(&self) -> Option<u64> {
        self.back_since.map(|since| since + (STEADY_MS << self.falls))
    }

    /// Whether the next message is due.
    pub(super) fn is_due(&self, now: u64, alarm_ms: Option<u64>) -> bool {
        now >= self.due(now, alarm_ms)
    }

    /// Whether the next message may go out `early` milliseconds before it is due: a plain beat.
    pub(super) fn joins(&self, now: u64, early: u64, alarm_ms: Option<u64>) -> bool {
        let due = self.due(now, alarm_ms);
        due == self.sent_at + BEAT_MS && now + early >= due
    }

    /// When the next message is due; in an alarm, neighbours that answer hear more often.
    fn due(&self, now: u64, alarm_ms: Option<u64>) -> u64 {
        let answers = !self.missed || self.back_since.is_some();
        let every = match alarm_ms {
            Some(every) if answers && !self.is_late(now) => every,
            _ if !self.spoke || !answers => BEAT_MS,
            _ if self.asks(now) => TRY_MS,
            _ if self.kernel => KERNEL_MS,
            _ => BEAT_MS,
        };
        self.sent_at + every
    }

    /// When something is to be done next.
    pub(super) fn wake(&self, now: u64, alarm_ms: Option<u64>) -> u64 {
        let late = self.heard_at + LATE_MS + 1;
        let missed = (!self.missed).then_some(self.heard_at + MISSED_MS);
        let times = [Some(self.due(now, alarm_ms)), Some(late), missed, self.back_at()];
        times.into_iter().flatten().filter(|at| *at > now).min().unwrap_or(now + BEAT_MS)
    }
}
