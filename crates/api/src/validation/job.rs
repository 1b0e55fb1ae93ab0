//! Jobs and CronJobs. Upstream: `pkg/apis/batch/validation`.

use serde_json::{Value, json};

use super::at::{At, immutable};
use super::{meta, pod};
use crate::field::FieldError;
use crate::selector::LabelSelector;

/// Characters of a CronJob's name; its Jobs append eleven.
const CRON_JOB_NAME_MAX: usize = 52;

/// Checks a new Job.
pub(crate) fn create(object: &Value) -> Vec<FieldError> {
    let mut errors = meta::create(object, true, meta::SUBDOMAIN);
    let spec = At::root(object).get("spec");
    errors.extend(content(&spec));
    if !spec.get("selector").is_set() {
        errors.push(spec.get("selector").required(""));
    }
    let labels = spec.get("template.metadata.labels");
    let parsed = LabelSelector::of_value(spec.get("selector").value).unwrap_or_default();
    if !parsed.matches_value(labels.value) {
        errors.push(labels.invalid("`selector` does not match template `labels`"));
    }
    errors
}

/// Checks a changed Job.
pub(crate) fn update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = meta::update(new, old);
    let (spec, before) = (At::root(new).get("spec"), At::root(old).get("spec"));
    errors.extend(content(&spec));
    if spec.get("completionMode").text() != "Indexed" {
        errors.extend(immutable(&spec.get("completions"), &before.get("completions")));
    }
    let suspended = before.get("suspend").is_true() && !old["status"]["startTime"].is_string();
    for field in
        ["selector", "template", "completionMode", "podFailurePolicy", "backoffLimitPerIndex"]
    {
        if field == "template" && suspended {
            continue;
        }
        errors.extend(immutable(&spec.get(field), &before.get(field)));
    }
    errors
}

fn content(spec: &At<'_>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for field in [
        "parallelism",
        "completions",
        "activeDeadlineSeconds",
        "backoffLimit",
        "ttlSecondsAfterFinished",
        "backoffLimitPerIndex",
    ] {
        errors.extend(spec.get(field).non_negative());
    }
    let mode = spec.get("completionMode");
    if mode.is_set() {
        if !["NonIndexed", "Indexed"].contains(&mode.text()) {
            errors.push(mode.unsupported(&["NonIndexed", "Indexed"]));
        }
        if mode.text() == "Indexed" && !spec.get("completions").is_set() {
            let why = "when completion mode is Indexed".to_owned();
            errors.push(spec.get("completions").required(&why));
        }
    }
    let template = spec.get("template");
    errors.extend(pod::template(&template));
    let policy = template.get("spec.restartPolicy");
    match policy.text() {
        "OnFailure" | "Never" => {}
        "" | "Always" => {
            errors.push(policy.required("valid values: \"OnFailure\", \"Never\""));
        }
        _ => errors.push(policy.unsupported(&["OnFailure", "Never"])),
    }
    errors
}

/// Checks a new CronJob.
pub(crate) fn create_cron(object: &Value) -> Vec<FieldError> {
    let mut errors = meta::create(object, true, meta::SUBDOMAIN);
    errors.extend(cron_content(object));
    let name = At::root(object).get("metadata.name");
    if name.text().len() > CRON_JOB_NAME_MAX {
        let why = format!("must be no more than {CRON_JOB_NAME_MAX} characters");
        errors.push(name.invalid(why));
    }
    errors
}

/// Checks a changed CronJob.
pub(crate) fn update_cron(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = meta::update(new, old);
    errors.extend(cron_content(new));
    errors
}

fn cron_content(object: &Value) -> Vec<FieldError> {
    let spec = At::root(object).get("spec");
    let mut errors = Vec::new();
    let schedule = spec.get("schedule");
    if schedule.text().is_empty() {
        errors.push(schedule.required(""));
    } else if let Some(why) = schedule_error(schedule.text()) {
        errors.push(schedule.invalid(why));
    }
    errors.extend(spec.get("startingDeadlineSeconds").non_negative());
    errors.extend(spec.get("concurrencyPolicy").one_of(&["Allow", "Forbid", "Replace"]));
    for field in ["successfulJobsHistoryLimit", "failedJobsHistoryLimit"] {
        errors.extend(spec.get(field).non_negative());
    }
    let job = spec.get("jobTemplate.spec");
    errors.extend(content(&job));
    if job.get("selector").is_set() {
        errors.push(FieldError::invalid_shown(
            job.child("selector"),
            meta::selector_shown(job.get("selector").value),
            "`selector` will be auto-generated",
        ));
    }
    if job.get("manualSelector").is_true() {
        let manual = job.get("manualSelector");
        errors.push(FieldError::unsupported(&*manual.path, &json!(true), &["nil", "false"]));
    }
    errors
}

/// What is wrong with a cron schedule's shape.
fn schedule_error(schedule: &str) -> Option<String> {
    const WORDS: &[&str] =
        &["@yearly", "@annually", "@monthly", "@weekly", "@daily", "@midnight", "@hourly"];
    if let Some(word) = schedule.strip_prefix('@') {
        let known = WORDS.contains(&schedule) || word.starts_with("every ");
        return (!known).then(|| format!("unrecognized descriptor: {schedule}"));
    }
    let fields: Vec<&str> = schedule.split_whitespace().collect();
    if fields.len() != 5 {
        return Some(format!(
            "expected exactly 5 fields, found {}: [{}]",
            fields.len(),
            fields.join(" ")
        ));
    }
    let bounds = [(0, 59), (0, 23), (1, 31), (1, 12), (0, 6)];
    fields.iter().zip(bounds).find_map(|(field, (low, high))| part_error(field, low, high))
}

fn part_error(field: &str, low: u32, high: u32) -> Option<String> {
    for part in field.split(',') {
        let (range, step) = part.split_once('/').unwrap_or((part, "1"));
        if step.parse::<u32>().is_err() {
            return Some(format!(
                "failed to parse int from {step}: strconv.Atoi: parsing {step:?}: invalid syntax"
            ));
        }
        for end in range.split('-').filter(|end| !["*", "?"].contains(end)) {
            if end.bytes().all(|byte| byte.is_ascii_alphabetic()) && end.len() == 3 {
                continue;
            }
            match end.parse::<u32>() {
                Err(_) => {
                    return Some(format!(
                        "failed to parse int from {end}: strconv.Atoi: parsing {end:?}: invalid syntax"
                    ));
                }
                Ok(number) if number < low => {
                    return Some(format!(
                        "beginning of range ({number}) below minimum ({low}): {part}"
                    ));
                }
                Ok(number) if number > high => {
                    return Some(format!("end of range ({number}) above maximum ({high}): {part}"));
                }
                Ok(_) => {}
            }
        }
    }
    None
}

/// Checks a changed status of a Job or CronJob.
pub(crate) fn status(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = meta::update(new, old);
    let status = At::root(new).get("status");
    for field in ["active", "succeeded", "failed", "ready"] {
        errors.extend(status.get(field).non_negative());
    }
    errors
}
