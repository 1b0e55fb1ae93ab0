//! One pod's namespace, link and address.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use ipnet::{IpNet, Ipv4Net};
use kernel::bpf::{self, Place};
use kernel::link::{Netlink, Route};
use kernel::{netns, sysctl};
use plan::podnet::{GATEWAY, allocate, link_name};
use serde::{Deserialize, Serialize};
use tokio::sync::{Mutex, watch};

use super::PodNetError;
use super::hostports::HostPorts;
use crate::kubelet::network::{HostPort, PodAttachment, PodNetRequest, PodNetwork};
use crate::proxy::Namespaces;

/// The pod's link as the pod sees it.
const POD_LINK: &str = "eth0";

/// What is remembered of an attached pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    namespace: String,
    name: String,
    address: Ipv4Addr,
    #[serde(default)]
    host_ports: Vec<HostPort>,
}

#[derive(Debug, Default)]
struct Attached {
    pods: BTreeMap<String, Record>,
    last: Option<Ipv4Addr>,
    /// Their namespaces' cookies.
    cookies: BTreeMap<String, u64>,
}

/// The pods of this node and their addresses.
#[derive(Debug)]
pub struct PodNet {
    dir: PathBuf,
    node_ip: IpAddr,
    mtu: Option<u32>,
    cidr: watch::Receiver<Option<Ipv4Net>>,
    attached: Mutex<Attached>,
    host_ports: Mutex<HostPorts>,
    /// For data planes that know sockets by their namespaces.
    namespaces: watch::Sender<Arc<BTreeMap<u64, Place>>>,
    netlink: Netlink,
}

impl PodNet {
    /// The pod network whose records and namespaces are below `dir`. `cidr` tells the node's pod CIDR when it is known.
    ///
    /// # Errors
    /// When the records cannot be read or the kernel gives no netlink socket.
    pub fn open(
        dir: &Path,
        node_ip: IpAddr,
        cidr: watch::Receiver<Option<Ipv4Net>>,
    ) -> Result<Self, PodNetError> {
        fs::create_dir_all(dir).map_err(record_error(dir))?;
        let pods = read_records(dir)?;
        let cookies = pods.keys().filter_map(|uid| {
            let netns = netns_path(dir, uid);
            netns::exists(&netns).then(|| Some((uid.clone(), cookie(&netns)?)))?
        });
        let attached = Attached { cookies: cookies.collect(), pods, last: None };
        let namespaces = watch::Sender::new(attached.namespaces());
        let attached = Mutex::new(attached);
        Ok(Self {
            namespaces,
            dir: dir.to_owned(),
            node_ip,
            mtu: None,
            cidr,
            attached,
            host_ports: Mutex::new(HostPorts::open()?),
            netlink: Netlink::open()?,
        })
    }

    /// Whose the network namespaces of this node are.
    #[must_use]
    pub fn namespaces(&self) -> Namespaces {
        self.namespaces.subscribe()
    }

    /// Tells the data plane whose a namespace is, before anything runs there.
    async fn publish(&self, uid: &str, cookie: Option<u64>) {
        let mut attached = self.attached.lock().await;
        match cookie {
            Some(cookie) => attached.cookies.insert(uid.to_owned(), cookie),
            None => attached.cookies.remove(uid),
        };
        self.namespaces.send_replace(attached.namespaces());
    }

    async fn attach(&self, pod: &PodNetRequest) -> Result<PodAttachment, PodNetError> {
        let mut cidr = self.cidr.clone();
        let known = cidr.wait_for(Option::is_some).await.map(|cidr| *cidr);
        let Ok(Some(cidr)) = known else {
            return Err(PodNetError::Full("the node has no pod CIDR".into()));
        };
        let address = self.reserve(cidr, pod).await?;
        let netns = self.netns(&pod.uid);
        if !netns::exists(&netns) {
            netns::create(&netns)?;
        }
        self.link(&pod.uid, &netns, address).await?;
        self.publish(&pod.uid, cookie(&netns)).await;
        self.open_ports().await?;
        Ok(PodAttachment { netns, ips: vec![IpAddr::V4(address)] })
    }

    /// The pod's address: the remembered one, or a new one that is remembered before it is used.
    async fn reserve(&self, cidr: Ipv4Net, pod: &PodNetRequest) -> Result<Ipv4Addr, PodNetError> {
        let mut attached = self.attached.lock().await;
        if let Some(record) = attached.pods.get_mut(&pod.uid) {
            if record.host_ports != pod.host_ports {
                record.host_ports.clone_from(&pod.host_ports);
                self.remember(&pod.uid, record)?;
            }
            return Ok(record.address);
        }
        let used = attached.pods.values().map(|record| record.address).collect();
        let address = allocate(cidr, &used, attached.last)
            .ok_or_else(|| PodNetError::Full(cidr.to_string()))?;
        let (namespace, name) = (pod.namespace.clone(), pod.name.clone());
        let record = Record { namespace, name, address, host_ports: pod.host_ports.clone() };
        self.remember(&pod.uid, &record)?;
        attached.pods.insert(pod.uid.clone(), record);
        attached.last = Some(address);
        Ok(address)
    }

    /// Makes the host ports of all attached pods lead to them.
    async fn open_ports(&self) -> Result<(), PodNetError> {
        let attached = self.attached.lock().await;
        let pods = attached.pods.values().map(|pod| (pod.address, pod.host_ports.as_slice()));
        self.host_ports.lock().await.set(pods)
    }

    /// Makes what is missing of the pod's link; everything is idempotent.
    async fn link(&self, uid: &str, netns: &Path, address: Ipv4Addr) -> Result<(), PodNetError> {
        let name = link_name(uid);
        let inside = Netlink::open_in(netns)?;
        if self.netlink.link(&name).await.is_err() {
            self.netlink.add_veth(&name, POD_LINK, netns, self.mtu).await?;
        }
        netns::within(netns, pod_sysctls)??;
        let near = self.netlink.link(&name).await?;
        inside.set_up("lo", true).await?;
        inside.set_up(POD_LINK, true).await?;
        let far = inside.link(POD_LINK).await?;
        let host = IpNet::from(IpAddr::V4(address));
        inside.add_address(POD_LINK, host).await?;
        inside.replace_route(&Route::through(IpNet::from(IpAddr::V4(GATEWAY)), far.index)).await?;
        inside.set_neighbour(far.index, IpAddr::V4(GATEWAY), &near.mac).await?;
        let everywhere = IpNet::V4(Ipv4Net::default());
        let default =
            Route { link: Some(far.index), ..Route::via(everywhere, IpAddr::V4(GATEWAY)) };
        inside.replace_route(&default).await?;
        self.netlink.set_neighbour(near.index, IpAddr::V4(address), &far.mac).await?;
        let route = Route { source: Some(self.node_ip), ..Route::through(host, near.index) };
        Ok(self.netlink.replace_route(&route).await?)
    }

    async fn detach(&self, uid: &str) -> Result<(), PodNetError> {
        let mut attached = self.attached.lock().await;
        self.netlink.delete(&link_name(uid)).await?;
        netns::delete(&self.netns(uid))?;
        let path = self.record_path(uid);
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                return Err(PodNetError::Record { path, source });
            }
            _ => {}
        }
        attached.pods.remove(uid);
        drop(attached);
        self.publish(uid, None).await;
        self.open_ports().await
    }

    fn netns(&self, uid: &str) -> PathBuf {
        netns_path(&self.dir, uid)
    }

    fn record_path(&self, uid: &str) -> PathBuf {
        self.dir.join(format!("{uid}.json"))
    }

    fn remember(&self, uid: &str, record: &Record) -> Result<(), PodNetError> {
        let path = self.record_path(uid);
        let text = serde_json::to_vec(record).expect("a record has only strings");
        let part = path.with_extension("part");
        fs::write(&part, text).and_then(|()| fs::rename(&part, &path)).map_err(record_error(&path))
    }
}

impl Attached {
    fn namespaces(&self) -> Arc<BTreeMap<u64, Place>> {
        let known = self.cookies.iter().filter_map(|(uid, cookie)| {
            Some((*cookie, Place::Pod(Some(self.pods.get(uid)?.address), None)))
        });
        Arc::new(known.collect())
    }
}

fn netns_path(dir: &Path, uid: &str) -> PathBuf {
    dir.join(format!("{uid}.netns"))
}

/// The cookie of a namespace; kernels before 5.14 have none.
fn cookie(netns: &Path) -> Option<u64> {
    netns::within(netns, bpf::netns_cookie).ok()?.ok()
}

impl PodNetwork for PodNet {
    fn add<'a>(&'a self, pod: &'a PodNetRequest) -> BoxFuture<'a, Result<PodAttachment, String>> {
        self.attach(pod).map(|result| result.map_err(|error| chain(&error))).boxed()
    }

    fn del<'a>(&'a self, uid: &'a str) -> BoxFuture<'a, ()> {
        async move {
            if let Err(error) = self.detach(uid).await {
                let error: &dyn std::error::Error = &error;
                tracing::warn!(
                    component = "podnet",
                    uid,
                    error,
                    "a pod's network was not taken down"
                );
            }
        }
        .boxed()
    }
}

/// An error with its causes on one line, as events show it.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

/// What containers expect of a pod's namespace (the defaults of containerd).
fn pod_sysctls() -> Result<(), sysctl::SysctlError> {
    sysctl::set("net/ipv4/ip_unprivileged_port_start", "0")?;
    sysctl::set("net/ipv4/ping_group_range", "0\t2147483647")
}

fn record_error(path: &Path) -> impl FnOnce(io::Error) -> PodNetError {
    let path = path.to_owned();
    move |source| PodNetError::Record { path, source }
}

fn read_records(dir: &Path) -> Result<BTreeMap<String, Record>, PodNetError> {
    let mut pods = BTreeMap::new();
    for entry in fs::read_dir(dir).map_err(record_error(dir))? {
        let path = entry.map_err(record_error(dir))?.path();
        let Some(uid) = path.file_name().and_then(|name| name.to_str()?.strip_suffix(".json"))
        else {
            continue;
        };
        let text = fs::read(&path).map_err(record_error(&path))?;
        let record =
            serde_json::from_slice(&text).map_err(io::Error::other).map_err(record_error(&path))?;
        pods.insert(uid.to_owned(), record);
    }
    Ok(pods)
}
