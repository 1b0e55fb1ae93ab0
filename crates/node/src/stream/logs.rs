//! `/containerLogs`: a container's log files as the client wants to see them.
//!
//! Upstream counterpart: `k8s.io/cri-client/pkg/logs` (`ReadLogs`). Beside upstream, files that were rotated away are
//! read too, so that `--tail` and `--since` see over a rotation.

mod cri;
mod files;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use jiff::{SignedDuration, Timestamp};
use tokio::sync::mpsc;

pub(super) use cri::{Selection, Streams};

use super::query::Query;
use cri::Printer;
use files::Files;

/// Between looks at a log that is followed.
const POLL: Duration = Duration::from_millis(100);

/// What a request asks of a log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct LogOptions {
    pub(super) follow: bool,
    pub(super) previous: bool,
    /// Lines from the end; all when `None`.
    pub(super) tail: Option<usize>,
    pub(super) selection: Selection,
}

/// Why options are refused: with 400, or with 422 when they are well-formed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum OptionsError {
    #[error(r#"{{"message": "Unable to decode query."}}"#)]
    Decode,
    #[error(r#"{{"message": "Invalid request."}}"#)]
    Invalid,
}

impl LogOptions {
    /// Takes `v1.PodLogOptions` from a query, as upstream validates them.
    pub(super) fn parse(query: &Query, now: Timestamp) -> Result<Self, OptionsError> {
        let number = |name: &str, least: i64| match query.get(name) {
            None => Ok(None),
            Some(text) => match text.parse::<i64>() {
                Err(_) => Err(OptionsError::Decode),
                Ok(number) if number < least => Err(OptionsError::Invalid),
                Ok(number) => Ok(Some(number)),
            },
        };
        let seconds = number("sinceSeconds", 1)?;
        let time = match query.get("sinceTime") {
            None => None,
            Some(text) => Some(text.parse::<Timestamp>().map_err(|_| OptionsError::Decode)?),
        };
        if seconds.is_some() && time.is_some() {
            return Err(OptionsError::Invalid);
        }
        let since = seconds.map_or(time, |seconds| {
            Some(now.checked_sub(SignedDuration::from_secs(seconds)).unwrap_or(Timestamp::MIN))
        });
        let streams = match query.get("stream") {
            None | Some("All") => Streams::All,
            Some("Stdout") => Streams::Stdout,
            Some("Stderr") => Streams::Stderr,
            Some(_) => return Err(OptionsError::Invalid),
        };
        let tail =
            number("tailLines", 0)?.map(|lines| usize::try_from(lines).unwrap_or(usize::MAX));
        let limit =
            number("limitBytes", 1)?.map(|bytes| usize::try_from(bytes).unwrap_or(usize::MAX));
        Ok(Self {
            follow: query.flag(&["follow"]),
            previous: query.flag(&["previous"]),
            tail,
            selection: Selection { since, limit, timestamps: query.flag(&["timestamps"]), streams },
        })
    }
}

/// Sends the log until its end; when `live` is given, until that says the container has ended.
///
/// # Errors
/// When the log cannot be read. A client that went away is no error.
pub(super) async fn send(
    path: PathBuf,
    options: &LogOptions,
    live: Option<&(dyn Fn() -> bool + Send + Sync)>,
    out: &mpsc::Sender<Bytes>,
) -> std::io::Result<()> {
    let tail = options.tail;
    let mut files = blocking(move || Files::open(&path, tail)).await??;
    let mut printer = Printer::new(options.selection);
    loop {
        let alive = live.is_some_and(|live| live()); // before the read: what it wrote until then is read
        loop {
            let read;
            let text;
            (files, printer, read, text) = blocking(move || {
                let mut text = Vec::new();
                let read = files.read().map(|raw| {
                    let some = !raw.is_empty();
                    printer.print(&raw, &mut text);
                    some
                });
                (files, printer, read, text)
            })
            .await?;
            if !text.is_empty() && out.send(text.into()).await.is_err() {
                return Ok(());
            }
            if printer.is_full() {
                return Ok(());
            }
            if !read? {
                break;
            }
        }
        if !alive {
            let mut text = Vec::new();
            printer.finish(&mut text);
            if !text.is_empty() {
                let _ = out.send(text.into()).await; // the client may be gone
            }
            return Ok(());
        }
        tokio::select! {
            () = out.closed() => return Ok(()),
            () = tokio::time::sleep(POLL) => {}
        }
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> std::io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(std::io::Error::other)
}

/// The files of a log, oldest first: those rotated away, then the live one.
fn siblings(path: &Path) -> Vec<PathBuf> {
    let Some(name) = path.file_name().and_then(|name| name.to_str()) else { return Vec::new() };
    let prefix = format!("{name}.");
    let mut all: Vec<PathBuf> = path
        .parent()
        .and_then(|parent| std::fs::read_dir(parent).ok())
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(&prefix))
        .map(|entry| entry.path())
        .collect();
    all.sort(); // their names end in the time
    all.push(path.to_owned());
    all
}
