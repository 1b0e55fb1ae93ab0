//! `rhumb plan`: what manifests would change for packets, and the exact rules of a node, with no cluster.

use std::path::PathBuf;

use anyhow::Result;
use api::Name;
use clap::{Args, Subcommand};
use ipnet::IpNet;
use plan::explain::kernel::ruleset;
use plan::explain::{Cluster, Difference, difference};

use crate::carry::Carry;
use crate::explain::Output;
use crate::explain::live::{self, Live, Reach};
use crate::progress::say;
use crate::{exposed, manifests};

/// `rhumb plan`.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Plan {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    reach: Reach,
    /// The manifests that would be applied: FILES or folders
    #[arg(short = 'f', long = "filename", value_name = "FILES")]
    files: Vec<PathBuf>,
    /// Compare with manifests in FILES or folders instead of a cluster
    #[arg(long, value_name = "FILES")]
    base: Vec<PathBuf>,
    /// The namespace of objects that do not say theirs
    #[arg(short, long, default_value = "default")]
    namespace: String,
    /// How to answer
    #[arg(short, long, default_value = "text")]
    output: Output,
}

/// Parts of a plan.
#[derive(Debug, Subcommand)]
enum Command {
    /// Print the rule set of a node, with no cluster
    Proxy(Proxy),
}

/// `rhumb plan proxy`.
#[derive(Debug, Args)]
struct Proxy {
    /// The node's name
    #[arg(long)]
    node: String,
    /// Manifests: FILES or folders
    #[arg(short = 'f', long = "filename", value_name = "FILES", required = true)]
    files: Vec<PathBuf>,
    /// The namespace of objects that do not say theirs
    #[arg(short, long, default_value = "default")]
    namespace: String,
    /// Addresses of all pods
    #[arg(long, default_value = "10.244.0.0/16")]
    pod_cidr: Vec<IpNet>,
    /// Addresses of Services
    #[arg(long, default_value = "10.96.0.0/12")]
    service_cidr: Vec<IpNet>,
    #[command(flatten)]
    carry: Carry,
}

/// Runs the command.
pub(crate) fn run(args: &Plan) -> Result<()> {
    if let Some(Command::Proxy(args)) = &args.command {
        return proxy(args);
    }
    anyhow::ensure!(!args.files.is_empty(), "-f says what would be applied, and is not given");
    let base = if args.base.is_empty() {
        let live = Live::connect(&args.reach)?;
        live::block_on(live.cluster())?
    } else {
        let empty = Cluster { domain: args.reach.dns_domain().to_owned(), ..Cluster::default() };
        manifests::over(empty, &args.base, &args.namespace)?
    };
    let after = manifests::over(base.clone(), &args.files, &args.namespace)?;
    let found = difference(&base, &after);
    match args.output {
        Output::Json => say(serde_json::to_string_pretty(&found)?),
        Output::Text => print(&found),
    }
    Ok(())
}

fn print(found: &Difference) {
    if found.is_empty() {
        return say("nothing changes for any packet");
    }
    let flows = found
        .flows
        .iter()
        .map(|one| format!("{}, {}: from {} to {}", one.flow, one.clients, one.before, one.after));
    let lost = found.lost.iter().map(|one| format!("{}: {}, {}", one.flow, one.clients, one.why));
    list("conflicts", found.conflicts.iter().cloned());
    list("clients that lose their path", lost);
    list("flows that move", flows);
    list("newly exposed", found.exposed.iter().map(exposed::line));
    list("no longer exposed", found.hidden.iter().map(exposed::line));
}

fn list(head: &str, lines: impl Iterator<Item = String>) {
    let lines: Vec<String> = lines.collect();
    if !lines.is_empty() {
        say(format!("{head}:"));
        lines.iter().for_each(|line| say(format!("  - {line}")));
    }
}

fn proxy(args: &Proxy) -> Result<()> {
    let base = Cluster {
        service_cidrs: args.service_cidr.clone(),
        pod_cidrs: args.pod_cidr.clone(),
        ..Cluster::default()
    };
    let cluster = manifests::on_node(base, &args.files, &args.namespace, &args.node)?;
    let known = cluster.nodes.contains_key(&Name::cluster(&args.node));
    anyhow::ensure!(known, "the files have nodes, but none is called {:?}", args.node);
    let mut settings = args.carry.settle(cluster.settings(&args.node));
    settings.pod_cidrs.clone_from(&args.pod_cidr);
    if !cluster.invented.is_empty() {
        let all: Vec<String> = cluster.invented.iter().map(ToString::to_string).collect();
        say(format!("# stand for addresses that are to be allocated: {}", all.join(", ")));
    }
    say(ruleset(&cluster, settings).trim_end());
    Ok(())
}
