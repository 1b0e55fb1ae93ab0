//! Clients that others made: the official Python client, and the `kube` crate.

#[path = "clients/kube.rs"]
mod kube_crate;

use std::fs;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use testkit::lab::Lab;
use testkit::python::python;
use testkit::tools;

const BINARY: &str = env!("CARGO_BIN_EXE_rhumb");

/// A pod whose namespace a client is run in, with its ServiceAccount's rights.
const OPERATOR: &str = r"
apiVersion: v1
kind: Pod
metadata: {name: operator, labels: {app: operator}}
spec:
  terminationGracePeriodSeconds: 0
  containers: [{name: tools, image: 'tools:latest', imagePullPolicy: IfNotPresent}]
";

/// Runs a script of `clients/`, which says itself what is wrong.
fn script(lab: &Lab, name: &str) -> Result<()> {
    let path = tools::repository().join("crates/rhumb/tests/clients").join(name);
    let output = Command::new(python()?)
        .env("KUBECONFIG", lab.kubeconfig())
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .arg(path)
        .stdin(Stdio::null())
        .output()?;
    ensure!(
        output.status.success(),
        "{name} failed:\n{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

#[test]
fn the_official_python_client_works() -> Result<()> {
    let lab = Lab::up(BINARY, 2, &["tools", "web-app"])?;
    script(&lab, "objects.py")?;
    script(&lab, "watching.py")?;
    script(&lab, "streams.py")?;
    script(&lab, "discovered.py")?;
    from_inside(&lab)
}

/// C9: an operator in a pod finds the API by its environment, its token and its authority, and may what its Role says.
fn from_inside(lab: &Lab) -> Result<()> {
    lab.apply(OPERATOR)?;
    lab.ready("app=operator", 1)?;
    lab.kubectl(&["create", "role", "operator", "--verb=*", "--resource=configmaps,services"])?;
    lab.kubectl(&[
        "create",
        "rolebinding",
        "operator",
        "--role=operator",
        "--serviceaccount=default:default",
    ])?;
    let folder = tempfile::tempdir()?;
    for file in ["token", "ca.crt", "namespace"] {
        let path = format!("/var/run/secrets/kubernetes.io/serviceaccount/{file}");
        fs::write(folder.path().join(file), lab.exec("operator", &["cat", &path])?)?;
    }
    let variable = |name: &str| lab.exec("operator", &["sh", "-c", &format!("echo ${name}")]);
    let host = variable("KUBERNETES_SERVICE_HOST")?;
    let port = variable("KUBERNETES_SERVICE_PORT")?;
    let path = tools::repository().join("crates/rhumb/tests/clients/inside.py");
    let python = python()?;
    let text =
        |path: &std::path::Path| path.to_str().map(ToOwned::to_owned).context("a path is text");
    lab.from_pod(
        "operator",
        &[&text(&python)?, "-B", &text(&path)?, &text(folder.path())?, host.trim(), port.trim()],
    )?;
    Ok(())
}
