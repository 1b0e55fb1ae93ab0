//! Names outside the cluster: asked of the host's resolvers, in order, over UDP and, when truncated, over TCP.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use hickory_proto::op::{Message, Query, ResponseCode};
use hickory_proto::rr::{Name, RecordType};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};

use crate::codec::{TCP_BYTES_MAX, Transport, encode, failure};

/// How long one resolver may take, as CoreDNS' `forward` waits.
const ANSWER_MAX: Duration = Duration::from_secs(2);
/// The most resolvers that are asked (resolv.conf's own limit).
const RESOLVERS_MAX: usize = 3;

/// Asks the host's resolvers.
#[derive(Clone, Debug, Default)]
pub struct Forwarder {
    resolvers: Vec<SocketAddr>,
}

/// The `nameserver` lines of a resolv.conf.
///
/// # Errors
/// When the file cannot be read.
pub fn resolvers(path: &Path) -> std::io::Result<Vec<IpAddr>> {
    let text = std::fs::read_to_string(path)?;
    let servers =
        text.lines().filter_map(|line| line.trim().strip_prefix("nameserver")?.trim().parse().ok());
    Ok(servers.take(RESOLVERS_MAX).collect())
}

impl Forwarder {
    /// Asks these resolvers on port 53; none means that nothing outside the cluster is known.
    #[must_use]
    pub fn new(resolvers: &[IpAddr]) -> Self {
        Self { resolvers: resolvers.iter().map(|address| SocketAddr::new(*address, 53)).collect() }
    }

    /// Asks a resolver on any port, for tests.
    #[must_use]
    pub fn to(resolvers: Vec<SocketAddr>) -> Self {
        Self { resolvers }
    }

    /// The answer to a query that is not of the zone.
    pub(crate) async fn answer(&self, packet: &[u8], transport: Transport) -> Option<Vec<u8>> {
        let query = Message::from_vec(packet).ok()?;
        if self.resolvers.is_empty() {
            let reverse =
                query.queries.iter().any(|question| question.query_type == RecordType::PTR);
            let code = if reverse { ResponseCode::NXDomain } else { ResponseCode::ServFail };
            return Some(encode(&failure(&query, code), &query, transport));
        }
        for resolver in &self.resolvers {
            match tokio::time::timeout(ANSWER_MAX, ask(*resolver, packet, transport)).await {
                Ok(Ok(answer)) => return Some(answer),
                Ok(Err(error)) => {
                    tracing::debug!(component = "dns", %resolver, %error, "a resolver failed");
                }
                Err(_) => {
                    tracing::debug!(component = "dns", %resolver, "a resolver did not answer");
                }
            }
        }
        Some(encode(&failure(&query, ResponseCode::ServFail), &query, transport))
    }

    /// Completes an answer with the addresses of a name outside the zone.
    pub(crate) async fn complete(
        &self,
        packet: &[u8],
        mut answer: Message,
        target: &str,
        transport: Transport,
    ) -> Option<Vec<u8>> {
        let query = Message::from_vec(packet).ok()?;
        let kind = query.queries.first()?.query_type;
        if let Some(found) = self.lookup(target, kind).await {
            answer.add_answers(found.answers);
        }
        Some(encode(&answer, &query, transport))
    }

    async fn lookup(&self, target: &str, kind: RecordType) -> Option<Message> {
        let mut query = Message::query();
        query.metadata.recursion_desired = true;
        query.add_query(Query::query(Name::from_ascii(format!("{target}.")).ok()?, kind));
        let packet = query.to_vec().ok()?;
        for resolver in &self.resolvers {
            if let Ok(Ok(answer)) =
                tokio::time::timeout(ANSWER_MAX, ask(*resolver, &packet, Transport::Tcp)).await
            {
                return Message::from_vec(&answer).ok();
            }
        }
        None
    }
}

/// One question to one resolver. The client of a datagram gets a truncated answer as it is and asks again itself.
async fn ask(
    resolver: SocketAddr,
    packet: &[u8],
    transport: Transport,
) -> std::io::Result<Vec<u8>> {
    let any: SocketAddr =
        if resolver.is_ipv4() { ([0; 4], 0).into() } else { ([0_u16; 8], 0).into() };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(resolver).await?;
    socket.send(packet).await?;
    let mut answer = vec![0; TCP_BYTES_MAX];
    loop {
        let length = socket.recv(&mut answer).await?;
        if length >= 4 && answer[..2] == packet[..2] {
            answer.truncate(length);
            break;
        }
    }
    let truncated = answer[2] & 0x02 != 0;
    if truncated && transport == Transport::Tcp {
        ask_tcp(resolver, packet).await
    } else {
        Ok(answer)
    }
}

async fn ask_tcp(resolver: SocketAddr, packet: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(resolver).await?;
    let length = u16::try_from(packet.len()).map_err(std::io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes(), packet].concat()).await?;
    let mut answer = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut answer).await?;
    Ok(answer)
}
