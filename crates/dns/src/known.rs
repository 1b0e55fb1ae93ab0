//! Answers that were given before, as bytes: a cluster asks for the same few names again and again, and an answer depends
//! on nothing but the query and the zone.

use std::collections::HashMap;
use std::sync::Arc;

use plan::dns::Zone;

/// Answers that are kept; then all are forgotten. A hundred bytes each.
const ANSWERS_MAX: usize = 4096;
/// Longer queries carry options that differ each time.
const QUERY_BYTES_MAX: usize = 320;
/// The query's own number stands first; everything behind it decides the answer.
const ID_BYTES: usize = 2;

/// What one thread answered from one version of the zone.
#[derive(Default)]
pub(crate) struct Known {
    zone: Option<Arc<Zone>>,
    answers: HashMap<Box<[u8]>, Box<[u8]>>,
}

impl Known {
    /// Writes the answer to the same query into `answer`, under this one's number; whether there is one.
    pub(crate) fn find(&mut self, zone: &Arc<Zone>, packet: &[u8], answer: &mut Vec<u8>) -> bool {
        if !self.zone.as_ref().is_some_and(|known| Arc::ptr_eq(known, zone)) {
            self.answers.clear();
            self.zone = Some(Arc::clone(zone));
            return false;
        }
        let Some((id, rest)) = packet.split_at_checked(ID_BYTES) else { return false };
        let Some(known) = self.answers.get(rest) else { return false };
        answer.clear();
        answer.extend_from_slice(id);
        answer.extend_from_slice(known);
        true
    }

    /// Keeps an answer from the zone of the last [`Known::find`]. Answers that rotate are not kept.
    pub(crate) fn keep(&mut self, packet: &[u8], answer: &[u8]) {
        let rotates = match answer {
            [_, _, _, _, _, _, high, low, ..] => u16::from_be_bytes([*high, *low]) > 1,
            _ => true,
        };
        if rotates || packet.len() > QUERY_BYTES_MAX {
            return;
        }
        if self.answers.len() >= ANSWERS_MAX {
            self.answers.clear();
        }
        self.answers.insert(packet[ID_BYTES..].into(), answer[ID_BYTES..].into());
    }
}

#[cfg(test)]
mod tests {
    use hickory_proto::op::{Message, Query};
    use hickory_proto::rr::{Name, RecordType};
    use plan::dns::{EndpointRecord, ServiceRecords, Target};
    use proptest::prelude::*;

    use super::*;
    use crate::codec::{Reply, Transport, reply};

    fn zone(address: [u8; 4]) -> Arc<Zone> {
        let mut zone = Zone::new("cluster.local");
        let endpoint = |last: u8| EndpointRecord {
            host: format!("db-{last}"),
            address: [10, 244, 1, last].into(),
            ports: vec![],
        };
        for (name, target) in [
            ("web", Target::ClusterIp(vec![address.into()])),
            ("db", Target::Headless(vec![endpoint(1), endpoint(2)])),
        ] {
            let records = ServiceRecords { target, ports: vec![] };
            zone.set_service(&api::Name::new("default", name), Some(records));
        }
        Arc::new(zone)
    }

    fn query(id: u16, name: &str, kind: RecordType) -> Vec<u8> {
        let mut message = Message::query();
        message.metadata.id = id;
        message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
        message.to_vec().unwrap()
    }

    /// What a thread sends.
    fn answer(known: &mut Known, zone: &Arc<Zone>, packet: &[u8]) -> Option<Vec<u8>> {
        let mut buffer = Vec::new();
        if known.find(zone, packet, &mut buffer) {
            return Some(buffer);
        }
        let Reply::Send(bytes) = reply(zone, packet, Transport::Udp, 0) else { return None };
        known.keep(packet, &bytes);
        Some(bytes)
    }

    const WEB: &str = "web.default.svc.cluster.local.";

    #[test]
    fn an_answer_is_found_again_under_the_new_number_until_the_zone_changes() {
        let (mut known, first, second) =
            (Known::default(), zone([10, 96, 0, 1]), zone([10, 96, 0, 2]));
        let mut buffer = Vec::new();
        answer(&mut known, &first, &query(7, WEB, RecordType::A));
        assert!(known.find(&first, &query(8, WEB, RecordType::A), &mut buffer));
        let Reply::Send(made) = reply(&first, &query(8, WEB, RecordType::A), Transport::Udp, 0)
        else {
            panic!()
        };
        assert_eq!(buffer, made);
        assert!(!known.find(&first, &query(8, WEB, RecordType::AAAA), &mut buffer));
        assert!(!known.find(&second, &query(8, WEB, RecordType::A), &mut buffer));
    }

    #[test]
    fn answers_that_rotate_are_made_each_time() {
        let (mut known, zone) = (Known::default(), zone([10, 96, 0, 1]));
        let packet = query(7, "db.default.svc.cluster.local.", RecordType::A);
        answer(&mut known, &zone, &packet);
        assert!(!known.find(&zone, &packet, &mut Vec::new()));
    }

    #[test]
    fn no_more_is_kept_than_said() {
        let (mut known, zone) = (Known::default(), zone([10, 96, 0, 1]));
        for number in 0..ANSWERS_MAX + 10 {
            let name = format!("n{number}.default.svc.cluster.local.");
            answer(&mut known, &zone, &query(1, &name, RecordType::A));
        }
        assert!(known.answers.len() <= ANSWERS_MAX);
    }

    proptest! {
        /// Whatever was asked before, the answer is the one that is made anew.
        #[test]
        fn nothing_differs_from_an_answer_made_anew(
            asked in prop::collection::vec((any::<u16>(), 0..6_usize, 0..3_usize, any::<bool>()), 1..40)
        ) {
            let (mut known, zones) = (Known::default(), [zone([10, 96, 0, 1]), zone([10, 96, 0, 2])]);
            let names = [WEB, "WEB.default.svc.cluster.local.", "db.default.svc.cluster.local.",
                "none.default.svc.cluster.local.", "1.0.96.10.in-addr.arpa.", "cluster.local."];
            let kinds = [RecordType::A, RecordType::AAAA, RecordType::PTR];
            for (id, name, kind, other) in asked {
                let (zone, packet) = (&zones[usize::from(other)], query(id, names[name], kinds[kind]));
                let made = match reply(zone, &packet, Transport::Udp, 0) {
                    Reply::Send(bytes) => Some(bytes),
                    _ => None,
                };
                prop_assert_eq!(answer(&mut known, zone, &packet), made);
            }
        }
    }
}
