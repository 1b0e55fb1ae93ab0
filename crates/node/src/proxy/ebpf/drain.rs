//! Flows at links once nobody begins new ones: the program stays with the connections that it carries.

use std::path::Path;
use std::time::{Duration, Instant};

use kernel::bpf::BpfError;
use kernel::bpf::forward::{Leaving, detach_all};
use kernel::tc::Tc;

/// How often to look whether connections are left.
const LOOK_AFTER: Duration = Duration::from_secs(5);
/// And no more than this part of the time.
const LOOK_SHARE: u32 = 100;

/// A program that goes with the last of its connections.
#[derive(Debug)]
pub(in crate::proxy) struct Drain {
    leaving: Leaving,
    look_at: Instant,
}

impl Drain {
    /// Makes the program at the links begin nothing more. `None`: there is none, or it carries nothing, and is at no link now.
    pub(in crate::proxy) fn begin(tc: &mut Tc, pins: &Path) -> Result<Option<Self>, BpfError> {
        let Some(mut leaving) = Leaving::of(pins)? else {
            detach_all(tc)?;
            return Ok(None);
        };
        leaving.begin()?;
        let mut drain = Self { leaving, look_at: Instant::now() };
        let is_over = drain.is_over(tc)?;
        Ok(Some(drain).filter(|_| !is_over))
    }

    /// Whether the last connection is gone, and the program with it; looks when it is time.
    pub(in crate::proxy) fn is_over(&mut self, tc: &mut Tc) -> Result<bool, BpfError> {
        let begun = Instant::now();
        if self.look_at > begun {
            return Ok(false);
        }
        if self.leaving.carries()? {
            self.look_at = begun + LOOK_AFTER.max(begun.elapsed() * LOOK_SHARE);
            return Ok(false);
        }
        detach_all(tc)?;
        Ok(true)
    }
}
