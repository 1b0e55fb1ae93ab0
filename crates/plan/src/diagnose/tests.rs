//! Golden cases: objects in, for each Service what is said of it out. Slices of selectors are planned, not written.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use api::core::{Event, Node, Pod, Service};
use api::discovery::EndpointSlice;
use api::{Kind, Name, Objects};
use serde_json::Value;

use super::{Evidence, condition, service};
use crate::action::ObjectKind;
use crate::endpointslice::{self, CONTROLLER, MANAGED_BY};
use crate::objects::label;
use crate::world::World;

/// Everything of one case, with the slices that the controller would write.
struct Case {
    world: World,
    events: Objects<Event>,
}

fn case(folder: &Path) -> Case {
    let text = fs::read_to_string(folder.join("objects.yaml")).unwrap();
    let (mut world, mut events) = (World::at(1000), Objects::new());
    for document in text.split("\n---\n") {
        let mut object: Value = serde_saphyr::from_str(document).unwrap();
        let kind = object["kind"].as_str().unwrap().to_owned();
        if kind != "Node" && object["metadata"]["namespace"].is_null() {
            object["metadata"]["namespace"] = "default".into();
        }
        match kind.as_str() {
            "Service" => drop(world.add::<Service>(object)),
            "Pod" => drop(world.add::<Pod>(object)),
            "Node" => drop(world.add::<Node>(object)),
            "EndpointSlice" => drop(world.add::<EndpointSlice>(object)),
            "Event" => {
                let event: Event = serde_json::from_value(object).unwrap();
                events.insert(event.object_name(), Arc::new(event));
            }
            other => panic!("{other}"),
        }
    }
    for name in world.all::<Service>().keys() {
        let planned = endpointslice::plan(
            &endpointslice::Snapshot {
                services: world.all(),
                pods: world.all(),
                slices: world.all(),
                nodes: world.all(),
            },
            name,
        );
        world.apply(planned);
    }
    Case { world, events }
}

fn told(case: &Case) -> String {
    let mut told = String::new();
    let (pods, slices) = (case.world.all(), case.world.all());
    let evidence = Evidence { pods: &pods, slices: &slices, events: &case.events };
    for (name, object) in case.world.all::<Service>() {
        let found = service(&object, &evidence);
        match &found.problem {
            None => writeln!(told, "{name}: works"),
            Some(problem) => {
                let passing = if problem.passing { " (passing)" } else { "" };
                writeln!(told, "{name}: {}{passing}: {}", problem.reason.as_str(), problem.message)
            }
        }
        .unwrap();
        for note in &found.notes {
            writeln!(told, "  note: {note}").unwrap();
        }
    }
    told
}

#[test]
fn services_are_diagnosed_as_reviewed() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("cases/diagnose");
    for entry in fs::read_dir(folder).unwrap() {
        let folder = entry.unwrap().path();
        let told = told(&case(&folder));
        let file = folder.join("diagnosis.txt");
        if std::env::var_os("BLESS").is_some() {
            fs::write(&file, &told).unwrap();
        }
        let expected = fs::read_to_string(&file).unwrap_or_default();
        assert_eq!(told, expected, "{}; BLESS=1 rewrites", file.display());
    }
}

#[test]
fn ready_pods_without_slices_are_said_to_pass() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("cases/diagnose/works");
    let mut case = case(&folder);
    for (name, slice) in case.world.all::<EndpointSlice>() {
        if label(slice.as_ref(), MANAGED_BY) == Some(CONTROLLER) {
            case.world.remove(ObjectKind::EndpointSlice, &name);
        }
    }
    let (pods, slices) = (case.world.all(), case.world.all());
    let evidence = Evidence { pods: &pods, slices: &slices, events: &case.events };
    let web = &case.world.all::<Service>()[&Name::new("default", "web")];
    let problem = service(web, &evidence).problem.unwrap();
    assert!(problem.passing, "{problem:?}");
    assert_eq!(problem.message, "2 pods are ready, but no EndpointSlice lists them");
}

/// One Service `web` with no pods, and what is done about it at each step.
struct Told {
    world: World,
    name: Name,
}

impl Told {
    fn new() -> Self {
        let mut world = World::at(1000);
        world.add::<Node>(serde_json::json!({"metadata": {"name": "n1"}}));
        let name = world.add::<Service>(serde_json::json!({
            "metadata": {"name": "web", "namespace": "a"},
            "spec": {"selector": {"app": "web"}, "ipFamilies": ["IPv4"], "ports": [{"port": 80}]},
        }));
        Self { world, name }
    }

    fn step(&mut self) -> condition::Outcome {
        let snapshot = endpointslice::Snapshot {
            services: self.world.all(),
            pods: self.world.all(),
            slices: self.world.all(),
            nodes: self.world.all(),
        };
        self.world.apply(endpointslice::plan(&snapshot, &self.name));
        let (pods, slices, events) = (self.world.all(), self.world.all(), Objects::new());
        let evidence = Evidence { pods: &pods, slices: &slices, events: &events };
        let service = &self.world.all::<Service>()[&self.name];
        let outcome = condition::plan(service, &evidence, self.world.time());
        let actions = outcome.write.clone().into_iter().collect();
        self.world.apply(crate::action::Plan { actions, again: None });
        outcome
    }

    fn conditions(&self) -> Vec<(String, String, String, i64)> {
        let service = &self.world.all::<Service>()[&self.name];
        let all = service.status.iter().flat_map(|status| status.conditions.iter().flatten());
        all.map(|one| {
            let since = one.last_transition_time.0.as_second();
            (one.type_.clone(), one.status.clone(), one.reason.clone(), since)
        })
        .collect()
    }

    fn pod(&mut self, ready: bool) -> Name {
        let name = self.world.add::<Pod>(serde_json::json!({
            "metadata": {"name": "p", "namespace": "a", "labels": {"app": "web"}},
            "spec": {"nodeName": "n1", "containers": [{"name": "c"}]},
            "status": {"phase": "Running", "podIP": "10.0.0.1"},
        }));
        self.world.set_ready(&name, ready);
        name
    }
}

#[test]
fn trouble_is_told_when_it_lasts_and_again_when_it_is_over() {
    let mut told = Told::new();
    let young = told.step();
    assert_eq!((young.fails, young.write, young.notice), (true, None, None));
    assert_eq!(young.again, Some(std::time::Duration::from_secs(5)));
    told.world.now += 5;
    let notice = told.step().notice.unwrap();
    assert_eq!((notice.warning, notice.reason), (true, "SelectorMatchesNoPods"));
    let reason = |status: &str, reason: &str, since| {
        vec![("EndpointsReady".to_owned(), status.to_owned(), reason.to_owned(), since)]
    };
    assert_eq!(told.conditions(), reason("False", "SelectorMatchesNoPods", 1005));
    assert_eq!(told.step().write, None, "told once");
    told.world.now += 1;
    let pod = told.pod(false);
    told.step();
    assert_eq!(told.conditions(), reason("False", "PodsNotReady", 1005), "false since before");
    told.world.set_ready(&pod, true);
    told.step();
    assert_eq!(told.conditions(), reason("True", "EndpointsReady", 1006));
    assert_eq!(told.step(), condition::Outcome::default());
}

#[test]
fn a_service_that_works_is_not_written_and_others_conditions_stay() {
    let mut told = Told::new();
    let pod = told.pod(true);
    assert_eq!(told.step(), condition::Outcome::default());
    let theirs = serde_json::json!({"status": {"conditions": [{"type": "Theirs", "status": "True",
        "reason": "R", "message": "", "lastTransitionTime": "1970-01-01T00:00:01Z"}]}});
    told.world.edit(ObjectKind::Service, &told.name, &theirs);
    told.world.set_ready(&pod, false);
    assert_eq!(told.step().again, Some(std::time::Duration::from_secs(30)), "it may pass");
    told.world.now += 30;
    told.step();
    let types: Vec<String> = told.conditions().into_iter().map(|one| one.0).collect();
    assert_eq!(types, ["Theirs", "EndpointsReady"]);
}
