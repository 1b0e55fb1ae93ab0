//! `rhumb exposed`: every address and port that answers from outside, on which nodes, by which Service or host port, and to whom.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use plan::explain::{Cluster, Exposure, exposed};

use crate::explain::Output;
use crate::explain::live::{self, Live, Reach};
use crate::manifests;
use crate::progress::say;
use crate::status::table;

/// `rhumb exposed`.
#[derive(Debug, Args)]
pub(crate) struct Exposed {
    #[command(flatten)]
    reach: Reach,
    /// Ask manifests in FILES or folders instead of a cluster
    #[arg(short = 'f', long = "filename", value_name = "FILES")]
    files: Vec<PathBuf>,
    /// The namespace of objects in files that do not say theirs
    #[arg(short, long, default_value = "default")]
    namespace: String,
    /// How to answer
    #[arg(short, long, default_value = "text")]
    output: Output,
}

/// Runs the command.
pub(crate) fn run(args: &Exposed) -> Result<()> {
    let cluster = if args.files.is_empty() {
        let live = Live::connect(&args.reach)?;
        live::block_on(live.cluster())?
    } else {
        manifests::over(Cluster::default(), &args.files, &args.namespace)?
    };
    let found = exposed(&cluster);
    match args.output {
        Output::Json => say(serde_json::to_string_pretty(&found)?),
        Output::Text if found.is_empty() => say("nothing answers from outside"),
        Output::Text => {
            let head = ["ADDRESS", "PORT", "BY", "OF", "NODES", "SOURCES"];
            table(&head, &found.iter().map(row).collect::<Vec<_>>());
        }
    }
    Ok(())
}

/// What stands for an address or port that nobody has allocated yet.
const LATER: &str = "(to be allocated)";

fn row(one: &Exposure) -> [String; 6] {
    let port = one.port.map_or_else(|| LATER.to_owned(), |port| port.to_string());
    let nodes = match (&one.announced_by, one.silent) {
        (_, Some(why)) => format!("none: {why}"),
        (Some(node), None) => format!("{} (announced by {node})", one.nodes.join(",")),
        (None, None) => one.nodes.join(","),
    };
    let sources = if one.sources.is_empty() { "all".to_owned() } else { one.sources.join(",") };
    [
        one.address.clone().unwrap_or_else(|| LATER.to_owned()),
        format!("{port}/{}", one.protocol),
        one.by.to_owned(),
        format!("{}:{}", owner(one), one.service_port),
        nodes,
        sources,
    ]
}

/// The Service, or the pod of a host port.
fn owner(one: &Exposure) -> String {
    match (&one.service, &one.pod) {
        (None, Some(pod)) => format!("pod {pod}"),
        (service, _) => service.clone().unwrap_or_default(),
    }
}

/// One line for a list.
pub(crate) fn line(one: &Exposure) -> String {
    let [address, port, by, owner, _, sources] = row(one);
    let owner = if one.pod.is_some() { owner } else { format!("Service {owner}") };
    let who = if one.sources.is_empty() { "everybody" } else { &sources };
    format!("{address} port {port}, {by} of {owner}, open to {who}")
}
