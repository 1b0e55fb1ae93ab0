//! Quantities as numbers, and what a pod requests. Upstream counterpart: `k8s.io/component-helpers/resource`.

use std::collections::BTreeMap;

use api::Quantity;
use api::core::{Container, Pod};

/// Amounts by resource name, in thousandths of the resource's unit.
pub(super) type Amounts = BTreeMap<String, i128>;

/// A quantity in thousandths, rounded up; malformed ones count as 0 (the API refuses them).
#[must_use]
pub fn milli(quantity: &Quantity) -> i128 {
    let text = quantity.0.trim();
    let end = text.find(|one: char| !one.is_ascii_digit() && !".+-".contains(one));
    let (number, suffix) = text.split_at(end.unwrap_or(text.len()));
    let (numerator, denominator): (i128, i128) = match suffix {
        "n" => (1, 1_000_000),
        "u" => (1, 1_000),
        "m" => (1, 1),
        "" => (1_000, 1),
        "k" => (1_000_000, 1),
        "M" => (1_000_000_000, 1),
        "G" => (1_000_000_000_000, 1),
        "T" => (1_000_000_000_000_000, 1),
        "P" => (1_000_000_000_000_000_000, 1),
        "E" => (1_000_000_000_000_000_000_000, 1),
        "Ki" => (1_000 << 10, 1),
        "Mi" => (1_000 << 20, 1),
        "Gi" => (1_000 << 30, 1),
        "Ti" => (1_000 << 40, 1),
        "Pi" => (1_000 << 50, 1),
        "Ei" => (1_000 << 60, 1),
        _ => match suffix.strip_prefix(['e', 'E']).and_then(|text| text.parse::<i32>().ok()) {
            Some(exponent) if (0..=18).contains(&exponent) => {
                (1_000 * 10_i128.pow(exponent.unsigned_abs()), 1)
            }
            Some(exponent) if (-18..0).contains(&exponent) => {
                (1_000, 10_i128.pow(exponent.unsigned_abs()))
            }
            _ => return 0,
        },
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let fraction = fraction.get(..fraction.len().min(9)).unwrap_or("");
    let scale = 10_i128.pow(u32::try_from(fraction.len()).unwrap_or(0));
    let Ok(digits) = format!("{whole}{fraction}").parse::<i128>() else { return 0 };
    let Some(product) = digits.checked_mul(numerator) else { return 0 };
    let divisor = scale * denominator;
    product.div_euclid(divisor) + i128::from(product.rem_euclid(divisor) > 0)
}

/// Quantities by name as amounts.
pub(super) fn amounts(quantities: Option<&BTreeMap<String, Quantity>>) -> Amounts {
    quantities.into_iter().flatten().map(|(name, one)| (name.clone(), milli(one))).collect()
}

/// Adds amounts.
pub(super) fn add(total: &mut Amounts, more: &Amounts) {
    for (name, amount) in more {
        *total.entry(name.clone()).or_default() += amount;
    }
}

fn raise(total: &mut Amounts, other: &Amounts) {
    for (name, amount) in other {
        let entry = total.entry(name.clone()).or_default();
        *entry = (*entry).max(*amount);
    }
}

fn container(container: &Container) -> Amounts {
    amounts(container.resources.as_ref().and_then(|resources| resources.requests.as_ref()))
}

/// What the pod requests: the larger of its containers' sum and each init step, sidecars in both, and the overhead.
pub(super) fn requests(pod: &Pod) -> Amounts {
    let Some(spec) = &pod.spec else { return Amounts::new() };
    let mut total = Amounts::new();
    spec.containers.iter().for_each(|one| add(&mut total, &container(one)));
    let (mut sidecars, mut init) = (Amounts::new(), Amounts::new());
    for one in spec.init_containers.iter().flatten() {
        let own = container(one);
        if one.restart_policy.as_deref() == Some("Always") {
            add(&mut total, &own);
            add(&mut sidecars, &own);
            raise(&mut init, &sidecars);
        } else {
            let mut step = sidecars.clone();
            add(&mut step, &own);
            raise(&mut init, &step);
        }
    }
    raise(&mut total, &init);
    if let Some(resources) = &spec.resources {
        total.extend(amounts(resources.requests.as_ref()));
    }
    add(&mut total, &amounts(spec.overhead.as_ref()));
    total
}
