//! What a user types and what has to be printed, as text.
//!
//! ```text
//! # A remark.
//! $ kubectl create configmap one --from-literal=a=b
//! configmap/one created
//! ~ kubectl get pods                  repeated until the answer is the one below
//! NAME   READY   …                    any text
//! …                                   any lines
//! $ cat <<END | kubectl apply -f -
//! > kind: …                           more of the command
//! > END
//! {1.32+} configmap/one created       what this and later kubectls print; also {1.20} and {-1.32}
//! {1.32+} $ kubectl events            a step that only these take
//! [exit 1]                            instead of 0
//! ```
//!
//! Standard output and standard error are one. Blank lines, indentation and how many spaces are between two words do not matter.

use testkit::tools::Kubectl;

/// One command and what has to come of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Step {
    /// Where it stands in the file, from 1.
    pub(crate) line: usize,
    /// For a shell.
    pub(crate) command: String,
    /// Whether it is repeated until it answers as wanted.
    pub(crate) repeats: bool,
    /// Lines to match, in order.
    pub(crate) wanted: Vec<String>,
    /// The exit code.
    pub(crate) code: i32,
}

/// The steps that a kubectl takes.
pub(crate) fn steps(text: &str, kubectl: &Kubectl) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    let mut is_taken = true;
    for (line, full) in (1..).zip(text.lines()) {
        let (applies, content) = condition(full, kubectl.minor());
        let start = content.strip_prefix("$ ").map(|command| (command, false));
        let start = start.or_else(|| content.strip_prefix("~ ").map(|command| (command, true)));
        if let Some((command, repeats)) = start {
            is_taken = applies;
            if is_taken {
                let command = command.to_owned();
                steps.push(Step { line, command, repeats, wanted: Vec::new(), code: 0 });
            }
            continue;
        }
        if content.trim().is_empty() || content.starts_with('#') || !applies || !is_taken {
            continue;
        }
        let Some(step) = steps.last_mut() else { continue };
        if let Some(more) = content.strip_prefix('>') {
            step.command.push('\n');
            step.command.push_str(more.strip_prefix(' ').unwrap_or(more));
        } else if let Some(code) = exit_code(content) {
            step.code = code;
        } else {
            step.wanted.push(content.to_owned());
        }
    }
    steps
}

fn exit_code(line: &str) -> Option<i32> {
    line.strip_prefix("[exit ")?.strip_suffix(']')?.parse().ok()
}

/// Whether a line is for a kubectl of this minor version, and the line without its condition.
fn condition(line: &str, minor: u32) -> (bool, &str) {
    let parsed = || {
        let (versions, rest) = line.strip_prefix('{')?.split_once("} ")?;
        let number = |text: &str| text.strip_prefix("1.")?.parse::<u32>().ok();
        let applies = if let Some(from) = versions.strip_suffix('+') {
            minor >= number(from)?
        } else if let Some(to) = versions.strip_prefix('-') {
            minor <= number(to)?
        } else {
            minor == number(versions)?
        };
        Some((applies, rest))
    };
    parsed().unwrap_or((true, line))
}

/// Whether lines are what was wanted.
pub(crate) fn matches(wanted: &[String], printed: &[String]) -> bool {
    let Some((first, rest)) = wanted.split_first() else { return printed.is_empty() };
    if first.trim() == "…" {
        return (0..=printed.len()).any(|skipped| matches(rest, &printed[skipped..]));
    }
    let Some((line, left)) = printed.split_first() else { return false };
    line_matches(&squeezed(first), &squeezed(line)) && matches(rest, left)
}

/// A line with single spaces between its words and none around them.
fn squeezed(line: &str) -> String {
    line.split_whitespace().collect::<Vec<&str>>().join(" ")
}

fn line_matches(wanted: &str, line: &str) -> bool {
    let Some((head, tail)) = wanted.split_once('…') else { return wanted == line };
    let Some(rest) = line.strip_prefix(head) else { return false };
    let ends = rest.char_indices().map(|(at, _)| at).chain([rest.len()]);
    ends.into_iter().any(|at| line_matches(tail, &rest[at..]))
}

#[test]
fn a_transcript_is_read_for_a_version() {
    let text = "# A remark.\n$ one\n> more\n{1.20} old\n{1.32+} new\n[exit 2]\n{-1.30} ~ two\nx\n";
    let kubectl = |version: &str| Kubectl { version: version.into(), path: "kubectl".into() };
    let step = |line, command: &str, repeats, wanted: &str, code| Step {
        line,
        command: command.into(),
        repeats,
        wanted: vec![wanted.into()],
        code,
    };
    let first = |wanted| step(2, "one\nmore", false, wanted, 2);
    assert_eq!(steps(text, &kubectl("1.36")), [first("new")]);
    assert_eq!(steps(text, &kubectl("1.20")), [first("old"), step(7, "two", true, "x", 0)]);
}

#[test]
fn ellipses_stand_for_text_and_lines() {
    let lines = |text: &str| text.lines().map(str::to_owned).collect::<Vec<String>>();
    let check = |wanted, printed| matches(&lines(wanted), &lines(printed));
    assert!(check("a … c", "a  b   c"));
    assert!(check("…\nb\n…", "a\nb"));
    assert!(!check("a\n…\nc", "a\nb"));
    assert!(check("  a", "a"));
    assert!(!check("a", "a\nb"));
}
