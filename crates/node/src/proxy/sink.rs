//! The kernel's side of the proxy: what was committed, and whether it is still so.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;

use kernel::nftables::{Inventory, NetfilterError, Nftables};
use net::nft::{Family, Op, Table, Transaction, replace_elements};
use plan::proxy::{Change, FamilyChange, SetId, Stage, TABLE, udp_frontends};

/// Why the kernel could not be told.
#[derive(Debug, thiserror::Error)]
pub enum SinkError {
    /// nftables or connection tracking refused.
    #[error(transparent)]
    Netfilter(#[from] NetfilterError),
    /// iptables' programs are missing or refused.
    #[error(transparent)]
    Iptables(#[from] kernel::iptables::IptablesError),
    /// eBPF's programs or tables.
    #[error(transparent)]
    Bpf(#[from] kernel::bpf::BpfError),
    /// The mode is IPVS, and the kernel has none.
    #[error("can't use the IPVS proxier: {0}")]
    Ipvs(#[from] IpvsMissing),
}

/// This kernel has no IPVS.
#[derive(Debug, thiserror::Error)]
#[error(
    "Ipvs not supported by the kernel; load its module (modprobe ip_vs), or choose another --proxy-mode"
)]
pub struct IpvsMissing;

/// Commits tables and changes. Knows what the kernel has, or that it does not know.
#[derive(Debug)]
pub struct Sink {
    nft: Nftables,
    known: bool,
    stages: BTreeMap<Family, Stage>,
    /// Chains, rules and sets as the kernel showed them after the last change of them.
    inventories: BTreeMap<Family, Option<Inventory>>,
    /// The rule set's generation after the last commit; every transaction of anybody changes it.
    generation: u32,
    /// Whether somebody else changed something in this namespace since the table was last looked at.
    suspect: bool,
    /// Sets with more elements are not read back to be replaced.
    read_back_max: usize,
}

/// Reading a set back costs the square of its size, because the kernel walks it from its start for every 32 KiB of the
/// answer (a quarter of a million elements take 5 s). Larger sets are emptied and filled again: at one moment too, but
/// a packet that is just between two lookups may miss the second.
const READ_BACK_MAX: usize = 1 << 16;

impl Sink {
    /// A sink for the network namespace of the calling thread.
    ///
    /// # Errors
    /// When the kernel gives no netlink socket.
    pub fn open() -> Result<Self, SinkError> {
        let nft = Nftables::open()?;
        Ok(Self {
            nft,
            known: false,
            stages: BTreeMap::new(),
            inventories: BTreeMap::new(),
            generation: 0,
            suspect: false,
            read_back_max: READ_BACK_MAX,
        })
    }

    /// Whether what the kernel has is known, so that a difference can be told.
    #[must_use]
    pub fn is_known(&self) -> bool {
        self.known
    }

    /// After an error: what the kernel has is not known any more.
    pub fn forget(&mut self) {
        self.known = false;
    }

    /// So many transactions were this agent's own, on other tables.
    pub fn expect(&mut self, commits: u32) {
        self.generation = self.generation.wrapping_add(commits);
    }

    /// Whether elements wait to be taken away.
    #[must_use]
    pub fn has_spare(&self) -> bool {
        self.stages.values().any(|stage| !stage.is_empty())
    }

    /// Makes the kernel's tables these, whatever they were. What clients are remembered for stays. Answers the UDP
    /// frontends that were there before: of this agent, or of one before it.
    ///
    /// # Errors
    /// When the kernel refuses even a table made afresh. The other family's is made all the same.
    pub fn replace(&mut self, tables: &[Table]) -> Result<BTreeSet<SocketAddr>, SinkError> {
        self.known = false;
        let (mut before, mut result) = (BTreeSet::new(), Ok(()));
        for table in tables {
            result = result.and(self.replace_one(table, &mut before));
        }
        result?;
        self.generation = self.nft.generation()?;
        self.suspect = false;
        self.known = true;
        Ok(before)
    }

    fn replace_one(
        &mut self,
        table: &Table,
        before: &mut BTreeSet<SocketAddr>,
    ) -> Result<(), SinkError> {
        self.stages.insert(table.family, Stage::default());
        let found = self.nft.inventory(table.family, &table.name)?;
        let merged = match found {
            Some(found) => self.merge(table, &found, before),
            None => self.nft.commit(&transaction(table, table.creation())),
        };
        if let Err(error) = merged {
            // A set of another type, from another version: only a new table helps.
            tracing::info!(component = "proxy", error = %error, "the table is made afresh");
            self.stages.insert(table.family, Stage::default());
            let mut ops = vec![Op::AddTable, Op::DeleteTable];
            ops.extend(table.creation());
            self.nft.commit(&transaction(table, ops))?;
        }
        let inventory = self.nft.inventory(table.family, &table.name)?;
        self.inventories.insert(table.family, inventory);
        Ok(())
    }

    /// Rules are replaced, elements changed where they differ, and what does not belong there goes.
    fn merge(
        &mut self,
        table: &Table,
        found: &Inventory,
        before: &mut BTreeSet<SocketAddr>,
    ) -> Result<(), NetfilterError> {
        let mut ops = vec![Op::AddTable];
        let chains = table.chains.iter();
        ops.extend(chains.map(|(name, chain)| Op::AddChain(Arc::clone(name), chain.hook)));
        let sets = table.sets.iter();
        ops.extend(sets.map(|(name, set)| Op::AddSet(Arc::clone(name), set.clone())));
        ops.push(Op::FlushRules);
        ops.extend(table.rules());
        let mut changes = Vec::new();
        for (set, elements) in &table.elements {
            if elements.len() > self.read_back_max && &**set != SetId::Services.name() {
                let all = elements.iter().map(|(key, value)| (key.clone(), value.clone()));
                ops.push(Op::FlushSet(Arc::clone(set)));
                ops.push(Op::AddElements(Arc::clone(set), all.collect()));
                continue;
            }
            let old = self.nft.elements(table.family, &table.name, set)?.unwrap_or_default();
            if &**set == SetId::Services.name() {
                before.extend(udp_frontends(table.family, &old));
            }
            changes.extend(replace_elements(set, &old, elements));
        }
        ops.extend(self.stages.entry(table.family).or_default().elements(changes));
        let foreign = found.chains.keys().filter(|name| !table.chains.contains_key(*name));
        ops.extend(foreign.cloned().map(Op::DeleteChain));
        let foreign = found.sets.iter().filter(|name| !table.sets.contains_key(*name));
        ops.extend(foreign.cloned().map(Op::DeleteSet));
        self.nft.commit(&transaction(table, ops))
    }

    /// Commits what differs.
    ///
    /// # Errors
    /// When the kernel refuses: then what it has is not known. The other family's is committed all the same.
    pub fn change(&mut self, change: Change) -> Result<(), SinkError> {
        let mut result = Ok(());
        for (family, change) in change.families {
            result = result.and(self.change_one(family, change));
        }
        result
    }

    fn change_one(&mut self, family: Family, change: FamilyChange) -> Result<(), SinkError> {
        let chains = !change.chains.is_empty();
        let transaction = self.stages.entry(family).or_default().change(family, change);
        self.commit(&transaction)?;
        if chains {
            let inventory = self.nft.inventory(family, TABLE)?;
            self.inventories.insert(family, inventory);
        }
        Ok(())
    }

    /// Takes spare elements away.
    ///
    /// # Errors
    /// When the kernel refuses: then what it has is not known.
    pub fn sweep(&mut self) -> Result<(), SinkError> {
        let mut result = Ok(());
        for family in plan::proxy::FAMILIES {
            let transaction = self.stages.entry(family).or_default().sweep(family);
            result = result.and(self.commit(&transaction));
        }
        result
    }

    fn commit(&mut self, transaction: &Transaction) -> Result<(), SinkError> {
        if transaction.ops.is_empty() {
            return Ok(());
        }
        self.nft.commit(transaction).inspect_err(|_| self.known = false)?;
        let generation = self.nft.generation()?;
        self.suspect |= generation != self.generation.wrapping_add(1);
        self.generation = generation;
        Ok(())
    }

    /// Looks whether somebody changed the tables, if anybody changed anything, and repairs them. `table` gives what
    /// a family's should be.
    ///
    /// # Errors
    /// When the kernel refuses: then what it has is not known.
    pub fn verify(&mut self, table: impl Fn(Family) -> Table) -> Result<(), SinkError> {
        let generation = self.nft.generation()?;
        self.suspect |= generation != self.generation;
        // Spare elements would look like somebody's; they are gone a moment later.
        if !self.suspect || self.has_spare() {
            return Ok(());
        }
        self.generation = generation;
        self.suspect = false;
        let tables = plan::proxy::FAMILIES.map(table);
        for table in &tables {
            if self.differs(table)? {
                let family = table.family.word();
                tracing::warn!(
                    component = "proxy",
                    family,
                    "somebody changed the table; it is repaired"
                );
                return self.replace(&tables).map(|_| ());
            }
        }
        Ok(())
    }

    fn differs(&mut self, table: &Table) -> Result<bool, SinkError> {
        let inventory = self.nft.inventory(table.family, &table.name)?;
        if self.inventories.get(&table.family) != Some(&inventory) {
            return Ok(true);
        }
        for (set, elements) in &table.elements {
            let found = self.nft.elements(table.family, &table.name, set)?;
            if found.as_ref() != Some(elements) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

fn transaction(table: &Table, ops: Vec<Op>) -> Transaction {
    Transaction { family: table.family, table: Arc::clone(&table.name), ops }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};
    use std::ops::RangeInclusive;

    use kernel::netns;
    use net::nft::{Fields, Value};

    use super::*;

    fn table(hosts: RangeInclusive<u8>) -> Table {
        let mut table = Table::new(Family::Ip, TABLE);
        let set: Arc<str> = SetId::ClusterIps.name().into();
        let address = |host| IpAddr::from(Ipv4Addr::new(10, 96, 0, host));
        let elements = hosts.map(|host| (Fields::new().address(address(host)).key(), Value::None));
        table.sets.insert(Arc::clone(&set), SetId::ClusterIps.set(Family::Ip));
        table.elements.insert(set, elements.collect());
        table
    }

    #[test]
    fn a_large_set_is_replaced_without_reading_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("netns");
        netns::create(&path).unwrap();
        netns::within(&path, || {
            let (before, after) = (table(1..=9), table(5..=20));
            for table in [&before, &after] {
                let mut sink = Sink { read_back_max: 4, ..Sink::open().unwrap() };
                sink.replace(std::slice::from_ref(table)).unwrap();
                assert!(!sink.differs(table).unwrap());
            }
        })
        .unwrap();
        netns::delete(&path).unwrap();
    }
}
