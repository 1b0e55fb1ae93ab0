//! Times, policies, limits and events against upstream's.

use serde_json::{Value, json};

use super::*;
use crate::world::World;

/// 2026-07-09 14:00:00 UTC.
const START: i64 = 1_783_605_600;

fn cron(spec: &Value) -> (World, Name) {
    let mut world = World::at(START);
    let name = world.add::<CronJob>(json!({
        "metadata": {"name": "tick", "namespace": "a"},
        "spec": {
            "schedule": "*/5 * * * *", "concurrencyPolicy": "Allow",
            "successfulJobsHistoryLimit": 3, "failedJobsHistoryLimit": 1,
            "jobTemplate": {"metadata": {"labels": {"app": "tick"}}, "spec": {"template": {}}},
        },
    }));
    world.edit(ObjectKind::CronJob, &name, &json!({ "spec": spec }));
    (world, name)
}

/// Plans until nothing changes; when it wants to be asked again.
fn settle(world: &mut World, name: &Name) -> Option<Duration> {
    for _ in 0..8 {
        let snapshot = Snapshot {
            cron_jobs: world.all(),
            jobs: world.all(),
            zones: BTreeMap::from([(
                "Asia/Kolkata".to_owned(),
                TimeZone::get("Asia/Kolkata").unwrap(),
            )]),
            local: TimeZone::UTC,
            now: world.time(),
        };
        let plan = plan(&snapshot, name);
        let again = plan.again;
        if plan.actions.iter().all(|action| matches!(action, Action::Event(_))) {
            world.apply(plan);
            return again;
        }
        world.apply(plan);
    }
    panic!("it does not settle")
}

fn jobs(world: &World) -> Vec<String> {
    world.all::<Job>().keys().map(|name| name.name.to_string()).collect()
}

fn end(world: &mut World, job: &str, type_: &str) {
    let time = world.time();
    let condition = json!([{"type": type_, "status": "True"}]);
    let status = json!({"conditions": condition, "startTime": time, "completionTime": time});
    world.edit(ObjectKind::Job, &Name::new("a", job), &json!({ "status": status }));
}

fn status(world: &World, name: &Name) -> CronJobStatus {
    world.all::<CronJob>()[name].status.clone().unwrap_or_default()
}

/// The name of the Job so many minutes after the start.
fn at(minutes: i64) -> String {
    format!("tick-{}", START / 60 + minutes)
}

#[test]
fn a_job_is_made_at_each_time_and_noted() {
    let (mut world, name) = cron(&json!({}));
    assert_eq!(settle(&mut world, &name), Some(Duration::from_secs(300) + LATE));
    assert_eq!(jobs(&world), [""; 0]);
    world.now += 301;
    assert_eq!(settle(&mut world, &name), Some(Duration::from_secs(299) + LATE));
    assert_eq!(jobs(&world), [at(5)]);
    let job = world.all::<Job>()[&Name::new("a", &at(5))].clone();
    assert_eq!(annotation(job.as_ref(), SCHEDULED), Some("2026-07-09T14:05:00Z"));
    assert_eq!(crate::objects::label(job.as_ref(), "app"), Some("tick"));
    let noted = status(&world, &name);
    assert_eq!(noted.active.map(|active| active.len()), Some(1));
    assert_eq!(noted.last_schedule_time.map(|time| time.0.as_second()), Some(START + 300));
    world.now += 30;
    end(&mut world, &at(5), "Complete");
    settle(&mut world, &name);
    let noted = status(&world, &name);
    assert_eq!(noted.active, None);
    assert_eq!(noted.last_successful_time.map(|time| time.0), Some(world.time()));
    let completed = format!("Saw completed job: {}, condition: Complete", at(5));
    assert_eq!(world.events, [format!("Created job {}", at(5)), completed]);
}

#[test]
fn policies_decide_beside_a_job_that_runs() {
    for (policy, wanted) in
        [("Allow", vec![at(5), at(10)]), ("Forbid", vec![at(5)]), ("Replace", vec![at(10)])]
    {
        let (mut world, name) = cron(&json!({"concurrencyPolicy": policy}));
        for _ in 0..2 {
            world.now += 300;
            settle(&mut world, &name);
        }
        assert_eq!(jobs(&world), wanted, "{policy}");
        let active = status(&world, &name).active.unwrap_or_default();
        assert_eq!(active.len(), wanted.len(), "{policy}");
        assert!(!world.events.concat().contains("missing"), "{:?}", world.events);
        if policy == "Forbid" {
            let told = "Not starting job because prior execution is running and concurrency policy is Forbid";
            assert_eq!(world.events.last().map(String::as_str), Some(told));
            // The time that was skipped is made up for when the Job ends.
            end(&mut world, &at(5), "Complete");
            settle(&mut world, &name);
            assert_eq!(
                jobs(&world),
                [at(10), at(5)]
                    .into_iter()
                    .collect::<std::collections::BTreeSet<_>>()
                    .into_iter()
                    .collect::<Vec<_>>()
            );
        }
    }
}

#[test]
fn old_jobs_go_by_their_limits() {
    let (mut world, name) =
        cron(&json!({"successfulJobsHistoryLimit": 2, "failedJobsHistoryLimit": 1}));
    for round in 1..=6 {
        world.now += 300;
        settle(&mut world, &name);
        end(&mut world, &at(5 * round), if round % 3 == 0 { "Failed" } else { "Complete" });
        settle(&mut world, &name);
    }
    assert_eq!(jobs(&world), [at(20), at(25), at(30)]);
    assert!(world.events.contains(&format!("Deleted job {}", at(15))));
}

#[test]
fn missed_times_are_made_up_for_once_or_given_up() {
    let (mut world, name) = cron(&json!({}));
    world.now += 3600 * 24 * 40;
    settle(&mut world, &name);
    assert_eq!(jobs(&world).len(), 1, "the newest alone");
    assert!(world.events[0].starts_with("too many missed start times."), "{:?}", world.events);
    let (mut world, name) = cron(&json!({"startingDeadlineSeconds": 60}));
    world.now += 420;
    settle(&mut world, &name);
    assert_eq!(jobs(&world), [""; 0], "two minutes late is too late");
    world.now += 200;
    settle(&mut world, &name);
    assert_eq!(jobs(&world), [at(10)]);
}

#[test]
fn what_is_wrong_is_told() {
    for (spec, wanted) in [
        (json!({"suspend": true}), ""),
        (
            json!({"timeZone": "Nowhere/At-All"}),
            "invalid timeZone: \"Nowhere/At-All\": unknown time zone Nowhere/At-All",
        ),
        (json!({"schedule": "whenever"}), "unparseable schedule: \"whenever\""),
    ] {
        let (mut world, name) = cron(&spec);
        world.now += 600;
        assert_eq!(settle(&mut world, &name), None);
        assert_eq!(jobs(&world), [""; 0]);
        assert_eq!(world.events.concat(), wanted);
    }
    let (mut world, name) = cron(&json!({}));
    let owner = world.all::<CronJob>()[&name].as_controller();
    world.add::<Job>(json!({"metadata": {"name": "by-hand", "namespace": "a", "ownerReferences": [owner]}, "spec": {"template": {}}}));
    settle(&mut world, &name);
    assert_eq!(world.events, ["Saw a job that the controller did not create or forgot: by-hand"]);
}

#[test]
fn a_zone_moves_the_time() {
    let (mut world, name) = cron(&json!({"schedule": "0 20 * * *", "timeZone": "Asia/Kolkata"}));
    assert_eq!(settle(&mut world, &name), Some(Duration::from_secs(30 * 60) + LATE));
    world.now += 1800;
    settle(&mut world, &name);
    let job = world.all::<Job>()[&Name::new("a", &at(30))].clone();
    assert_eq!(annotation(job.as_ref(), SCHEDULED), Some("2026-07-09T20:00:00+05:30"));
}
