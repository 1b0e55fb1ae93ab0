//! Bytes of a key or of data, without an allocation while they are few.
//!
//! A proxy of 10,000 Services holds 60,000 keys and compares them all the time: what is in place is found faster.

use std::fmt;
use std::ops::Deref;

/// Every key and value of IPv4, and most of IPv6, is at most this long.
const INLINE_BYTES: usize = 30;

/// Bytes, in place while they are at most 30.
#[derive(Clone)]
pub struct Blob(Repr);

#[derive(Clone)]
enum Repr {
    Inline(u8, [u8; INLINE_BYTES]),
    Boxed(Box<[u8]>),
}

impl Blob {
    /// Appends bytes.
    pub fn extend(&mut self, more: &[u8]) {
        let len = self.len();
        if let Repr::Inline(count, bytes) = &mut self.0
            && let Some(place) = bytes.get_mut(len..len + more.len())
        {
            place.copy_from_slice(more);
            *count += u8::try_from(more.len()).expect("at most 30 bytes");
            return;
        }
        *self = [&**self, more].concat().as_slice().into();
    }
}

impl Default for Blob {
    fn default() -> Self {
        Self(Repr::Inline(0, [0; INLINE_BYTES]))
    }
}

impl Deref for Blob {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.0 {
            Repr::Inline(count, bytes) => &bytes[..usize::from(*count)],
            Repr::Boxed(bytes) => bytes,
        }
    }
}

impl From<&[u8]> for Blob {
    fn from(bytes: &[u8]) -> Self {
        let mut inline = [0; INLINE_BYTES];
        match (inline.get_mut(..bytes.len()), u8::try_from(bytes.len())) {
            (Some(place), Ok(count)) => {
                place.copy_from_slice(bytes);
                Self(Repr::Inline(count, inline))
            }
            _ => Self(Repr::Boxed(bytes.into())),
        }
    }
}

impl PartialEq for Blob {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl Eq for Blob {}

impl PartialOrd for Blob {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Blob {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (**self).cmp(&**other)
    }
}

impl std::hash::Hash for Blob {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        (**self).hash(state);
    }
}

impl fmt::Debug for Blob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for byte in &**self {
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}
