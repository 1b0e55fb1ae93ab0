//! The table's chains: fixed ones, and those that draw one of K endpoints, made when the first Service needs them.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use net::nft::{
    Chain, ChainKind, CmpOp, DynOp, Expr, Family, Hook, HookPoint, MetaKey, Reg, Reject, Rule,
    Table, Verdict, load,
};

use super::elements::{ChainId, Class, IDENTITY_LOCAL, MasqueradeChain, SetId, virtual_chain};
use super::{Mode, Settings};

/// The table's name in both families.
pub const TABLE: &str = "rhumb_proxy";
/// Marks packets between the choice of an endpoint and the source NAT; upstream's bit, cleared before the packet leaves.
pub const MARK: u32 = 0x4000;
/// `RTN_LOCAL`.
const LOCAL_ADDRESS: u32 = 2;
const TCP: u8 = 6;
/// The last register: no key or data reaches it, but for keys of frontends that were looked up before.
const SPARE: Reg = Reg(15);

/// The table without elements and without the chains that draw.
pub(super) fn skeleton(family: Family, settings: &Settings) -> Table {
    let mut table = Table::new(family, TABLE);
    for set in SetId::ALL {
        table.sets.insert(set.name().into(), set.set(family));
        if set != SetId::Affinity {
            table.elements.insert(set.name().into(), Default::default());
        }
    }
    for (map, key, value) in Class::fixed(settings.mode).flat_map(Class::elements) {
        table.elements.entry(map.name().into()).or_default().insert(key, value);
    }
    let rules = Rules { family, settings };
    // Priorities: dstnat is -100 (and on output by number, since nft knows the word for prerouting only), srcnat 100.
    for (name, point) in [("prerouting", HookPoint::Prerouting), ("output", HookPoint::Output)] {
        let hook = Hook { kind: ChainKind::Nat, point, priority: -100 };
        let rules = vec![Rule::new([jump("frontends")])];
        table.chains.insert(name.into(), Chain { hook: Some(hook), rules });
    }
    let hook = Hook { kind: ChainKind::Nat, point: HookPoint::Postrouting, priority: 100 };
    table
        .chains
        .insert("postrouting".into(), Chain { hook: Some(hook), rules: rules.postrouting() });
    if settings.node_ports_on_localhost() && family == Family::Ip {
        let hook = Hook { kind: ChainKind::Filter, point: HookPoint::Prerouting, priority: -300 };
        table
            .chains
            .insert("loopback".into(), Chain { hook: Some(hook), rules: vec![loopback_guard()] });
    }
    let regular = [
        ("frontends", rules.frontends()),
        ("guard", rules.guard()),
        ("split", rules.split()),
        ("split-node", rules.split_node()),
        ("split-inside", rules.lookup_twice(SetId::Inside)),
        ("split-own", vec![rules.mark(), Rule::new([goto("split-inside")])]),
        ("mark-off-cluster", rules.mark_off_cluster()),
        ("reject", rules.reject()),
    ];
    for (name, rules) in regular {
        table.chains.insert(name.into(), Chain { hook: None, rules });
    }
    if settings.mode == Mode::Ipvs {
        for (name, rules) in rules.virtuals() {
            table.chains.insert(name.into(), Chain { hook: None, rules });
        }
    }
    table
}

/// A chain that draws.
pub(super) fn draw_chain(family: Family, settings: &Settings, id: ChainId) -> (Arc<str>, Chain) {
    let rules = Rules { family, settings }.draw(id);
    (id.name().into(), Chain { hook: None, rules })
}

fn goto(chain: &str) -> Expr {
    Expr::Verdict(Verdict::Goto(chain.into()))
}

fn jump(chain: &str) -> Expr {
    Expr::Verdict(Verdict::Jump(chain.into()))
}

struct Rules<'a> {
    family: Family,
    settings: &'a Settings,
}

impl Rules<'_> {
    /// Registers of an address.
    fn width(&self) -> u8 {
        match self.family {
            Family::Ip => 1,
            Family::Ip6 => 4,
        }
    }

    /// Loads address, protocol and port of the destination into the registers from `at` on.
    fn frontend(&self, at: u8) -> Vec<Expr> {
        let width = self.width();
        vec![
            load::destination(self.family, Reg(at)),
            load::l4proto(Reg(at + width)),
            load::destination_port(Reg(at + width + 1)),
        ]
    }

    /// Finds the class of the frontend, and goes where its class goes.
    fn classify(&self, set: SetId) -> Rule {
        let class = Reg(self.width() + 2);
        let mut exprs = self.frontend(0);
        exprs.push(Expr::Lookup {
            set: set.name().into(),
            from: Reg(0),
            to: Some(class),
            invert: false,
        });
        exprs.extend(listable(class.0..class.0 + 1, SPARE));
        let map = match set {
            SetId::Guarded => SetId::GuardedClasses,
            SetId::Inside | SetId::Outside => SetId::SplitClasses,
            _ => SetId::Classes,
        };
        exprs.push(Expr::VerdictMap { map: map.name().into(), from: class });
        Rule { exprs }
    }

    /// A lookup, and once more: an element that is just being replaced may be missed by the first. Then the packet is
    /// dropped, so that the client tries again.
    fn lookup_twice(&self, set: SetId) -> Vec<Rule> {
        vec![self.classify(set), self.classify(set), drop()]
    }

    fn frontends(&self) -> Vec<Rule> {
        let destination = || load::destination(self.family, Reg(0));
        let find = |set: SetId| Expr::Lookup {
            set: set.name().into(),
            from: Reg(0),
            to: None,
            invert: false,
        };
        let mut rules = vec![
            self.classify(SetId::Services),
            self.classify(SetId::Services),
            Rule::new([destination(), find(SetId::LocalVip), Expr::Verdict(Verdict::Return)]),
            Rule::new([destination(), find(SetId::ClusterIps), goto("reject")]),
        ];
        for cidr in self.settings.service_cidrs(self.family) {
            let mut exprs = within(destination(), cidr);
            exprs.push(Expr::Verdict(Verdict::Drop));
            rules.push(Rule { exprs });
        }
        rules
    }

    /// Load balancer source ranges. The node itself always passes.
    fn guard(&self) -> Vec<Rule> {
        let width = self.width();
        let mut allowed = vec![load::source(self.family, Reg(0))];
        allowed.extend(self.frontend(width));
        allowed.push(Expr::Lookup {
            set: SetId::Allowed.name().into(),
            from: Reg(0),
            to: None,
            invert: false,
        });
        allowed.extend(self.classify(SetId::Guarded).exprs);
        let mut own = self.own_source().to_vec();
        own.extend(self.classify(SetId::Guarded).exprs);
        vec![Rule { exprs: allowed.clone() }, Rule { exprs: allowed }, Rule { exprs: own }, drop()]
    }

    fn own_source(&self) -> [Expr; 2] {
        let value = LOCAL_ADDRESS.to_ne_bytes().into();
        [Expr::FibSourceType { to: Reg(0) }, Expr::Cmp { from: Reg(0), op: CmpOp::Eq, value }]
    }

    /// External traffic policy Local: pods and the node itself are served like ClusterIP clients.
    fn split(&self) -> Vec<Rule> {
        let mut rules = Vec::new();
        for cidr in self.settings.pod_cidrs(self.family) {
            let mut exprs = within(load::source(self.family, Reg(0)), cidr);
            exprs.push(goto("split-inside"));
            rules.push(Rule { exprs });
        }
        let [fib, cmp] = self.own_source();
        rules.push(Rule::new([fib, cmp, goto("split-own")]));
        rules.extend(self.lookup_twice(SetId::Outside));
        rules
    }

    /// The same at node ports. Pods may be of another node, and would be answered by an endpoint next to them, past this
    /// node: they get endpoints of this node, or are masqueraded.
    fn split_node(&self) -> Vec<Rule> {
        let [fib, cmp] = self.own_source();
        let mut rules = vec![Rule::new([fib, cmp, goto("split-own")])];
        rules.extend([self.classify(SetId::Outside), self.classify(SetId::Outside)]);
        for cidr in self.settings.pod_cidrs(self.family) {
            let mut exprs = within(load::source(self.family, Reg(0)), cidr);
            exprs.push(goto("split-own"));
            rules.push(Rule { exprs });
        }
        rules.push(drop());
        rules
    }

    fn mark(&self) -> Rule {
        Rule::new([
            Expr::Meta { key: MetaKey::Mark, to: Reg(0) },
            mark_bits(Reg(0), MARK),
            Expr::MetaSet { key: MetaKey::Mark, from: Reg(0) },
        ])
    }

    /// Without pod ranges nobody is known to be off the cluster, and nothing is marked.
    fn mark_off_cluster(&self) -> Vec<Rule> {
        if self.settings.masquerade_all {
            return vec![self.mark()];
        }
        let mut rules = Vec::new();
        for cidr in self.settings.pod_cidrs(self.family) {
            let mut exprs = within(load::source(self.family, Reg(0)), cidr);
            exprs.push(Expr::Verdict(Verdict::Return));
            rules.push(Rule { exprs });
        }
        if !rules.is_empty() {
            rules.push(self.mark());
        }
        rules
    }

    /// IPVS chooses, after these rules; source NAT is asked for here. The translation to the same address tells the kernel
    /// that this table has spoken: else it would ask the next one, which is the one before while a table is made afresh.
    fn virtuals(&self) -> [(&'static str, Vec<Rule>); 3] {
        let port = Reg(self.width());
        let spoken = || {
            Rule::new([
                load::destination(self.family, Reg(0)),
                load::destination_port(port),
                Expr::Dnat { addr: Reg(0), port: Some(port) },
            ])
        };
        let off_cluster = Rule::new([jump("mark-off-cluster")]);
        [
            (virtual_chain(None), vec![spoken()]),
            (virtual_chain(Some(MasqueradeChain::OffCluster)), vec![off_cluster, spoken()]),
            (virtual_chain(Some(MasqueradeChain::Always)), vec![self.mark(), spoken()]),
        ]
    }

    fn reject(&self) -> Vec<Rule> {
        vec![
            Rule::new([
                load::l4proto(Reg(0)),
                Expr::Cmp { from: Reg(0), op: CmpOp::Eq, value: [TCP].into() },
                Expr::Reject(Reject::TcpReset),
            ]),
            Rule::new([Expr::Reject(Reject::PortUnreachable)]),
        ]
    }

    fn postrouting(&self) -> Vec<Rule> {
        let width = self.width();
        let bits = MARK.to_ne_bytes();
        vec![
            Rule::new([
                Expr::Meta { key: MetaKey::Mark, to: Reg(0) },
                Expr::Bitwise { from: Reg(0), to: Reg(1), mask: bits.into(), xor: [0; 4].into() },
                Expr::Cmp { from: Reg(1), op: CmpOp::Eq, value: bits.into() },
                Expr::Bitwise {
                    from: Reg(0),
                    to: Reg(0),
                    mask: (!MARK).to_ne_bytes().into(),
                    xor: [0; 4].into(),
                },
                Expr::MetaSet { key: MetaKey::Mark, from: Reg(0) },
                Expr::Masquerade,
            ]),
            Rule::new([
                load::source(self.family, Reg(0)),
                load::destination(self.family, Reg(width)),
                Expr::Lookup {
                    set: SetId::Hairpin.name().into(),
                    from: Reg(0),
                    to: None,
                    invert: false,
                },
                Expr::Masquerade,
            ]),
        ]
    }

    fn draw(&self, id: ChainId) -> Vec<Rule> {
        let mut rules = Vec::new();
        match id.masquerade {
            None => {}
            Some(MasqueradeChain::OffCluster) => rules.push(Rule::new([jump("mark-off-cluster")])),
            Some(MasqueradeChain::Always) => rules.push(self.mark()),
        }
        if id.affinity_s > 0 {
            rules.push(self.stick(id));
        }
        let pick = self.pick(id);
        // Once more, should the first draw meet an element that is just being replaced.
        rules.extend([pick.clone(), pick, drop()]);
        rules
    }

    /// First register of the endpoint: after source, identity and protocol.
    fn endpoint(&self) -> u8 {
        2 * self.width() + 2
    }

    /// Loads source and protocol around the identity that is already loaded: the key of the affinity map.
    fn client(&self, id: ChainId) -> Vec<Expr> {
        let width = self.width();
        let mut exprs = vec![load::source(self.family, Reg(0)), load::l4proto(Reg(2 * width + 1))];
        exprs.extend(listable(width..2 * width + 1, SPARE));
        if id.local_identity {
            exprs.push(mark_bits(Reg(2 * width), IDENTITY_LOCAL));
        }
        exprs
    }

    fn remember(&self, op: DynOp, id: ChainId) -> Expr {
        let timeout_s = if op == DynOp::Update { id.affinity_s } else { 0 };
        let data = Some(Reg(self.endpoint()));
        Expr::Dynset { set: SetId::Affinity.name().into(), op, key: Reg(0), data, timeout_s }
    }

    fn dnat(&self) -> Expr {
        let at = self.endpoint();
        Expr::Dnat { addr: Reg(at), port: Some(Reg(at + self.width())) }
    }

    /// A client that is remembered goes where it went, if that endpoint is still in use.
    fn stick(&self, id: ChainId) -> Rule {
        let (width, endpoint) = (self.width(), self.endpoint());
        let find = |set: SetId, from: u8, to: Option<u8>| Expr::Lookup {
            set: set.name().into(),
            from: Reg(from),
            to: to.map(Reg),
            invert: false,
        };
        let mut exprs = self.frontend(endpoint);
        exprs.push(find(SetId::Identities, endpoint, Some(width)));
        exprs.extend(self.client(id));
        exprs.push(find(SetId::Affinity, 0, Some(endpoint)));
        exprs.extend(listable(endpoint..endpoint + width + 1, SPARE));
        exprs.push(find(SetId::Usable, width, None));
        exprs.extend([self.remember(DynOp::Update, id), self.dnat()]);
        Rule { exprs }
    }

    fn pick(&self, id: ChainId) -> Rule {
        let (width, endpoint) = (self.width(), self.endpoint());
        let set = if id.local { SetId::LocalEndpoints } else { SetId::Endpoints };
        let mut exprs = self.frontend(0);
        exprs.push(Expr::Numgen { modulus: id.count, to: Reg(width + 2) });
        exprs.push(Expr::Lookup {
            set: set.name().into(),
            from: Reg(0),
            to: Some(Reg(endpoint)),
            invert: false,
        });
        if id.affinity_s > 0 {
            exprs.push(Expr::Lookup {
                set: SetId::Identities.name().into(),
                from: Reg(0),
                to: Some(Reg(width)),
                invert: false,
            });
            exprs.extend(self.client(id));
            exprs.extend(listable(endpoint..endpoint + width + 1, SPARE));
            // What is remembered of an endpoint out of use goes first: an update would keep it.
            exprs.push(self.remember(DynOp::Delete, id));
            exprs.push(self.remember(DynOp::Update, id));
        }
        exprs.push(self.dnat());
        Rule { exprs }
    }
}

/// Node ports on 127.0.0.1 need `route_localnet`, with which neighbours could send to the loopback addresses: what comes
/// from elsewhere is dropped (CVE-2020-8558).
fn loopback_guard() -> Rule {
    let mut lo = [0; 16];
    lo[..2].copy_from_slice(b"lo");
    let loopback = IpNet::new(IpAddr::from([127, 0, 0, 0]), 8).expect("8 is a prefix length");
    let mut exprs = vec![
        Expr::Meta { key: MetaKey::IifName, to: Reg(0) },
        Expr::Cmp { from: Reg(0), op: CmpOp::Neq, value: lo.into() },
    ];
    exprs.extend(within(load::destination(Family::Ip, Reg(0)), &loopback));
    exprs.push(Expr::Verdict(Verdict::Drop));
    Rule { exprs }
}

fn drop() -> Rule {
    Rule::new([Expr::Verdict(Verdict::Drop)])
}

/// Passes the registers of a map's data through the packet mark, which is as before at the end: it changes nothing, but
/// nft 1.0.6 (and whoever lists rules through its library) aborts on a key made of a map's data, whose length it does
/// not know. Of the mark it knows it. `spare` is a register that is not needed.
fn listable(regs: std::ops::Range<u8>, spare: Reg) -> Vec<Expr> {
    let key = MetaKey::Mark;
    let mut exprs = vec![Expr::Meta { key, to: spare }];
    for reg in regs.map(Reg) {
        exprs.extend([Expr::MetaSet { key, from: reg }, Expr::Meta { key, to: reg }]);
    }
    exprs.push(Expr::MetaSet { key, from: spare });
    exprs
}

/// Sets bits of a number in host order.
fn mark_bits(reg: Reg, bits: u32) -> Expr {
    let (mask, xor) = ((!bits).to_ne_bytes().into(), bits.to_ne_bytes().into());
    Expr::Bitwise { from: reg, to: reg, mask, xor }
}

/// Loads an address with `load` into register 0 and breaks off unless it is in `cidr`.
fn within(load: Expr, cidr: &IpNet) -> Vec<Expr> {
    let octets = |address: IpAddr| -> Box<[u8]> {
        match address {
            IpAddr::V4(v4) => v4.octets().into(),
            IpAddr::V6(v6) => v6.octets().into(),
        }
    };
    let mask = octets(cidr.netmask());
    let xor = vec![0; mask.len()].into();
    vec![
        load,
        Expr::Bitwise { from: Reg(0), to: Reg(0), mask, xor },
        Expr::Cmp { from: Reg(0), op: CmpOp::Eq, value: octets(cidr.network()) },
    ]
}
