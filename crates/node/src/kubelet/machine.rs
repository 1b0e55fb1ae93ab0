//! What the machine is and has, as the Node object shows it. Upstream: `pkg/kubelet/nodestatus`, cadvisor.

use std::collections::BTreeMap;
use std::fs;

use api::Quantity;
use api::core::NodeSystemInfo;

use super::Options;

/// Facts that do not change while the agent runs.
#[derive(Clone, Debug, Default)]
pub(super) struct Machine {
    pub(super) cpus: usize,
    pub(super) memory_bytes: i64,
    pub(super) disk_bytes: u64,
    pub(super) info: NodeSystemInfo,
}

impl Machine {
    /// Reads `/proc` and the file system of the data directory.
    pub(super) fn look(data_dir: &std::path::Path) -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
        let memory = read("/proc/meminfo");
        let total = memory.lines().find_map(|line| line.strip_prefix("MemTotal:"));
        let kibibytes: i64 =
            total.and_then(|text| text.split_whitespace().next()?.parse().ok()).unwrap_or_default();
        let release = read("/etc/os-release");
        let os_image = release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
        let disk = nix::sys::statvfs::statvfs(data_dir);
        let version = format!("v1.36.0+rhumb-{}", env!("CARGO_PKG_VERSION"));
        let id = read("/etc/machine-id");
        let uuid = read("/sys/class/dmi/id/product_uuid");
        Self {
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            memory_bytes: kibibytes * 1024,
            disk_bytes: disk.map_or(0, |disk| disk.blocks() * disk.fragment_size()),
            info: NodeSystemInfo {
                architecture: architecture().to_owned(),
                boot_id: read("/proc/sys/kernel/random/boot_id"),
                container_runtime_version: format!("rhumb://{}", env!("CARGO_PKG_VERSION")),
                kernel_version: read("/proc/sys/kernel/osrelease"),
                kube_proxy_version: version.clone(),
                kubelet_version: version,
                system_uuid: if uuid.is_empty() { id.clone() } else { uuid },
                machine_id: id,
                operating_system: "linux".to_owned(),
                os_image: os_image.unwrap_or("Linux").trim_matches('"').to_owned(),
                swap: None,
            },
        }
    }

    /// Capacity and allocatable: nothing is set aside for the system.
    pub(super) fn resources(&self, options: &Options) -> BTreeMap<String, Quantity> {
        let kibi = |bytes: u64| Quantity(format!("{}Ki", bytes / 1024));
        BTreeMap::from([
            ("cpu".to_owned(), Quantity(self.cpus.to_string())),
            ("memory".to_owned(), kibi(u64::try_from(self.memory_bytes).unwrap_or(0))),
            ("ephemeral-storage".to_owned(), kibi(self.disk_bytes)),
            ("pods".to_owned(), Quantity(options.pods_max.to_string())),
        ])
    }
}

/// As Go names it.
pub(super) fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}
