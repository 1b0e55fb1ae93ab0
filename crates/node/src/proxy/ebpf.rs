//! Services by eBPF: programs lead connections at their sockets, and the whole nftables rule set underneath carries
//! whatever they leave. So nothing depends on them but speed: what goes wrong with them takes them away.

pub(super) mod drain;
mod links;

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kernel::bpf::{self, BpfError, Connect, Counter, Place, Tables};
use net::bpf::{Change, Spare, Steps};
use plan::proxy::{EbpfPlace, Mode, Settings, Snapshot, Views};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::SinkError;
use super::backend::Applied;
use super::metrics::Done;
use super::nftables::{self, Nftables};
use links::Links;

/// Whose the network namespaces on this node are, by their cookies; the node's own is not among them.
pub type Namespaces = watch::Receiver<Arc<BTreeMap<u64, Place>>>;

/// Programs that the kernel refused are tried again after this.
const RETRY_AFTER: Duration = Duration::from_secs(60);
/// How long entries stay that nobody is led to any more: programs that just read a frontend may still need them.
const SWEEP_AFTER: Duration = Duration::from_millis(20);
/// The tables are read back so seldom that it takes no more than this part of the time.
const VERIFY_SHARE: u32 = 500;
/// And not more often than this.
const VERIFY_AFTER: Duration = Duration::from_secs(5);

/// How often what the programs did is counted.
const COUNT_AFTER: Duration = Duration::from_secs(1);

/// What the kernel is to be told.
#[derive(Debug, PartialEq)]
pub struct Plan {
    rules: nftables::Plan,
    fast: Told,
    nodes: BTreeSet<IpAddr>,
}

#[derive(Debug, PartialEq)]
enum Told {
    Nothing,
    /// What the kernel has is not known.
    Whole(net::bpf::Tables),
    Change(Change),
}

/// The rules underneath, and the programs in front of them.
#[derive(Debug)]
pub(super) struct Ebpf {
    nftables: Nftables,
    place: EbpfPlace,
    /// Whether packets are carried at links, too.
    at_links: bool,
    /// The node's network namespace.
    own: Option<u64>,
    namespaces: Option<Namespaces>,
    /// The namespaces that the tables have.
    told: Option<Arc<BTreeMap<u64, Place>>>,
    fast: Option<Fast>,
    links: Links,
    /// When the programs are tried again.
    retry: Instant,
    trouble: Option<String>,
    count_at: Instant,
}

impl Ebpf {
    pub(super) fn open(settings: Settings) -> Result<Self, SinkError> {
        let mut ebpf = Self {
            place: settings.ebpf.clone(),
            at_links: settings.ebpf_links,
            nftables: Nftables::open(settings)?,
            own: bpf::netns_cookie().ok(),
            namespaces: None,
            told: None,
            fast: None,
            links: Links::open()?,
            retry: Instant::now(),
            trouble: None,
            count_at: Instant::now(),
        };
        ebpf.start();
        Ok(ebpf)
    }

    fn start(&mut self) {
        match Fast::open(&self.place, self.own) {
            Ok(fast) => {
                self.fast = Some(fast);
                if self.at_links {
                    self.links.start(&self.place.pins);
                } else {
                    self.links.leave(&self.place.pins);
                }
                tracing::info!(
                    component = "proxy",
                    "eBPF programs lead connections at their sockets"
                );
            }
            Err(error) => self.give_up(&error),
        }
        self.told = None;
    }

    /// The rules underneath carry everything, until the programs work again.
    fn give_up(&mut self, error: &BpfError) {
        self.fast = None;
        self.retry = Instant::now() + RETRY_AFTER;
        let mut trouble =
            format!("mode ebpf is not to be had, nftables carries all Services: {error}");
        let mut cause = error.source();
        while let Some(error) = cause {
            trouble.push_str(&format!(": {error}"));
            cause = error.source();
        }
        tracing::warn!(component = "proxy", "{trouble}");
        self.trouble = Some(trouble);
        self.links.stop();
        if let Err(error) = bpf::remove(&self.place.pins) {
            let error: &dyn Error = &error;
            tracing::error!(component = "proxy", error, "eBPF programs stay that nobody keeps");
        }
    }

    pub(super) fn plan(&self, snapshot: &Snapshot) -> Plan {
        let mut rules = self.nftables.plan(snapshot);
        let fast = match (&self.fast, &mut rules) {
            (None, _) => Told::Nothing,
            (Some(fast), nftables::Plan::Change(change)) if fast.known => {
                Told::Change(std::mem::take(&mut change.fast))
            }
            (Some(_), _) => Told::Whole(self.nftables.fast()),
        };
        Plan { rules, fast, nodes: snapshot.nodes.clone() }
    }

    pub(super) fn apply(&mut self, plan: Plan) -> Result<Applied, SinkError> {
        let applied = self.nftables.apply(plan.rules);
        self.links.know(plan.nodes);
        let told = match (&mut self.fast, plan.fast) {
            (Some(fast), Told::Whole(tables)) => {
                self.links.spread(&tables.sets);
                fast.replace(&tables)
            }
            (Some(fast), Told::Change(change)) if fast.known => {
                self.links.spread(&change.come);
                fast.change(&change)
            }
            _ => Ok(()),
        };
        if let Err(error) = told {
            self.give_up(&error);
        }
        self.tell_namespaces();
        applied
    }

    fn tell_namespaces(&mut self) {
        let (Some(fast), Some(namespaces)) = (&mut self.fast, &self.namespaces) else { return };
        let wanted = Arc::clone(&namespaces.borrow());
        if self.told.as_ref().is_some_and(|told| Arc::ptr_eq(told, &wanted)) {
            return;
        }
        match fast.tell_namespaces(&wanted, self.own) {
            Ok(()) => {
                self.told = Some(wanted);
                // Their links are new, too.
                self.links.distrust();
            }
            Err(error) => self.give_up(&error),
        }
    }

    pub(super) fn verify(&mut self) -> Result<(), SinkError> {
        self.nftables.verify()?;
        let views = self.nftables.views();
        self.links.look(views.settings(), &views.node().addresses);
        let is_torn = self.fast.as_mut().is_some_and(Fast::is_torn);
        match &mut self.fast {
            None if self.retry <= Instant::now() => self.start(),
            None => {}
            Some(_) if is_torn => {
                tracing::warn!(
                    component = "proxy",
                    "somebody took eBPF programs or tables away: they come back"
                );
                self.start();
            }
            Some(fast) if fast.known && fast.look_at <= Instant::now() => {
                let wanted = self.nftables.fast();
                self.links.keep(&wanted.sets);
                self.links.spread(&wanted.sets);
                let looked = fast.look(&wanted);
                if let Err(error) = looked {
                    self.give_up(&error);
                }
            }
            Some(_) => {}
        }
        Ok(())
    }

    pub(super) fn distrust(&mut self) {
        if let Some(fast) = &mut self.fast {
            (fast.attached_at, fast.look_at) = (Instant::now(), Instant::now());
            self.links.distrust();
        }
    }

    pub(super) fn forget(&mut self) {
        self.nftables.forget();
        if let Some(fast) = &mut self.fast {
            fast.known = false;
        }
    }

    pub(super) fn views(&mut self) -> &Views {
        self.nftables.views()
    }

    pub(super) fn wait(&self) -> Duration {
        match &self.fast {
            Some(fast) if !fast.known => Duration::ZERO,
            Some(fast) if !fast.spare.is_empty() => SWEEP_AFTER,
            _ => self.nftables.wait(),
        }
    }

    pub(super) fn mode(&self) -> Mode {
        if self.fast.is_some() { Mode::Ebpf } else { Mode::Nftables }
    }

    pub(super) fn trouble(&mut self) -> Option<String> {
        self.trouble.take()
    }

    /// What the programs did, when it is time to ask.
    pub(super) fn done(&mut self) -> Option<Done> {
        let fast = self.fast.as_ref().filter(|_| self.count_at <= Instant::now())?;
        self.count_at = Instant::now() + COUNT_AFTER;
        // A metric that cannot be had is no reason to stop.
        let count = |counter| fast.tables.counted(counter).unwrap_or_default();
        Some(Done {
            connections: [Counter::Connected4, Counter::Connected6].map(count),
            datagrams: [Counter::Sent4, Counter::Sent6].map(count),
            left: [Counter::Left4, Counter::Left6].map(count),
            flows: [Counter::Flows4, Counter::Flows6].map(count),
        })
    }

    pub(super) fn follow(&mut self, namespaces: Namespaces) {
        self.namespaces = Some(namespaces);
    }
}

/// The programs' side of the kernel.
#[derive(Debug)]
struct Fast {
    connect: Connect,
    tables: Tables,
    /// Whether what the tables hold is known.
    known: bool,
    spare: Spare,
    /// When to look whether the programs are attached.
    attached_at: Instant,
    /// When to read the tables back.
    look_at: Instant,
}

impl Fast {
    fn open(place: &EbpfPlace, own: Option<u64>) -> Result<Self, BpfError> {
        let (connect, mut tables) = Connect::open(&place.pins, &place.cgroup)?;
        if let Some(own) = own {
            tables.put_namespace(own, Place::Node)?;
        }
        let (spare, now) = (Spare::default(), Instant::now());
        Ok(Self { connect, tables, known: false, spare, attached_at: now, look_at: now })
    }

    /// Makes the tables these, whatever they were.
    fn replace(&mut self, wanted: &net::bpf::Tables) -> Result<(), BpfError> {
        self.known = false;
        self.spare = Spare::default();
        let steps = self.tables.read()?.steps(&wanted.entries());
        self.take(&steps)?;
        self.known = true;
        Ok(())
    }

    fn change(&mut self, change: &Change) -> Result<(), BpfError> {
        if change.is_empty() { self.sweep() } else { self.take(&Steps::from(change)) }
    }

    fn take(&mut self, steps: &Steps) -> Result<(), BpfError> {
        for (key, endpoint) in &steps.endpoints {
            self.tables.put_endpoint(*key, *endpoint)?;
        }
        for member in &steps.members {
            self.tables.put_member(member)?;
        }
        for (key, frontend) in &steps.frontends {
            match frontend {
                Some(frontend) => self.tables.put_frontend(key, frontend)?,
                None => self.tables.remove_frontend(key)?,
            }
        }
        self.spare.follow(steps);
        Ok(())
    }

    fn sweep(&mut self) -> Result<(), BpfError> {
        let Spare { endpoints, members } = std::mem::take(&mut self.spare);
        for key in endpoints {
            self.tables.remove_endpoint(key)?;
        }
        for member in members {
            self.tables.remove_member(&member)?;
        }
        Ok(())
    }

    /// Whether somebody took something away; looked at when it is time.
    fn is_torn(&mut self) -> bool {
        let now = Instant::now();
        if self.attached_at > now {
            return false;
        }
        self.attached_at = now + VERIFY_AFTER;
        !self.connect.is_whole()
    }

    /// Looks whether somebody changed the tables, and repairs them.
    fn look(&mut self, wanted: &net::bpf::Tables) -> Result<(), BpfError> {
        let begun = Instant::now();
        let mut steps = self.tables.read()?.steps(&wanted.entries());
        steps.spare.endpoints.retain(|key| !self.spare.endpoints.contains(key));
        steps.spare.members.retain(|member| !self.spare.members.contains(member));
        if !steps.is_empty() {
            tracing::warn!(
                component = "proxy",
                "somebody changed the eBPF tables: they are repaired"
            );
            self.take(&steps)?;
        }
        self.look_at = Instant::now() + VERIFY_AFTER.max(begun.elapsed() * VERIFY_SHARE);
        Ok(())
    }

    fn tell_namespaces(
        &mut self,
        wanted: &BTreeMap<u64, Place>,
        own: Option<u64>,
    ) -> Result<(), BpfError> {
        let known: BTreeSet<u64> = self.tables.namespaces()?.into_iter().collect();
        for cookie in known.iter().filter(|known| !wanted.contains_key(known)) {
            if Some(*cookie) != own {
                self.tables.remove_namespace(*cookie)?;
            }
        }
        for (cookie, place) in wanted {
            self.tables.put_namespace(*cookie, *place)?;
        }
        Ok(())
    }
}

/// Wakes the proxy when namespaces come and go.
pub(super) fn listen(
    mut namespaces: Namespaces,
    poke: impl Fn(()) + Send + 'static,
    shutdown: CancellationToken,
) {
    tokio::spawn(async move {
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                changed = namespaces.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    poke(());
                }
            }
        }
    });
}
