//! `rhumb explain`: the whole chain of one packet in words or as JSON.

pub(crate) mod live;

use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};
use plan::explain::{Cluster, Explanation, Facts, Question, Tone, explain};

use crate::manifests;
use crate::progress::say;
use live::{Live, Reach};

/// `rhumb explain`.
#[derive(Debug, Args)]
pub(crate) struct Explain {
    #[command(flatten)]
    reach: Reach,
    /// FROM and TO: pod/NAME, node/NAME, an address, outside; svc/NAME:PORT, NAME:PORT, ADDRESS:PORT, node/NAME:PORT, pod/NAME:PORT, with /udp or /sctp unless TCP
    #[arg(required = true, num_args = 1..=2, value_name = "FROM] [TO")]
    what: Vec<String>,
    /// Who sends, when only TO is given otherwise
    #[arg(long)]
    from: Option<String>,
    /// The namespace of names that do not say theirs
    #[arg(short, long, default_value = "default")]
    namespace: String,
    /// The node that a packet from outside comes to, where several would do
    #[arg(long)]
    node: Option<String>,
    /// Explain from manifests in FILES or folders, before anything is applied, and ask no cluster
    #[arg(short = 'f', long = "filename", value_name = "FILES")]
    files: Vec<PathBuf>,
    /// How to answer
    #[arg(short, long, default_value = "text")]
    output: Output,
}

/// How to answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// In words
    Text,
    /// As JSON
    Json,
}

/// Runs the command; success when the packet arrives.
pub(crate) fn run(args: &Explain) -> Result<ExitCode> {
    let question = args.question()?;
    let explanation = if args.files.is_empty() {
        let live = Live::connect(&args.reach)?;
        live::block_on(async {
            let cluster = live.cluster().await?;
            let first = explain(&cluster, &question, &Facts::default());
            let facts = live.facts(&cluster, &first.wanted).await;
            anyhow::Ok(explain(&cluster, &question, &facts))
        })?
    } else {
        let base = Cluster { domain: args.reach.dns_domain().to_owned(), ..Cluster::default() };
        let cluster = manifests::over(base, &args.files, &args.namespace)?;
        explain(&cluster, &question, &Facts::default())
    };
    match args.output {
        Output::Text => print(&explanation),
        Output::Json => say(serde_json::to_string_pretty(&explanation)?),
    }
    Ok(if explanation.arrives { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

impl Explain {
    fn question(&self) -> Result<Question> {
        let (from, to) = match (&self.from, self.what.as_slice()) {
            (None, [from, to]) | (Some(from), [to]) => (from, to),
            (None, _) => bail!("say who sends and to whom: rhumb explain pod/a svc/b:80"),
            (Some(_), _) => bail!("--from says who sends, so only TO may follow"),
        };
        let mut question = Question::parse(from, to, &self.namespace)?;
        question.node.clone_from(&self.node);
        Ok(question)
    }
}

fn print(explanation: &Explanation) {
    if !std::io::stdout().is_terminal() {
        say(explanation.text().trim_end());
        return;
    }
    say(format!("\x1b[1m{} to {}\x1b[0m\n", explanation.from, explanation.to));
    for line in explanation.lines() {
        say(format!("\x1b[2m{:<11}\x1b[0m{}", line.label, paint(&line.text, line.tone)));
    }
    let end = explanation.end();
    say(format!("\n{}", paint(&end.text, end.tone)));
}

fn paint(text: &str, tone: Tone) -> String {
    let code = match tone {
        Tone::Plain => return text.to_owned(),
        Tone::Good => 32,
        Tone::Bad => 31,
        Tone::Faint => 2,
    };
    format!("\x1b[{code}m{text}\x1b[0m")
}
