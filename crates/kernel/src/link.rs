//! Links, addresses, routes and neighbours, through rtnetlink.

use std::fs::File;
use std::io;
use std::net::IpAddr;
use std::os::fd::AsRawFd;
use std::path::Path;

use futures_util::TryStreamExt;
use ipnet::IpNet;
use rtnetlink::packet_route::link::{InfoData, InfoVeth, LinkAttribute, LinkMessage};
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use rtnetlink::packet_route::route::{RouteAttribute, RouteMessage, RouteProtocol, RouteType};
use rtnetlink::{
    Handle, LinkBridge, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder,
};

use crate::netns::{NetnsError, within};

/// Marks the routes that Rhumb made (`proto 82`), so that it lists and deletes no others.
pub const ROUTE_PROTOCOL: u8 = 82;

/// Why a change of links, addresses or routes failed.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The kernel refused.
    #[error("cannot {action}")]
    Netlink {
        /// What was tried, naming the object.
        action: String,
        /// The kernel's answer.
        #[source]
        source: rtnetlink::Error,
    },
    /// No socket.
    #[error("cannot open a netlink socket")]
    Socket(#[from] io::Error),
    /// The namespace is not there.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// A link that must exist does not.
    #[error("there is no link {0}")]
    Missing(String),
}

fn failed(action: impl Into<String>) -> impl FnOnce(rtnetlink::Error) -> LinkError {
    let action = action.into();
    move |source| LinkError::Netlink { action, source }
}

/// Whether the kernel says that the thing is already there, or already gone.
fn is_errno(error: &rtnetlink::Error, errno: i32) -> bool {
    matches!(error, rtnetlink::Error::NetlinkError(message) if message.raw_code() == -errno)
}

/// Where packets to a destination go.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Route {
    /// The destination.
    pub to: IpNet,
    /// The next hop, if any.
    pub via: Option<IpAddr>,
    /// The link's index, if any.
    pub link: Option<u32>,
    /// The source address that the node's own packets take.
    pub source: Option<IpAddr>,
    /// Drops the packets instead (with ICMP unreachable).
    pub unreachable: bool,
}

impl Route {
    /// A route through a link, without a next hop.
    #[must_use]
    pub fn through(to: IpNet, link: u32) -> Self {
        Self { to, via: None, link: Some(link), source: None, unreachable: false }
    }

    /// A route through a next hop.
    #[must_use]
    pub fn via(to: IpNet, via: IpAddr) -> Self {
        Self { to, via: Some(via), link: None, source: None, unreachable: false }
    }

    /// A route that refuses.
    #[must_use]
    pub fn unreachable(to: IpNet) -> Self {
        Self { to, via: None, link: None, source: None, unreachable: true }
    }

    fn message(&self) -> RouteMessage {
        let proto = RouteProtocol::Other(ROUTE_PROTOCOL);
        let wrong = "both addresses of a route are of one family";
        let mut route = RouteMessageBuilder::<IpAddr>::new()
            .protocol(proto)
            .destination_prefix(self.to.addr(), self.to.prefix_len())
            .expect("an IpNet's prefix fits its family");
        if let Some(link) = self.link {
            route = route.output_interface(link);
        }
        if let Some(source) = self.source {
            route = route.pref_source(source).expect(wrong);
        }
        if let Some(via) = self.via {
            route = route.gateway(via).expect(wrong);
            if self.link.is_some() {
                route = route.onlink();
            }
        } else if !self.unreachable {
            route = route.scope(rtnetlink::packet_route::route::RouteScope::Link);
        }
        if self.unreachable {
            route = route.kind(RouteType::Unreachable);
        }
        route.build()
    }

    fn parse(message: &RouteMessage) -> Option<Self> {
        let mut route = Self::unreachable("0.0.0.0/0".parse().expect("a constant"));
        route.unreachable = message.header.kind == RouteType::Unreachable;
        for attribute in &message.attributes {
            match attribute {
                RouteAttribute::Destination(to) => {
                    route.to =
                        IpNet::new(address(to)?, message.header.destination_prefix_length).ok()?;
                }
                RouteAttribute::Gateway(via) => route.via = address(via),
                RouteAttribute::Oif(link) => route.link = Some(*link),
                RouteAttribute::PrefSource(source) => route.source = address(source),
                _ => {}
            }
        }
        (message.header.protocol == RouteProtocol::Other(ROUTE_PROTOCOL)).then_some(route)
    }
}

fn address(address: &rtnetlink::packet_route::route::RouteAddress) -> Option<IpAddr> {
    use rtnetlink::packet_route::route::RouteAddress;
    match address {
        RouteAddress::Inet(v4) => Some(IpAddr::V4(*v4)),
        RouteAddress::Inet6(v6) => Some(IpAddr::V6(*v6)),
        _ => None,
    }
}

/// A link as the kernel shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// The kernel's number for it in its namespace.
    pub index: u32,
    /// Hardware address; empty for links without one.
    pub mac: Vec<u8>,
}

/// A netlink socket in one network namespace. Clones share it.
#[derive(Clone, Debug)]
pub struct Netlink {
    handle: Handle,
}

impl Netlink {
    /// A socket in the namespace of the calling thread. Needs a tokio runtime.
    ///
    /// # Errors
    /// When the kernel gives no socket.
    pub fn open() -> Result<Self, LinkError> {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        tokio::spawn(connection);
        Ok(Self { handle })
    }

    /// A socket in the namespace at `path`.
    ///
    /// # Errors
    /// When there is no such namespace or the kernel gives no socket.
    pub fn open_in(path: &Path) -> Result<Self, LinkError> {
        let runtime = tokio::runtime::Handle::current();
        within(path, || {
            let _guard = runtime.enter();
            Self::open()
        })?
    }

    /// Makes a veth pair: `name` here, which is up, and `peer` in the namespace `peer_netns`, which its own socket must
    /// set up (the kernel refuses to do so before the pair exists), with this MTU if given.
    ///
    /// # Errors
    /// When a name is taken or the namespace is not there.
    pub async fn add_veth(
        &self,
        name: &str,
        peer: &str,
        peer_netns: &Path,
        mtu: Option<u32>,
    ) -> Result<(), LinkError> {
        let netns = File::open(peer_netns)?;
        let mut far = LinkMessageBuilder::<LinkUnspec>::new().name(peer);
        let mut near = LinkMessageBuilder::<LinkVeth>::new(name, peer).up();
        if let Some(mtu) = mtu {
            far = far.mtu(mtu);
            near = near.mtu(mtu);
        }
        let far = far.setns_by_fd(netns.as_raw_fd()).build();
        let message = near.set_info_data(InfoData::Veth(InfoVeth::Peer(far))).build();
        self.handle
            .link()
            .add(message)
            .execute()
            .await
            .map_err(failed(format!("make the veth pair {name}, {peer}")))
    }

    /// Makes a bridge that is up.
    ///
    /// # Errors
    /// When the name is taken.
    pub async fn add_bridge(&self, name: &str) -> Result<(), LinkError> {
        let message = LinkBridge::new(name).build();
        self.handle
            .link()
            .add(message)
            .execute()
            .await
            .map_err(failed(format!("make the bridge {name}")))
    }

    /// Looks a link up by name.
    ///
    /// # Errors
    /// When there is none or the kernel refuses.
    pub async fn link(&self, name: &str) -> Result<Link, LinkError> {
        let mut links = self.handle.link().get().match_name(name).execute();
        match links.try_next().await {
            Ok(Some(message)) => Ok(parse_link(&message)),
            Ok(None) => Err(LinkError::Missing(name.to_owned())),
            Err(error) if is_errno(&error, libc::ENODEV) => {
                Err(LinkError::Missing(name.to_owned()))
            }
            Err(error) => Err(failed(format!("look up the link {name}"))(error)),
        }
    }

    /// Sets a link up or down.
    ///
    /// # Errors
    /// When the link is gone.
    pub async fn set_up(&self, name: &str, up: bool) -> Result<(), LinkError> {
        let index = self.link(name).await?.index;
        let message = LinkUnspec::new_with_index(index);
        let message = if up { message.up() } else { message.down() };
        self.handle
            .link()
            .set(message.build())
            .execute()
            .await
            .map_err(failed(format!("set the link {name} up or down")))
    }

    /// Makes a link a port of a bridge.
    ///
    /// # Errors
    /// When either is gone.
    pub async fn set_bridge(&self, name: &str, bridge: &str) -> Result<(), LinkError> {
        let index = self.link(name).await?.index;
        let bridge_index = self.link(bridge).await?.index;
        let message = LinkUnspec::new_with_index(index).controller(bridge_index).build();
        self.handle
            .link()
            .set(message)
            .execute()
            .await
            .map_err(failed(format!("add {name} to the bridge {bridge}")))
    }

    /// Deletes a link; one that is gone is no error.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn delete(&self, name: &str) -> Result<(), LinkError> {
        let index = match self.link(name).await {
            Ok(link) => link.index,
            Err(LinkError::Missing(_)) => return Ok(()),
            Err(error) => return Err(error),
        };
        match self.handle.link().del(index).execute().await {
            Err(error) if !is_errno(&error, libc::ENODEV) => {
                Err(failed(format!("delete the link {name}"))(error))
            }
            _ => Ok(()),
        }
    }

    /// Gives a link an address; one that it has is kept.
    ///
    /// # Errors
    /// When the link is gone.
    pub async fn add_address(&self, name: &str, address: IpNet) -> Result<(), LinkError> {
        let index = self.link(name).await?.index;
        let request =
            self.handle.address().add(index, address.addr(), address.prefix_len()).replace();
        request.execute().await.map_err(failed(format!("give {name} the address {address}")))
    }

    /// Takes an address away from a link; one that it does not have is no error.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn delete_address(&self, name: &str, address: IpAddr) -> Result<(), LinkError> {
        let index = self.link(name).await?.index;
        let action = format!("take the address {address} from {name}");
        let mut addresses = self
            .handle
            .address()
            .get()
            .set_link_index_filter(index)
            .set_address_filter(address)
            .execute();
        while let Some(message) = addresses.try_next().await.map_err(failed(action.clone()))? {
            self.handle.address().del(message).execute().await.map_err(failed(action.clone()))?;
        }
        Ok(())
    }

    /// Adds a route, or replaces the one to the same destination.
    ///
    /// # Errors
    /// When the next hop is not reachable or the link is gone.
    pub async fn replace_route(&self, route: &Route) -> Result<(), LinkError> {
        let request = self.handle.route().add(route.message()).replace();
        request.execute().await.map_err(failed(format!("set the route to {}", route.to)))
    }

    /// Deletes a route; one that is gone is no error.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn delete_route(&self, route: &Route) -> Result<(), LinkError> {
        match self.handle.route().del(route.message()).execute().await {
            Err(error) if !is_errno(&error, libc::ESRCH) => {
                Err(failed(format!("delete the route to {}", route.to))(error))
            }
            _ => Ok(()),
        }
    }

    /// All IPv4 routes that Rhumb made in this namespace.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn routes(&self) -> Result<Vec<Route>, LinkError> {
        let all = self
            .handle
            .route()
            .get(RouteMessageBuilder::<std::net::Ipv4Addr>::new().build())
            .execute();
        let all: Vec<RouteMessage> = all.try_collect().await.map_err(failed("list the routes"))?;
        Ok(all.iter().filter_map(Route::parse).collect())
    }

    /// Makes the kernel answer ARP for an address that is nobody's here. The link's `proxy_delay` should be 0, and the
    /// address needs a route through another link.
    ///
    /// # Errors
    /// When the link is gone.
    pub async fn add_proxy(&self, link: u32, address: IpAddr) -> Result<(), LinkError> {
        let request = self.handle.neighbours().add(link, address).flags(NeighbourFlags::Proxy);
        request.replace().execute().await.map_err(failed(format!("answer ARP for {address}")))
    }

    /// Stops to answer ARP for an address; one that is not answered for is no error.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn delete_proxy(&self, link: u32, address: IpAddr) -> Result<(), LinkError> {
        let mut request = self.handle.neighbours().add(link, address).flags(NeighbourFlags::Proxy);
        let message = request.message_mut().clone();
        match self.handle.neighbours().del(message).execute().await {
            Err(error) if !is_errno(&error, libc::ENOENT) => {
                Err(failed(format!("stop answering ARP for {address}"))(error))
            }
            _ => Ok(()),
        }
    }

    /// The addresses that the kernel answers ARP for on `link`.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn proxies(&self, link: u32) -> Result<Vec<IpAddr>, LinkError> {
        let all = self.handle.neighbours().get().proxies().execute();
        let all: Vec<NeighbourMessage> =
            all.try_collect().await.map_err(failed("list the proxied addresses"))?;
        let ours = all.iter().filter(|entry| entry.header.ifindex == link);
        Ok(ours.filter_map(neighbour_address).collect())
    }

    /// Sets a permanent neighbour, so that no ARP or NDP is needed.
    ///
    /// # Errors
    /// When the link is gone.
    pub async fn set_neighbour(
        &self,
        link: u32,
        address: IpAddr,
        mac: &[u8],
    ) -> Result<(), LinkError> {
        let request = self
            .handle
            .neighbours()
            .add(link, address)
            .link_layer_address(mac)
            .state(NeighbourState::Permanent);
        request.replace().execute().await.map_err(failed(format!("set the neighbour {address}")))
    }
}

fn parse_link(message: &LinkMessage) -> Link {
    let mac = message.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Address(mac) => Some(mac.clone()),
        _ => None,
    });
    Link { index: message.header.index, mac: mac.unwrap_or_default() }
}

fn neighbour_address(message: &NeighbourMessage) -> Option<IpAddr> {
    message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => Some(IpAddr::V4(*v4)),
        NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => Some(IpAddr::V6(*v6)),
        _ => None,
    })
}
