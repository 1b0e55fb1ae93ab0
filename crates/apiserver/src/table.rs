//! Tables of rows, as `kubectl get` asks for them. Upstream: `printers` and `handlers/response.go`.

use api::StatusError;
use api::resource::Resource;
use serde_json::{Value, json};

use crate::request::Query;
use crate::rest::partial;

/// `includeObject`: what of the object each row carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Include {
    /// Nothing.
    None,
    /// Its metadata; the default.
    Metadata,
    /// All of it.
    Object,
}

impl Include {
    /// Reads the option.
    ///
    /// # Errors
    /// 400 in upstream's words.
    pub(crate) fn parse(query: &Query) -> Result<Self, StatusError> {
        match query.get("includeObject") {
            "" | "Metadata" => Ok(Self::Metadata),
            "None" => Ok(Self::None),
            "Object" => Ok(Self::Object),
            other => Err(StatusError::bad_request(format!(
                "unrecognized includeObject value: {other:?}"
            ))),
        }
    }
}

/// How a resource's objects become rows.
#[derive(Clone, Copy)]
pub(crate) struct Rows {
    /// The row's columns and cells come from here.
    pub resource: &'static Resource,
    /// The meta.k8s.io version.
    pub version: &'static str,
    /// What of the object each row carries.
    pub include: Include,
}

impl Rows {
    /// The Table of some objects.
    pub(crate) fn table<'a>(&self, objects: impl Iterator<Item = &'a Value>, meta: Value) -> Value {
        let now = jiff::Timestamp::now();
        let rows: Vec<Value> = objects.map(|object| self.row(object, now)).collect();
        json!({
            "kind": "Table",
            "apiVersion": format!("meta.k8s.io/{}", self.version),
            "metadata": meta,
            "columnDefinitions": self.columns(),
            "rows": rows,
        })
    }

    fn row(&self, object: &Value, now: jiff::Timestamp) -> Value {
        let cells = (self.resource.rules.row)(object, now);
        match self.include {
            Include::None => json!({"cells": cells}),
            Include::Metadata => json!({"cells": cells, "object": partial(object, self.version)}),
            Include::Object => json!({"cells": cells, "object": object}),
        }
    }

    fn columns(&self) -> Vec<Value> {
        let columns = self.resource.rules.columns.iter();
        columns
            .map(|column| {
                json!({"name": column.name, "type": column.kind, "format": column.format,
                    "description": column.description, "priority": column.priority})
            })
            .collect()
    }
}
