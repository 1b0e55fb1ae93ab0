//! Who may ask what, by the client certificate: the API server everything, other nodes only how far this one is.
//!
//! Upstream asks the API server (`SubjectAccessReview`); here the certificate's organization is enough, because only the
//! cluster's authority gives it.

use rustls_pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, X509Certificate};

/// The organization of the API server's own client certificate.
const MASTERS: &str = "system:masters";
/// The organization of nodes.
const NODES: &str = "system:nodes";

/// What a connection may ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Caller {
    /// Everything.
    ApiServer,
    /// How far this node is.
    Node,
    /// Nothing.
    Stranger,
}

impl Caller {
    /// Judges a verified certificate chain. No chain means that the server's TLS asks for none.
    pub(super) fn of(chain: Option<&[CertificateDer<'_>]>) -> Self {
        let Some(chain) = chain else { return Self::ApiServer };
        let Some(first) = chain.first() else { return Self::Stranger };
        let Ok((_, certificate)) = X509Certificate::from_der(first) else { return Self::Stranger };
        let organizations = certificate.subject().iter_organization();
        let names: Vec<&str> = organizations.filter_map(|one| one.as_str().ok()).collect();
        if names.contains(&MASTERS) {
            Self::ApiServer
        } else if names.contains(&NODES) {
            Self::Node
        } else {
            Self::Stranger
        }
    }

    /// Whether `path` is for this caller.
    pub(super) fn may_ask(self, path: &str) -> bool {
        match self {
            Self::ApiServer => true,
            Self::Node => path == super::APPLIED,
            Self::Stranger => false,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use rcgen::{CertificateParams, DnType, KeyPair};

    fn caller(organization: &str) -> Caller {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::OrganizationName, organization);
        let certificate = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
        Caller::of(Some(&[certificate.der().clone()]))
    }

    #[test]
    fn a_node_may_not_run_commands_on_another() {
        let exec = "/exec/default/a/main";
        assert_eq!(caller("system:masters"), Caller::ApiServer);
        assert!(caller("system:masters").may_ask(exec));
        assert_eq!(caller("system:nodes"), Caller::Node);
        assert!(!caller("system:nodes").may_ask(exec));
        assert!(!caller("system:nodes").may_ask("/rhumb/v1/listeners"));
        assert!(caller("system:nodes").may_ask(super::super::APPLIED));
        assert_eq!(caller("developers"), Caller::Stranger);
        assert!(!caller("developers").may_ask("/healthz"));
        assert_eq!(Caller::of(Some(&[])), Caller::Stranger);
    }
}
