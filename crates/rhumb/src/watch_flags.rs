//! `--node-liveness`: whether nodes watch each other. A lab remembers what it was told.

use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};

/// How nodes watch each other; what is not given is as before, or the default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Args, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct WatchFlags {
    /// Whether nodes watch each other, and new connections pass by those that most miss [default: on]
    #[arg(long, value_name = "SWITCH")]
    node_liveness: Option<Switch>,
    /// The UDP port for that, on all nodes [default: 10253]
    #[arg(long, value_name = "PORT")]
    node_liveness_port: Option<u16>,
}

/// On or off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Switch {
    On,
    Off,
}

impl WatchFlags {
    /// Takes what was given this time.
    pub(crate) fn change(&mut self, asked: Self) {
        self.node_liveness = asked.node_liveness.or(self.node_liveness);
        self.node_liveness_port = asked.node_liveness_port.or(self.node_liveness_port);
    }

    /// The same as flags.
    pub(crate) fn flags(self) -> Vec<String> {
        let switch = self.node_liveness.map(|switch| match switch {
            Switch::On => "--node-liveness=on".to_owned(),
            Switch::Off => "--node-liveness=off".to_owned(),
        });
        let port = self.node_liveness_port.map(|port| format!("--node-liveness-port={port}"));
        switch.into_iter().chain(port).collect()
    }

    /// The port, unless nodes do not watch each other.
    pub(crate) fn port(self) -> Option<u16> {
        let port = self.node_liveness_port.unwrap_or(node::liveness::PORT);
        (self.node_liveness != Some(Switch::Off)).then_some(port)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_watch_each_other_unless_told_otherwise() {
        let mut known = WatchFlags::default();
        assert_eq!(known.port(), Some(10_253));
        assert!(known.flags().is_empty());
        known.change(WatchFlags { node_liveness_port: Some(7_000), ..WatchFlags::default() });
        assert_eq!(known.port(), Some(7_000));
        known.change(WatchFlags { node_liveness: Some(Switch::Off), ..WatchFlags::default() });
        assert_eq!(known.port(), None);
        assert_eq!(known.flags(), ["--node-liveness=off", "--node-liveness-port=7000"]);
    }
}
