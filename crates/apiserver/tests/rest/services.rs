//! Golden cases of Services, in `cases/services`: one file for each row of rules, steps one after the other.
//!
//! A step creates (`create`), changes by a patch (`patch`, `with`: `merge`, `strategic` or `apply`), writes the status
//! (`status`, a merge patch) or deletes (`delete`) an object, by default a Service of namespace `default`; `kind` chooses
//! another collection. Then `is` is a part of the answer, `lacks` are JSON pointers that it has not, `keeps` those that are as
//! before the step, `same` those that are equal, `error` is the message of the refusal and `warnings` are the warnings.
//! In `is`, `<port>` stands for any node port, `<v4>` and `<v6>` for any address.

use std::fs;
use std::path::Path;

use apiserver::{Config, Server};
use serde_json::{Value, json};

use super::cluster::{Answer, Running};

async fn start(file: &Value) -> Running {
    let directory = tempfile::tempdir().unwrap();
    let mut config = Config::new(directory.path());
    if let Some(cidrs) = file["ranges"].as_array() {
        config.service_cidrs =
            cidrs.iter().map(|cidr| cidr.as_str().unwrap().parse().unwrap()).collect();
    }
    let server = Server::prepare(config).await.unwrap();
    let running = Running { server, _directory: directory };
    let namespace = json!({"metadata": {"name": "default"}});
    assert_eq!(running.post("/api/v1/namespaces", namespace).await.code, 201);
    running
}

fn collection(step: &Value) -> String {
    match step["kind"].as_str() {
        None => "/api/v1/namespaces/default/services".to_owned(),
        Some(cluster) if cluster.starts_with('/') => cluster.to_owned(),
        Some(plural) => format!("/api/v1/namespaces/default/{plural}"),
    }
}

async fn act(running: &Running, step: &Value, dry: &str) -> Answer {
    let all = collection(step);
    let name = step["name"].as_str().unwrap_or("web");
    if step["create"].is_object() {
        let mut object = step["create"].clone();
        if object["metadata"].is_null() {
            object["metadata"] = json!({ "name": name });
        }
        return running.post(&format!("{all}{dry}"), object).await;
    }
    if step["delete"] == true {
        return running.delete(&format!("{all}/{name}{dry}")).await;
    }
    if step["deletecollection"] == true {
        return running.delete(&format!("{all}{dry}")).await;
    }
    if step["get"] == true {
        return running.get(&format!("{all}/{name}")).await;
    }
    if step["status"].is_object() {
        let path = format!("{all}/{name}/status{dry}");
        return running.patch("merge-patch+json", &path, json!({"status": step["status"]})).await;
    }
    match step["with"].as_str().unwrap_or("merge") {
        "apply" => {
            let path = format!("{all}/{name}?fieldManager=test&force=true");
            running.patch("apply-patch+yaml", &path, step["patch"].clone()).await
        }
        kind => {
            let kind = if kind == "strategic" { "strategic-merge" } else { kind };
            let path = format!("{all}/{name}{dry}");
            running.patch(&format!("{kind}-patch+json"), &path, step["patch"].clone()).await
        }
    }
}

/// Where `wanted` is not a part of `found`.
fn differences(wanted: &Value, found: &Value, at: &str, wrong: &mut Vec<String>) {
    let stands_for = match wanted.as_str() {
        Some("<port>") => found.as_u64().is_some_and(|port| (30000..=32767).contains(&port)),
        Some("<v4>") => found.as_str().is_some_and(|ip| ip.parse::<std::net::Ipv4Addr>().is_ok()),
        Some("<v6>") => found.as_str().is_some_and(|ip| ip.parse::<std::net::Ipv6Addr>().is_ok()),
        _ => false,
    };
    match (wanted, found) {
        _ if stands_for || wanted == found => {}
        (Value::Object(fields), Value::Object(_)) => {
            for (field, wanted) in fields {
                differences(wanted, &found[field.as_str()], &format!("{at}.{field}"), wrong);
            }
        }
        (Value::Array(items), Value::Array(others)) if items.len() == others.len() => {
            for (index, (wanted, found)) in items.iter().zip(others).enumerate() {
                differences(wanted, found, &format!("{at}[{index}]"), wrong);
            }
        }
        _ => wrong.push(format!("{at} is {found}, not {wanted}")),
    }
}

fn strings(step: &Value, field: &str) -> Vec<String> {
    let items = step[field].as_array().into_iter().flatten();
    items.map(|item| item.as_str().unwrap().to_owned()).collect()
}

/// What is not as the step says.
fn judge(step: &Value, answer: &Answer, before: &Value) -> Vec<String> {
    let mut wrong = Vec::new();
    let refused = answer.code >= 400;
    match step["error"].as_str() {
        Some(error) if answer.body["message"] == error => {}
        Some(error) => wrong.push(format!("says {}, not {error:?}", answer.body["message"])),
        None if refused => wrong.push(format!("refused: {}", answer.body["message"])),
        None => {}
    }
    let at = |pointer: &str| answer.body.pointer(pointer);
    if step["is"].is_object() {
        differences(&step["is"], &answer.body, "", &mut wrong);
    }
    for pointer in strings(step, "lacks") {
        if let Some(found) = at(&pointer) {
            wrong.push(format!("{pointer} is {found}"));
        }
    }
    for pointer in strings(step, "keeps") {
        if at(&pointer) != before.pointer(&pointer) || at(&pointer).is_none() {
            wrong.push(format!(
                "{pointer} was {:?}, is {:?}",
                before.pointer(&pointer),
                at(&pointer)
            ));
        }
    }
    let same = strings(step, "same");
    if same.iter().any(|pointer| at(pointer) != at(&same[0])) {
        let found: Vec<_> = same.iter().map(|pointer| at(pointer)).collect();
        wrong.push(format!("{same:?} are {found:?}"));
    }
    if step["warnings"].is_array() {
        let headers = answer.headers.get_all("warning").iter();
        let found: Vec<String> = headers.map(|one| one.to_str().unwrap().to_owned()).collect();
        let wanted = strings(step, "warnings").into_iter();
        let wanted: Vec<String> =
            wanted.map(|text| format!("299 - \"{}\"", text.replace('"', "\\\""))).collect();
        if found != wanted {
            wrong.push(format!("warns {found:?}"));
        }
    }
    wrong
}

#[tokio::test]
async fn services_follow_the_rules_row_by_row() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("cases/services");
    let mut paths: Vec<_> =
        fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    let (mut wrong, mut steps) = (Vec::new(), 0);
    for path in paths {
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        let text = fs::read_to_string(&path).unwrap();
        let file: Value =
            serde_saphyr::from_str(&text).unwrap_or_else(|error| panic!("{name}: {error}"));
        let running = start(&file).await;
        let mut before = Value::Null;
        for step in file["steps"].as_array().unwrap() {
            steps += 1;
            let dry = if step["dry"] == true { "?dryRun=All" } else { "" };
            let answer = act(&running, step, dry).await;
            let found = judge(step, &answer, &before);
            let about = step["about"].as_str().unwrap_or_else(|| panic!("{name}: {step}"));
            wrong.extend(found.into_iter().map(|found| format!("{name}: {about}: {found}")));
            if answer.code < 300 && step["dry"] != true && answer.body["kind"] == "Service" {
                before = answer.body;
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(steps >= 80, "only {steps} steps");
}

/// Many at once: names that clash, addresses that clash, a range that is too small, and all of it given back.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn at_once_nobody_gets_what_another_has() {
    let running = std::sync::Arc::new(start(&json!({"ranges": ["10.96.0.0/27"]})).await);
    let services = "/api/v1/namespaces/default/services";
    let round = |round: usize| {
        let tasks = (0..60).map(|number| {
            let running = std::sync::Arc::clone(&running);
            tokio::spawn(async move {
                let name = format!("s{round}-{}", number / 2);
                let address = if number % 5 == 0 { json!("10.96.0.9") } else { json!(null) };
                let service = json!({"metadata": {"name": name}, "spec": {
                    "type": "NodePort", "clusterIP": address, "ports": [{"port": 80}]}});
                running.post(services, service).await.code
            })
        });
        futures_util::future::join_all(tasks)
    };
    for number in 0..3 {
        let codes: Vec<u16> = round(number).await.into_iter().map(Result::unwrap).collect();
        assert!(codes.iter().all(|code| [201, 409, 422, 500].contains(code)), "{codes:?}");
        let list = running.get(services).await.body;
        let items = list["items"].as_array().unwrap();
        let of = |pointer: &str| {
            let all = items.iter().filter_map(|item| item.pointer(pointer).cloned());
            all.map(|value| value.to_string()).collect::<std::collections::BTreeSet<_>>()
        };
        assert_eq!(of("/spec/clusterIP").len(), items.len(), "an address twice: {items:?}");
        assert_eq!(of("/spec/ports/0/nodePort").len(), items.len(), "a port twice: {items:?}");
        let made = codes.iter().filter(|code| **code == 201).count();
        assert_eq!(made, items.len(), "what was acknowledged is there");
        // What the refused ones held is free again: the rest of the 30 addresses can be had.
        let mut more = 0;
        let create = |more: usize| json!({"metadata": {"name": format!("m{more}")}, "spec": {"ports": [{"port": 80}]}});
        while running.post(services, create(more)).await.code == 201 {
            more += 1;
        }
        assert_eq!(made + more, 30, "an address is lost");
        let list = running.get(services).await.body;
        let items = list["items"].as_array().unwrap();
        for name in items.iter().filter_map(|item| item["metadata"]["name"].as_str()) {
            assert_eq!(running.delete(&format!("{services}/{name}")).await.code, 200);
        }
    }
}
