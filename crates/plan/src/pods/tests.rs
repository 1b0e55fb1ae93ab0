//! The state machine of a pod, step by step, as its worker drives it.

use std::net::IpAddr;

use api::core::{ContainerStatus, Pod, PodCondition};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::backoff::Backoff;
use super::{
    Action, ContainerSeen, NodeFacts, PodPlan, Refusal, Run, RunState, Sandbox, Seen, plan,
};

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_700_000_000 + seconds).unwrap()
}

fn mk_pod(spec: Value) -> Pod {
    serde_json::from_value(json!({
        "metadata": {"name": "p", "namespace": "ns", "uid": "u1", "generation": 1},
        "spec": spec,
    }))
    .unwrap()
}

fn mk_simple() -> Pod {
    mk_pod(json!({"containers": [{"name": "web", "image": "nginx:1"}]}))
}

fn mk_ready() -> Seen {
    Seen {
        sandbox: Sandbox::Ready,
        ips: vec!["10.244.1.2".parse::<IpAddr>().unwrap()],
        start_time: Some(at(0)),
        ..Seen::default()
    }
}

fn mk_running(id: &str, attempt: i32) -> ContainerSeen {
    let state = RunState::Running { started_at: at(1) };
    let run = Run { id: id.to_owned(), attempt, image_id: "sha256:1".to_owned(), state };
    ContainerSeen { run: Some(run), ..ContainerSeen::default() }
}

fn mk_exited(id: &str, attempt: i32, exit_code: i32, finished: i64) -> ContainerSeen {
    let reason = if exit_code == 0 { "Completed" } else { "Error" };
    let state = RunState::Exited {
        started_at: Some(at(1)),
        finished_at: at(finished),
        exit_code,
        reason: reason.to_owned(),
        message: String::new(),
    };
    let run = Run { id: id.to_owned(), attempt, image_id: "sha256:1".to_owned(), state };
    ContainerSeen { run: Some(run), ..ContainerSeen::default() }
}

fn decide(pod: &Pod, seen: &Seen, now: i64) -> PodPlan {
    let node = NodeFacts { ips: vec!["192.0.2.1".parse().unwrap()] };
    plan(pod, seen, &node, at(now))
}

fn phase(plan: &PodPlan) -> &str {
    plan.status.phase.as_deref().unwrap()
}

fn condition<'a>(plan: &'a PodPlan, type_: &str) -> &'a PodCondition {
    plan.status.conditions.iter().flatten().find(|condition| condition.type_ == type_).unwrap()
}

fn first(plan: &PodPlan) -> &ContainerStatus {
    &plan.status.container_statuses.as_ref().unwrap()[0]
}

fn waiting(status: &ContainerStatus) -> (String, String) {
    let waiting = status.state.as_ref().unwrap().waiting.clone().unwrap();
    (waiting.reason.unwrap(), waiting.message.unwrap_or_default())
}

fn starts(plan: &PodPlan) -> Vec<(&str, i32)> {
    plan.actions
        .iter()
        .filter_map(|action| match action {
            Action::Start { container, attempt, .. } => Some((container.as_str(), *attempt)),
            _ => None,
        })
        .collect()
}

fn stops(plan: &PodPlan) -> Vec<(&str, i64)> {
    plan.actions
        .iter()
        .filter_map(|action| match action {
            Action::Stop { container, grace_seconds, .. } => {
                Some((container.as_str(), *grace_seconds))
            }
            _ => None,
        })
        .collect()
}

#[test]
fn a_new_pod_gets_a_sandbox_then_its_container_then_runs() {
    let pod = mk_simple();
    let mut seen = Seen { start_time: Some(at(0)), ..Seen::default() };
    let first_plan = decide(&pod, &seen, 0);
    assert_eq!(first_plan.actions, [Action::Prepare]);
    assert_eq!(phase(&first_plan), "Pending");
    assert_eq!(waiting(first(&first_plan)).0, "ContainerCreating");
    assert_eq!(condition(&first_plan, "PodReadyToStartContainers").status, "False");
    let ready = condition(&first_plan, "Ready");
    assert_eq!(ready.reason.as_deref(), Some("ContainersNotReady"));
    assert_eq!(ready.message.as_deref(), Some("containers with unready status: [web]"));

    seen = mk_ready();
    assert_eq!(starts(&decide(&pod, &seen, 0)), [("web", 0)]);
    seen.containers.entry("web".to_owned()).or_default().starting = true;
    assert!(decide(&pod, &seen, 0).actions.is_empty());

    seen.containers.insert("web".to_owned(), mk_running("c1", 0));
    let done = decide(&pod, &seen, 2);
    assert!(done.actions.is_empty() && done.wake.is_none());
    assert_eq!(phase(&done), "Running");
    assert_eq!(done.status.pod_ip.as_deref(), Some("10.244.1.2"));
    assert_eq!(done.status.host_ip.as_deref(), Some("192.0.2.1"));
    assert_eq!(done.status.qos_class.as_deref(), Some("BestEffort"));
    assert!(first(&done).ready);
    assert_eq!(first(&done).container_id.as_deref(), Some("rhumb://c1"));
    assert_eq!(condition(&done, "Ready").status, "True");
    assert_eq!(condition(&done, "Ready").message, None);
}

#[test]
fn transition_times_stay_while_the_condition_does() {
    let pod = mk_simple();
    let mut seen = mk_ready();
    seen.containers.insert("web".to_owned(), mk_running("c1", 0));
    seen.before = decide(&pod, &seen, 2).status;
    let later = decide(&pod, &seen, 50);
    assert_eq!(later.status, seen.before);
}

#[test]
fn a_crashing_container_backs_off_and_says_so() {
    let pod = mk_simple();
    let mut seen = mk_ready();
    seen.containers.insert("web".to_owned(), mk_exited("c1", 0, 1, 5));
    let restart = decide(&pod, &seen, 5);
    let Action::Start { attempt: 1, crash: Some(crash), .. } = &restart.actions[0] else {
        panic!("the first crash restarts at once: {:?}", restart.actions)
    };
    let mut second = mk_exited("c2", 1, 1, 7);
    second.crash = Some(*crash);
    second.previous = seen.containers["web"].run.clone();
    seen.containers.insert("web".to_owned(), second);
    let waits = decide(&pod, &seen, 8);
    assert!(waits.actions.is_empty());
    assert_eq!(waits.wake, Some(at(17)));
    let (reason, message) = waiting(first(&waits));
    assert_eq!(reason, "CrashLoopBackOff");
    assert_eq!(message, "back-off 10s restarting failed container=web pod=p_ns(u1)");
    let last = first(&waits).last_state.as_ref().unwrap().terminated.as_ref().unwrap();
    assert_eq!((last.exit_code, last.reason.as_deref()), (1, Some("Error")));
    let notice = waits.notices.first().unwrap();
    assert_eq!(notice.message, "Back-off restarting failed container web in pod p_ns(u1)");
    assert_eq!(phase(&waits), "Running");
    assert_eq!(first(&waits).restart_count, 1);
    let again = decide(&pod, &seen, 17);
    assert_eq!(starts(&again), [("web", 2)]);
}

#[test]
fn init_containers_run_one_after_the_other_before_the_others() {
    let pod = mk_pod(json!({
        "initContainers": [{"name": "a"}, {"name": "b"}],
        "containers": [{"name": "web"}],
    }));
    let mut seen = mk_ready();
    let plan = decide(&pod, &seen, 0);
    assert_eq!(starts(&plan), [("a", 0)]);
    assert_eq!(waiting(first(&plan)).0, "PodInitializing");
    let initialized = condition(&plan, "Initialized");
    assert_eq!(initialized.reason.as_deref(), Some("ContainersNotInitialized"));
    assert_eq!(initialized.message.as_deref(), Some("containers with incomplete status: [a b]"));
    seen.containers.insert("a".to_owned(), mk_running("1", 0));
    assert!(decide(&pod, &seen, 0).actions.is_empty());
    seen.containers.insert("a".to_owned(), mk_exited("1", 0, 0, 1));
    assert_eq!(starts(&decide(&pod, &seen, 2)), [("b", 0)]);
    seen.containers.insert("b".to_owned(), mk_exited("2", 0, 0, 3));
    let plan = decide(&pod, &seen, 4);
    assert_eq!(starts(&plan), [("web", 0)]);
    assert_eq!(condition(&plan, "Initialized").status, "True");
    seen.containers.insert("web".to_owned(), mk_running("3", 0));
    assert_eq!(phase(&decide(&pod, &seen, 5)), "Running");
}

#[test]
fn a_sidecar_starts_first_and_stops_last() {
    let mut pod = mk_pod(json!({
        "initContainers": [{"name": "side", "restartPolicy": "Always"}],
        "containers": [{"name": "web"}],
        "terminationGracePeriodSeconds": 5,
    }));
    let mut seen = mk_ready();
    assert_eq!(starts(&decide(&pod, &seen, 0)), [("side", 0)]);
    seen.containers.insert("side".to_owned(), mk_running("1", 0));
    assert_eq!(starts(&decide(&pod, &seen, 0)), [("web", 0)]);
    seen.containers.insert("web".to_owned(), mk_running("2", 0));
    assert_eq!(phase(&decide(&pod, &seen, 0)), "Running");
    pod.metadata.deletion_timestamp = Some(api::meta::Time(at(10)));
    assert_eq!(stops(&decide(&pod, &seen, 10)), [("web", 5)]);
    seen.containers.insert("web".to_owned(), mk_exited("2", 0, 0, 11));
    assert_eq!(stops(&decide(&pod, &seen, 12)), [("side", 5)]);
}

#[test]
fn deletion_stops_closes_removes_and_deletes_in_this_order() {
    let mut pod = mk_simple();
    pod.metadata.deletion_timestamp = Some(api::meta::Time(at(30)));
    pod.metadata.deletion_grace_period_seconds = Some(30);
    let mut seen = mk_ready();
    seen.containers.insert("web".to_owned(), mk_running("c1", 0));
    assert_eq!(stops(&decide(&pod, &seen, 0)), [("web", 30)]);
    seen.containers.get_mut("web").unwrap().stopping = Some(at(30));
    assert!(decide(&pod, &seen, 1).actions.is_empty());
    pod.metadata.deletion_grace_period_seconds = Some(2);
    assert_eq!(stops(&decide(&pod, &seen, 1)), [("web", 2)], "a shorter grace takes over");

    seen.containers.insert("web".to_owned(), mk_exited("c1", 0, 143, 2));
    let closing = decide(&pod, &seen, 3);
    assert_eq!(closing.actions, [Action::Close]);
    assert_eq!(phase(&closing), "Failed");
    assert!(!first(&closing).ready);
    seen.sandbox = Sandbox::Closed;
    assert_eq!(decide(&pod, &seen, 3).actions, [Action::Remove]);
    seen.sandbox = Sandbox::Gone;
    assert_eq!(decide(&pod, &seen, 3).actions, [Action::DeleteObject]);
    seen.orphaned = true;
    assert!(decide(&pod, &seen, 3).actions.is_empty());
}

#[test]
fn a_pod_that_never_restarts_succeeds_or_fails_for_good() {
    let spec = |policy: &str| json!({"restartPolicy": policy, "containers": [{"name": "web"}]});
    for (policy, code, expected, restarted) in [
        ("Never", 0, "Succeeded", false),
        ("Never", 3, "Failed", false),
        ("OnFailure", 0, "Succeeded", false),
        ("OnFailure", 3, "Running", true),
        ("Always", 0, "Running", true),
    ] {
        let pod = mk_pod(spec(policy));
        let mut seen = mk_ready();
        seen.containers.insert("web".to_owned(), mk_exited("c1", 0, code, 5));
        let plan = decide(&pod, &seen, 5);
        assert_eq!(phase(&plan), expected, "{policy} {code}");
        assert_eq!(!starts(&plan).is_empty(), restarted, "{policy} {code}");
        if !restarted {
            assert_eq!(plan.actions, [Action::Close]);
            let reason = if code == 0 { "PodCompleted" } else { "PodFailed" };
            assert_eq!(condition(&plan, "Ready").reason.as_deref(), Some(reason));
        }
    }
}

#[test]
fn a_failed_pull_shows_first_the_error_then_the_back_off() {
    let pod = mk_simple();
    let mut seen = mk_ready();
    let refusal = Refusal {
        reason: "ErrImagePull".to_owned(),
        message: "not found".to_owned(),
        at: at(0),
        retry_at: at(10),
    };
    let pull = Some(Backoff { seconds: 10, raised_at: at(0) });
    let web = ContainerSeen { refusal: Some(refusal), pull, ..ContainerSeen::default() };
    seen.containers.insert("web".to_owned(), web);
    let fresh = decide(&pod, &seen, 1);
    assert_eq!(waiting(first(&fresh)), ("ErrImagePull".to_owned(), "not found".to_owned()));
    assert_eq!(fresh.wake, Some(at(2)));
    let later = decide(&pod, &seen, 3);
    assert_eq!(waiting(first(&later)).0, "ImagePullBackOff");
    assert_eq!(
        waiting(first(&later)).1,
        "Back-off pulling image \"nginx:1\": ErrImagePull: not found"
    );
    assert_eq!(later.wake, Some(at(10)));
    assert_eq!(later.notices.len(), 2);
    assert_eq!(starts(&decide(&pod, &seen, 10)), [("web", 0)]);
}

#[test]
fn probes_gate_readiness_and_restart_the_unhealthy() {
    let pod = mk_pod(json!({"containers": [{
        "name": "web",
        "startupProbe": {"tcpSocket": {"port": 80}},
        "livenessProbe": {"tcpSocket": {"port": 80}, "terminationGracePeriodSeconds": 3},
        "readinessProbe": {"tcpSocket": {"port": 80}},
    }]}));
    let mut seen = mk_ready();
    let mut web = mk_running("c1", 0);
    seen.containers.insert("web".to_owned(), web.clone());
    let plan = decide(&pod, &seen, 2);
    assert_eq!(plan.probes.len(), 1);
    assert_eq!(first(&plan).started, Some(false));
    web.startup = Some(true);
    seen.containers.insert("web".to_owned(), web.clone());
    let plan = decide(&pod, &seen, 3);
    assert_eq!(plan.probes.len(), 2);
    assert_eq!((first(&plan).started, first(&plan).ready), (Some(true), false));
    web.readiness = Some(true);
    seen.containers.insert("web".to_owned(), web.clone());
    assert!(first(&decide(&pod, &seen, 4)).ready);
    web.liveness = Some(false);
    seen.containers.insert("web".to_owned(), web);
    let plan = decide(&pod, &seen, 5);
    let text = "Container web failed liveness probe, will be restarted".to_owned();
    let stop = Action::Stop { container: "web".to_owned(), grace_seconds: 3, message: text };
    assert_eq!(plan.actions, [stop]);
}

#[test]
fn readiness_gates_hold_ready_back() {
    let mut pod = mk_pod(json!({
        "containers": [{"name": "web"}],
        "readinessGates": [{"conditionType": "example.com/ok"}],
    }));
    let mut seen = mk_ready();
    seen.containers.insert("web".to_owned(), mk_running("c1", 0));
    let plan = decide(&pod, &seen, 2);
    let ready = condition(&plan, "Ready");
    assert_eq!(ready.reason.as_deref(), Some("ReadinessGatesNotReady"));
    assert_eq!(
        ready.message.as_deref(),
        Some("corresponding condition of pod readiness gate \"example.com/ok\" does not exist.")
    );
    assert_eq!(condition(&plan, "ContainersReady").status, "True");
    pod.status = serde_json::from_value(json!({
        "conditions": [{"type": "example.com/ok", "status": "True"}],
    }))
    .unwrap();
    let plan = decide(&pod, &seen, 2);
    assert_eq!(condition(&plan, "Ready").status, "True");
    assert_eq!(condition(&plan, "example.com/ok").status, "True", "kept as it is");
}

#[test]
fn a_pod_past_its_deadline_fails_once_its_containers_stopped() {
    let pod = mk_pod(json!({"activeDeadlineSeconds": 60, "containers": [{"name": "web"}]}));
    let mut seen = mk_ready();
    seen.containers.insert("web".to_owned(), mk_running("c1", 0));
    let plan = decide(&pod, &seen, 30);
    assert_eq!(plan.wake, Some(at(60)));
    seen.before = plan.status;
    let plan = decide(&pod, &seen, 60);
    assert_eq!(stops(&plan).len(), 1);
    assert_eq!(phase(&plan), "Running", "not reported as failed while it runs");
    seen.containers.insert("web".to_owned(), mk_exited("c1", 0, 143, 61));
    let plan = decide(&pod, &seen, 62);
    assert_eq!(phase(&plan), "Failed");
    assert_eq!(plan.status.reason.as_deref(), Some("DeadlineExceeded"));
    assert_eq!(plan.actions, [Action::Close]);
}
