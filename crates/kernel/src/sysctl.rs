//! Kernel parameters of the calling thread's network namespace.

use std::io;

/// Why a parameter could not be read or set.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} the kernel parameter {name}")]
pub struct SysctlError {
    action: &'static str,
    name: String,
    #[source]
    source: io::Error,
}

/// Sets a parameter, named with slashes (`net/ipv4/ip_forward`). Writes only when the value differs, because many
/// parameters are read-only in a namespace whose host already set them.
///
/// # Errors
/// When the kernel does not know the parameter or refuses the value.
pub fn set(name: &str, value: &str) -> Result<(), SysctlError> {
    if get(name)? == value {
        return Ok(());
    }
    std::fs::write(path(name), value).map_err(|source| SysctlError {
        action: "set",
        name: name.to_owned(),
        source,
    })
}

/// Reads a parameter, without the newline.
///
/// # Errors
/// When the kernel does not know the parameter.
pub fn get(name: &str) -> Result<String, SysctlError> {
    let read = std::fs::read_to_string(path(name));
    let text =
        read.map_err(|source| SysctlError { action: "read", name: name.to_owned(), source })?;
    Ok(text.trim_end().to_owned())
}

fn path(name: &str) -> String {
    format!("/proc/sys/{name}")
}
