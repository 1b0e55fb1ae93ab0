//! How far a component is: the revision up to which its sink has everything. For whoever must know that a change of the
//! API has arrived at a node.

use std::sync::Arc;

use tokio::sync::watch;

/// A revision that only its component moves. Clones share it.
#[derive(Clone, Debug)]
pub struct Applied(Arc<watch::Sender<u64>>);

impl Default for Applied {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(0)))
    }
}

impl Applied {
    /// The sink has everything up to `revision`.
    pub fn tell(&self, revision: u64) {
        self.0.send_if_modified(|known| std::mem::replace(known, revision) != revision);
    }

    /// How far the sink is.
    #[must_use]
    pub fn now(&self) -> u64 {
        *self.0.borrow()
    }

    /// Waits until the sink has everything up to `revision`; tells how far it is then.
    pub async fn reached(&self, revision: u64) -> u64 {
        let mut follow = self.0.subscribe();
        let now = follow.wait_for(|now| *now >= revision).await;
        *now.expect("the sender is held while it is borrowed")
    }
}
