//! Golden cases of validation, in `cases/validation`: what is refused, in exactly which words, and what is not.
//!
//! A file has a `base` object that is good as it is, and `cases`. A case changes the base by a merge patch (`with`), or
//! brings its own `object`; `from` (a merge patch of the base) makes it an update, and `via: status` one of the status.
//! `warnings` are those of the new object. What people really write, in `cases/accepted` and the project's examples, must
//! be refused nothing.
//! Objects go the way they go in the API server: types, defaults, preparation, validation.
#![expect(clippy::unwrap_used, reason = "a test's helpers")]

use std::fs;
use std::path::Path;

use api::ResourceScope;
use api::resource::{self, Resource};
use serde_json::{Value, json};

fn files(directory: &str) -> Vec<(String, Value)> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("cases").join(directory);
    let mut paths: Vec<_> =
        fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
        .into_iter()
        .map(|path| {
            let name = path.file_stem().unwrap().to_string_lossy().into_owned();
            let text = fs::read_to_string(&path).unwrap();
            let options = serde_saphyr::options! { legacy_octal_numbers: true };
            let content = serde_saphyr::from_str_with_options(&text, options);
            (name.clone(), content.unwrap_or_else(|error| panic!("{name}: {error}")))
        })
        .collect()
}

fn resource_of(object: &Value) -> &'static Resource {
    let api = object["apiVersion"].as_str().unwrap();
    let (group, version) = api.split_once('/').unwrap_or(("", api));
    resource::by_kind(group, version, object["kind"].as_str().unwrap())
        .unwrap_or_else(|| panic!("no such kind: {api} {}", object["kind"]))
}

/// As a decoded request: of the right types, with defaults.
fn decoded(mut object: Value) -> Value {
    let resource = resource_of(&object);
    let Resource { group, version, kind, .. } = resource;
    let unknown = api::schema::check(group, version, kind, &object);
    assert_eq!(unknown, Ok(Vec::new()), "{object}");
    let nowhere = object["metadata"]["namespace"].is_null();
    if nowhere && resource.scope == ResourceScope::Namespaced {
        object["metadata"]["namespace"] = json!("default");
    }
    api::schema::normalize(group, version, kind, &mut object);
    (resource.rules.default)(&mut object);
    object
}

/// What the API server would answer, a line each.
fn errors_of(new: Value, old: Option<Value>, via: &str) -> Vec<String> {
    let rules = &resource_of(&new).rules;
    let mut new = decoded(new);
    let errors = match (old.map(decoded), via) {
        (None, _) => {
            (rules.prepare_create)(&mut new);
            (rules.validate_create)(&new)
        }
        (Some(old), "status") => {
            (rules.prepare_status)(&mut new, &old);
            (rules.validate_status)(&new, &old)
        }
        (Some(old), _) => {
            (rules.prepare_update)(&mut new, &old);
            (rules.validate_update)(&new, &old)
        }
    };
    errors.iter().map(ToString::to_string).collect()
}

fn patched(base: &Value, patch: &Value) -> Value {
    let mut object = base.clone();
    if patch.is_object() {
        json_patch::merge(&mut object, patch);
    }
    object
}

/// Lines without the tails that upstream does not promise: the differences of Go structs.
fn heads(lines: &[String]) -> Vec<&str> {
    lines.iter().map(|line| line.lines().next().unwrap_or("")).collect()
}

#[test]
fn refusals_have_upstreams_words() {
    let (mut wrong, mut refused) = (Vec::new(), 0);
    for (file, content) in files("validation") {
        let base = &content["base"];
        assert_eq!(errors_of(base.clone(), None, ""), [""; 0], "{file}: the base");
        for case in content["cases"].as_array().unwrap() {
            let new = if case["object"].is_object() { &case["object"] } else { base };
            let old = case.get("from").map(|patch| patched(base, patch));
            let via = case["via"].as_str().unwrap_or("");
            let got = errors_of(patched(new, &case["with"]), old, via);
            let expected: Vec<&str> = case["errors"]
                .as_array()
                .unwrap()
                .iter()
                .map(|line| line.as_str().unwrap())
                .collect();
            if let Some(expected) = case.get("warnings") {
                let new = decoded(patched(new, &case["with"]));
                let got = (resource_of(&new).rules.warnings)(&new);
                if json!(got) != *expected {
                    wrong.push(format!("{file}: {}: warns {got:#?}", case["name"]));
                }
            }
            refused += usize::from(!expected.is_empty());
            if heads(&got) != expected {
                wrong.push(format!(
                    "{file}: {}\n  got      {got:#?}\n  expected {expected:#?}",
                    case["name"]
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{} cases:\n{}", wrong.len(), wrong.join("\n"));
    assert!(wrong.is_empty(), "{} cases:\n{}", wrong.len(), wrong.join("\n"));
    assert!(refused >= 80, "only {refused} refusals");
}

/// What the API server allocates before it validates, where a Service leaves it open.
fn allocated(mut object: Value) -> Value {
    let spec = &mut object["spec"];
    if spec["type"] != "ExternalName" && spec["clusterIP"].is_null() {
        spec["clusterIP"] = json!("10.96.0.10");
    }
    if let Some(ip) = spec["clusterIP"].as_str().map(str::to_owned) {
        spec["clusterIPs"] = json!([ip]);
        spec["ipFamilies"] = json!(["IPv4"]);
        spec["ipFamilyPolicy"] = json!("SingleStack");
    }
    if spec["type"] == "LoadBalancer" && spec["externalTrafficPolicy"] == "Local" {
        spec["healthCheckNodePort"] = json!(30999);
    }
    object
}

/// The manifests below a directory.
fn manifests(directory: &Path) -> Vec<(String, Value)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(manifests(&path));
        } else if path.extension().is_some_and(|extension| extension == "yaml") {
            let name = path.display().to_string();
            let text = fs::read_to_string(&path).unwrap();
            let documents: Vec<Value> = serde_saphyr::from_multiple(&text)
                .unwrap_or_else(|error| panic!("{name}: {error}"));
            found.extend(documents.into_iter().map(|object| (name.clone(), object)));
        }
    }
    found
}

#[test]
fn what_people_write_is_accepted() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut all = manifests(&root.join("cases/accepted"));
    all.extend(manifests(&root.join("../../examples")));
    all.retain(|(_, object)| object["kind"].is_string());
    assert!(all.len() >= 30, "only {} manifests", all.len());
    for (name, object) in all {
        let what = format!("{name}: {} {}", object["kind"], object["metadata"]["name"]);
        let object = if object["kind"] == "Service" { allocated(object) } else { object };
        assert_eq!(errors_of(object.clone(), None, ""), [""; 0], "{what}");
        assert_eq!(errors_of(object.clone(), Some(object), ""), [""; 0], "{what}, written again");
    }
}
