//! Questions as people type them: `pod/a svc/b:80`, `10.244.1.5 10.96.0.10:80/tcp`, `outside node/n1:30007`.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use api::Name;

use crate::service::Protocol;

/// Who sends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum From {
    /// A pod.
    Pod(Name),
    /// A process on a node.
    Node(String),
    /// Whoever has this address.
    Address(IpAddr),
    /// Somebody who is no part of the cluster.
    Outside,
}

/// A port as asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PortRef {
    /// By number.
    Number(u16),
    /// By the Service port's name.
    Named(String),
    /// The only one.
    Only,
}

/// To whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum To {
    /// A Service, by the name that the client would use.
    Service(Name, PortRef),
    /// A pod's own address.
    Pod(Name, PortRef),
    /// A node's own address.
    Node(String, u16),
    /// A host name.
    Host(String, u16),
    /// An address.
    Address(SocketAddr),
}

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// Who sends.
    pub from: From,
    /// To whom.
    pub to: To,
    /// By which protocol.
    pub protocol: Protocol,
    /// The node that a packet from outside comes to, if it matters.
    pub node: Option<String>,
}

/// Why a text is no question.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AskError {
    /// Who sends is not understood.
    #[error("{0:?} is no sender: say pod/NAME, node/NAME, an address, or outside")]
    From(String),
    /// To whom is not understood.
    #[error(
        "{0:?} is no target: say svc/NAME:PORT, pod/NAME:PORT, node/NAME:PORT, NAME:PORT or ADDRESS:PORT, with /udp or /sctp unless it is TCP"
    )]
    To(String),
    /// The protocol is not understood.
    #[error("{0:?} is no protocol: say tcp, udp or sctp")]
    Protocol(String),
    /// A target needs a port.
    #[error("{0:?} has no port: say {0}:PORT")]
    Port(String),
}

impl Question {
    /// Reads the two texts of a question; names without a namespace are in `namespace`.
    ///
    /// # Errors
    /// When one of them is not understood.
    pub fn parse(from: &str, to: &str, namespace: &str) -> Result<Self, AskError> {
        let (to, protocol) = protocol(to)?;
        Ok(Self {
            from: sender(from, namespace)?,
            to: target(to, namespace)?,
            protocol,
            node: None,
        })
    }
}

/// `pod/a`, or `pod/a.other`-like names are not split: pods' names have dots. `pod/other/a` is in another namespace.
fn named(text: &str, namespace: &str) -> Option<Name> {
    let name = match text.split_once('/') {
        Some((namespace, name)) => Name::new(namespace, name),
        None => Name::new(namespace, text),
    };
    (!name.name.is_empty() && !name.name.contains('/')).then_some(name)
}

fn sender(text: &str, namespace: &str) -> Result<From, AskError> {
    let wrong = || AskError::From(text.to_owned());
    if text == "outside" {
        return Ok(From::Outside);
    }
    if let Ok(address) = text.parse() {
        return Ok(From::Address(address));
    }
    match text.split_once('/').ok_or_else(wrong)? {
        ("pod" | "pods" | "po", rest) => named(rest, namespace).map(From::Pod).ok_or_else(wrong),
        ("node" | "nodes" | "no", name) if !name.is_empty() => Ok(From::Node(name.to_owned())),
        _ => Err(wrong()),
    }
}

/// Takes `/tcp`, `/udp` or `/sctp` off the end.
fn protocol(text: &str) -> Result<(&str, Protocol), AskError> {
    let Some((rest, last)) = text.rsplit_once('/') else { return Ok((text, Protocol::Tcp)) };
    match last.to_ascii_uppercase().as_str() {
        word @ ("TCP" | "UDP" | "SCTP") => {
            let wrong = || AskError::Protocol(last.to_owned());
            Ok((rest, Protocol::of(Some(word)).ok_or_else(wrong)?))
        }
        // `svc/b:80`: what follows the last slash is no protocol. `b:80/icmp`: it should be one.
        _ if rest.contains(':') && !rest.contains('[') => Err(AskError::Protocol(last.to_owned())),
        _ => Ok((text, Protocol::Tcp)),
    }
}

fn target(text: &str, namespace: &str) -> Result<To, AskError> {
    let wrong = || AskError::To(text.to_owned());
    let missing = || AskError::Port(text.to_owned());
    if let Ok(socket) = text.parse() {
        return Ok(To::Address(socket));
    }
    if text.parse::<IpAddr>().is_ok() {
        return Err(missing());
    }
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) => (host, Some(port)),
        None => (text, None),
    };
    let number = || port.ok_or_else(missing)?.parse::<u16>().ok().ok_or_else(wrong);
    let port = match port {
        None => PortRef::Only,
        Some(text) => text.parse().map_or_else(|_| PortRef::Named(text.into()), PortRef::Number),
    };
    match host.split_once('/') {
        Some(("svc" | "service" | "services", rest)) => {
            Ok(To::Service(named(rest, namespace).ok_or_else(wrong)?, port))
        }
        Some(("pod" | "pods" | "po", rest)) => {
            Ok(To::Pod(named(rest, namespace).ok_or_else(wrong)?, port))
        }
        Some(("node" | "nodes" | "no", name)) if !name.is_empty() => {
            Ok(To::Node(name.to_owned(), number()?))
        }
        None if !host.is_empty() && !host.contains(':') => Ok(To::Host(host.to_owned(), number()?)),
        _ => Err(wrong()),
    }
}

impl fmt::Display for From {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pod(name) => write!(f, "pod {name}"),
            Self::Node(name) => write!(f, "node {name}"),
            Self::Address(address) => address.fmt(f),
            Self::Outside => f.write_str("outside"),
        }
    }
}

impl fmt::Display for PortRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => write!(f, ", port {number}"),
            Self::Named(name) => write!(f, ", port {name:?}"),
            Self::Only => Ok(()),
        }
    }
}

impl fmt::Display for To {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Service(name, port) => write!(f, "Service {name}{port}"),
            Self::Pod(name, port) => write!(f, "pod {name}{port}"),
            Self::Node(name, port) => write!(f, "node {name}, port {port}"),
            Self::Host(name, port) => write!(f, "{name}, port {port}"),
            Self::Address(socket) => write!(f, "{}, port {}", socket.ip(), socket.port()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_are_read_as_typed() {
        let ask = |from: &str, to: &str| Question::parse(from, to, "shop");
        let asked = ask("pod/a", "svc/b:80").unwrap();
        assert_eq!(asked.from, From::Pod(Name::new("shop", "a")));
        assert_eq!(asked.to, To::Service(Name::new("shop", "b"), PortRef::Number(80)));
        let asked = ask("10.244.1.5", "10.96.0.10:53/udp").unwrap();
        assert_eq!(asked.to, To::Address("10.96.0.10:53".parse().unwrap()));
        assert_eq!(asked.protocol, Protocol::Udp);
        let asked = ask("outside", "node/n1:30007").unwrap();
        assert_eq!((asked.from, asked.to), (From::Outside, To::Node("n1".into(), 30007)));
        let asked = ask("pod/x/a", "svc/y/b:http/tcp").unwrap();
        assert_eq!(asked.from, From::Pod(Name::new("x", "a")));
        assert_eq!(asked.to, To::Service(Name::new("y", "b"), PortRef::Named("http".into())));
        assert_eq!(ask("pod/a", "b.c.svc:80").unwrap().to, To::Host("b.c.svc".into(), 80));
        assert_eq!(
            ask("fd44::1", "[fd96::1]:80/sctp").unwrap().to,
            To::Address("[fd96::1]:80".parse().unwrap())
        );
        assert_eq!(
            ask("pod/a", "svc/b").unwrap().to,
            To::Service(Name::new("shop", "b"), PortRef::Only)
        );
    }

    #[test]
    fn what_is_no_question_is_refused_with_the_right_form() {
        let words = |from: &str, to: &str| Question::parse(from, to, "d").unwrap_err().to_string();
        assert!(words("a", "svc/b:80").starts_with("\"a\" is no sender"));
        assert!(words("pod/a", "b").contains("\"b\" has no port: say b:PORT"));
        assert!(words("pod/a", "10.0.0.1").contains("say 10.0.0.1:PORT"));
        assert!(words("pod/a", "b:80/icmp").contains("\"icmp\" is no protocol"));
    }
}
