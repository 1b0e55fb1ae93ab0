//! What breaks: a loop's process, a node's agent, a watch, the API server's memory.

use super::Cluster;
use super::copies::View;
use super::ranges;
use crate::alloc::Allocator;

impl Cluster {
    pub(super) fn something_fails(&mut self) {
        match self.chance.below(4) {
            // A process dies; the next one lists everything.
            0 => {
                let index = self.chance.below(self.parts.len());
                self.parts[index].1 = View::default();
                self.parts[index].1.deliver_all(&self.past);
            }
            1 => {
                let index = self.chance.below(self.nodes.len());
                let (node, view) = &mut self.nodes[index];
                node.crash();
                *view = View::default();
                view.deliver_all(&self.past);
            }
            // A watch is lost; a list tells what is there now, and nobody what happened.
            2 => {
                let index = self.chance.below(self.nodes.len());
                let view = &mut self.nodes[index].1;
                view.deliver_all(&self.past);
                view.dirty = None;
            }
            // The API server restarts: what is taken is read from the Services.
            _ => {
                let mut allocator = Allocator::new(&ranges(), 30_000..=30_040);
                for service in self.now().services.values() {
                    let value = serde_json::to_value(&**service).expect("encodes");
                    allocator.take(&value);
                }
                self.allocator = allocator;
            }
        }
    }
}
