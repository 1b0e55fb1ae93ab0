//! An OCI layout with busybox, made by hand.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

const APPLETS: [&str; 7] = ["sh", "sleep", "cat", "touch", "env", "true", "echo"];

fn digest(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

/// Writes the layout of an image called `name` below `root`.
pub(crate) fn layout(root: &Path, name: &str) {
    let blobs = root.join("blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    let put = |bytes: &[u8]| -> Value {
        let digest = digest(bytes);
        fs::write(blobs.join(&digest[7..]), bytes).unwrap();
        json!({"digest": digest, "size": bytes.len()})
    };
    let mut tar = tar::Builder::new(Vec::new());
    let busybox = fs::read("/bin/busybox").expect("busybox-static is installed");
    let mut header = tar::Header::new_gnu();
    header.set_size(u64::try_from(busybox.len()).unwrap());
    header.set_mode(0o755);
    header.set_cksum();
    tar.append_data(&mut header, "bin/busybox", busybox.as_slice()).unwrap();
    for applet in APPLETS {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        tar.append_link(&mut header, format!("bin/{applet}"), "busybox").unwrap();
    }
    let layer = tar.into_inner().unwrap();
    let config = json!({
        "architecture": "amd64", "os": "linux",
        "config": {"Env": ["PATH=/bin"], "Cmd": ["sleep", "1000"]},
        "rootfs": {"type": "layers", "diff_ids": [digest(&layer)]},
    });
    let manifest = json!({
        "schemaVersion": 2,
        "config": put(config.to_string().as_bytes()),
        "layers": [put(&layer)],
    });
    let mut descriptor = put(manifest.to_string().as_bytes());
    descriptor["annotations"] = json!({"org.opencontainers.image.ref.name": name});
    let index = json!({"schemaVersion": 2, "manifests": [descriptor]});
    fs::write(root.join("index.json"), index.to_string()).unwrap();
}
