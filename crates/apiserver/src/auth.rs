//! Who asks and what they may do: authentication by client certificate or ServiceAccount token, impersonation, and
//! authorization by RBAC. Upstream counterpart: `k8s.io/apiserver/pkg/authentication` and `…/authorization`.

mod escalation;
mod impersonation;
mod issue;
pub mod rbac;
pub mod reviews;
pub mod tokens;

use std::collections::BTreeMap;
use std::sync::Arc;

use api::{Reason, StatusError};
use http::{HeaderMap, header};
use rustls_pki_types::CertificateDer;

use crate::Registry;
use crate::pki::{Pki, PkiError};
pub(crate) use escalation::check as check_escalation;
pub use rbac::Authorizer;
pub use tokens::Tokens;

/// The group of everybody who said who they are.
pub(crate) const AUTHENTICATED: &str = "system:authenticated";
/// The group of everybody who did not.
pub(crate) const UNAUTHENTICATED: &str = "system:unauthenticated";
/// The name of those who did not say who they are.
pub(crate) const ANONYMOUS: &str = "system:anonymous";
/// The group that may do everything.
pub(crate) const MASTERS: &str = "system:masters";

/// Who asks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct User {
    /// The name.
    pub name: String,
    /// The uid, or empty.
    pub uid: String,
    /// The groups.
    pub groups: Vec<String>,
    /// Anything else.
    pub extra: BTreeMap<String, Vec<String>>,
}

impl User {
    /// Who asks without credentials.
    #[must_use]
    pub fn anonymous() -> Self {
        Self {
            name: ANONYMOUS.to_owned(),
            groups: vec![UNAUTHENTICATED.to_owned()],
            ..Self::default()
        }
    }

    /// A component of this process: may do everything, and is named in managed fields and audits.
    #[must_use]
    pub fn component(name: &str) -> Self {
        let groups = vec![MASTERS.to_owned(), AUTHENTICATED.to_owned()];
        Self { name: name.to_owned(), groups, ..Self::default() }
    }

    /// Whether the user is of the group.
    #[must_use]
    pub fn is_in(&self, group: &str) -> bool {
        self.groups.iter().any(|own| own == group)
    }

    /// The node's name, when the user is a node agent: `system:node:NAME` of `system:nodes`.
    #[must_use]
    pub fn node(&self) -> Option<&str> {
        self.name.strip_prefix("system:node:").filter(|_| self.is_in("system:nodes"))
    }

    /// Fields of `authentication.k8s.io/v1.UserInfo`.
    #[must_use]
    pub fn to_value(&self) -> serde_json::Value {
        let mut value = serde_json::json!({"username": self.name});
        if !self.uid.is_empty() {
            value["uid"] = self.uid.as_str().into();
        }
        if !self.groups.is_empty() {
            value["groups"] = self.groups.clone().into();
        }
        if !self.extra.is_empty() {
            value["extra"] = serde_json::json!(self.extra);
        }
        value
    }
}

/// What is asked: of a resource, or of a path when `resource` is empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attributes {
    /// Who asks.
    pub user: User,
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, `deletecollection`; the HTTP verb for paths.
    pub verb: String,
    /// API group; empty for core.
    pub group: String,
    /// API version.
    pub version: String,
    /// Plural.
    pub resource: String,
    /// Subresource or empty.
    pub subresource: String,
    /// Namespace or empty.
    pub namespace: String,
    /// Name or empty.
    pub name: String,
    /// The path, for requests that name no resource.
    pub path: String,
}

/// Finds out who asks, by the cluster's keys.
pub struct Authenticator {
    registry: Arc<Registry>,
    authorizer: Arc<Authorizer>,
    pki: Arc<Pki>,
    tokens: Tokens,
}

impl Authenticator {
    /// An authenticator of client certificates (already verified by TLS) and ServiceAccount tokens.
    ///
    /// # Errors
    /// When the key of the tokens is none.
    pub fn new(
        registry: Arc<Registry>,
        authorizer: Arc<Authorizer>,
        pki: Arc<Pki>,
    ) -> Result<Self, PkiError> {
        let tokens = Tokens::new(&registry.config().issuer, pki.token_key())?;
        Ok(Self { registry, authorizer, pki, tokens })
    }

    /// The signer of ServiceAccount tokens.
    #[must_use]
    pub fn tokens(&self) -> &Tokens {
        &self.tokens
    }

    /// The cluster's keys and certificates.
    #[must_use]
    pub fn pki(&self) -> &Arc<Pki> {
        &self.pki
    }

    /// The user of a request, after impersonation; `None`: nobody said who they are.
    ///
    /// # Errors
    /// 401 for credentials that are wrong, 403 when the user may not impersonate.
    pub fn authenticate(
        &self,
        peer: &[CertificateDer<'static>],
        headers: &HeaderMap,
    ) -> Result<Option<User>, StatusError> {
        let user = match certificate_user(peer) {
            Some(user) => Some(user),
            None => match bearer(headers) {
                Some(token) => Some(self.token_user(token, jiff::Timestamp::now())?),
                None => None,
            },
        };
        impersonation::apply(&self.authorizer, user, headers)
    }

    fn token_user(&self, token: &str, now: jiff::Timestamp) -> Result<User, StatusError> {
        let audiences = [self.tokens.issuer().to_owned()];
        let verified = self.tokens.authenticate(self.registry.cache(), token, &audiences, now);
        match verified {
            Ok((user, _audiences)) => Ok(user),
            Err(error) => {
                tracing::debug!(component = "apiserver", %error, "refused a bearer token");
                Err(unauthorized())
            }
        }
    }
}

/// 401 in upstream's words.
pub(crate) fn unauthorized() -> StatusError {
    StatusError::new(Reason::Unauthorized, "Unauthorized")
}

/// The token of an `Authorization: Bearer` header.
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) =
        headers.get(header::AUTHORIZATION)?.to_str().ok()?.trim().split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
}

/// The user of a verified client certificate: common name, and organizations as groups.
fn certificate_user(peer: &[CertificateDer<'static>]) -> Option<User> {
    let leaf = peer.first()?;
    let (_, certificate) = x509_parser::parse_x509_certificate(leaf).ok()?;
    let subject = certificate.subject();
    let name = subject
        .iter_common_name()
        .next()?
        .as_str()
        .ok()
        .filter(|name| !name.is_empty())?
        .to_owned();
    let mut groups: Vec<String> = subject
        .iter_organization()
        .filter_map(|group| group.as_str().ok())
        .map(str::to_owned)
        .collect();
    groups.push(AUTHENTICATED.to_owned());
    let digest = ring::digest::digest(&ring::digest::SHA256, leaf);
    let hex: String = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    let credential = (
        "authentication.kubernetes.io/credential-id".to_owned(),
        vec![format!("X509SHA256={hex}")],
    );
    Some(User { name, uid: String::new(), groups, extra: BTreeMap::from([credential]) })
}

/// 403 in upstream's words: `User "a" cannot list resource "pods" in API group "" in the namespace "b"`.
#[must_use]
pub fn forbidden(attributes: &Attributes, reason: &str) -> StatusError {
    let Attributes { user, verb, group, resource, subresource, namespace, name, path, .. } =
        attributes;
    let user = &user.name;
    let reason = if reason.is_empty() { String::new() } else { format!(": {reason}") };
    if resource.is_empty() {
        let message = format!("forbidden: User {user:?} cannot {verb} path {path:?}{reason}");
        return StatusError { reason: Reason::Forbidden, message, details: serde_json::json!({}) };
    }
    let full =
        if subresource.is_empty() { resource.clone() } else { format!("{resource}/{subresource}") };
    let scope = if namespace.is_empty() {
        "at the cluster scope".to_owned()
    } else {
        format!("in the namespace {namespace:?}")
    };
    let why = format!(
        "User {user:?} cannot {verb} resource {full:?} in API group {group:?} {scope}{reason}"
    );
    StatusError::forbidden(group, resource, name, why)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::Config;
    use crate::pki::Pki;
    use rustls_pki_types::pem::PemObject;

    #[test]
    fn certificate_names_user_and_group() {
        let directory = tempfile::tempdir().unwrap();
        let pki = Pki::open(&Config::new(directory.path())).unwrap();
        let node = pki.node("a").unwrap();
        let leaf = CertificateDer::from_pem_slice(node.certificate.as_bytes()).unwrap();
        let user = certificate_user(&[leaf]).unwrap();
        assert_eq!(user.name, "system:node:a");
        assert_eq!(user.groups, ["system:nodes", "system:authenticated"]);
        assert_eq!(user.node(), Some("a"));
        assert!(certificate_user(&[]).is_none());
    }

    #[test]
    fn bearer_reads_only_bearer_tokens() {
        let mut headers = HeaderMap::new();
        assert_eq!(bearer(&headers), None);
        headers.insert(header::AUTHORIZATION, "bearer a.b.c".parse().unwrap());
        assert_eq!(bearer(&headers), Some("a.b.c"));
        headers.insert(header::AUTHORIZATION, "Basic eDp5".parse().unwrap());
        assert_eq!(bearer(&headers), None);
    }

    #[test]
    fn forbidden_speaks_as_upstream() {
        let user =
            User { name: "system:serviceaccount:default:default".to_owned(), ..User::default() };
        let mut asked = Attributes {
            user,
            verb: "list".to_owned(),
            resource: "services".to_owned(),
            namespace: "default".to_owned(),
            ..Attributes::default()
        };
        assert_eq!(
            forbidden(&asked, "").message,
            "services is forbidden: User \"system:serviceaccount:default:default\" cannot list resource \"services\" \
             in API group \"\" in the namespace \"default\""
        );
        asked.namespace.clear();
        assert!(forbidden(&asked, "").message.ends_with("in API group \"\" at the cluster scope"));
    }
}
