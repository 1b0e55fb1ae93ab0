//! Development only: what tests of several crates share. Never part of the binary.

pub mod knocks;
pub mod lab;
pub mod leftovers;
pub mod load;
pub mod machine;
pub mod python;
pub mod tools;
