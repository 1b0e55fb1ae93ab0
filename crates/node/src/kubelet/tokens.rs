//! Bound service account tokens for one pod, asked for when first needed and again before they expire.
//! Upstream: `pkg/kubelet/token`.

use std::collections::BTreeMap;
use std::time::Duration;

use api::Kind;
use api::authentication::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use api::core::{Pod, ServiceAccount};
use client::Client;
use jiff::Timestamp;
use parking_lot::Mutex;

/// A token is renewed when this share of its life is over, in percent (upstream: 80).
const RENEW_PERCENT: i64 = 80;
/// A failed renewal is tried again after this time.
const RETRY: Duration = Duration::from_secs(10);

#[derive(Clone)]
struct Token {
    text: String,
    renew_at: Timestamp,
}

/// The tokens of one pod by audience and validity.
#[derive(Default)]
pub(super) struct Tokens {
    known: Mutex<BTreeMap<(String, i64), Token>>,
}

impl Tokens {
    /// A token that is not due for renewal; an error is the tail of a `FailedMount` event.
    pub(super) async fn get(
        &self,
        client: &Client,
        pod: &Pod,
        audience: &str,
        seconds: i64,
    ) -> Result<String, String> {
        let key = (audience.to_owned(), seconds);
        let known = self.known.lock().get(&key).cloned();
        let now = Timestamp::now();
        if let Some(token) = known.as_ref().filter(|token| now < token.renew_at) {
            return Ok(token.text.clone());
        }
        match request(client, pod, audience, seconds).await {
            Ok(token) => {
                let text = token.text.clone();
                self.known.lock().insert(key, token);
                Ok(text)
            }
            // An old token still works for a while; the next turn tries again.
            Err(error) => known.map(|token| token.text).ok_or(error),
        }
    }

    /// How long until a token is due for renewal; `None` without tokens.
    pub(super) fn renewal(&self) -> Option<Duration> {
        let first = self.known.lock().values().map(|token| token.renew_at).min()?;
        let wait = first.duration_since(Timestamp::now());
        Some(Duration::try_from(wait).unwrap_or(RETRY).max(RETRY))
    }
}

async fn request(
    client: &Client,
    pod: &Pod,
    audience: &str,
    seconds: i64,
) -> Result<Token, String> {
    let account = pod.spec.as_ref().and_then(|spec| spec.service_account_name.as_deref());
    let account = account.filter(|name| !name.is_empty()).unwrap_or("default");
    let audiences = if audience.is_empty() { Vec::new() } else { vec![audience.to_owned()] };
    let body = TokenRequest {
        spec: Some(TokenRequestSpec {
            audiences: Some(audiences),
            expiration_seconds: Some(seconds),
            bound_object_ref: Some(BoundObjectReference {
                api_version: Some("v1".to_owned()),
                kind: Some("Pod".to_owned()),
                name: Some(pod.name().to_owned()),
                uid: Some(pod.uid().to_owned()),
            }),
        }),
        ..TokenRequest::default()
    };
    let answer: TokenRequest = client
        .post::<ServiceAccount, _>(pod.namespace(), account, "token", &body)
        .await
        .map_err(|error| format!("failed to fetch token: {error}"))?;
    let status = answer.status.ok_or("failed to fetch token: the answer has none")?;
    let now = Timestamp::now();
    let ends = status.expiration_timestamp.map_or(now, |at| at.0);
    let life = ends.duration_since(now).as_secs().max(0);
    let renew_at = plan::pods::backoff::later(now, life * RENEW_PERCENT / 100);
    Ok(Token { text: status.token.unwrap_or_default(), renew_at })
}
