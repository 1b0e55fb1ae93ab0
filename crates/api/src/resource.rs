//! The table of resources: a kind is a row and its rules.
//!
//! Upstream counterpart: `pkg/registry/*/strategy.go` and `pkg/printers/internalversion`. Rules are plain functions over
//! JSON values, so that the API server is written once for all rows.

pub mod fields;
pub mod prepare;
pub mod rows;
pub mod rules;

pub use crate::field::{FieldError, FieldErrorKind};
pub use rows::RESOURCES;

use serde_json::Value;

use crate::ResourceScope;

/// A part of an object with a path of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subresource {
    /// What is observed.
    Status,
    /// `autoscaling/v1` Scale.
    Scale,
    /// Assignment of a pod to a node.
    Binding,
    /// Deletion that honours disruption budgets.
    Eviction,
    /// A container's output.
    Log,
    /// A command in a container.
    Exec,
    /// A container's own streams.
    Attach,
    /// Connections to a pod's ports.
    PortForward,
    /// HTTP to a node, pod or Service.
    Proxy,
    /// A ServiceAccount's token.
    Token,
    /// The end of a namespace.
    Finalize,
}

impl Subresource {
    /// The last part of the path.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Status => "status",
            Self::Scale => "scale",
            Self::Binding => "binding",
            Self::Eviction => "eviction",
            Self::Log => "log",
            Self::Exec => "exec",
            Self::Attach => "attach",
            Self::PortForward => "portforward",
            Self::Proxy => "proxy",
            Self::Token => "token",
            Self::Finalize => "finalize",
        }
    }
}

/// A column of `kubectl get`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Column {
    /// The head.
    pub name: &'static str,
    /// `string`, `integer`, `date` or `boolean`.
    pub kind: &'static str,
    /// `name` for the name's column.
    pub format: &'static str,
    /// What it shows.
    pub description: &'static str,
    /// 0 is always shown, 1 only by `-o wide`.
    pub priority: u8,
}

/// What a kind does differently from the others.
#[derive(Clone, Copy)]
pub struct Rules {
    /// Sets what was left out.
    pub default: fn(&mut Value),
    /// Drops what a client may not set at creation, and sets the generation.
    pub prepare_create: fn(&mut Value),
    /// Keeps what a client may not change, and counts the generation: `(new, old)`.
    pub prepare_update: fn(&mut Value, &Value),
    /// Keeps everything but the status: `(new, old)`.
    pub prepare_status: fn(&mut Value, &Value),
    /// Checks a new object.
    pub validate_create: fn(&Value) -> Vec<FieldError>,
    /// Checks a change: `(new, old)`.
    pub validate_update: fn(&Value, &Value) -> Vec<FieldError>,
    /// Checks a change of the status: `(new, old)`.
    pub validate_status: fn(&Value, &Value) -> Vec<FieldError>,
    /// What a client should be told although it is accepted.
    pub warnings: fn(&Value) -> Vec<String>,
    /// Fields for field selectors, beyond name and namespace.
    pub fields: fn(&Value) -> Vec<(&'static str, String)>,
    /// The columns of `kubectl get`.
    pub columns: &'static [Column],
    /// The cells of one row.
    pub row: fn(&Value, jiff::Timestamp) -> Vec<Value>,
}

/// A row of the table.
pub struct Resource {
    /// Empty for core.
    pub group: &'static str,
    /// `v1`.
    pub version: &'static str,
    /// `Pod`.
    pub kind: &'static str,
    /// `pods`: the part of the path.
    pub plural: &'static str,
    /// `pod`.
    pub singular: &'static str,
    /// `po`.
    pub short_names: &'static [&'static str],
    /// `all`.
    pub categories: &'static [&'static str],
    /// Whether objects live in namespaces.
    pub scope: ResourceScope,
    /// The parts with paths of their own.
    pub subresources: &'static [Subresource],
    /// What can be done; a resource with `create` alone is never stored.
    pub verbs: &'static [&'static str],
    /// What this kind does differently.
    pub rules: Rules,
}

impl std::fmt::Debug for Resource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}/{}", self.group, self.version, self.plural)
    }
}

impl Resource {
    /// Whether objects are stored at all; reviews are only answered.
    #[must_use]
    pub fn is_stored(&self) -> bool {
        self.verbs.contains(&"get")
    }

    /// `apps/v1`, or `v1` in the core group.
    #[must_use]
    pub fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.to_owned()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }
}

/// The row of a path.
#[must_use]
pub fn find(group: &str, version: &str, plural: &str) -> Option<&'static Resource> {
    RESOURCES
        .iter()
        .find(|row| row.group == group && row.version == version && row.plural == plural)
}

/// The row of a kind.
#[must_use]
pub fn by_kind(group: &str, version: &str, kind: &str) -> Option<&'static Resource> {
    RESOURCES.iter().find(|row| row.group == group && row.version == version && row.kind == kind)
}
