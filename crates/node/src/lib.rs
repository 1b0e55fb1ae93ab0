//! Loops that touch this node: kubelet, proxy, pod network, load balancer speaker, liveness of other nodes.
pub mod guard;
pub mod kubelet;
pub mod liveness;
pub mod loadbalancer;
pub mod podnet;
pub mod portuse;
pub mod proxy;
mod sockets;
pub mod stream;
