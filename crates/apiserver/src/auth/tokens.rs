//! ServiceAccount tokens: ES256 JSON Web Tokens bound to an account and, mostly, to a pod.
//!
//! Upstream counterpart: `pkg/serviceaccount` (claims, bound-object validation, OpenID metadata).

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use parking_lot::Mutex;
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair,
    UnparsedPublicKey,
};
use serde_json::{Value, json};

use super::{AUTHENTICATED, User};
use crate::Cache;
use crate::lookup::{self, NODES, PODS, SECRETS, SERVICE_ACCOUNTS, text};

/// The DER head of a P-256 SubjectPublicKeyInfo; the point follows.
const P256_HEAD: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a,
    0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];
/// Seconds that clocks may differ by.
const LEEWAY_SECONDS: i64 = 60;
/// Tokens whose signature was good, remembered at most; beyond that all are forgotten.
const REMEMBERED_MAX: usize = 1024;
/// The user name of a ServiceAccount starts with this.
const USER_PREFIX: &str = "system:serviceaccount:";

/// A bearer token was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Not a token of ours.
    #[error("the token is malformed or not signed by this cluster")]
    Signature,
    /// The times do not allow its use.
    #[error("service account token has expired")]
    Expired,
    /// It is not meant for whom it was shown to.
    #[error("token audiences {0:?} is invalid for the target audiences")]
    Audience(Vec<String>),
    /// The account or the bound object is gone.
    #[error("service account token has been invalidated")]
    Invalidated,
}

/// An object by name and uid.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reference {
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: String,
}

impl Reference {
    /// The reference to an object.
    #[must_use]
    pub fn of(object: &Value) -> Self {
        Self {
            name: text(object, "/metadata/name").to_owned(),
            uid: text(object, "/metadata/uid").to_owned(),
        }
    }

    fn to_value(&self) -> Value {
        json!({"name": self.name, "uid": self.uid})
    }

    fn parse(value: &Value) -> Option<Self> {
        Some(Self {
            name: value["name"].as_str()?.to_owned(),
            uid: value["uid"].as_str().unwrap_or("").to_owned(),
        })
    }
}

/// What a token says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Claims {
    /// Namespace of the account.
    pub namespace: String,
    /// The account.
    pub account: Reference,
    /// The pod that the token dies with.
    pub pod: Option<Reference>,
    /// The Secret that the token dies with.
    pub secret: Option<Reference>,
    /// The node of the pod, or the node that the token dies with when there is no pod.
    pub node: Option<Reference>,
    /// Who is to accept it.
    pub audiences: Vec<String>,
    /// Seconds since 1970: issued and valid from.
    pub issued: i64,
    /// Seconds since 1970: not valid from here on.
    pub expires: i64,
    /// A name of the token itself.
    pub id: String,
}

/// Signs and verifies ServiceAccount tokens.
pub struct Tokens {
    issuer: String,
    key: EcdsaKeyPair,
    key_id: String,
    random: SystemRandom,
    /// What tokens with a good signature say, by their SHA-256: a verification costs more than all else of a small
    /// request. Neither the signature nor the claims of a token ever change; times and bound objects are looked at
    /// anew each time.
    remembered: Mutex<BTreeMap<[u8; 32], Claims>>,
}

impl Tokens {
    /// A signer with a PKCS #8 P-256 key.
    ///
    /// # Errors
    /// When the key is none.
    pub fn new(issuer: &str, pkcs8: &[u8]) -> Result<Self, crate::pki::PkiError> {
        let random = SystemRandom::new();
        let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8, &random)
            .map_err(|error| crate::pki::PkiError::Damaged {
                what: "the key of ServiceAccount tokens",
                why: error.to_string(),
            })?;
        let info: Vec<u8> = P256_HEAD.iter().chain(key.public_key().as_ref()).copied().collect();
        let key_id = URL_SAFE_NO_PAD.encode(ring::digest::digest(&ring::digest::SHA256, &info));
        let remembered = Mutex::default();
        Ok(Self { issuer: issuer.to_owned(), key, key_id, random, remembered })
    }

    /// The issuer, which is also the audience of the API server.
    #[must_use]
    pub fn issuer(&self) -> &str {
        &self.issuer
    }

    /// Signs claims.
    ///
    /// # Errors
    /// When the system gives no random numbers.
    pub fn sign(&self, claims: &Claims) -> Result<String, api::StatusError> {
        let header = json!({"alg": "ES256", "kid": self.key_id});
        let mut bound =
            json!({"namespace": claims.namespace, "serviceaccount": claims.account.to_value()});
        for (field, reference) in
            [("pod", &claims.pod), ("secret", &claims.secret), ("node", &claims.node)]
        {
            if let Some(reference) = reference {
                bound[field] = reference.to_value();
            }
        }
        let payload = json!({
            "aud": claims.audiences, "exp": claims.expires, "iat": claims.issued, "iss": self.issuer, "jti": claims.id,
            "kubernetes.io": bound, "nbf": claims.issued,
            "sub": format!("{USER_PREFIX}{}:{}", claims.namespace, claims.account.name),
        });
        let signed = format!("{}.{}", encode(&header), encode(&payload));
        let signature =
            self.key.sign(&self.random, signed.as_bytes()).map_err(api::StatusError::internal)?;
        Ok(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature)))
    }

    /// The claims of a token that we signed and whose time has come and not passed.
    ///
    /// # Errors
    /// Why it is refused.
    pub fn verify(&self, token: &str, now: jiff::Timestamp) -> Result<Claims, TokenError> {
        let claims = self.signed(token)?;
        let now = now.as_second();
        if now >= claims.expires.saturating_add(LEEWAY_SECONDS)
            || now.saturating_add(LEEWAY_SECONDS) < claims.issued
        {
            return Err(TokenError::Expired);
        }
        Ok(claims)
    }

    /// The claims of a token that we signed, at whatever time.
    fn signed(&self, token: &str) -> Result<Claims, TokenError> {
        let mut hash = [0; 32];
        hash.copy_from_slice(
            ring::digest::digest(&ring::digest::SHA256, token.as_bytes()).as_ref(),
        );
        if let Some(claims) = self.remembered.lock().get(&hash) {
            return Ok(claims.clone());
        }
        let claims = self.check(token)?;
        let mut remembered = self.remembered.lock();
        if remembered.len() >= REMEMBERED_MAX {
            remembered.clear();
        }
        remembered.insert(hash, claims.clone());
        Ok(claims)
    }

    fn check(&self, token: &str) -> Result<Claims, TokenError> {
        let (signed, signature) = token.rsplit_once('.').ok_or(TokenError::Signature)?;
        let signature = URL_SAFE_NO_PAD.decode(signature).map_err(|_| TokenError::Signature)?;
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, self.key.public_key().as_ref())
            .verify(signed.as_bytes(), &signature)
            .map_err(|_| TokenError::Signature)?;
        let (header, payload) = signed.split_once('.').ok_or(TokenError::Signature)?;
        let header = decode(header).ok_or(TokenError::Signature)?;
        let payload = decode(payload).ok_or(TokenError::Signature)?;
        if header["alg"] != "ES256" || payload["iss"] != self.issuer.as_str() {
            return Err(TokenError::Signature);
        }
        read_claims(&payload).ok_or(TokenError::Signature)
    }

    /// The user of a token that is meant for one of `audiences` and whose account and bound objects still exist, with
    /// those audiences that both sides name.
    ///
    /// # Errors
    /// Why it is refused.
    pub fn authenticate(
        &self,
        cache: &Cache,
        token: &str,
        audiences: &[String],
        now: jiff::Timestamp,
    ) -> Result<(User, Vec<String>), TokenError> {
        let claims = self.verify(token, now)?;
        let shared: Vec<String> =
            audiences.iter().filter(|wanted| claims.audiences.contains(wanted)).cloned().collect();
        if shared.is_empty() {
            return Err(TokenError::Audience(claims.audiences));
        }
        let namespace = &claims.namespace;
        let same = |row: lookup::Row, namespace: &str, reference: &Reference| {
            row.get(cache, namespace, &reference.name)
                .is_some_and(|object| text(&object, "/metadata/uid") == reference.uid)
        };
        let bound_node = claims.node.as_ref().filter(|_| claims.pod.is_none());
        let alive = same(SERVICE_ACCOUNTS, namespace, &claims.account)
            && claims.pod.as_ref().is_none_or(|pod| same(PODS, namespace, pod))
            && claims.secret.as_ref().is_none_or(|secret| same(SECRETS, namespace, secret))
            && bound_node.is_none_or(|node| same(NODES, "", node));
        if !alive {
            return Err(TokenError::Invalidated);
        }
        Ok((user(&claims), shared))
    }

    /// `/.well-known/openid-configuration`.
    #[must_use]
    pub fn openid_configuration(&self, server: &str) -> Value {
        json!({
            "issuer": self.issuer,
            "jwks_uri": format!("https://{server}/openid/v1/jwks"),
            "response_types_supported": ["id_token"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["ES256"],
        })
    }

    /// `/openid/v1/jwks`: the public key.
    #[must_use]
    pub fn key_set(&self) -> Value {
        // An uncompressed point: one byte of form, then x and y of 32 bytes each.
        let (x, y) = self.key.public_key().as_ref()[1..].split_at(32);
        json!({"keys": [{
            "use": "sig", "kty": "EC", "kid": self.key_id, "crv": "P-256", "alg": "ES256",
            "x": URL_SAFE_NO_PAD.encode(x), "y": URL_SAFE_NO_PAD.encode(y),
        }]})
    }
}

/// The user that a ServiceAccount is.
#[must_use]
pub fn account_user(namespace: &str, name: &str, uid: &str) -> User {
    User {
        name: format!("{USER_PREFIX}{namespace}:{name}"),
        uid: uid.to_owned(),
        groups: account_groups(namespace),
        extra: BTreeMap::new(),
    }
}

/// The groups of a namespace's ServiceAccounts.
pub(super) fn account_groups(namespace: &str) -> Vec<String> {
    [
        "system:serviceaccounts".to_owned(),
        format!("system:serviceaccounts:{namespace}"),
        AUTHENTICATED.to_owned(),
    ]
    .into()
}

/// Namespace and name of the ServiceAccount that a user name means.
pub(crate) fn account_of(user: &str) -> Option<(&str, &str)> {
    user.strip_prefix(USER_PREFIX)?.split_once(':').filter(|(_, name)| !name.contains(':'))
}

fn user(claims: &Claims) -> User {
    let mut user = account_user(&claims.namespace, &claims.account.name, &claims.account.uid);
    let mut set = |key: &str, value: String| {
        user.extra.insert(format!("authentication.kubernetes.io/{key}"), vec![value]);
    };
    if !claims.id.is_empty() {
        set("credential-id", format!("JTI={}", claims.id));
    }
    if let Some(pod) = &claims.pod {
        set("pod-name", pod.name.clone());
        set("pod-uid", pod.uid.clone());
    }
    if let Some(node) = &claims.node {
        set("node-name", node.name.clone());
        set("node-uid", node.uid.clone());
    }
    user
}

fn encode(value: &Value) -> String {
    URL_SAFE_NO_PAD.encode(value.to_string())
}

fn decode(part: &str) -> Option<Value> {
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).ok()?).ok()
}

fn read_claims(payload: &Value) -> Option<Claims> {
    let bound = &payload["kubernetes.io"];
    let audiences = match &payload["aud"] {
        Value::String(one) => vec![one.clone()],
        many => many.as_array()?.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
    };
    Some(Claims {
        namespace: bound["namespace"].as_str()?.to_owned(),
        account: Reference::parse(&bound["serviceaccount"])?,
        pod: Reference::parse(&bound["pod"]),
        secret: Reference::parse(&bound["secret"]),
        node: Reference::parse(&bound["node"]),
        audiences,
        issued: payload["nbf"].as_i64()?,
        expires: payload["exp"].as_i64()?,
        id: payload["jti"].as_str().unwrap_or("").to_owned(),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn mk_tokens() -> Tokens {
        let key = rcgen::KeyPair::generate().unwrap();
        Tokens::new("https://issuer", &key.serialize_der()).unwrap()
    }

    fn mk_claims() -> Claims {
        let reference =
            |name: &str| Reference { name: name.to_owned(), uid: format!("{name}-uid") };
        Claims {
            namespace: "default".to_owned(),
            account: reference("builder"),
            pod: Some(reference("pod")),
            node: Some(reference("node")),
            audiences: vec!["https://issuer".to_owned()],
            issued: 1_000,
            expires: 4_600,
            id: "id".to_owned(),
            ..Claims::default()
        }
    }

    fn at(second: i64) -> jiff::Timestamp {
        jiff::Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn token_round_trips_within_its_time() {
        let (tokens, claims) = (mk_tokens(), mk_claims());
        let token = tokens.sign(&claims).unwrap();
        assert_eq!(tokens.verify(&token, at(2_000)), Ok(claims));
        assert_eq!(tokens.verify(&token, at(900)), Err(TokenError::Expired));
        assert_eq!(tokens.verify(&token, at(4_660)), Err(TokenError::Expired));
    }

    #[test]
    fn remembered_tokens_still_expire_and_are_bounded() {
        let (tokens, claims) = (mk_tokens(), mk_claims());
        let token = tokens.sign(&claims).unwrap();
        assert!(tokens.verify(&token, at(2_000)).is_ok());
        assert_eq!(tokens.remembered.lock().len(), 1);
        assert_eq!(tokens.verify(&token, at(5_000)), Err(TokenError::Expired));
        let (signed, _) = token.rsplit_once('.').unwrap();
        let forged = format!("{signed}.{}", URL_SAFE_NO_PAD.encode([7; 64]));
        assert_eq!(tokens.verify(&forged, at(2_000)), Err(TokenError::Signature));
        assert_eq!(tokens.remembered.lock().len(), 1, "only good signatures");
        let other =
            |n: usize| tokens.sign(&Claims { id: n.to_string(), ..claims.clone() }).unwrap();
        for number in 0..REMEMBERED_MAX {
            tokens.verify(&other(number), at(2_000)).unwrap();
        }
        assert!(tokens.remembered.lock().len() <= REMEMBERED_MAX);
        assert_eq!(tokens.verify(&token, at(2_000)), Ok(claims));
    }

    #[test]
    fn foreign_and_altered_tokens_are_refused() {
        let (tokens, claims) = (mk_tokens(), mk_claims());
        let token = tokens.sign(&claims).unwrap();
        assert_eq!(mk_tokens().verify(&token, at(2_000)), Err(TokenError::Signature));
        let mut parts: Vec<String> = token.split('.').map(str::to_owned).collect();
        let mut payload = decode(&parts[1]).unwrap();
        payload["sub"] = "system:serviceaccount:kube-system:x".into();
        parts[1] = encode(&payload);
        assert_eq!(tokens.verify(&parts.join("."), at(2_000)), Err(TokenError::Signature));
        for junk in ["", ".", "..", "a.b.c", "a.b"] {
            assert_eq!(tokens.verify(junk, at(2_000)), Err(TokenError::Signature));
        }
    }

    #[test]
    fn user_of_a_pod_token_names_pod_and_node() {
        let user = user(&mk_claims());
        assert_eq!(user.name, "system:serviceaccount:default:builder");
        assert_eq!(
            user.groups,
            ["system:serviceaccounts", "system:serviceaccounts:default", "system:authenticated"]
        );
        assert_eq!(user.extra["authentication.kubernetes.io/pod-name"], ["pod"]);
        assert_eq!(user.extra["authentication.kubernetes.io/credential-id"], ["JTI=id"]);
        assert_eq!(account_of(&user.name), Some(("default", "builder")));
    }

    #[test]
    fn key_set_carries_the_key_that_signs() {
        let tokens = mk_tokens();
        let set = tokens.key_set();
        let token = tokens.sign(&mk_claims()).unwrap();
        let header = decode(token.split('.').next().unwrap()).unwrap();
        assert_eq!(set["keys"][0]["kid"], header["kid"]);
        let part =
            |name: &str| URL_SAFE_NO_PAD.decode(set["keys"][0][name].as_str().unwrap()).unwrap();
        let point: Vec<u8> = [vec![4], part("x"), part("y")].concat();
        let (signed, signature) = token.rsplit_once('.').unwrap();
        let signature = URL_SAFE_NO_PAD.decode(signature).unwrap();
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point)
            .verify(signed.as_bytes(), &signature)
            .unwrap();
    }
}
