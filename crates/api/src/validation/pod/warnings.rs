//! Warnings about annotations of pods and their templates that nothing heeds.

use serde_json::Value;

use crate::pod::ROLLOUT_GUARD;

/// What to tell the author of a pod.
pub(crate) fn warnings(pod: &Value) -> Vec<String> {
    guard("", pod)
}

/// The same for a pod template by itself.
pub(crate) fn of_template(object: &Value) -> Vec<String> {
    guard("template.", &object["template"])
}

/// The same for a workload's template.
pub(crate) fn of_workload(object: &Value) -> Vec<String> {
    guard("spec.template.", &object["spec"]["template"])
}

/// The same for the template of a CronJob's Jobs.
pub(crate) fn of_cron_job(object: &Value) -> Vec<String> {
    guard("spec.jobTemplate.spec.template.", &object["spec"]["jobTemplate"]["spec"]["template"])
}

fn guard(at: &str, pod: &Value) -> Vec<String> {
    let text = pod["metadata"]["annotations"].get(ROLLOUT_GUARD).and_then(Value::as_str);
    let wrong = text.filter(|text| *text != "off" && crate::duration::parse(text).is_none());
    let warn = |text| {
        format!(
            "{at}metadata.annotations[{ROLLOUT_GUARD}]: {text:?} is neither \"off\" nor a time such as \"2s\"; the default is used"
        )
    };
    wrong.map(warn).into_iter().collect()
}
