//! The command line.

use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use ipnet::Ipv4Net;

use crate::carry::Carry;
use crate::cluster::{DATA, PortRange};
use crate::proxy_flags::ProxyFlags;
use crate::shape::Shape;
use crate::watch_flags::WatchFlags;
use crate::{agent, down, images, kubeconfig, nodes, server, status, supervise, up};

/// Kubernetes Services, whole, in one binary.
#[derive(Debug, Parser)]
#[command(name = "rhumb", version = version(), propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

/// Our version and the Kubernetes API that we speak.
const fn version() -> &'static str {
    concat!(env!("CARGO_PKG_VERSION"), " (Kubernetes API v1.36)")
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Bring up a cluster on this machine, or change how the nodes of one carry Services
    Up(Up),
    /// End a cluster and remove what it left on this machine
    Down(Down),
    /// Show nodes, parts, addresses, and what is not well and why
    Status(Which),
    /// Explain what happens to a packet: name, address, rules, endpoints, NAT, route, kernel, listener
    Explain(Box<crate::explain::Explain>),
    /// Show what manifests would change for packets, before they are applied
    Plan(Box<crate::plan::Plan>),
    /// Show every address and port that answers from outside
    Exposed(Box<crate::exposed::Exposed>),
    /// Print the path of the cluster's kubeconfig
    Kubeconfig(KubeconfigArgs),
    /// Run one node, or change the nodes of a cluster on this machine
    Node(Box<Node>),
    /// Run the control plane
    Server(Box<Server>),
    /// Import, list and remove images
    Images(Images),
    /// Run and watch over the processes of a cluster on this machine (what `up -d` leaves behind)
    #[command(hide = true)]
    Supervise(Which),
}

/// Which cluster on this machine.
#[derive(Clone, Debug, Args)]
pub(crate) struct Which {
    /// The cluster's name
    #[arg(long, default_value = "default", global = true)]
    pub(crate) name: String,
    /// Where clusters keep their data
    #[arg(long, default_value = DATA, env = "RHUMB_DATA_DIR", global = true)]
    pub(crate) data_dir: PathBuf,
}

/// `rhumb up`.
#[derive(Debug, Args)]
pub(crate) struct Up {
    #[command(flatten)]
    pub(crate) which: Which,
    #[command(flatten)]
    pub(crate) shape: Shape,
    /// Detach: return when the cluster answers, and leave it running
    #[arg(short, long)]
    pub(crate) detach: bool,
    /// Pull images of HOST from URL instead; may be given several times
    #[arg(long, value_name = "HOST=URL")]
    pub(crate) registry_mirror: Vec<String>,
    #[command(flatten)]
    pub(crate) carry: Carry,
    /// Let pods out through this machine, which then forwards and masquerades; a lab is closed otherwise
    #[arg(long)]
    pub(crate) egress: bool,
    /// With --egress: the file of the resolvers for names outside the cluster; this machine's when not given
    #[arg(long)]
    pub(crate) resolv_conf: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) proxy: ProxyFlags,
    #[command(flatten)]
    pub(crate) watch: WatchFlags,
}

/// `rhumb down`.
#[derive(Debug, Args)]
pub(crate) struct Down {
    #[command(flatten)]
    pub(crate) which: Which,
    /// Keep the store, volumes and images, so that `rhumb up` brings the same cluster back
    #[arg(long)]
    pub(crate) keep_data: bool,
}

/// `rhumb kubeconfig`.
#[derive(Debug, Args)]
pub(crate) struct KubeconfigArgs {
    #[command(flatten)]
    pub(crate) which: Which,
    /// Add the cluster as a context of ~/.kube/config
    #[arg(long)]
    pub(crate) merge: bool,
}

/// `rhumb node`.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
struct Node {
    #[command(subcommand)]
    command: Option<NodeCommand>,
    #[command(flatten)]
    agent: Agent,
}

/// Changes of the nodes of a cluster on this machine.
#[derive(Debug, Subcommand)]
pub(crate) enum NodeCommand {
    /// Add a node
    Add {
        #[command(flatten)]
        which: Which,
        /// The node's name; the next free one when not given
        node: Option<String>,
    },
    /// Stop a node's agent; its containers and rules stay
    Stop(OneNode),
    /// Start a stopped node's agent
    Start(OneNode),
    /// Cut a node off from the others
    Cut(OneNode),
    /// Mend a node's link
    Mend(OneNode),
    /// Remove a node and everything on it
    Remove(OneNode),
}

/// One node of a cluster on this machine.
#[derive(Debug, Args)]
pub(crate) struct OneNode {
    #[command(flatten)]
    pub(crate) which: Which,
    /// The node's name
    pub(crate) node: String,
}

/// One node's agent.
#[derive(Debug, Args)]
pub(crate) struct Agent {
    /// How to reach and enter the API server
    #[arg(long)]
    pub(crate) kubeconfig: Option<PathBuf>,
    /// The node's name; the host name when not given
    #[arg(long)]
    pub(crate) node_name: Option<String>,
    /// The node's own address
    #[arg(long)]
    pub(crate) node_ip: Option<IpAddr>,
    /// Where the node keeps its pods
    #[arg(long, default_value = "/var/lib/rhumb/node")]
    pub(crate) node_dir: PathBuf,
    /// Where the node keeps images; below the node's folder when not given
    #[arg(long)]
    pub(crate) images_dir: Option<PathBuf>,
    /// The link that others reach the node by
    #[arg(long, default_value = "eth0")]
    pub(crate) link: String,
    /// Addresses of all pods
    #[arg(long, default_value = "10.244.0.0/16")]
    pub(crate) pod_cidr: Ipv4Net,
    /// Addresses of Services
    #[arg(long, default_value = "10.96.0.0/12")]
    pub(crate) service_cidr: Ipv4Net,
    /// The cluster's DNS domain
    #[arg(long, default_value = "cluster.local")]
    pub(crate) dns_domain: String,
    /// Pull images of HOST from URL instead; may be given several times
    #[arg(long, value_name = "HOST=URL")]
    pub(crate) registry_mirror: Vec<String>,
    /// The certificate that logs, exec and port-forward are served with
    #[arg(long)]
    pub(crate) tls_cert_file: Option<PathBuf>,
    /// Its private key
    #[arg(long)]
    pub(crate) tls_private_key_file: Option<PathBuf>,
    /// Who may ask for logs, exec and port-forward: clients with a certificate of this authority
    #[arg(long)]
    pub(crate) client_ca_file: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) carry: Carry,
    /// Forward names outside the cluster to these resolvers of this file
    #[arg(long)]
    pub(crate) resolv_conf: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) proxy: ProxyFlags,
    #[command(flatten)]
    pub(crate) watch: WatchFlags,
}

/// `rhumb server`.
#[derive(Debug, Args)]
pub(crate) struct Server {
    /// Where the store and the keys are
    #[arg(long, default_value = "/var/lib/rhumb/server")]
    pub(crate) server_dir: PathBuf,
    /// The address that nodes and clients reach the server by
    #[arg(long)]
    pub(crate) advertise_address: IpAddr,
    /// The port
    #[arg(long, default_value_t = 6443)]
    pub(crate) api_port: u16,
    /// Addresses of pods; every node gets a /24
    #[arg(long, default_value = "10.244.0.0/16")]
    pub(crate) pod_cidr: Ipv4Net,
    /// Addresses of Services
    #[arg(long, default_value = "10.96.0.0/12")]
    pub(crate) service_cidr: Ipv4Net,
    /// Ports for Services of type NodePort
    #[arg(long, default_value = "30000-32767")]
    pub(crate) node_port_range: PortRange,
    /// The cluster's DNS domain
    #[arg(long, default_value = "cluster.local")]
    pub(crate) dns_domain: String,
    /// First and last address for Services of type LoadBalancer, FIRST-LAST; none when not given
    #[arg(long)]
    pub(crate) load_balancer_pool: Option<String>,
    /// Where nodes keep node-local volumes; `{node}` stands for the node's name
    #[arg(long)]
    pub(crate) volumes_dir: Option<String>,
    /// Write the administrator's kubeconfig to FILE
    #[arg(long)]
    pub(crate) admin_kubeconfig: Option<PathBuf>,
}

/// `rhumb images`.
#[derive(Debug, Args)]
struct Images {
    #[command(flatten)]
    which: Which,
    #[command(subcommand)]
    command: ImagesCommand,
}

/// What to do with images.
#[derive(Debug, Subcommand)]
pub(crate) enum ImagesCommand {
    /// Import OCI layouts or image archives
    Import {
        /// Folders or tar files
        #[arg(required = true)]
        paths: Vec<PathBuf>,
        /// The image's name, when the layout does not say it
        #[arg(long = "as")]
        reference: Option<String>,
    },
    /// List images
    #[command(alias = "ls")]
    List,
    /// Remove images
    Rm {
        /// Their names
        #[arg(required = true)]
        references: Vec<String>,
    },
}

/// Parses and runs; errors are one line with their causes.
pub(crate) fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match cli.command {
        Command::Up(args) => up::run(&args),
        Command::Down(args) => down::run(&args),
        Command::Status(which) => status::run(&which),
        Command::Explain(args) => return ended(crate::explain::run(&args)),
        Command::Plan(args) => crate::plan::run(&args),
        Command::Exposed(args) => crate::exposed::run(&args),
        Command::Kubeconfig(args) => kubeconfig::run(&args),
        Command::Node(node) => match node.command {
            Some(command) => nodes::run(&command),
            None => agent::run(node.agent),
        },
        Command::Server(args) => server::run(*args),
        Command::Images(args) => images::run(&args.which, &args.command),
        Command::Supervise(which) => supervise::run(&which),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            crate::progress::fail(&error);
            ExitCode::FAILURE
        }
    }
}

/// For commands whose answer is an exit code; one that has no answer ends with 2.
fn ended(result: anyhow::Result<ExitCode>) -> ExitCode {
    result.unwrap_or_else(|error| {
        crate::progress::fail(&error);
        ExitCode::from(2)
    })
}
