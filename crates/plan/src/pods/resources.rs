//! Requests and limits: quality of service, control group values, values for the downward API.
//! Upstream: `pkg/apis/core/helper/qos`, `pkg/kubelet/cm/helpers_linux.go`, `pkg/kubelet/qos/policy.go`.

use std::collections::BTreeMap;

use api::Quantity;
use api::core::{Container, PodSpec};

/// CPU time is given out in periods of this many microseconds.
pub const CPU_PERIOD_US: u64 = 100_000;

/// Limits of a control group; zero is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Weight: 1024 for one core.
    pub cpu_shares: u64,
    /// CPU time for each period, microseconds.
    pub cpu_quota_us: i64,
    /// Memory, bytes.
    pub memory_bytes: i64,
}

/// A quantity in thousandths; `None` when it does not parse. Exact up to 2^63 units, rounded up below one thousandth.
#[must_use]
pub fn millis(quantity: &Quantity) -> Option<i128> {
    let text = quantity.0.trim();
    let end = text.find(|c: char| !(c.is_ascii_digit() || ".+-".contains(c))).unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let negative = whole.starts_with('-');
    let digits = format!("{}{fraction}", whole.trim_start_matches(['+', '-']));
    let value: i128 = digits.parse().ok()?;
    let (multiply, divide) = scale(suffix)?;
    let divide = divide.checked_mul(10_i128.checked_pow(u32::try_from(fraction.len()).ok()?)?)?;
    let scaled = value.checked_mul(multiply)?.checked_mul(1000)?;
    let rounded = (scaled + divide - 1).checked_div(divide)?;
    Some(if negative { -rounded } else { rounded })
}

/// Factor and divisor of a suffix.
fn scale(suffix: &str) -> Option<(i128, i128)> {
    let decimal = |power: u32| Some((10_i128.pow(power), 1));
    let binary = |power: u32| Some((1024_i128.pow(power), 1));
    match suffix {
        "" => Some((1, 1)),
        "n" => Some((1, 1_000_000_000)),
        "u" => Some((1, 1_000_000)),
        "m" => Some((1, 1000)),
        "k" => decimal(3),
        "M" => decimal(6),
        "G" => decimal(9),
        "T" => decimal(12),
        "P" => decimal(15),
        "E" => decimal(18),
        "Ki" => binary(1),
        "Mi" => binary(2),
        "Gi" => binary(3),
        "Ti" => binary(4),
        "Pi" => binary(5),
        "Ei" => binary(6),
        exponent => {
            let power: i32 = exponent.strip_prefix(['e', 'E'])?.parse().ok()?;
            let factor = 10_i128.checked_pow(power.unsigned_abs())?;
            Some(if power < 0 { (1, factor) } else { (factor, 1) })
        }
    }
}

fn amount(list: Option<&BTreeMap<String, Quantity>>, name: &str) -> Option<i128> {
    list?.get(name).and_then(millis)
}

/// A request in thousandths: the request, or the limit when there is no request.
#[must_use]
pub fn request(container: &Container, name: &str) -> Option<i128> {
    let resources = container.resources.as_ref()?;
    amount(resources.requests.as_ref(), name).or_else(|| amount(resources.limits.as_ref(), name))
}

/// A limit in thousandths.
#[must_use]
pub fn limit(container: &Container, name: &str) -> Option<i128> {
    amount(container.resources.as_ref()?.limits.as_ref(), name)
}

/// `Guaranteed`, `Burstable` or `BestEffort`.
#[must_use]
pub fn qos_class(spec: &PodSpec) -> &'static str {
    let all = || spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let positive = |value: Option<i128>| value.is_some_and(|value| value > 0);
    let names = ["cpu", "memory"];
    let any = all().any(|container| {
        names
            .iter()
            .any(|name| positive(request(container, name)) || positive(limit(container, name)))
    });
    if !any {
        return "BestEffort";
    }
    let guaranteed = all().all(|container| {
        names.iter().all(|name| {
            positive(limit(container, name)) && request(container, name) == limit(container, name)
        })
    });
    if guaranteed { "Guaranteed" } else { "Burstable" }
}

fn limits(cpu_request: i128, cpu_limit: Option<i128>, memory: Option<i128>) -> Limits {
    let shares = (cpu_request * 1024 / 1000).clamp(2, 262_144);
    let quota = cpu_limit.map_or(0, |limit| (limit * i128::from(CPU_PERIOD_US) / 1000).max(1000));
    Limits {
        cpu_shares: u64::try_from(shares).unwrap_or(2),
        cpu_quota_us: i64::try_from(quota).unwrap_or(0),
        memory_bytes: memory.and_then(|bytes| i64::try_from(bytes / 1000).ok()).unwrap_or(0),
    }
}

/// What a container's control group gets.
#[must_use]
pub fn container_limits(container: &Container) -> Limits {
    let request = request(container, "cpu").unwrap_or(0);
    limits(request, limit(container, "cpu"), limit(container, "memory"))
}

/// What the pod's control group gets: limits only when every container has one.
#[must_use]
pub fn pod_limits(spec: &PodSpec) -> Limits {
    let sum = |of: &dyn Fn(&Container) -> Option<i128>| -> Option<i128> {
        let mains = spec.containers.iter().map(of).try_fold(0, |sum, value| Some(sum + value?))?;
        let mut inits = spec.init_containers.iter().flatten().map(of);
        inits.try_fold(mains, |most, value| Some(most.max(value?)))
    };
    let cpu = sum(&|container| Some(request(container, "cpu").unwrap_or(0))).unwrap_or(0);
    limits(cpu, sum(&|c| limit(c, "cpu")), sum(&|c| limit(c, "memory")))
}

/// How readily the kernel kills a container when memory runs out. `memory_bytes` is the node's.
#[must_use]
pub fn oom_score_adj(spec: &PodSpec, container: &Container, memory_bytes: i64) -> i32 {
    match qos_class(spec) {
        "Guaranteed" => -997,
        "BestEffort" => 1000,
        _ => {
            let request = request(container, "memory").unwrap_or(0) / 1000;
            let share = 1000 * request / i128::from(memory_bytes.max(1));
            i32::try_from((1000 - share).clamp(3, 999)).unwrap_or(999)
        }
    }
}

/// The value of a `resourceFieldRef` such as `limits.memory`; `node` has what applies without a limit.
///
/// # Errors
/// When the resource is unknown, in upstream's words.
pub fn field(
    container: &Container,
    resource: &str,
    divisor: Option<&Quantity>,
    node: &BTreeMap<String, Quantity>,
) -> Result<String, String> {
    let unsupported = || format!("unsupported container resource : {resource}");
    let (which, name) = resource.split_once('.').ok_or_else(unsupported)?;
    let allocatable = || amount(Some(node), name);
    let value = match which {
        "limits" => limit(container, name).filter(|value| *value > 0).or_else(allocatable),
        "requests" => request(container, name),
        _ => return Err(unsupported()),
    };
    let divisor = divisor.and_then(millis).filter(|value| *value > 0).unwrap_or(1000);
    let value = value.unwrap_or(0);
    Ok(((value + divisor - 1) / divisor).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_in_thousandths() {
        let cases = [
            ("1", 1000),
            ("100m", 100),
            ("1.5", 1500),
            ("1Ki", 1_024_000),
            ("0.5Gi", 536_870_912_000),
            ("2e3", 2_000_000),
            ("1n", 1),
        ];
        for (text, value) in cases {
            assert_eq!(millis(&Quantity(text.to_owned())), Some(value), "{text}");
        }
        assert_eq!(millis(&Quantity("abc".to_owned())), None);
    }

    #[test]
    fn a_missing_limit_is_the_nodes() {
        let node = BTreeMap::from([("cpu".to_owned(), Quantity("4".to_owned()))]);
        let container = Container::default();
        assert_eq!(field(&container, "limits.cpu", None, &node), Ok("4".to_owned()));
        let milli = Quantity("1m".to_owned());
        assert_eq!(field(&container, "limits.cpu", Some(&milli), &node), Ok("4000".to_owned()));
        assert_eq!(field(&container, "requests.cpu", None, &node), Ok("0".to_owned()));
    }
}
