//! Golden cases of the words: objects and questions in, explanations out.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use api::Name;

use super::kernel::{VIRTUAL_SERVER, differences, planned};
use super::{
    Cluster, Facts, Frontend, Held, Listener, Manifests, Question, Told, difference, explain,
    exposed,
};
use crate::proxy::{Mode, Settings};
use crate::service::Protocol;

/// Facts of nodes as a case's file has them.
#[derive(Default, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Known {
    kernels: BTreeMap<String, Held>,
    listeners: BTreeMap<String, Vec<Listener>>,
}

fn cluster(text: &str) -> Cluster {
    let base = Cluster {
        domain: "cluster.local".to_owned(),
        service_cidrs: vec!["10.96.0.0/12".parse().unwrap()],
        ..Cluster::default()
    };
    over(base, text)
}

fn over(base: Cluster, text: &str) -> Cluster {
    let mut manifests = Manifests::over(base, "default");
    for document in text.split("\n---\n") {
        manifests.add(serde_saphyr::from_str(document).unwrap()).unwrap();
    }
    manifests.cluster().unwrap()
}

fn facts(case: &Path) -> Facts {
    let Ok(text) = fs::read_to_string(case.join("facts.yaml")) else { return Facts::default() };
    let known: Known = serde_saphyr::from_str(&text).unwrap();
    let name = |text: &str| {
        let (namespace, name) = text.split_once('/').unwrap();
        Name::new(namespace, name)
    };
    let listeners = known.listeners.into_iter();
    Facts {
        kernels: known.kernels.into_iter().map(|(node, held)| (node, Ok(held))).collect(),
        listeners: listeners.map(|(pod, all)| (name(&pod), Ok(all))).collect(),
    }
}

#[test]
fn cases_are_explained_as_reviewed() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("cases/explain");
    for case in fs::read_dir(folder).unwrap() {
        let case = case.unwrap().path();
        let cluster = cluster(&fs::read_to_string(case.join("objects.yaml")).unwrap());
        let facts = facts(&case);
        let questions = fs::read_to_string(case.join("questions.txt")).unwrap();
        let mut told = String::new();
        for line in questions.lines().filter(|line| !line.is_empty()) {
            let words: Vec<&str> = line.split_whitespace().collect();
            let mut question = Question::parse(words[0], words[1], "default").unwrap();
            question.node = words.get(2).map(ToString::to_string);
            let explanation = explain(&cluster, &question, &facts);
            writeln!(told, "$ rhumb explain {line}\n{}", explanation.text()).unwrap();
        }
        reviewed(&case.join("explained.txt"), &told);
        let open = serde_json::to_string_pretty(&exposed(&cluster)).unwrap();
        reviewed(&case.join("exposed.json"), &open);
        let Ok(after) = fs::read_to_string(case.join("after.yaml")) else { continue };
        let found = difference(&cluster, &over(cluster.clone(), &after));
        let found = serde_json::to_string_pretty(&found).unwrap();
        reviewed(&case.join("difference.json"), &found);
    }
}

fn reviewed(file: &Path, told: &str) {
    if std::env::var_os("BLESS").is_some() {
        fs::write(file, told).unwrap();
    }
    let expected = fs::read_to_string(file).unwrap_or_default();
    assert_eq!(told, expected, "{}; BLESS=1 rewrites", file.display());
}

#[test]
fn nodes_that_did_not_answer_are_named() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("cases/explain/services");
    let mut cluster = cluster(&fs::read_to_string(folder.join("objects.yaml")).unwrap());
    let questions = fs::read_to_string(folder.join("questions.txt")).unwrap();
    let words: Vec<&str> = questions.split_whitespace().take(2).collect();
    let question = Question::parse(words[0], words[1], "default").unwrap();
    let text = |cluster: &Cluster| explain(cluster, &question, &Facts::default()).text();
    assert!(!text(&cluster).contains("no answer"));
    cluster.unheard = (1..=7).map(|number| format!("n{number}")).collect();
    let line = "agents     no answer from n1, n2, n3, n4, n5 and 2 more: the defaults";
    assert!(text(&cluster).contains(line), "{}", text(&cluster));
}

#[test]
fn the_same_manifests_again_change_nothing() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("cases/explain");
    for case in fs::read_dir(folder).unwrap() {
        let text = fs::read_to_string(case.unwrap().path().join("objects.yaml")).unwrap();
        let cluster = cluster(&text);
        let found = difference(&cluster, &over(cluster.clone(), &text));
        assert!(found.is_empty(), "{found:?}");
    }
}

#[test]
fn in_mode_ipvs_the_virtual_server_is_compared() {
    let case = Path::new(env!("CARGO_MANIFEST_DIR")).join("cases/explain/tampered");
    let mut cluster = cluster(&fs::read_to_string(case.join("objects.yaml")).unwrap());
    let settings = Settings { mode: Mode::Ipvs, ..cluster.settings("n1") };
    cluster.told.insert("n1".to_owned(), Told { settings, ..Told::default() });
    let frontend = Frontend { address: "10.96.12.7:80".parse().unwrap(), protocol: Protocol::Tcp };
    let planned = planned(&cluster, "n1", frontend);
    let mut held = planned.clone();
    assert!(differences(&planned, &held).is_empty());
    let server = held.get_mut(VIRTUAL_SERVER).unwrap();
    server.insert("scheduler".to_owned(), "sh".to_owned());
    server.retain(|key, _| key == "scheduler");
    let found = differences(&planned, &held);
    assert!(
        found.contains(&"the virtual server has scheduler : sh, not rr".to_owned()),
        "{found:?}"
    );
    let lacks = found.iter().any(|words| words.starts_with("the virtual server lacks 10.244."));
    assert!(lacks, "{found:?}");
}
