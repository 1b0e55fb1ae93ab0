//! `rhumb kubeconfig`: where the administrator's credentials are, and a context in the user's own file.

use std::fs;
use std::io::Write as _;
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use apiserver::pki::Pki;
use serde_json::{Value, json};

use crate::cli::KubeconfigArgs;
use crate::cluster::{Cluster, LabNode};
use crate::progress::say;

/// Runs the command.
pub(crate) fn run(args: &KubeconfigArgs) -> Result<()> {
    let cluster = Cluster::existing(&args.which.data_dir, &args.which.name)?;
    let path = cluster.kubeconfig();
    ensure!(path.exists(), "cluster {:?} has not come up yet; `rhumb up` starts it", cluster.name);
    if !args.merge {
        say(path.display().to_string());
        return Ok(());
    }
    let own = user_file()?;
    let merged = merge(read(&own)?, &read(&path)?, &context(&cluster));
    write_private(&own, serde_json::to_string_pretty(&merged)?.as_bytes())?;
    say(format!("context {:?} is in {}", context(&cluster), own.display()));
    Ok(())
}

/// Takes the cluster's context out of the user's file again, if it is there.
pub(crate) fn unmerge(cluster: &Cluster) -> Result<()> {
    let Ok(own) = user_file() else { return Ok(()) };
    let name = context(cluster);
    let mut config = read(&own)?;
    let mut found = false;
    for list in ["clusters", "users", "contexts"] {
        if let Some(entries) = config[list].as_array_mut() {
            let before = entries.len();
            entries.retain(|entry| entry["name"] != name.as_str());
            found |= entries.len() != before;
        }
    }
    if config["current-context"] == name.as_str() {
        config["current-context"] = "".into();
    }
    if found {
        write_private(&own, serde_json::to_string_pretty(&config)?.as_bytes())
    } else {
        Ok(())
    }
}

fn context(cluster: &Cluster) -> String {
    if cluster.name == "default" { "rhumb".to_owned() } else { format!("rhumb-{}", cluster.name) }
}

/// Adds the one cluster, user and context of `ours` under `name`, and makes it the current one.
fn merge(mut theirs: Value, ours: &Value, name: &str) -> Value {
    if !theirs.is_object() {
        theirs = json!({"apiVersion": "v1", "kind": "Config"});
    }
    for (list, key) in [("clusters", "cluster"), ("users", "user"), ("contexts", "context")] {
        let value = if list == "contexts" {
            json!({"cluster": name, "user": name})
        } else {
            ours[list][0][key].clone()
        };
        if !theirs[list].is_array() {
            theirs[list] = json!([]);
        }
        let entries = theirs[list].as_array_mut().expect("it was made an array above");
        entries.retain(|entry| entry["name"] != name);
        entries.push(json!({"name": name, key: value}));
    }
    theirs["current-context"] = name.into();
    theirs
}

fn user_file() -> Result<PathBuf> {
    let home =
        std::env::var_os("HOME").context("HOME is not set, so there is no ~/.kube/config")?;
    Ok(Path::new(&home).join(".kube/config"))
}

fn read(path: &Path) -> Result<Value> {
    match fs::read_to_string(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Value::Null),
        text => serde_saphyr::from_str(&text?)
            .with_context(|| format!("{} is not a kubeconfig", path.display())),
    }
}

/// Writes credentials, for their owner only.
pub(crate) fn write_private(path: &Path, content: &[u8]) -> Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    let part = path.with_extension("part");
    let _ = fs::remove_file(&part);
    let file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&part);
    let written = file.and_then(|mut file| file.write_all(content).and_then(|()| file.sync_all()));
    written
        .and_then(|()| fs::rename(&part, path))
        .with_context(|| format!("cannot write {}", path.display()))
}

/// Writes the credentials of a node, unless it has them: how it enters the API, and how it serves it.
pub(crate) fn write_node(cluster: &Cluster, node: &LabNode) -> Result<()> {
    let dir = cluster.node_dir(&node.name);
    if dir.join("kubeconfig").exists() {
        return Ok(());
    }
    let pki = Pki::open(&crate::server::lab_config(cluster))?;
    let serving = pki.kubelet_serving(&node.name, &[IpAddr::V4(node.address)])?;
    let user = format!("system:node:{}", node.name);
    let kubeconfig = pki.kubeconfig(&cluster.api_url(), "rhumb", &user, &pki.node(&node.name)?);
    write_private(&dir.join("ca.crt"), pki.authority().as_bytes())?;
    write_private(&dir.join("kubelet.crt"), serving.certificate.as_bytes())?;
    write_private(&dir.join("kubelet.key"), serving.key.as_bytes())?;
    write_private(&dir.join("kubeconfig"), kubeconfig.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_context_is_added_once_and_others_stay() {
        let theirs = json!({"clusters": [{"name": "x", "cluster": {"server": "a"}}], "current-context": "x"});
        let ours = json!({"clusters": [{"name": "c", "cluster": {"server": "b"}}], "users": [{"name": "u", "user": {"token": "t"}}]});
        let once = merge(theirs, &ours, "rhumb");
        assert_eq!(merge(once.clone(), &ours, "rhumb"), once);
        assert_eq!(once["clusters"].as_array().unwrap().len(), 2);
        assert_eq!(once["contexts"][0]["context"], json!({"cluster": "rhumb", "user": "rhumb"}));
        assert_eq!(once["current-context"], "rhumb");
    }
}
