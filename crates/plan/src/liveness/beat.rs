//! What nodes send each other, and its bytes.
//!
//! All numbers are big-endian. The bytes are authenticated around this: nothing here is secret, and nothing is believed
//! that was not.

use std::collections::BTreeSet;

use super::ring::Id;

/// The first byte: another layout is another number, and is ignored.
const LAYOUT: u8 = 1;
const ASKS: u8 = 1;
const ECHOES: u8 = 2;
const COUNTS: u8 = 4;

/// The most reports of one beat.
pub(super) const REPORTS_MAX: usize = 24;
/// The most nodes that a report names: more than a node can have neighbours.
const MISSED_MAX: usize = 16;
/// Bytes of a beat's fixed part, its echo with it.
const HEAD: usize = 45;
/// Bytes that fit one packet of the node network with the authentication around them.
const PACKET: usize = 1_400;

/// One sending of one node: the time when its agent began, in milliseconds of its clock, and a number that counts up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Stamp {
    /// When the agent began.
    pub epoch: u64,
    /// Counts what it sends.
    pub number: u32,
}

/// What a node says of its neighbours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Who says it.
    pub author: Id,
    /// The later of two reports has the greater number, also across restarts of its author.
    pub version: u64,
    /// Whom it misses.
    pub missed: BTreeSet<Id>,
}

impl Report {
    fn bytes(&self) -> usize {
        17 + 8 * self.missed.len()
    }
}

/// Who is there, as far as the sender knows: in an alarm, all must know whether they are with the majority.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Presence {
    /// Of the members, in whose order the ages are.
    pub digest: u32,
    /// How long ago each member was there, in units of two milliseconds; 255 when that is not known.
    pub ages: Vec<u8>,
}

/// A message from neighbour to neighbour.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Beat {
    /// The sender.
    pub from: Id,
    /// The receiver.
    pub to: Id,
    /// Which of the sender's messages this is.
    pub stamp: Stamp,
    /// The receiver's newest message that has reached the sender: proof that both directions work.
    pub echo: Option<Stamp>,
    /// Whether the sender wants to be answered at once.
    pub asks: bool,
    /// Milliseconds for which the alarm goes on.
    pub alarm_ms: u16,
    /// The sender's own report and others that it knows.
    pub reports: Vec<Report>,
    /// Who is there, in an alarm.
    pub presence: Option<Presence>,
}

/// A message that is not one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a message between nodes")]
pub struct Malformed;

impl Beat {
    /// How many reports fit into one packet beside the presence of so many members; never less than a few.
    pub(super) fn room(members: usize) -> usize {
        let left = PACKET.saturating_sub(HEAD + 6 + members);
        (left / (17 + 16)).clamp(8, REPORTS_MAX)
    }

    /// Its bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let reports: usize = self.reports.iter().map(Report::bytes).sum();
        let ages = self.presence.as_ref().map_or(0, |presence| 6 + presence.ages.len());
        let mut bytes = Vec::with_capacity(HEAD + reports + ages);
        let flag = |set: bool, bit: u8| if set { bit } else { 0 };
        bytes.extend([
            LAYOUT,
            flag(self.asks, ASKS)
                | flag(self.echo.is_some(), ECHOES)
                | flag(self.presence.is_some(), COUNTS),
        ]);
        bytes.extend(self.from.0.to_be_bytes());
        bytes.extend(self.to.0.to_be_bytes());
        for stamp in [Some(self.stamp), self.echo].into_iter().flatten() {
            bytes.extend(stamp.epoch.to_be_bytes());
            bytes.extend(stamp.number.to_be_bytes());
        }
        bytes.extend(self.alarm_ms.to_be_bytes());
        bytes.push(count(self.reports.len(), REPORTS_MAX));
        for report in self.reports.iter().take(REPORTS_MAX) {
            bytes.extend(report.author.0.to_be_bytes());
            bytes.extend(report.version.to_be_bytes());
            bytes.push(count(report.missed.len(), MISSED_MAX));
            for missed in report.missed.iter().take(MISSED_MAX) {
                bytes.extend(missed.0.to_be_bytes());
            }
        }
        if let Some(Presence { digest, ages }) = &self.presence {
            let known = u16::try_from(ages.len()).unwrap_or(u16::MAX);
            bytes.extend(digest.to_be_bytes());
            bytes.extend(known.to_be_bytes());
            bytes.extend(ages.iter().take(known.into()));
        }
        bytes
    }

    /// Reads bytes, all of them.
    ///
    /// # Errors
    /// When they are not a message of this layout.
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut bytes = Bytes(bytes);
        let [layout, flags] = bytes.take()?;
        if layout != LAYOUT || flags > (ASKS | ECHOES | COUNTS) {
            return Err(Malformed);
        }
        let (from, to, stamp) = (bytes.id()?, bytes.id()?, bytes.stamp()?);
        let echo = if flags & ECHOES == 0 { None } else { Some(bytes.stamp()?) };
        let alarm_ms = u16::from_be_bytes(bytes.take()?);
        let reports = (0..bytes.count(REPORTS_MAX)?).map(|_| bytes.report());
        let reports = reports.collect::<Result<_, _>>()?;
        let presence = if flags & COUNTS == 0 { None } else { Some(bytes.presence()?) };
        if !bytes.0.is_empty() {
            return Err(Malformed);
        }
        let asks = flags & ASKS != 0;
        Ok(Self { from, to, stamp, echo, asks, alarm_ms, reports, presence })
    }
}

fn count(length: usize, max: usize) -> u8 {
    u8::try_from(length.min(max)).expect("the bounds are small")
}

/// Bytes that are left to read.
struct Bytes<'a>(&'a [u8]);

impl Bytes<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (taken, rest) = self.0.split_first_chunk().ok_or(Malformed)?;
        self.0 = rest;
        Ok(*taken)
    }

    fn id(&mut self) -> Result<Id, Malformed> {
        Ok(Id(u64::from_be_bytes(self.take()?)))
    }

    fn stamp(&mut self) -> Result<Stamp, Malformed> {
        let epoch = u64::from_be_bytes(self.take()?);
        Ok(Stamp { epoch, number: u32::from_be_bytes(self.take()?) })
    }

    fn count(&mut self, max: usize) -> Result<usize, Malformed> {
        let [count] = self.take()?;
        Some(usize::from(count)).filter(|count| *count <= max).ok_or(Malformed)
    }

    fn report(&mut self) -> Result<Report, Malformed> {
        let (author, version) = (self.id()?, u64::from_be_bytes(self.take()?));
        let missed = (0..self.count(MISSED_MAX)?).map(|_| self.id());
        Ok(Report { author, version, missed: missed.collect::<Result<_, _>>()? })
    }

    fn presence(&mut self) -> Result<Presence, Malformed> {
        let digest = u32::from_be_bytes(self.take()?);
        let count = usize::from(u16::from_be_bytes(self.take()?));
        let (ages, rest) = self.0.split_at_checked(count).ok_or(Malformed)?;
        self.0 = rest;
        Ok(Presence { digest, ages: ages.to_vec() })
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::{btree_set, vec};
    use proptest::option;
    use proptest::prelude::*;

    use super::*;

    fn beats() -> impl Strategy<Value = Beat> {
        let id = || any::<u64>().prop_map(Id);
        let stamp =
            || (any::<u64>(), any::<u32>()).prop_map(|(epoch, number)| Stamp { epoch, number });
        let report = (id(), any::<u64>(), btree_set(id(), 0..=MISSED_MAX))
            .prop_map(|(author, version, missed)| Report { author, version, missed });
        let presence = (any::<u32>(), vec(any::<u8>(), 0..2000))
            .prop_map(|(digest, ages)| Presence { digest, ages });
        let reports = vec(report, 0..=REPORTS_MAX);
        let head = (id(), id(), stamp(), option::of(stamp()), any::<bool>(), any::<u16>());
        (head, reports, option::of(presence)).prop_map(|(head, reports, presence)| {
            let (from, to, stamp, echo, asks, alarm_ms) = head;
            Beat { from, to, stamp, echo, asks, alarm_ms, reports, presence }
        })
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(beat in beats()) {
            prop_assert_eq!(Beat::decode(&beat.encode()), Ok(beat));
        }

        #[test]
        fn a_part_is_refused(beat in beats(), cut in any::<prop::sample::Index>()) {
            let bytes = beat.encode();
            let part = &bytes[..cut.index(bytes.len())];
            prop_assert_eq!(Beat::decode(part), Err(Malformed));
        }

        #[test]
        fn any_bytes_are_read_or_refused(mut bytes in vec(any::<u8>(), 0..400), fits in any::<bool>()) {
            if fits && let [layout, flags, ..] = &mut bytes[..] {
                (*layout, *flags) = (LAYOUT, *flags & 7);
            }
            if let Ok(beat) = Beat::decode(&bytes) {
                prop_assert!(beat.reports.len() <= REPORTS_MAX);
            }
        }
    }

    #[test]
    fn more_after_the_end_is_refused() {
        let stamp = Stamp { epoch: 1, number: 2 };
        let (from, to) = (Id(1), Id(2));
        let (reports, presence) = (Vec::new(), None);
        let beat = Beat { from, to, stamp, echo: None, asks: true, alarm_ms: 0, reports, presence };
        let mut bytes = beat.encode();
        assert_eq!(Beat::decode(&bytes), Ok(beat));
        bytes.push(0);
        assert_eq!(Beat::decode(&bytes), Err(Malformed));
    }
}
