//! Acting as somebody else by `Impersonate-*` headers, for those who may.
//!
//! Upstream counterpart: `k8s.io/apiserver/pkg/endpoints/filters/impersonation`.

use std::collections::BTreeMap;

use api::StatusError;
use http::HeaderMap;

use super::tokens::{account_groups, account_of};
use super::{ANONYMOUS, AUTHENTICATED, Attributes, Authorizer, UNAUTHENTICATED, User, forbidden};

const USER: &str = "impersonate-user";
const GROUP: &str = "impersonate-group";
const UID: &str = "impersonate-uid";
const EXTRA_PREFIX: &str = "impersonate-extra-";

/// The user that the headers ask to be, when `user` may be it; else `user`.
pub(super) fn apply(
    authorizer: &Authorizer,
    user: Option<User>,
    headers: &HeaderMap,
) -> Result<Option<User>, StatusError> {
    let Some(wanted) = wanted(headers)? else { return Ok(user) };
    let user = user.unwrap_or_else(User::anonymous);
    let ask = |group: &str, resource: &str, part: &str, namespace: &str, name: &str| {
        let asked = Attributes {
            user: user.clone(),
            verb: "impersonate".to_owned(),
            group: group.to_owned(),
            version: "v1".to_owned(),
            resource: resource.to_owned(),
            subresource: part.to_owned(),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            path: String::new(),
        };
        authorizer.authorize(&asked).map_err(|reason| forbidden(&asked, &reason))
    };
    match account_of(&wanted.name) {
        Some((namespace, name)) => ask("", "serviceaccounts", "", namespace, name)?,
        None => ask("", "users", "", "", &wanted.name)?,
    }
    for group in &wanted.groups {
        ask("", "groups", "", "", group)?;
    }
    if !wanted.uid.is_empty() {
        ask("authentication.k8s.io", "uids", "", "", &wanted.uid)?;
    }
    for (key, values) in &wanted.extra {
        for value in values {
            ask("authentication.k8s.io", "userextras", key, "", value)?;
        }
    }
    Ok(Some(complete(wanted)))
}

fn wanted(headers: &HeaderMap) -> Result<Option<User>, StatusError> {
    let text = |name: &str| {
        headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or("").to_owned()
    };
    let groups: Vec<String> = headers
        .get_all(GROUP)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .map(str::to_owned)
        .collect();
    let mut extra: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (name, value) in headers {
        if let (Some(key), Ok(value)) = (name.as_str().strip_prefix(EXTRA_PREFIX), value.to_str()) {
            extra
                .entry(key.replace("%2f", "/").replace("%2F", "/"))
                .or_default()
                .push(value.to_owned());
        }
    }
    let user = User { name: text(USER), uid: text(UID), groups, extra };
    if !user.name.is_empty() {
        return Ok(Some(user));
    }
    if user == User::default() {
        return Ok(None);
    }
    Err(StatusError::internal(
        "requested to impersonate groups, a uid or extra fields without impersonating a user",
    ))
}

/// Adds the groups that everybody of that name is in.
fn complete(mut user: User) -> User {
    if user.groups.is_empty()
        && let Some((namespace, _)) = account_of(&user.name)
    {
        user.groups = account_groups(namespace);
    }
    let group = if user.name == ANONYMOUS { UNAUTHENTICATED } else { AUTHENTICATED };
    if !user.is_in(AUTHENTICATED) && !user.is_in(UNAUTHENTICATED) {
        user.groups.push(group.to_owned());
    }
    user
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn groups_need_a_user() {
        let mut headers = HeaderMap::new();
        assert_eq!(wanted(&headers).unwrap(), None);
        headers.insert(GROUP, "g".parse().unwrap());
        wanted(&headers).unwrap_err();
        headers.insert(USER, "system:serviceaccount:a:b".parse().unwrap());
        let user = wanted(&headers).unwrap().unwrap();
        assert_eq!(complete(user).groups, ["g", "system:authenticated"]);
    }

    #[test]
    fn accounts_bring_their_groups() {
        let user = User { name: "system:serviceaccount:a:b".to_owned(), ..User::default() };
        assert_eq!(complete(user).groups, account_groups("a"));
        let user = User { name: ANONYMOUS.to_owned(), ..User::default() };
        assert_eq!(complete(user).groups, [UNAUTHENTICATED]);
    }
}
