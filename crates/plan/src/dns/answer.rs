//! `answer(name, kind)`: pure, and told apart: no such name, and a name without data of that kind.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use api::Name;

use super::{EndpointRecord, ServiceRecords, TTL, Target, Zone};

/// The version of the specification that the answers follow.
const SPEC_VERSION: &str = "1.1.0";
/// Seconds that the version may be kept.
const VERSION_TTL: u32 = 28_800;

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// IPv4 addresses.
    A,
    /// IPv6 addresses.
    Aaaa,
    /// An alias.
    Cname,
    /// Services (RFC 2782).
    Srv,
    /// The name of an address.
    Ptr,
    /// Text.
    Txt,
    /// The zone's head.
    Soa,
    /// The zone's servers.
    Ns,
    /// Everything.
    Any,
    /// Something that no name here has.
    Other,
}

/// The data of one record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Data {
    /// An IPv4 address.
    A(Ipv4Addr),
    /// An IPv6 address.
    Aaaa(Ipv6Addr),
    /// An alias, without a trailing dot.
    Cname(String),
    /// A service: priority 0, weight, port, target without a trailing dot.
    Srv {
        /// The share of this target.
        weight: u16,
        /// The port.
        port: u16,
        /// The target's name.
        target: String,
    },
    /// A name, without a trailing dot.
    Ptr(String),
    /// Text.
    Txt(String),
    /// The zone's head.
    Soa,
    /// A server of the zone.
    Ns(String),
}

/// One record of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The owner, lower case, without a trailing dot.
    pub name: String,
    /// Seconds that it may be kept.
    pub ttl: u32,
    /// The data.
    pub data: Data,
}

/// How a question ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The name exists; it may have no data of the kind.
    Found,
    /// There is no such name.
    NoName,
    /// The name is not of this zone: somebody else may know.
    NotOurs,
}

/// The zone's answer to a question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// How it ended.
    pub outcome: Outcome,
    /// The answers.
    pub records: Vec<Record>,
    /// Addresses of the targets in the answers.
    pub additional: Vec<Record>,
    /// A name outside the zone whose addresses belong in the answer (the target of an ExternalName).
    pub follow: Option<String>,
}

impl Answer {
    fn end(outcome: Outcome) -> Self {
        Self { outcome, records: Vec::new(), additional: Vec::new(), follow: None }
    }

    fn no_data() -> Self {
        Self::end(Outcome::Found)
    }

    fn no_name() -> Self {
        Self::end(Outcome::NoName)
    }

    fn found(records: Vec<Record>) -> Self {
        Self { records, ..Self::no_data() }
    }
}

impl Kind {
    fn wants(self, other: Self) -> bool {
        self == other || self == Self::Any
    }
}

impl Zone {
    /// Answers a question. `name` may have any case and a trailing dot.
    #[must_use]
    pub fn answer(&self, name: &str, kind: Kind) -> Answer {
        let name = name.trim_end_matches('.').to_ascii_lowercase();
        if let Some(address) = reverse_address(&name) {
            return self.pointer(&name, address, kind);
        }
        let inside = name.strip_suffix(&self.domain);
        let Some(inside) = inside.filter(|rest| rest.is_empty() || rest.ends_with('.')) else {
            return Answer::end(Outcome::NotOurs);
        };
        let mut labels: Vec<&str> = inside.split('.').filter(|label| !label.is_empty()).collect();
        labels.reverse();
        match labels.as_slice() {
            [] => self.apex(&name, kind),
            ["dns-version"] => version(&name, kind),
            ["dns"] | ["ns", "dns"] | ["svc" | "pod"] => Answer::no_data(),
            ["svc" | "pod", namespace] => self.namespace(namespace),
            ["svc", namespace, service, rest @ ..] => {
                self.service(&name, kind, &Name::new(namespace, service), rest)
            }
            ["pod", namespace, host] => self.pod(&name, kind, namespace, host),
            _ => Answer::no_name(),
        }
    }

    fn apex(&self, name: &str, kind: Kind) -> Answer {
        let mut records = Vec::new();
        if kind.wants(Kind::Soa) {
            records.push(record(name, Data::Soa));
        }
        if kind.wants(Kind::Ns) {
            records.push(record(name, Data::Ns(format!("ns.dns.{}", self.domain))));
        }
        Answer::found(records)
    }

    /// A namespace's own name exists, without data, so that search paths go on.
    fn namespace(&self, namespace: &str) -> Answer {
        if self.namespaces.contains(namespace) { Answer::no_data() } else { Answer::no_name() }
    }

    fn service(&self, name: &str, kind: Kind, service: &Name, rest: &[&str]) -> Answer {
        let Some(records) = self.services.get(service) else { return Answer::no_name() };
        match (&records.target, rest) {
            (Target::External(target), []) => external(name, kind, target),
            (Target::External(_), _) => Answer::no_name(),
            (Target::ClusterIp(own), []) => addresses(name, kind, own.iter().copied()),
            (Target::Headless(endpoints), []) if !endpoints.is_empty() => {
                addresses(name, kind, endpoints.iter().map(|endpoint| endpoint.address))
            }
            (_, [protocol, port]) => self.ports(name, kind, (service, records), (protocol, port)),
            (Target::Headless(endpoints), [host]) => {
                let named: Vec<_> =
                    endpoints.iter().filter(|endpoint| endpoint.host == **host).collect();
                if named.is_empty() {
                    return Answer::no_name();
                }
                addresses(name, kind, named.iter().map(|endpoint| endpoint.address))
            }
            _ => Answer::no_name(),
        }
    }

    /// `_http._tcp.web.default.svc…`: only named ports have names.
    fn ports(
        &self,
        name: &str,
        kind: Kind,
        (service, records): (&Name, &ServiceRecords),
        labels: (&str, &str),
    ) -> Answer {
        let (Some(protocol), Some(port)) = (labels.0.strip_prefix('_'), labels.1.strip_prefix('_'))
        else {
            return Answer::no_name();
        };
        let host = self.service_host(service);
        let mut targets: Vec<(String, u16, Vec<IpAddr>)> = Vec::new();
        match &records.target {
            Target::ClusterIp(own) => {
                let ports = records
                    .ports
                    .iter()
                    .filter(|entry| entry.name == port && entry.protocol == protocol);
                targets.extend(ports.map(|entry| (host.clone(), entry.port, own.clone())));
            }
            Target::Headless(endpoints) => targets.extend(endpoints.iter().flat_map(|endpoint| {
                endpoint_ports(endpoint, protocol, port).map(|number| {
                    (format!("{}.{host}", endpoint.host), number, vec![endpoint.address])
                })
            })),
            Target::External(_) => {}
        }
        if targets.is_empty() {
            return Answer::no_name();
        }
        if !kind.wants(Kind::Srv) {
            return Answer::no_data();
        }
        let weight = u16::try_from(100 / targets.len()).unwrap_or(1).max(1);
        let mut answer = Answer::no_data();
        for (target, port, own) in targets {
            answer.additional.extend(own.iter().map(|address| address_record(&target, *address)));
            answer.records.push(record(name, Data::Srv { weight, port, target }));
        }
        answer.additional.dedup();
        answer
    }

    /// `10-244-1-5.default.pod…` spells the address itself (CoreDNS' `pods insecure`, the usual setting).
    fn pod(&self, name: &str, kind: Kind, namespace: &str, host: &str) -> Answer {
        let spelt = [host.replace('-', "."), host.replace('-', ":")];
        let address = spelt.iter().find_map(|text| text.parse::<IpAddr>().ok());
        match address {
            Some(address) if self.namespaces.contains(namespace) => {
                addresses(name, kind, std::iter::once(address))
            }
            _ => Answer::no_name(),
        }
    }

    fn pointer(&self, name: &str, address: IpAddr, kind: Kind) -> Answer {
        let Some(hosts) = self.pointers.get(&address) else { return Answer::end(Outcome::NotOurs) };
        if !kind.wants(Kind::Ptr) {
            return Answer::no_data();
        }
        Answer::found(hosts.iter().map(|host| record(name, Data::Ptr(host.clone()))).collect())
    }
}

fn record(name: &str, data: Data) -> Record {
    Record { name: name.to_owned(), ttl: TTL, data }
}

fn address_record(name: &str, address: IpAddr) -> Record {
    record(
        name,
        match address {
            IpAddr::V4(v4) => Data::A(v4),
            IpAddr::V6(v6) => Data::Aaaa(v6),
        },
    )
}

fn addresses(name: &str, kind: Kind, addresses: impl Iterator<Item = IpAddr>) -> Answer {
    let wanted = addresses
        .filter(|address| kind.wants(if address.is_ipv4() { Kind::A } else { Kind::Aaaa }));
    let mut records: Vec<Record> = wanted.map(|address| address_record(name, address)).collect();
    records.dedup();
    Answer::found(records)
}

fn external(name: &str, kind: Kind, target: &str) -> Answer {
    let follow = matches!(kind, Kind::A | Kind::Aaaa).then(|| target.to_owned());
    let records = vec![record(name, Data::Cname(target.to_owned()))];
    Answer { follow, ..Answer::found(records) }
}

fn version(name: &str, kind: Kind) -> Answer {
    if !kind.wants(Kind::Txt) {
        return Answer::no_data();
    }
    let data = Data::Txt(SPEC_VERSION.to_owned());
    Answer::found(vec![Record { name: name.to_owned(), ttl: VERSION_TTL, data }])
}

fn endpoint_ports<'a>(
    endpoint: &'a EndpointRecord,
    protocol: &'a str,
    port: &'a str,
) -> impl Iterator<Item = u16> + 'a {
    let matching =
        endpoint.ports.iter().filter(move |entry| entry.name == port && entry.protocol == protocol);
    matching.map(|entry| entry.port)
}

/// The address that a name below `in-addr.arpa` or `ip6.arpa` spells backwards.
fn reverse_address(name: &str) -> Option<IpAddr> {
    if let Some(labels) = name.strip_suffix(".in-addr.arpa") {
        let mut octets: Vec<u8> =
            labels.split('.').map(str::parse).collect::<Result<_, _>>().ok()?;
        octets.reverse();
        return <[u8; 4]>::try_from(octets).ok().map(IpAddr::from);
    }
    let labels = name.strip_suffix(".ip6.arpa")?;
    let nibbles: Vec<u16> = labels
        .split('.')
        .rev()
        .map(|label| u16::from_str_radix(label, 16))
        .collect::<Result<_, _>>()
        .ok()?;
    if nibbles.len() != 32 || nibbles.iter().any(|nibble| *nibble > 15) {
        return None;
    }
    let groups: Vec<u16> = nibbles
        .chunks(4)
        .map(|group| group.iter().fold(0, |number, nibble| number << 4 | nibble))
        .collect();
    <[u16; 8]>::try_from(groups).ok().map(IpAddr::from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dns::service_records;
    use serde_json::{Value, json};

    fn zone() -> Zone {
        let mut zone = Zone::new("cluster.local");
        zone.set_namespace("default", true);
        let slice = |host: Option<&str>, address: &str, ready: bool| {
            let mut endpoint = json!({"addresses": [address], "conditions": {"ready": ready}});
            if let Some(host) = host {
                endpoint["hostname"] = host.into();
            }
            json!({"metadata": {}, "addressType": "IPv4", "endpoints": [endpoint],
                   "ports": [{"name": "db", "port": 27017, "protocol": "TCP"}]})
        };
        let mut add = |name: &str, spec: Value, slices: Vec<Value>| {
            let service = serde_json::from_value(json!({"metadata": {}, "spec": spec})).unwrap();
            let slices: Vec<_> =
                slices.into_iter().map(|slice| serde_json::from_value(slice).unwrap()).collect();
            zone.set_service(&Name::new("default", name), service_records(&service, slices.iter()));
        };
        let ports = json!([{"name": "http", "port": 80}, {"port": 81}]);
        add(
            "web",
            json!({"clusterIP": "10.96.0.20", "clusterIPs": ["10.96.0.20", "fd00::20"], "ports": ports}),
            vec![],
        );
        let members = vec![
            slice(Some("mongo-0"), "10.244.1.2", true),
            slice(None, "10.244.2.3", true),
            slice(Some("mongo-2"), "10.244.1.4", false),
        ];
        add("mongo", json!({"clusterIP": "None"}), members);
        add("nobody", json!({"clusterIP": "None"}), vec![]);
        add("db", json!({"type": "ExternalName", "externalName": "DB.example.com."}), vec![]);
        zone
    }

    fn show(name: &str, kind: Kind) -> Vec<String> {
        let answer = zone().answer(name, kind);
        let records = answer.records.iter().chain(&answer.additional);
        records.map(|record| format!("{} {} {:?}", record.name, record.ttl, record.data)).collect()
    }

    fn outcome(name: &str, kind: Kind) -> (Outcome, usize) {
        let answer = zone().answer(name, kind);
        (answer.outcome, answer.records.len())
    }

    #[test]
    fn a_service_has_its_addresses_by_family() {
        assert_eq!(
            show("Web.Default.svc.cluster.LOCAL.", Kind::A),
            ["web.default.svc.cluster.local 5 A(10.96.0.20)"]
        );
        assert_eq!(
            show("web.default.svc.cluster.local", Kind::Aaaa),
            ["web.default.svc.cluster.local 5 Aaaa(fd00::20)"]
        );
        assert_eq!(outcome("web.default.svc.cluster.local", Kind::Txt), (Outcome::Found, 0));
    }

    #[test]
    fn a_headless_service_has_its_ready_endpoints() {
        let all = show("mongo.default.svc.cluster.local", Kind::A);
        assert_eq!(all.len(), 2, "the endpoint that is not ready is left out: {all:?}");
        let one = show("mongo-0.mongo.default.svc.cluster.local", Kind::A);
        assert_eq!(one, ["mongo-0.mongo.default.svc.cluster.local 5 A(10.244.1.2)"]);
        assert_eq!(show("10-244-2-3.mongo.default.svc.cluster.local", Kind::A).len(), 1);
        assert_eq!(
            outcome("mongo-2.mongo.default.svc.cluster.local", Kind::A),
            (Outcome::NoName, 0)
        );
        assert_eq!(outcome("nobody.default.svc.cluster.local", Kind::A), (Outcome::NoName, 0));
    }

    #[test]
    fn only_named_ports_have_srv_records() {
        let all = show("_http._tcp.web.default.svc.cluster.local", Kind::Srv);
        let srv = "_http._tcp.web.default.svc.cluster.local 5 Srv { weight: 100, port: 80, target: \"web.default.svc.cluster.local\" }";
        assert_eq!(all[0], srv);
        assert_eq!(all.len(), 3, "both addresses come along: {all:?}");
        assert_eq!(
            outcome("_http._udp.web.default.svc.cluster.local", Kind::Srv),
            (Outcome::NoName, 0)
        );
        let members = show("_db._tcp.mongo.default.svc.cluster.local", Kind::Srv);
        assert!(
            members[0].contains("weight: 50, port: 27017, target: \"10-244-2-3.mongo")
                || members[0].contains("mongo-0")
        );
    }

    #[test]
    fn an_external_name_is_an_alias_to_follow() {
        let answer = zone().answer("db.default.svc.cluster.local", Kind::A);
        assert_eq!(answer.follow.as_deref(), Some("db.example.com"));
        assert_eq!(answer.records[0].data, Data::Cname("db.example.com".into()));
        assert_eq!(outcome("x.db.default.svc.cluster.local", Kind::A).0, Outcome::NoName);
    }

    #[test]
    fn names_without_data_differ_from_names_that_do_not_exist() {
        for (name, expected) in [
            ("cluster.local", Outcome::Found),
            ("svc.cluster.local", Outcome::Found),
            ("default.svc.cluster.local", Outcome::Found),
            ("other.svc.cluster.local", Outcome::NoName),
            ("api.example.com.default.svc.cluster.local", Outcome::NoName),
            ("missing.default.svc.cluster.local", Outcome::NoName),
            ("example.com", Outcome::NotOurs),
            ("notcluster.local", Outcome::NotOurs),
        ] {
            assert_eq!(outcome(name, Kind::Other), (expected, 0), "{name}");
        }
    }

    #[test]
    fn addresses_have_names() {
        assert_eq!(
            show("20.0.96.10.in-addr.arpa", Kind::Ptr),
            ["20.0.96.10.in-addr.arpa 5 Ptr(\"web.default.svc.cluster.local\")"]
        );
        assert_eq!(show("2.1.244.10.in-addr.arpa", Kind::Ptr).len(), 1);
        assert_eq!(outcome("9.9.9.9.in-addr.arpa", Kind::Ptr).0, Outcome::NotOurs);
        let v6 = format!("{}0.0.d.f.ip6.arpa", "0.2.".to_owned() + &"0.".repeat(26));
        assert_eq!(show(&v6, Kind::Ptr).len(), 1, "{v6}");
    }

    #[test]
    fn pods_and_the_version_answer() {
        assert_eq!(
            show("10-244-1-5.default.pod.cluster.local", Kind::A),
            ["10-244-1-5.default.pod.cluster.local 5 A(10.244.1.5)"]
        );
        assert_eq!(outcome("10-244-1-5.other.pod.cluster.local", Kind::A).0, Outcome::NoName);
        assert_eq!(
            show("dns-version.cluster.local", Kind::Txt),
            ["dns-version.cluster.local 28800 Txt(\"1.1.0\")"]
        );
    }

    #[test]
    fn removing_a_service_removes_all_its_names() {
        let mut zone = zone();
        let before = Zone::new("cluster.local");
        for name in ["web", "mongo", "nobody", "db"] {
            zone.set_service(&Name::new("default", name), None);
        }
        zone.set_namespace("default", false);
        assert_eq!(zone, before);
    }
}
