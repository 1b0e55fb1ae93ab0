//! LIST: from one snapshot, in chunks when asked for. Upstream: `handlers.ListResource` and the watch cache's lists.

use std::sync::Arc;
use std::time::Duration;

use api::StatusError;
use api::resource::Resource;
use bytes::{BufMut, Bytes, BytesMut};
use http::{Response, StatusCode};
use serde_json::{Value, json};

use super::{Context, partial};
use crate::cache::{Cache, Object, Snapshot, list_prefix};
use crate::negotiate::Form;
use crate::options::{Continue, ListOptions, Match, expired_continue, too_large, too_old};
use crate::registry::api_version;
use crate::{Body, convert, object, reply, table};

/// How long a request waits for a revision that is not there yet.
pub(super) const FRESH_TIMEOUT: Duration = Duration::from_secs(3);

/// A chunk of a list.
struct Page {
    items: Vec<Arc<Object>>,
    revision: u64,
    /// The token of the next chunk, or empty.
    next: String,
    /// How many more there are, when that is known.
    remaining: Option<usize>,
}

/// Answers a LIST.
pub(super) async fn list(context: &Context<'_>) -> Result<Response<Body>, StatusError> {
    let resource = context.resource;
    let options = ListOptions::parse(context.info, resource)?;
    let plain = context.accept.form == Form::Plain
        && !context.accept.yaml
        && !convert::is_converted(resource);
    if plain && options.limit == 0 && options.start.is_none() && options.selector.is_everything() {
        return whole(context, &options).await;
    }
    let page = match page(context, &options).await {
        Ok(page) => page,
        Err(Expired::Status(error)) => return Err(error),
        Err(Expired::Token(error, token)) => {
            let mut value = error.to_value();
            value["metadata"]["continue"] = token.into();
            return Ok(reply::value(StatusCode::GONE, context.accept, &value));
        }
    };
    match context.accept.form {
        Form::Plain if plain => Ok(reply::json_bytes(StatusCode::OK, concatenate(resource, &page))),
        Form::Plain => {
            let items: Vec<Value> =
                values(resource, &page).into_iter().map(object::as_item).collect();
            let list = json!({"kind": format!("{}List", resource.kind), "apiVersion": api_version(resource),
                "metadata": list_meta(&page), "items": items});
            Ok(reply::value(StatusCode::OK, context.accept, &list))
        }
        Form::Partial(version) => {
            let items: Vec<Value> =
                values(resource, &page).iter().map(|item| partial(item, version)).collect();
            let list = json!({"kind": "PartialObjectMetadataList", "apiVersion": format!("meta.k8s.io/{version}"),
                "metadata": list_meta(&page), "items": items});
            Ok(reply::value(StatusCode::OK, context.accept, &list))
        }
        Form::Table(version) => {
            let rows = table::Rows {
                resource,
                version,
                include: table::Include::parse(&context.info.query)?,
            };
            let table = rows.table(values(resource, &page).iter(), list_meta(&page));
            Ok(reply::value(StatusCode::OK, context.accept, &table))
        }
    }
}

fn values(resource: &Resource, page: &Page) -> Vec<Value> {
    page.items.iter().map(|item| convert::from_stored(resource, &item.value())).collect()
}

/// A list of everything, from memory that repeated lists share.
async fn whole(
    context: &Context<'_>,
    options: &ListOptions,
) -> Result<Response<Body>, StatusError> {
    let resource = context.resource;
    let cache = context.registry.cache();
    let snapshot = fresh(cache, resource, options).await?;
    let items = cache.joined(resource, &snapshot, &list_prefix(resource, &context.info.namespace));
    let page = Page {
        items: Vec::new(),
        revision: snapshot.revision,
        next: String::new(),
        remaining: None,
    };
    let pieces = [head(resource, &page).into(), items, Bytes::from_static(b"]}")];
    Ok(reply::json_pieces(StatusCode::OK, pieces))
}

/// Why a list cannot be given.
enum Expired {
    Status(StatusError),
    /// With a token that goes on inconsistently.
    Token(StatusError, String),
}

impl From<StatusError> for Expired {
    fn from(error: StatusError) -> Self {
        Self::Status(error)
    }
}

async fn page(context: &Context<'_>, options: &ListOptions) -> Result<Page, Expired> {
    let resource = context.resource;
    let cache = context.registry.cache();
    let root = list_prefix(resource, "");
    let prefix = list_prefix(resource, &context.info.namespace);
    let snapshot = match &options.start {
        Some(start) => match start.revision {
            None => cache.snapshot(resource),
            Some(revision) => cache.kept(resource, revision).ok_or_else(|| {
                let (error, token) = expired_continue(&start.after);
                Expired::Token(error, token)
            })?,
        },
        None => fresh(cache, resource, options).await?,
    };
    let after =
        options.start.as_ref().map_or(String::new(), |start| format!("{root}{}", start.after));
    let mut objects = snapshot.range(&prefix, &after);
    let mut items = Vec::new();
    let limit = if options.limit == 0 { usize::MAX } else { options.limit };
    for item in objects.by_ref() {
        if options.selector.matches(item) {
            items.push(Arc::clone(item));
            if items.len() == limit {
                break;
            }
        }
    }
    let mut page =
        Page { items, revision: snapshot.revision, next: String::new(), remaining: None };
    let remaining = if page.items.len() == limit { objects.count() } else { 0 };
    if remaining > 0 {
        let last = page.items.last().map_or("", |item| &item.key[root.len()..]);
        page.next = Continue { revision: Some(snapshot.revision), after: last.to_owned() }.encode();
        page.remaining = options.selector.is_everything().then_some(remaining);
        cache.keep(resource, &snapshot);
    }
    Ok(page)
}

async fn fresh(
    cache: &Cache,
    resource: &Resource,
    options: &ListOptions,
) -> Result<Snapshot, StatusError> {
    let revision = options.revision.unwrap_or(0);
    wait_fresh(cache, revision).await?;
    // A revision with a limit means that very revision, as upstream treats it for old clients.
    let exact = options.matching == Match::Exact
        || (options.limit > 0 && revision > 0 && options.matching == Match::Unset);
    if exact {
        return cache
            .kept(resource, revision)
            .ok_or_else(|| too_old(revision, cache.revision_of(resource)));
    }
    Ok(cache.snapshot(resource))
}

/// Waits a bounded time until the cache has `revision`.
pub(super) async fn wait_fresh(cache: &Cache, revision: u64) -> Result<(), StatusError> {
    if revision > cache.revision()
        && tokio::time::timeout(FRESH_TIMEOUT, cache.wait_for(revision)).await.is_err()
    {
        return Err(too_large(revision, cache.revision()));
    }
    Ok(())
}

fn list_meta(page: &Page) -> Value {
    let mut meta = json!({"resourceVersion": page.revision.to_string()});
    if !page.next.is_empty() {
        meta["continue"] = page.next.clone().into();
    }
    if let Some(remaining) = page.remaining {
        meta["remainingItemCount"] = remaining.into();
    }
    meta
}

/// A list up to its items.
fn head(resource: &Resource, page: &Page) -> String {
    format!(
        "{{\"kind\":\"{}List\",\"apiVersion\":\"{}\",\"metadata\":{},\"items\":[",
        resource.kind,
        api_version(resource),
        list_meta(page)
    )
}

/// A list from the items' stored encodings.
fn concatenate(resource: &Resource, page: &Page) -> Bytes {
    let head = head(resource, page);
    let size = head.len() + 2 + page.items.iter().map(|item| item.json.len() + 1).sum::<usize>();
    let mut list = BytesMut::with_capacity(size);
    list.put_slice(head.as_bytes());
    for (index, item) in page.items.iter().enumerate() {
        if index > 0 {
            list.put_u8(b',');
        }
        object::put_item(&mut list, &item.json);
    }
    list.put_slice(b"]}");
    list.freeze()
}

/// Answers a GET of one object.
pub(super) async fn get(context: &Context<'_>) -> Result<Response<Body>, StatusError> {
    let resource = context.resource;
    let revision = context.info.query.get("resourceVersion").parse().unwrap_or(0);
    wait_fresh(context.registry.cache(), revision).await?;
    let found = context.registry.object(resource, &context.info.namespace, &context.info.name)?;
    if context.accept.form == Form::Plain
        && !context.accept.yaml
        && !convert::is_converted(resource)
    {
        return Ok(reply::json_bytes(StatusCode::OK, found.json.clone()));
    }
    let value = convert::from_stored(resource, &found.value());
    super::one(context, StatusCode::OK, &value)
}

/// All objects that a DELETE of a collection means.
pub(super) fn selected(context: &Context<'_>) -> Result<Vec<Value>, StatusError> {
    let resource = context.resource;
    let options = ListOptions::parse(context.info, resource)?;
    let prefix = list_prefix(resource, &context.info.namespace);
    let snapshot = context.registry.cache().snapshot(resource);
    let matching = snapshot.range(&prefix, "").filter(|item| options.selector.matches(item));
    Ok(matching.map(|item| convert::from_stored(resource, &item.value())).collect())
}
