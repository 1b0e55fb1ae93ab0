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
    } else if schedule.text().contains("TZ") {
        let why = "cannot use TZ or CRON_TZ in schedule, use timeZone field instead";
        errors.push(schedule.invalid(why));
    } else if let Some(why) = schedule_error(schedule.text()) {
        errors.push(schedule.invalid(why));
    }
    let zone = spec.get("timeZone");
    if zone.is_set() && zone.text().is_empty() {
        errors.push(zone.invalid("timeZone must be nil or non-empty string"));
    } else if zone.text().eq_ignore_ascii_case("local") {
        errors.push(zone.invalid(
            "timeZone must be an explicit time zone as defined in https://www.iana.org/time-zones",
        ));
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
    fields.iter().zip(FIELDS).find_map(|(field, unit)| {
        field.split(',').filter(|part| !part.is_empty()).find_map(|part| part_error(part, unit))
    })
}

/// One of the five fields of a schedule: bounds, and names for numbers from the lower bound on.
struct Field {
    low: u32,
    high: u32,
    names: &'static [&'static str],
}

const FIELDS: [&Field; 5] = [
    &Field { low: 0, high: 59, names: &[] },
    &Field { low: 0, high: 23, names: &[] },
    &Field { low: 1, high: 31, names: &[] },
    &Field {
        low: 1,
        high: 12,
        names: &[
            "jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec",
        ],
    },
    &Field { low: 0, high: 6, names: &["sun", "mon", "tue", "wed", "thu", "fri", "sat"] },
];

impl Field {
    /// A number or a name.
    fn number(&self, text: &str) -> Result<u32, String> {
        let lower = text.to_lowercase();
        let known = (self.low..).zip(self.names).find(|(_, name)| **name == lower);
        known.map_or_else(|| integer(text), |(number, _)| Ok(number))
    }
}

fn integer(text: &str) -> Result<u32, String> {
    match text.parse::<i64>() {
        Ok(number) => u32::try_from(number)
            .map_err(|_| format!("negative number ({number}) not allowed: {text}")),
        Err(_) => Err(format!(
            "failed to parse int from {text}: strconv.Atoi: parsing {text:?}: invalid syntax"
        )),
    }
}

/// What is wrong with `start[-end][/step]`, `*` or `?`.
fn part_error(part: &str, unit: &Field) -> Option<String> {
    let (range, step) = match part.split('/').collect::<Vec<_>>()[..] {
        [range] => (range, None),
        [range, step] => (range, Some(step)),
        _ => return Some(format!("too many slashes: {part}")),
    };
    let ends: Vec<&str> = range.split('-').collect();
    let bounds = match ends[..] {
        ["*" | "?", ..] => Ok((unit.low, unit.high)),
        [only] => {
            unit.number(only).map(|start| (start, if step.is_some() { unit.high } else { start }))
        }
        [start, end] => {
            unit.number(start).and_then(|start| unit.number(end).map(|end| (start, end)))
        }
        _ => Err(format!("too many hyphens: {part}")),
    };
    let parsed = bounds.and_then(|bounds| step.map_or(Ok(1), integer).map(|step| (bounds, step)));
    let ((start, end), step) = match parsed {
        Ok(parsed) => parsed,
        Err(why) => return Some(why),
    };
    let (low, high) = (unit.low, unit.high);
    if start < low {
        Some(format!("beginning of range ({start}) below minimum ({low}): {part}"))
    } else if end > high {
        Some(format!("end of range ({end}) above maximum ({high}): {part}"))
    } else if start > end {
        Some(format!("beginning of range ({start}) beyond end of range ({end}): {part}"))
    } else {
        (step == 0).then(|| format!("step of range should be a positive number: {part}"))
    }
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
