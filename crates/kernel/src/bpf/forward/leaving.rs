//! The program at links when its mode is left: connections that it carries go on, and nothing else. The rules know
//! nothing of them, and a connection cannot be handed over.
#![expect(unsafe_code, reason = "aya asks for a promise on plain bytes; the clock is libc's")]

use std::fmt;
use std::path::Path;

use aya::Pod;
use aya::maps::{Array, HashMap, MapData};

use super::{BpfError, LAYOUT, RawForwarding, TABLES, open, table};

const TCP: u8 = 6;
/// Flags of a track, in `bpf/forward.h`.
const ANSWERED: u32 = 2;
const CLOSED: u32 = 4 | 8;

#[repr(C)]
#[derive(Clone, Copy)]
struct RawTuple {
    source: [u8; 16],
    destination: [u8; 16],
    ports: [u8; 4],
    protocol: u8,
    family: u8,
    zero: u16,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct RawTrack {
    to: RawTuple,
    begun_ns: u64,
    seen_ns: u64,
    set: u64,
    flags: u32,
    audience: u32,
    end: u32,
    first: u32,
}

// SAFETY: numbers and arrays of numbers without gaps, in the order of the C.
unsafe impl Pod for RawTuple {}
// SAFETY: as above.
unsafe impl Pod for RawTrack {}

/// The tables of a program that is to go.
pub struct Leaving {
    settings: Array<MapData, RawForwarding>,
    tracked: HashMap<MapData, RawTuple, RawTrack>,
}

impl fmt::Debug for Leaving {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.debug_struct("Leaving").finish_non_exhaustive()
    }
}

impl Leaving {
    /// The tables that are kept at `pins`; `None` where no program at links was, or one with other tables.
    ///
    /// # Errors
    /// When they cannot be opened.
    pub fn of(pins: &Path) -> Result<Option<Self>, BpfError> {
        let folder = pins.join(format!("{TABLES}{LAYOUT}"));
        if !folder.join("tracked").exists() {
            return Ok(None);
        }
        let (settings, tracked) = (open(&folder, "forwarding")?, open(&folder, "tracked")?);
        Ok(Some(Self { settings, tracked }))
    }

    /// From now on the program begins no flows, and carries connections only; until [`super::Forward::tell`].
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn begin(&mut self) -> Result<(), BpfError> {
        let told = self.settings.get(&0, 0).map_err(table("forwarding"))?;
        let leaving = RawForwarding { leaving: 1, ..told };
        self.settings.set(0, leaving, 0).map_err(table("forwarding"))
    }

    /// Whether a connection goes on, as far as is known.
    ///
    /// # Errors
    /// When the tables cannot be read.
    pub fn carries(&self) -> Result<bool, BpfError> {
        let told = self.settings.get(&0, 0).map_err(table("forwarding"))?;
        let now_ns = now_ns();
        for entry in self.tracked.iter() {
            let (tuple, track) = entry.map_err(table("tracked"))?;
            if tuple.protocol == TCP && is_open(&told, &track, now_ns) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// As `is_over` of `bpf/track.h`; an entry of the other direction speaks for itself.
fn is_open(told: &RawForwarding, track: &RawTrack, now_ns: u64) -> bool {
    let patience_s = match track.flags {
        flags if flags & CLOSED != 0 => told.closing_s,
        flags if flags & ANSWERED != 0 => told.open_s,
        _ => told.opening_s,
    };
    now_ns.saturating_sub(track.seen_ns) <= u64::from(patience_s) * 1_000_000_000
}

/// The programs' clock.
fn now_ns() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is to a whole structure of this kind.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    now.tv_sec.unsigned_abs() * 1_000_000_000 + now.tv_nsec.unsigned_abs()
}
