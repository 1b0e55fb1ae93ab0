//! What a person sees while a command works: steps with times, on a terminal with a spinner.

#![expect(clippy::print_stderr, reason = "a command line tool speaks through it")]

use std::io::{IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// One line to the person.
pub(crate) fn say(text: impl AsRef<str>) {
    // A reader that has gone, as of a pipe into `head`, is no reason to fail.
    let _ = writeln!(std::io::stdout(), "{}", text.as_ref());
}

/// The one sentence of a failed command, with its causes.
pub(crate) fn fail(error: &anyhow::Error) {
    eprintln!("rhumb: {error:#}");
}

/// Shows steps as they happen.
pub(crate) struct Progress {
    start: Instant,
    bar: Option<ProgressBar>,
}

impl Progress {
    pub(crate) fn new() -> Self {
        let bar = std::io::stdout().is_terminal().then(|| {
            let bar = ProgressBar::new_spinner();
            let style =
                ProgressStyle::with_template("  {spinner:.cyan} {msg}").expect("a constant");
            bar.set_style(style);
            bar.enable_steady_tick(Duration::from_millis(80));
            bar
        });
        Self { start: Instant::now(), bar }
    }

    /// Something begins.
    pub(crate) fn begin(&self, what: &str) {
        if let Some(bar) = &self.bar {
            bar.set_message(what.to_owned());
        }
    }

    /// Something is done.
    pub(crate) fn done(&self, what: &str) {
        let line = format!("  ✓ {:>7.3}s  {what}", self.start.elapsed().as_secs_f64());
        match &self.bar {
            Some(bar) => bar.println(line),
            None => say(line),
        }
    }

    /// Nothing more comes.
    pub(crate) fn finish(self) -> Duration {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        self.start.elapsed()
    }
}
