//! Who sends: the pod, node or address, and the node where its packets start.

use std::net::IpAddr;
use std::sync::Arc;

use api::core::Pod;
use api::{Kind, Name};

use super::{Chain, Client, End, From, SOMEBODY, Sees, Step, called, is_host_network};
use crate::{podfacts, podnet};

impl Chain<'_> {
    /// Finds the sender.
    pub(super) fn source(&mut self, from: &From) -> Result<Client, End> {
        match from {
            From::Pod(name) => match self.cluster.pods.get(name).cloned() {
                Some(pod) => self.pod_sends(&pod),
                None => {
                    let trouble = self.no_pod(name);
                    Err(self.nobody(from, trouble))
                }
            },
            From::Node(name) => self.node_sends(name),
            From::Address(address) => self.address_sends(*address),
            From::Outside => Ok(self.outside_sends(vec![IpAddr::from(SOMEBODY)], true)),
        }
    }

    fn nobody(&mut self, from: &From, trouble: String) -> End {
        let verdict = format!("Nothing is sent: {trouble}.");
        let who = from.to_string();
        self.steps.push(Step::From { who, address: None, node: None, trouble: Some(trouble) });
        (Sees::NoClient, verdict)
    }

    fn no_pod(&self, name: &Name) -> String {
        let elsewhere = self.cluster.pods.keys().find(|other| other.name == name.name);
        match elsewhere {
            Some(other) => format!(
                "namespace {} has no pod {}; namespace {} has one",
                name.namespace, name.name, other.namespace
            ),
            None => format!("there is no pod {name}"),
        }
    }

    fn pod_sends(&mut self, pod: &Arc<Pod>) -> Result<Client, End> {
        let from = From::Pod(pod.object_name());
        let addresses: Vec<IpAddr> =
            podfacts::addresses(pod).filter_map(|text| text.parse().ok()).collect();
        let node = podfacts::node_name(pod).to_owned();
        if podfacts::is_terminal(pod) {
            let phase = podfacts::phase(pod).to_lowercase();
            return Err(self.nobody(&from, format!("the pod has ended ({phase})")));
        }
        if addresses.is_empty() {
            let why = if node.is_empty() { "no node yet" } else { "no address yet" };
            return Err(self.nobody(&from, format!("the pod has {why}")));
        }
        let is_node = is_host_network(pod);
        let who = if is_node { called(&**pod) + ", in its node's network" } else { called(&**pod) };
        self.say_from(who, &addresses, Some(&node).filter(|node| !node.is_empty()));
        let pod = Some(Arc::clone(pod));
        Ok(Client { addresses, node: Some(node), is_node, pod, is_anybody: false })
    }

    fn node_sends(&mut self, name: &str) -> Result<Client, End> {
        let Some(node) = self.cluster.nodes.get(&Name::cluster(name)) else {
            let trouble = format!("there is no node {name}");
            return Err(self.nobody(&From::Node(name.to_owned()), trouble));
        };
        let addresses = podnet::internal_addresses(node);
        self.say_from(format!("a process of node {name}"), &addresses, None);
        let node = Some(name.to_owned());
        Ok(Client { addresses, node, is_node: true, pod: None, is_anybody: false })
    }

    fn address_sends(&mut self, address: IpAddr) -> Result<Client, End> {
        if let Some(node) = self.cluster.node_at(address) {
            let name = node.name().to_owned();
            return self.node_sends(&name);
        }
        if let Some(pod) = self.cluster.pod_at(address).cloned() {
            return self.pod_sends(&pod);
        }
        Ok(self.outside_sends(vec![address], false))
    }

    fn outside_sends(&mut self, addresses: Vec<IpAddr>, is_anybody: bool) -> Client {
        let who = if is_anybody { "somebody outside the cluster" } else { "outside the cluster" };
        let shown: &[IpAddr] = if is_anybody { &[] } else { &addresses };
        self.say_from(who.to_owned(), shown, None);
        Client { addresses, node: None, is_node: false, pod: None, is_anybody }
    }

    fn say_from(&mut self, who: String, addresses: &[IpAddr], node: Option<&String>) {
        let shown: Vec<String> =
            addresses.iter().map(|address| self.cluster.address(*address)).collect();
        let address = (!shown.is_empty()).then(|| shown.join(", "));
        self.steps.push(Step::From { who, address, node: node.cloned(), trouble: None });
    }
}
