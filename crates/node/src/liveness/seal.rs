//! Authenticates what nodes send each other: HMAC-SHA256, cut to 128 bits as in RFC 4868, with the cluster's key.

use ring::hmac::{HMAC_SHA256, Key};

/// Bytes of a tag.
pub(super) const TAG_BYTES: usize = 16;
/// Keys are at least so long.
const KEY_BYTES_MIN: usize = 32;

/// The cluster's key. It has no `Debug`.
pub(super) struct Seal(Key);

impl Seal {
    /// A key from its bytes, if they are enough.
    pub(super) fn new(key: &[u8]) -> Option<Self> {
        (key.len() >= KEY_BYTES_MIN).then(|| Self(Key::new(HMAC_SHA256, key)))
    }

    /// The message with its tag.
    pub(super) fn seal(&self, mut message: Vec<u8>) -> Vec<u8> {
        let tag = ring::hmac::sign(&self.0, &message);
        message.extend(tag.as_ref().iter().take(TAG_BYTES));
        message
    }

    /// The message without its tag, if that is right.
    pub(super) fn open<'a>(&self, datagram: &'a [u8]) -> Option<&'a [u8]> {
        let (message, tag) = datagram.split_at_checked(datagram.len().checked_sub(TAG_BYTES)?)?;
        let right = ring::hmac::sign(&self.0, message);
        // In the same time, wherever they differ.
        let difference =
            right.as_ref().iter().zip(tag).fold(0, |found, (one, other)| found | (one ^ other));
        (difference == 0).then_some(message)
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_sealed_opens_and_nothing_else(message in vec(any::<u8>(), 0..200), at in any::<prop::sample::Index>(), bit in 0..8u8) {
            let seal = Seal::new(&[7; 32]).unwrap();
            let mut datagram = seal.seal(message.clone());
            prop_assert_eq!(seal.open(&datagram), Some(message.as_slice()));
            prop_assert_eq!(Seal::new(&[8; 32]).unwrap().open(&datagram), None);
            let at = at.index(datagram.len());
            datagram[at] ^= 1 << bit;
            prop_assert_eq!(seal.open(&datagram), None);
        }

        #[test]
        fn strangers_bytes_do_not_open(bytes in vec(any::<u8>(), 0..100)) {
            prop_assert_eq!(Seal::new(&[7; 32]).unwrap().open(&bytes), None);
        }
    }

    #[test]
    fn short_keys_are_none() {
        assert!(Seal::new(&[7; 31]).is_none());
    }
}
