//! eBPF programs that lead connections to Services at their sockets, and the tables they read.
//!
//! Programs and tables are pinned in a file system of the kernel's: they go on while no agent runs, and the next agent
//! takes them over. The C is in `bpf/`; the objects made from it are beside it, so that building needs no clang.

pub mod forward;
mod pins;
mod syscall;
mod tables;

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use aya::programs::links::{FdLink, LinkError, PinnedLink};
use aya::programs::{CgroupAttachMode, CgroupSockAddr, ProgramError};
use aya::{Ebpf, EbpfError, EbpfLoader, include_bytes_aligned};

pub use pins::{is_pinned, remove, stop_connects};
pub use tables::{Counter, Place, Tables};

/// Changes with every change of a table's layout: `LAYOUT` of `bpf/maps.h`.
const LAYOUT: u32 = 3;
/// `bpf/connect.bpf.c`, compiled.
static CONNECT: &[u8] = include_bytes_aligned!("../bpf/connect.bpf.o");
/// Its programs, each named as what it is attached to.
const PROGRAMS: [&str; 8] = [
    "connect4",
    "connect6",
    "sendmsg4",
    "sendmsg6",
    "recvmsg4",
    "recvmsg6",
    "getpeername4",
    "getpeername6",
];
/// Folders of links begin so; the object's number follows.
const LINKS: &str = "connect-";
/// Folders of tables begin so; the layout's number follows.
const TABLES: &str = "tables-";

/// Why the kernel does not run the programs, or does not take what they are told.
#[derive(Debug, thiserror::Error)]
pub enum BpfError {
    /// A folder or file system.
    #[error("cannot {action} {path}")]
    File {
        /// What was to be done.
        action: &'static str,
        /// With what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// No unified hierarchy of control groups is mounted.
    #[error("no cgroup2 file system is mounted")]
    NoCgroups,
    /// The kernel does not take the tables or the object.
    #[error("the kernel does not take the eBPF tables")]
    Load(#[source] Box<EbpfError>),
    /// The kernel does not take a program.
    #[error("the kernel does not run the eBPF program {name}")]
    Program {
        /// Its name.
        name: &'static str,
        /// Why not.
        #[source]
        source: Box<ProgramError>,
    },
    /// Programs could not be attached to links.
    #[error("the eBPF program at the node's links")]
    Links(#[from] crate::nftables::NetfilterError),
    /// A table could not be opened, read or changed.
    #[error("the eBPF table {name}")]
    Table {
        /// Its name.
        name: &'static str,
        /// Why not.
        #[source]
        source: Box<aya::maps::MapError>,
    },
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> BpfError {
    let path = path.to_owned();
    move |source| BpfError::File { action, path, source }
}

/// The programs at sockets.
#[derive(Debug)]
pub struct Connect {
    links: PathBuf,
    tables: PathBuf,
    /// The control group's number, by which links know it.
    cgroup: u64,
}

impl Connect {
    /// Attaches the programs to the processes of a control group (below the root of the unified hierarchy; made if it is
    /// not there) and opens their tables, all kept in `pins`. Programs that are attached already stay; those of another
    /// version are taken away once the new ones are there.
    ///
    /// # Errors
    /// When the kernel has no cgroup2, no file system for pins, or does not take the programs.
    pub fn open(pins: &Path, cgroup: &str) -> Result<(Self, Tables), BpfError> {
        pins::prepare(pins)?;
        let (directory, cgroup) = control_group(cgroup)?;
        let tables = pins.join(format!("{TABLES}{LAYOUT}"));
        let links = pins.join(format!("{LINKS}{:016x}", number(CONNECT)));
        let connect = Self { links, tables, cgroup };
        if !connect.is_whole() {
            pins::make_folder(&connect.tables)?;
            connect.attach(&directory)?;
        }
        pins::remove_others(pins, LINKS, &connect.links)?;
        pins::remove_others(pins, TABLES, &connect.tables)?;
        let tables = Tables::open(&connect.tables)?;
        Ok((connect, tables))
    }

    /// Whether all programs are attached, and their tables kept.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        PROGRAMS.iter().all(|name| self.holds(name)) && Tables::are_in(&self.tables)
    }

    fn holds(&self, program: &str) -> bool {
        syscall::link_cgroup(&self.links.join(program)).is_ok_and(|cgroup| cgroup == self.cgroup)
    }

    /// New links first, then the old ones go: for a moment two programs see a connect, and the second has nothing to do
    /// with what the first made of it.
    fn attach(&self, cgroup: &File) -> Result<(), BpfError> {
        let mut object = EbpfLoader::new()
            .btf(None)
            .default_map_pin_directory(&self.tables)
            .load(CONNECT)
            .map_err(|error| BpfError::Load(Box::new(error)))?;
        pins::make_folder(&self.links)?;
        for name in PROGRAMS {
            let link = attach(&mut object, name, cgroup)
                .map_err(|source| BpfError::Program { name, source: Box::new(source) })?;
            let (path, fresh) = (self.links.join(name), self.links.join(format!("{name}-new")));
            let _ = fs::remove_file(&fresh);
            let pinned = link.pin(&fresh).map_err(io::Error::other);
            let _: PinnedLink = pinned.map_err(failed("pin a program at", &fresh))?;
            // The file system of pins renames, but not onto what is there.
            let _ = fs::remove_file(&path);
            fs::rename(&fresh, &path).map_err(failed("pin a program at", &path))?;
        }
        Ok(())
    }
}

fn attach(object: &mut Ebpf, name: &'static str, cgroup: &File) -> Result<FdLink, ProgramError> {
    let program = object.program_mut(name).expect("the object has the programs of this list");
    let program: &mut CgroupSockAddr = program.try_into()?;
    program.load()?;
    let id = program.attach(cgroup, CgroupAttachMode::Single)?;
    let link = program.take_link(id)?;
    FdLink::try_from(link).map_err(|_: LinkError| ProgramError::InvalidName { name: name.into() })
}

/// The directory of a control group, and its number.
fn control_group(path: &str) -> Result<(File, u64), BpfError> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let root = mounts.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(' ').collect();
        matches!(fields.as_slice(), [_, _, "cgroup2", ..]).then(|| PathBuf::from(fields[1]))
    });
    let directory = root.ok_or(BpfError::NoCgroups)?.join(path.trim_matches('/'));
    fs::create_dir_all(&directory).map_err(failed("make the control group", &directory))?;
    let opened = File::open(&directory).map_err(failed("open the control group", &directory))?;
    let number = opened.metadata().map_err(failed("look at the control group", &directory))?.ino();
    Ok((opened, number))
}

/// Tells objects apart (FNV-1a).
fn number(object: &[u8]) -> u64 {
    object.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// The cookie of the calling thread's network namespace, by which programs know it.
///
/// # Errors
/// When the kernel has no cookies (before 5.14).
pub fn netns_cookie() -> io::Result<u64> {
    syscall::netns_cookie()
}
