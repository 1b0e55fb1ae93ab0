//! Keys and data out of padded fields.

use std::net::IpAddr;

use super::{Blob, Key, Value};

/// Builds keys and data out of padded fields.
#[derive(Clone, Debug, Default)]
pub struct Fields(pub(super) Blob);

impl Fields {
    /// No fields yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// An address.
    #[must_use]
    pub fn address(mut self, address: IpAddr) -> Self {
        match address {
            IpAddr::V4(v4) => self.0.extend(&v4.octets()),
            IpAddr::V6(v6) => self.0.extend(&v6.octets()),
        }
        self
    }

    /// A protocol number.
    #[must_use]
    pub fn proto(mut self, number: u8) -> Self {
        self.0.extend(&[number, 0, 0, 0]);
        self
    }

    /// A port.
    #[must_use]
    pub fn port(mut self, port: u16) -> Self {
        self.0.extend(&port.to_be_bytes());
        self.0.extend(&[0, 0]);
        self
    }

    /// A number in host order.
    #[must_use]
    pub fn mark(mut self, mark: u32) -> Self {
        self.0.extend(&mark.to_ne_bytes());
        self
    }

    /// The bytes.
    #[must_use]
    pub fn bytes(self) -> Blob {
        self.0
    }

    /// The bytes as a key.
    #[must_use]
    pub fn key(self) -> Key {
        Key::exact(self.bytes())
    }

    /// The bytes as data.
    #[must_use]
    pub fn data(self) -> Value {
        Value::Data(self.bytes())
    }
}
