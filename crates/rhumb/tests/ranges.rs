//! ServiceCIDRs while the cluster runs: an added range is used, carries traffic, and is held until nobody needs it.

use anyhow::{Context as _, Result, ensure};
use testkit::lab::Lab;

const BINARY: &str = env!("CARGO_BIN_EXE_rhumb");

const MORE: &str = r"
apiVersion: networking.k8s.io/v1
kind: ServiceCIDR
metadata: {name: more}
spec: {cidrs: [10.200.0.0/28]}
";

const WEB: &str = r"
apiVersion: v1
kind: Pod
metadata: {name: web, labels: {app: web}}
spec: {containers: [{name: web, image: 'mycompany/web-app:latest'}]}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {clusterIP: 10.200.0.10, selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}
";

fn condition(lab: &Lab) -> Result<String> {
    lab.value("servicecidr/more", "{.status.conditions[0].status}/{.status.conditions[0].reason}")
}

#[test]
fn a_range_is_added_used_and_removed() -> Result<()> {
    let lab = Lab::up(BINARY, 2, &["web-app"])?;
    let refused = lab.apply(WEB).err().context("the range is not there yet")?.to_string();
    ensure!(refused.contains("provided IP is not in the valid range"), "{refused}");
    lab.apply(MORE)?;
    lab.eventually("the range is ready", || {
        ensure!(condition(&lab)? == "True/", "not yet");
        Ok(())
    })?;
    lab.apply(WEB)?;
    lab.ready("app=web", 1)?;
    let ask = ["curl", "-sf", "-m", "2", "http://10.200.0.10/"];
    lab.eventually("a pod reaches it", || lab.from_pod("web", &ask))?;
    for node in ["n1", "n2"] {
        lab.eventually("every node reaches it", || lab.within(node, &ask))?;
    }
    let nobody =
        ["curl", "-s", "-o", "/dev/null", "-m", "2", "-w", "%{exitcode}", "http://10.200.0.11/"];
    lab.eventually("an address of the range that is nobody's is silent, not refused", || {
        let ended = lab.within("n1", &["sh", "-c", &format!("{} || true", nobody.join(" "))])?;
        ensure!(ended.trim() == "28", "curl ends with {ended}");
        Ok(())
    })?;
    let parent = lab.value("ipaddress/10.200.0.10", "{.spec.parentRef.name}")?;
    ensure!(parent == "web", "the address belongs to {parent:?}");

    lab.kubectl(&["delete", "servicecidr", "more", "--wait=false"])?;
    lab.eventually("it is held while an address needs it", || {
        ensure!(condition(&lab)? == "False/Terminating", "not yet");
        Ok(())
    })?;
    lab.from_pod("web", &ask).context("what is allocated goes on")?;
    lab.kubectl(&["delete", "service", "web"])?;
    lab.eventually("it goes with the last address", || {
        lab.refusal(&["get", "servicecidr", "more"])
    })?;
    let refused = lab.apply(WEB).err().context("the range is gone")?.to_string();
    ensure!(refused.contains("provided IP is not in the valid range"), "{refused}");
    Ok(())
}
