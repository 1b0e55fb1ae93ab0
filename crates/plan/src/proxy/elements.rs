//! One Service's share of the table: the elements of its frontends.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;
use net::nft::{Elements, Family, Field, Fields, Key, Set, SetData, Value, Verdict};

use super::{Mode, ipvs};
use crate::service::{Action, Frontend, Masquerade, Protocol, ServiceView};

/// Set in the identity of a set of endpoints that is this node's only: a client's affinity to an endpoint elsewhere
/// must not lead there through a frontend with policy Local.
pub(super) const IDENTITY_LOCAL: u32 = 0x1_0000;

/// The sets and maps of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum SetId {
    /// Class to verdict. Small: the kernel walks all of a verdict map whenever it changes, so frontends have classes
    /// instead of verdicts of their own.
    Classes,
    /// The same behind the check of source ranges: without that check, for the kernel takes no loops.
    GuardedClasses,
    /// The same behind the split by traffic policy: only classes that draw.
    SplitClasses,
    /// Frontend to class: what happens there.
    Services,
    /// The same, for frontends with source ranges, after the check.
    Guarded,
    /// The same, for clients in the cluster of frontends with external policy Local.
    Inside,
    /// The same, for clients outside.
    Outside,
    /// Frontend and draw to endpoint.
    Endpoints,
    /// Frontend and draw to endpoint on this node, for `Outside`.
    LocalEndpoints,
    /// Frontend to the cluster address and port of its Service port, for affinity.
    Identities,
    /// Identity and endpoint: those that affinity may still lead to.
    Usable,
    /// Client and frontend: who passes the source ranges.
    Allowed,
    /// Cluster addresses in use.
    ClusterIps,
    /// Cluster addresses that the node agent answers itself.
    LocalVip,
    /// Pairs of the same address: endpoints of this node that reach themselves through a Service.
    Hairpin,
    /// Client and identity to endpoint. The kernel's own.
    Affinity,
}

impl SetId {
    /// All of them.
    pub const ALL: [Self; 16] = [
        Self::Classes,
        Self::GuardedClasses,
        Self::SplitClasses,
        Self::Services,
        Self::Guarded,
        Self::Inside,
        Self::Outside,
        Self::Endpoints,
        Self::LocalEndpoints,
        Self::Identities,
        Self::Usable,
        Self::Allowed,
        Self::ClusterIps,
        Self::LocalVip,
        Self::Hairpin,
        Self::Affinity,
    ];

    /// The set's name in the kernel.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Classes => "classes",
            Self::GuardedClasses => "guarded_classes",
            Self::SplitClasses => "split_classes",
            Self::Services => "services",
            Self::Guarded => "guarded",
            Self::Inside => "inside",
            Self::Outside => "outside",
            Self::Endpoints => "endpoints",
            Self::LocalEndpoints => "local_endpoints",
            Self::Identities => "identities",
            Self::Usable => "usable",
            Self::Allowed => "allowed",
            Self::ClusterIps => "cluster_ips",
            Self::LocalVip => "local_vip",
            Self::Hairpin => "hairpin",
            Self::Affinity => "affinity",
        }
    }

    /// The set by its name.
    #[must_use]
    pub fn by_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|set| set.name() == name)
    }

    /// Whether packets that are just being looked up may still need an element after its Service has let go of it.
    pub(super) const fn lingers(self) -> bool {
        matches!(self, Self::Endpoints | Self::LocalEndpoints | Self::Identities | Self::Usable)
    }

    /// The set's type in a family.
    #[must_use]
    pub fn set(self, family: Family) -> Set {
        let address = Field::address(family);
        let frontend = [address, Field::Proto, Field::Port];
        let endpoint = [address, Field::Port];
        let identity = [address, Field::Mark];
        match self {
            Self::Classes | Self::GuardedClasses | Self::SplitClasses => {
                Set::verdicts([Field::Mark])
            }
            Self::Services | Self::Guarded | Self::Inside | Self::Outside => {
                Set::map(frontend, [Field::Mark])
            }
            Self::Endpoints | Self::LocalEndpoints => {
                Set::map([address, Field::Proto, Field::Port, Field::Mark], endpoint)
            }
            Self::Identities => Set::map(frontend, identity),
            Self::Usable => Set::of([address, Field::Mark, Field::Proto, address, Field::Port]),
            Self::Allowed => {
                let key = [address, address, Field::Proto, Field::Port];
                Set { interval: true, ..Set::of(key) }
            }
            Self::ClusterIps | Self::LocalVip => Set::of([address]),
            Self::Hairpin => Set::of([address, address]),
            Self::Affinity => Set {
                dynamic: true,
                data: SetData::Fields(endpoint.into()),
                size_max: AFFINITY_ENTRIES_MAX,
                ..Set::of([address, address, Field::Mark, Field::Proto])
            },
        }
    }
}

/// Clients remembered at once: when there are more, new ones are not remembered until older ones time out.
const AFFINITY_ENTRIES_MAX: u32 = 1 << 20;

/// Endpoints that one frontend draws from; those beyond, in the order of addresses, are left out. A class's number has
/// room for so many.
const ENDPOINTS_MAX: u32 = 999_999;
/// The same with session affinity.
pub(super) const STICKY_ENDPOINTS_MAX: u32 = 9_900;

/// A chain that draws one of `count` endpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ChainId {
    /// Source NAT of what it forwards.
    pub masquerade: Option<MasqueradeChain>,
    /// Whether it draws from this node's endpoints of frontends with external policy Local.
    pub local: bool,
    /// How many endpoints there are to draw from.
    pub count: u32,
    /// Seconds of affinity; 0 for none.
    pub affinity_s: u32,
    /// Whether affinity is to this node's endpoints only.
    pub local_identity: bool,
}

/// When a chain marks for masquerade.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum MasqueradeChain {
    /// Clients that are no pods.
    OffCluster,
    /// Everybody.
    Always,
}

impl ChainId {
    /// The chain's name in the kernel: `draw-4`, `draw-always-4`, `draw-local-4-sticky-10800`, …
    #[must_use]
    pub fn name(&self) -> String {
        let masquerade = match self.masquerade {
            None => "",
            Some(MasqueradeChain::OffCluster) => "cluster-",
            Some(MasqueradeChain::Always) => "always-",
        };
        let local = if self.local { "local-" } else { "" };
        let mut name = format!("draw-{masquerade}{local}{}", self.count);
        if self.affinity_s > 0 {
            let here = if self.local_identity { "-here" } else { "" };
            name.push_str(&format!("-sticky-{}{here}", self.affinity_s));
        }
        name
    }
}

/// What happens at frontends, as a number that maps hold: equal in every run, so that nothing has to be remembered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    Reject,
    Drop,
    Split,
    /// The same, where pods are outside.
    SplitNode,
    Guard,
    /// A virtual server of IPVS chooses.
    Virtual(Option<MasqueradeChain>),
    Draw(ChainId),
}

impl Class {
    const FIXED: [Self; 5] = [Self::Reject, Self::Drop, Self::Split, Self::SplitNode, Self::Guard];
    const VIRTUAL: [Self; 3] = [
        Self::Virtual(None),
        Self::Virtual(Some(MasqueradeChain::OffCluster)),
        Self::Virtual(Some(MasqueradeChain::Always)),
    ];
    /// Numbers of drawing classes are kind and count: 2000004 draws one of four for everybody.
    const KIND: u32 = 1_000_000;
    /// Where the numbers of drawing classes with affinity begin: count, kind and seconds in one. One number and not
    /// three fields, because nft 1.0.6 aborts when it lists a verdict map whose key of several fields comes from a map.
    const STICKY: u32 = 10_000_000;
    const KINDS: u32 = 5;
    /// Seconds of affinity are below this: the API's bound is 86,400.
    const SECONDS: u32 = 86_401;

    /// Those that there are before any Service.
    pub(super) fn fixed(mode: Mode) -> impl Iterator<Item = Self> {
        let of_mode: &[Self] = if mode == Mode::Ipvs { &Self::VIRTUAL } else { &[] };
        Self::FIXED.into_iter().chain(of_mode.iter().copied())
    }

    fn fields(self) -> Fields {
        let code = match self {
            Self::Reject => 1,
            Self::Drop => 2,
            Self::Split => 3,
            Self::Guard => 4,
            Self::SplitNode => 5,
            Self::Virtual(None) => 6,
            Self::Virtual(Some(MasqueradeChain::OffCluster)) => 7,
            Self::Virtual(Some(MasqueradeChain::Always)) => 8,
            Self::Draw(id) => {
                let kind = match (id.local, id.masquerade, id.local_identity) {
                    (true, ..) => 4,
                    (false, Some(MasqueradeChain::OffCluster), false) => 1,
                    (false, Some(MasqueradeChain::Always), _) => 2,
                    (false, None, _) => 3,
                    (false, Some(MasqueradeChain::OffCluster), true) => 5,
                };
                match id.affinity_s {
                    0 => kind * Self::KIND + id.count,
                    seconds => {
                        let place = id.count * Self::KINDS + kind - 1;
                        Self::STICKY + place * Self::SECONDS + seconds
                    }
                }
            }
        };
        Fields::new().mark(code)
    }

    fn value(self) -> Value {
        self.fields().data()
    }

    /// Its elements of the maps from class to verdict.
    pub(super) fn elements(self) -> impl Iterator<Item = Element> {
        let verdict = match self {
            Self::Reject => Verdict::Goto("reject".into()),
            Self::Drop => Verdict::Drop,
            Self::Split => Verdict::Goto("split".into()),
            Self::SplitNode => Verdict::Goto("split-node".into()),
            Self::Guard => Verdict::Goto("guard".into()),
            Self::Virtual(masquerade) => Verdict::Goto(virtual_chain(masquerade).into()),
            Self::Draw(id) => Verdict::Goto(Arc::from(id.name())),
        };
        let maps: &[SetId] = match self {
            Self::Guard => &[SetId::Classes],
            Self::Reject | Self::Split | Self::SplitNode => {
                &[SetId::Classes, SetId::GuardedClasses]
            }
            Self::Drop | Self::Virtual(_) | Self::Draw(_) => {
                &[SetId::Classes, SetId::GuardedClasses, SetId::SplitClasses]
            }
        };
        maps.iter().map(move |map| (*map, self.fields().key(), Value::Verdict(verdict.clone())))
    }
}

/// The name of the chain that leaves the choice to IPVS.
pub(super) const fn virtual_chain(masquerade: Option<MasqueradeChain>) -> &'static str {
    match masquerade {
        None => "virtual",
        Some(MasqueradeChain::OffCluster) => "virtual-cluster",
        Some(MasqueradeChain::Always) => "virtual-always",
    }
}

/// One element and its set.
pub(super) type Element = (SetId, Key, Value);

/// A Service's elements in one family, and the chains that they name.
#[derive(Clone, Debug, Default)]
pub(super) struct Lowered {
    pub(super) elements: Vec<Element>,
    pub(super) chains: BTreeSet<ChainId>,
    mode: Mode,
}

/// Writes a Service's view as elements.
pub(super) fn lower(view: &ServiceView, family: Family, mode: Mode) -> Lowered {
    let mut lowered = Lowered { mode, ..Lowered::default() };
    let ours = |address: &&IpAddr| Family::of(address) == family;
    let sets = [(SetId::ClusterIps, &view.cluster_ips), (SetId::LocalVip, &view.node_local)];
    for (set, addresses) in sets {
        for address in addresses.iter().filter(ours) {
            lowered.elements.push((set, Fields::new().address(*address).key(), Value::None));
        }
    }
    for address in view.local_endpoints.iter().filter(ours) {
        let key = Fields::new().address(*address).address(*address).key();
        lowered.elements.push((SetId::Hairpin, key, Value::None));
    }
    for frontend in &view.frontends {
        if Family::of(&frontend.address.ip()) == family {
            lowered.add(frontend);
        }
    }
    lowered.elements.sort_by(|a, b| (a.0, &a.1).cmp(&(b.0, &b.1)));
    lowered.elements.dedup_by(|a, b| a.0 == b.0 && a.1 == b.1);
    lowered
}

impl Lowered {
    fn add(&mut self, frontend: &Frontend) {
        let class = match &frontend.action {
            Action::Reject => Class::Reject,
            Action::Drop => Class::Drop,
            Action::Forward { endpoints, masquerade, local } => {
                let masquerade = Some(match masquerade {
                    Masquerade::OffCluster => MasqueradeChain::OffCluster,
                    Masquerade::Always => MasqueradeChain::Always,
                });
                if self.is_virtual(frontend) {
                    Class::Virtual(masquerade)
                } else {
                    self.identify(frontend);
                    let chain = ChainId { masquerade, local: false, ..chain(frontend, *local) };
                    self.draw(frontend, endpoints, chain)
                }
            }
            Action::Split { inside, outside, pods_inside } => {
                self.identify(frontend);
                if !inside.is_empty() {
                    let class = self.draw(frontend, inside, chain(frontend, false));
                    self.push(SetId::Inside, frontend, class);
                }
                if !outside.is_empty() {
                    let id = ChainId { local: true, ..chain(frontend, true) };
                    let class = if self.is_virtual(frontend) {
                        Class::Virtual(None)
                    } else {
                        self.draw(frontend, outside, id)
                    };
                    self.push(SetId::Outside, frontend, class);
                } else if *pods_inside {
                    // Another Service may name the same address: what it has for clients outside is not for this one's.
                    self.push(SetId::Outside, frontend, Class::Drop);
                }
                if *pods_inside { Class::Split } else { Class::SplitNode }
            }
        };
        let Some(sources) = &frontend.sources else {
            return self.push(SetId::Services, frontend, class);
        };
        self.push(SetId::Guarded, frontend, class);
        self.push(SetId::Services, frontend, Class::Guard);
        for range in sources {
            self.allow(frontend, range);
        }
    }

    fn is_virtual(&self, frontend: &Frontend) -> bool {
        self.mode == Mode::Ipvs && ipvs::endpoints(frontend).is_some()
    }

    fn push(&mut self, set: SetId, frontend: &Frontend, class: Class) {
        self.elements.push((set, key(frontend).key(), class.value()));
    }

    /// The endpoints to draw from, and the class that draws.
    fn draw(&mut self, frontend: &Frontend, endpoints: &[SocketAddr], chain: ChainId) -> Class {
        let set = if chain.local { SetId::LocalEndpoints } else { SetId::Endpoints };
        let max = if chain.affinity_s > 0 { STICKY_ENDPOINTS_MAX } else { ENDPOINTS_MAX };
        let count = u32::try_from(endpoints.len()).unwrap_or(max).min(max);
        for (index, endpoint) in (0..count).zip(endpoints) {
            let value = Fields::new().address(endpoint.ip()).port(endpoint.port()).data();
            self.elements.push((set, key(frontend).mark(index).key(), value));
            if chain.affinity_s > 0 {
                let key = identity(frontend, chain.local_identity)
                    .proto(frontend.protocol.number())
                    .address(endpoint.ip())
                    .port(endpoint.port());
                self.elements.push((SetId::Usable, key.key(), Value::None));
            }
        }
        let chain = ChainId { count, ..chain };
        self.chains.insert(chain);
        Class::Draw(chain)
    }

    /// For affinity. Chains that stay on this node add the mark of that themselves.
    fn identify(&mut self, frontend: &Frontend) {
        if frontend.affinity_s.is_some() {
            let value = identity(frontend, false).data();
            self.elements.push((SetId::Identities, key(frontend).key(), value));
        }
    }

    fn allow(&mut self, frontend: &Frontend, range: &IpNet) {
        let rest = |fields: Fields| {
            fields
                .address(frontend.address.ip())
                .proto(frontend.protocol.number())
                .port(frontend.address.port())
        };
        let first = rest(Fields::new().address(range.network()));
        let last = rest(Fields::new().address(range.broadcast()));
        self.elements.push((SetId::Allowed, Key::range(&first, &last), Value::None));
    }
}

fn chain(frontend: &Frontend, local_identity: bool) -> ChainId {
    let affinity_s = frontend.affinity_s.unwrap_or(0).min(Class::SECONDS - 1);
    ChainId {
        masquerade: None,
        local: false,
        count: 0,
        affinity_s,
        local_identity: local_identity && affinity_s > 0,
    }
}

fn key(frontend: &Frontend) -> Fields {
    let address = frontend.address;
    Fields::new().address(address.ip()).proto(frontend.protocol.number()).port(address.port())
}

fn identity(frontend: &Frontend, local: bool) -> Fields {
    let mark = u32::from(frontend.identity.port()) | if local { IDENTITY_LOCAL } else { 0 };
    Fields::new().address(frontend.identity.ip()).mark(mark)
}

/// The UDP frontends among the elements of [`SetId::Services`], as the kernel shows them.
#[must_use]
pub fn udp_frontends(family: Family, elements: &Elements) -> BTreeSet<SocketAddr> {
    let all = frontends(family, elements);
    all.filter(|(protocol, _)| *protocol == Protocol::Udp.number())
        .map(|(_, address)| address)
        .collect()
}

/// The protocol and the address of elements whose keys are frontends.
pub(super) fn frontends(
    family: Family,
    elements: &Elements,
) -> impl Iterator<Item = (u8, SocketAddr)> {
    let width = match family {
        Family::Ip => 4,
        Family::Ip6 => 16,
    };
    elements.keys().filter_map(move |key| {
        let (address, rest) = key.bytes.split_at_checked(width)?;
        let address = match family {
            Family::Ip => IpAddr::from(<[u8; 4]>::try_from(address).ok()?),
            Family::Ip6 => IpAddr::from(<[u8; 16]>::try_from(address).ok()?),
        };
        // Each field has whole words: the protocol's byte and the port's two come first in theirs.
        let (&[protocol, ..], &[high, low, ..]) = rest.split_first_chunk::<4>()? else {
            return None;
        };
        Some((protocol, SocketAddr::new(address, u16::from_be_bytes([high, low]))))
    })
}
