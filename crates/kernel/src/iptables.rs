//! iptables through its own programs, as upstream does it: `iptables-restore --noflush` and `iptables-save`.
//!
//! There are two kinds of them, with rules of their own each: one speaks to nftables, the other to the older tables.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use net::nft::Family;

use crate::netns::{self, NetnsError};

/// How long to wait for the lock that the older programs take. Seconds; upstream's.
const LOCK_WAIT_S: &str = "5";
/// Where Debian has the programs, which are not in every user's path.
const FOLDERS: [&str; 2] = ["/usr/sbin", "/sbin"];
/// The tables that the older kind has, one a line; the kernel's file for each family.
const LEGACY_TABLES: [&str; 2] = ["ip_tables_names", "ip6_tables_names"];

/// A kind of the programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Flavor {
    /// Rules are nftables' rules.
    Nft,
    /// Rules are of the older tables.
    Legacy,
}

impl Flavor {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Nft, Self::Legacy];

    /// The word for it in the programs' names.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Nft => "nft",
            Self::Legacy => "legacy",
        }
    }
}

/// Why rules were not read or written.
#[derive(Debug, thiserror::Error)]
pub enum IptablesError {
    /// The program is not there.
    #[error("there is no program {0}: install the package iptables")]
    Missing(String),
    /// The program does not run.
    #[error("{0} does not run")]
    Run(String, #[source] io::Error),
    /// The program refused.
    #[error("{program}: {said}")]
    Refused {
        /// Its name.
        program: String,
        /// What it said.
        said: String,
    },
    /// The network namespace is gone.
    #[error(transparent)]
    Netns(#[from] NetnsError),
}

/// The programs of one kind, in the network namespace that the opening thread was in.
#[derive(Debug)]
pub struct Iptables {
    flavor: Flavor,
    /// Keeps the namespace.
    netns: File,
}

impl Iptables {
    /// For the calling thread's network namespace.
    ///
    /// # Errors
    /// When the namespace cannot be held.
    pub fn open(flavor: Flavor) -> Result<Self, IptablesError> {
        let path = "/proc/thread-self/ns/net";
        let netns = File::open(path).map_err(|error| IptablesError::Run(path.to_owned(), error))?;
        Ok(Self { flavor, netns })
    }

    /// The same namespace with the programs of the other kind.
    ///
    /// # Errors
    /// When the namespace cannot be held twice.
    pub fn with(&self, flavor: Flavor) -> Result<Self, IptablesError> {
        let netns = self.netns.try_clone();
        let netns = netns.map_err(|error| IptablesError::Run("dup".to_owned(), error))?;
        Ok(Self { flavor, netns })
    }

    /// Which kind.
    #[must_use]
    pub fn flavor(&self) -> Flavor {
        self.flavor
    }

    /// Fails unless the programs are installed.
    ///
    /// # Errors
    /// [`IptablesError::Missing`].
    pub fn check(&self) -> Result<(), IptablesError> {
        for (family, verb) in [(Family::Ip, "save"), (Family::Ip6, "restore")] {
            find(&self.name(family, verb))?;
        }
        Ok(())
    }

    /// Whether the programs are installed.
    #[must_use]
    pub fn is_installed(&self) -> bool {
        self.check().is_ok()
    }

    /// Applies an input; what it does not name stays. Each table of it in one step.
    ///
    /// # Errors
    /// When the program is missing or refuses.
    pub fn restore(&self, family: Family, input: &str) -> Result<(), IptablesError> {
        let arguments = ["--noflush", "-w", LOCK_WAIT_S];
        self.run(family, "restore", &arguments, input).map(|_| ())
    }

    /// All rules of a family.
    ///
    /// # Errors
    /// When the program is missing or refuses.
    pub fn save(&self, family: Family) -> Result<String, IptablesError> {
        self.run(family, "save", &[], "")
    }

    /// Whether a family has tables of the older kind. Asks no program.
    ///
    /// # Errors
    /// When the namespace is gone.
    pub fn has_legacy_tables(&self, family: Family) -> Result<bool, IptablesError> {
        let file = LEGACY_TABLES[usize::from(family == Family::Ip6)];
        let read = || std::fs::read_to_string(format!("/proc/thread-self/net/{file}"));
        let names = netns::within(&self.path(), read)?;
        Ok(names.is_ok_and(|names| !names.trim().is_empty()))
    }

    fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.netns.as_raw_fd()))
    }

    fn name(&self, family: Family, verb: &str) -> String {
        let six = if family == Family::Ip6 { "6" } else { "" };
        format!("ip{six}tables-{}-{verb}", self.flavor.word())
    }

    fn run(
        &self,
        family: Family,
        verb: &str,
        arguments: &[&str],
        input: &str,
    ) -> Result<String, IptablesError> {
        let name = self.name(family, verb);
        let program = find(&name)?;
        let run = || talk(Command::new(program).args(arguments), input);
        let output = netns::within(&self.path(), run)?;
        let output = output.map_err(|error| IptablesError::Run(name.clone(), error))?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        let blame = said.lines().find_map(|line| line.rsplit_once("line: ")?.1.parse().ok());
        let line = blame.and_then(|at: usize| input.lines().nth(at.checked_sub(1)?));
        let mut said = said.trim().replace('\n', "; ");
        if let Some(line) = line {
            said = format!("{said} ({line})");
        }
        Err(IptablesError::Refused { program: name, said })
    }
}

/// Runs a program to its end, with this as its input.
fn talk(command: &mut Command, input: &str) -> io::Result<Output> {
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let mut stdin = child.stdin.take().expect("it was asked for");
    std::thread::scope(|scope| {
        // Beside reading: a program that complains a lot stops reading.
        scope.spawn(move || {
            // Who refuses need not read to the end.
            let _ = stdin.write_all(input.as_bytes());
        });
        child.wait_with_output()
    })
}

fn find(name: &str) -> Result<PathBuf, IptablesError> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(FOLDERS.map(PathBuf::from));
    let mut programs = folders.map(|folder| folder.join(name));
    let found = programs.find(|program| program.is_file());
    found.ok_or_else(|| IptablesError::Missing(name.to_owned()))
}
