//! Loops that touch this node: kubelet, proxy, pod network, load balancer speaker.
pub mod kubelet;
pub mod podnet;
pub mod loadbalancer;
pub mod proxy;
pub mod stream;
