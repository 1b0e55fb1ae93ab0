//! From a query's bytes to an answer's bytes; the decision is `plan::dns`'.

use std::collections::BTreeMap;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, CNAME, NS, PTR, SOA, SRV, TXT};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use plan::dns::{Answer, Data, Kind, Outcome, TTL, Zone};

/// The largest answer over UDP to a client that does not say what it takes (RFC 1035).
pub(crate) const UDP_BYTES: usize = 512;
/// The largest answer over UDP at all: what passes every path unfragmented (DNS flag day 2020).
const UDP_BYTES_MAX: u16 = 1232;
/// The largest message over TCP.
pub(crate) const TCP_BYTES_MAX: usize = 65_535;

/// What to do with a query.
#[derive(Debug, PartialEq)]
pub(crate) enum Reply {
    /// Nothing: it is not a query.
    Ignore,
    /// Send these bytes.
    Send(Vec<u8>),
    /// Somebody else must answer the query.
    Forward,
    /// Answer with these records and the addresses of this name, which somebody else knows.
    Follow(Box<Message>, String),
}

/// What the transport takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transport {
    /// Answers must fit a datagram.
    Udp,
    /// Answers may be long.
    Tcp,
}

/// Decides the reply. `turn` rotates the answers, so that clients that take the first spread their load.
pub(crate) fn reply(zone: &Zone, packet: &[u8], transport: Transport, turn: usize) -> Reply {
    let Ok(query) = Message::from_vec(packet) else { return malformed(packet) };
    if query.metadata.message_type != MessageType::Query {
        return Reply::Ignore;
    }
    if query.metadata.op_code != OpCode::Query {
        return Reply::Send(encode(&failure(&query, ResponseCode::NotImp), &query, transport));
    }
    let [question] = query.queries.as_slice() else {
        return Reply::Send(encode(&failure(&query, ResponseCode::FormErr), &query, transport));
    };
    if question.query_class != DNSClass::IN {
        return Reply::Send(encode(&failure(&query, ResponseCode::Refused), &query, transport));
    }
    let mut answer = zone.answer(&question.name.to_ascii(), kind(question.query_type));
    if answer.outcome == Outcome::NotOurs {
        return Reply::Forward;
    }
    if !answer.records.is_empty() {
        let turn = turn % answer.records.len();
        answer.records.rotate_left(turn);
    }
    let follow = answer.follow.take();
    let message = message(zone, &query, question, &answer);
    match follow {
        Some(name) => Reply::Follow(Box::new(message), name),
        None => Reply::Send(encode(&message, &query, transport)),
    }
}

/// The bytes of an answer, truncated to what the client takes.
pub(crate) fn encode(answer: &Message, query: &Message, transport: Transport) -> Vec<u8> {
    let limit = match transport {
        Transport::Tcp => TCP_BYTES_MAX,
        Transport::Udp => query
            .edns
            .as_ref()
            .map_or(UDP_BYTES, |edns| usize::from(edns.max_payload().clamp(512, UDP_BYTES_MAX))),
    };
    let bytes = answer.to_vec().unwrap_or_default();
    if !bytes.is_empty() && bytes.len() <= limit {
        return bytes;
    }
    answer.truncate().to_vec().expect("a question fits every message")
}

/// An answer that only says how the query failed.
pub(crate) fn failure(query: &Message, code: ResponseCode) -> Message {
    let mut answer = head(query);
    answer.metadata.response_code = code;
    answer
}

/// The head of an answer: the question as it was asked, also its case.
fn head(query: &Message) -> Message {
    let mut answer = Message::response(query.metadata.id, query.metadata.op_code);
    answer.metadata.recursion_desired = query.metadata.recursion_desired;
    answer.metadata.recursion_available = true;
    answer.add_queries(query.queries.iter().cloned());
    if query.edns.is_some() {
        let mut edns = Edns::new();
        edns.set_max_payload(UDP_BYTES_MAX);
        answer.set_edns(edns);
    }
    answer
}

/// A packet that does not decode gets FORMERR under its own number, when it has one and is a query.
fn malformed(packet: &[u8]) -> Reply {
    let [high, low, flags, ..] = packet else { return Reply::Ignore };
    if flags & 0x80 != 0 {
        return Reply::Ignore;
    }
    let id = u16::from_be_bytes([*high, *low]);
    let answer = Message::error_msg(id, OpCode::Query, ResponseCode::FormErr);
    Reply::Send(answer.to_vec().expect("a head always encodes"))
}

fn message(zone: &Zone, query: &Message, question: &Query, answer: &Answer) -> Message {
    let mut message = head(query);
    message.metadata.authoritative = true;
    if answer.outcome == Outcome::NoName {
        message.metadata.response_code = ResponseCode::NXDomain;
    }
    let mut names = Names {
        question: question.name.clone(),
        asked: question.name.to_lowercase().to_ascii(),
        known: BTreeMap::new(),
    };
    message.add_answers(answer.records.iter().filter_map(|record| names.record(zone, record)));
    message
        .add_additionals(answer.additional.iter().filter_map(|record| names.record(zone, record)));
    if answer.records.is_empty() {
        message.add_authorities(
            names.name(zone.domain()).map(|apex| Record::from_rdata(apex, TTL, soa(zone))),
        );
    }
    message
}

/// Names in wire form, each made once; the question's own keeps the client's spelling.
struct Names {
    question: Name,
    asked: String,
    known: BTreeMap<String, Name>,
}

impl Names {
    fn name(&mut self, text: &str) -> Option<Name> {
        if self.asked.trim_end_matches('.') == text {
            return Some(self.question.clone());
        }
        if let Some(name) = self.known.get(text) {
            return Some(name.clone());
        }
        let name = Name::from_ascii(format!("{text}.")).ok()?;
        self.known.insert(text.to_owned(), name.clone());
        Some(name)
    }

    fn record(&mut self, zone: &Zone, record: &plan::dns::Record) -> Option<Record> {
        let data = match &record.data {
            Data::A(address) => RData::A(A(*address)),
            Data::Aaaa(address) => RData::AAAA(AAAA(*address)),
            Data::Cname(target) => RData::CNAME(CNAME(self.name(target)?)),
            Data::Srv { weight, port, target } => {
                RData::SRV(SRV::new(0, *weight, *port, self.name(target)?))
            }
            Data::Ptr(target) => RData::PTR(PTR(self.name(target)?)),
            Data::Txt(text) => RData::TXT(TXT::new(vec![text.clone()])),
            Data::Ns(target) => RData::NS(NS(self.name(target)?)),
            Data::Soa => soa(zone),
        };
        Some(Record::from_rdata(self.name(&record.name)?, record.ttl, data))
    }
}

fn soa(zone: &Zone) -> RData {
    let name = |prefix: &str| {
        Name::from_ascii(format!("{prefix}.{}.", zone.domain())).unwrap_or_else(|_| Name::root())
    };
    RData::SOA(SOA::new(name("ns.dns"), name("hostmaster"), 1, 7200, 1800, 86_400, TTL))
}

fn kind(record: RecordType) -> Kind {
    match record {
        RecordType::A => Kind::A,
        RecordType::AAAA => Kind::Aaaa,
        RecordType::CNAME => Kind::Cname,
        RecordType::SRV => Kind::Srv,
        RecordType::PTR => Kind::Ptr,
        RecordType::TXT => Kind::Txt,
        RecordType::SOA => Kind::Soa,
        RecordType::NS => Kind::Ns,
        RecordType::ANY => Kind::Any,
        _ => Kind::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use plan::dns::{EndpointRecord, ServiceRecords, Target};

    fn query(name: &str, kind: RecordType, payload: Option<u16>) -> Vec<u8> {
        let mut message = Message::query();
        message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
        if let Some(payload) = payload {
            let mut edns = Edns::new();
            edns.set_max_payload(payload);
            message.set_edns(edns);
        }
        message.to_vec().unwrap()
    }

    fn zone(endpoints: u8) -> Zone {
        let mut zone = Zone::new("cluster.local");
        let endpoint = |last: u8| EndpointRecord {
            host: format!("db-{last}"),
            address: [10, 244, 1, last].into(),
            ports: vec![],
        };
        let target = Target::Headless((1..=endpoints).map(endpoint).collect());
        zone.set_service(
            &api::Name::new("default", "db"),
            Some(ServiceRecords { target, ports: vec![] }),
        );
        zone
    }

    fn send(zone: &Zone, packet: &[u8], transport: Transport, turn: usize) -> Message {
        match reply(zone, packet, transport, turn) {
            Reply::Send(bytes) => Message::from_vec(&bytes).unwrap(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_case_of_the_question_is_kept() {
        let answer = send(
            &zone(1),
            &query("dB.DEFAULT.svc.cluster.local.", RecordType::A, None),
            Transport::Udp,
            0,
        );
        assert_eq!(answer.answers[0].name.to_ascii(), "dB.DEFAULT.svc.cluster.local.");
        assert!(answer.metadata.authoritative);
    }

    #[test]
    fn answers_rotate() {
        let packet = query("db.default.svc.cluster.local.", RecordType::A, None);
        let first = |turn| send(&zone(3), &packet, Transport::Udp, turn).answers[0].data.clone();
        assert_ne!(first(0), first(1));
        assert_eq!(first(0), first(3));
    }

    #[test]
    fn a_long_answer_is_truncated_over_udp_and_whole_over_tcp() {
        let packet = query("db.default.svc.cluster.local.", RecordType::A, None);
        let short = send(&zone(200), &packet, Transport::Udp, 0);
        assert!(short.metadata.truncation && short.answers.is_empty());
        assert_eq!(send(&zone(200), &packet, Transport::Tcp, 0).answers.len(), 200);
        let roomy = query("db.default.svc.cluster.local.", RecordType::A, Some(1232));
        assert_eq!(send(&zone(60), &roomy, Transport::Udp, 0).answers.len(), 60);
    }

    #[test]
    fn no_name_and_no_data_carry_the_zones_head() {
        let none = send(
            &zone(1),
            &query("x.default.svc.cluster.local.", RecordType::A, None),
            Transport::Udp,
            0,
        );
        assert_eq!(
            (none.metadata.response_code, none.authorities.len()),
            (ResponseCode::NXDomain, 1)
        );
        let empty = send(
            &zone(1),
            &query("db.default.svc.cluster.local.", RecordType::AAAA, None),
            Transport::Udp,
            0,
        );
        assert_eq!(
            (empty.metadata.response_code, empty.authorities.len()),
            (ResponseCode::NoError, 1)
        );
    }

    #[test]
    fn what_is_not_a_query_gets_no_or_a_clear_answer() {
        assert_eq!(reply(&zone(1), b"\x12\x34", Transport::Udp, 0), Reply::Ignore);
        assert_eq!(reply(&zone(1), b"\x12\x34\x80\x00zz", Transport::Udp, 0), Reply::Ignore);
        let bad = send(&zone(1), b"\x12\x34\x01\x00\x00\x01\x00", Transport::Udp, 0);
        assert_eq!((bad.metadata.id, bad.metadata.response_code), (0x1234, ResponseCode::FormErr));
        assert_eq!(
            reply(&zone(1), &query("example.com.", RecordType::A, None), Transport::Udp, 0),
            Reply::Forward
        );
    }

    proptest::proptest! {
        #[test]
        fn no_packet_panics(packet in proptest::collection::vec(proptest::num::u8::ANY, 0..600)) {
            let _ = reply(&zone(2), &packet, Transport::Udp, 1);
        }
    }
}
