//! Pods on Linux: the embedded OCI runtime, images (upstream: containerd behind the CRI).
//!
//! One shim process for each pod runs the containers through `libcontainer`, writes their logs and
//! reaps their processes; it is executed from the binary itself (see [`shim_main`]), is single-threaded
//! (libcontainer clones and allocates in the child, which deadlocks under threads) and outlives the
//! agent. The agent speaks to it over a unix socket in the pod's directory.

mod cgroup;
pub mod error;
pub mod exec;
pub mod image;
pub mod pod;
mod rootfs;
pub mod runtime;
mod shim;

pub use cgroup::forget_group;
pub use error::{ImageError, RuntimeError};
pub use exec::{Attach, Exec, ExecOutput, ExecSpec};
pub use image::{Credentials, Image, ImageConfig, ImageStore, Reference};
pub use pod::{
    ContainerSpec, ContainerState, ContainerStatus, Mount, PodResources, PodSandbox, PodStats,
    PodStatus, Propagation, Resources, Security,
};
pub use runtime::{Options, Runtime};
pub use shim::shim_main;
