//! Counters with upstream's names, in the Prometheus text format.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

use parking_lot::Mutex;

/// What a request is counted under.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Labels {
    verb: &'static str,
    group: &'static str,
    version: &'static str,
    resource: &'static str,
    subresource: String,
    code: u16,
}

#[derive(Clone, Copy, Debug, Default)]
struct Count {
    requests: u64,
    seconds: f64,
}

/// Counters of one server.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    requests: Mutex<BTreeMap<Labels, Count>>,
}

impl Metrics {
    /// Counts an answered request. `part` is a known subresource or empty, so that the number of counters stays bounded.
    pub(crate) fn count(
        &self,
        verb: &'static str,
        resource: Option<&'static api::resource::Resource>,
        part: &str,
        code: u16,
        took: Duration,
    ) {
        let (group, version, plural) = resource
            .map_or(("", "", ""), |resource| (resource.group, resource.version, resource.plural));
        let labels =
            Labels { verb, group, version, resource: plural, subresource: part.to_owned(), code };
        let mut requests = self.requests.lock();
        let count = requests.entry(labels).or_default();
        count.requests += 1;
        count.seconds += took.as_secs_f64();
    }

    /// All counters as text.
    pub(crate) fn render(&self) -> String {
        let requests = self.requests.lock();
        let mut text = String::new();
        let mut family = |name: &str,
                          help: &str,
                          kind: &str,
                          value: &dyn Fn(&Count) -> String,
                          suffix: &str| {
            if !help.is_empty() {
                let _infallible = write!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
            }
            for (labels, count) in requests.iter() {
                let Labels { verb, group, version, resource, subresource, code } = labels;
                let verb = verb.to_uppercase();
                let _infallible = writeln!(
                    text,
                    "{name}{suffix}{{code=\"{code}\",group=\"{group}\",resource=\"{resource}\",subresource=\"{subresource}\",verb=\"{verb}\",version=\"{version}\"}} {}",
                    value(count)
                );
            }
        };
        let total = |count: &Count| count.requests.to_string();
        let seconds = |count: &Count| count.seconds.to_string();
        family("apiserver_request_total", "Requests answered.", "counter", &total, "");
        family(
            "apiserver_request_duration_seconds",
            "Time to the head of the answer.",
            "summary",
            &seconds,
            "_sum",
        );
        family("apiserver_request_duration_seconds", "", "", &total, "_count");
        text
    }
}
