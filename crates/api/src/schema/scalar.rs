//! Errors of scalar texts as Go's parsers word them: times, durations, quantities, base64.

pub(super) const QUANTITY_FORMAT: &str =
    "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'";
const QUANTITY_SUFFIX: &str = "unable to parse quantity's suffix";
const SUFFIXES: [&str; 17] =
    ["", "n", "u", "m", "k", "M", "G", "T", "P", "E", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei", "e"];

/// What is wrong with a quantity's text, if anything (`resource.ParseQuantity`).
pub(super) fn quantity_error(text: &str) -> Option<String> {
    let number = text.strip_prefix(['+', '-']).unwrap_or(text);
    let end = number.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(number.len());
    let (digits, suffix) = number.split_at(end);
    let dots = digits.bytes().filter(|byte| *byte == b'.').count();
    if digits.len() == dots || dots > 1 {
        return Some(QUANTITY_FORMAT.to_owned());
    }
    if SUFFIXES[..16].contains(&suffix) {
        return None;
    }
    let exponent =
        suffix.strip_prefix(['e', 'E']).map(|rest| rest.strip_prefix(['+', '-']).unwrap_or(rest));
    match exponent {
        Some(digits) if !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()) => {
            None
        }
        _ if suffix.bytes().all(|byte| b"eEinumkKMGTP+-0123456789".contains(&byte)) => {
            Some(QUANTITY_SUFFIX.to_owned())
        }
        _ => Some(QUANTITY_FORMAT.to_owned()),
    }
}

/// What is wrong with base64 text, if anything (Go's `base64.CorruptInputError`).
pub(super) fn base64_error(text: &str) -> Option<String> {
    let bytes: Vec<(usize, u8)> =
        text.bytes().enumerate().filter(|(_, byte)| !matches!(byte, b'\n' | b'\r')).collect();
    let corrupt = |at: usize| Some(format!("illegal base64 data at input byte {at}"));
    let body = bytes.iter().take_while(|(_, byte)| *byte != b'=').count();
    for (at, byte) in &bytes[..body] {
        if !byte.is_ascii_alphanumeric() && !matches!(byte, b'+' | b'/') {
            return corrupt(*at);
        }
    }
    let padding = bytes.len() - body;
    match (body % 4, padding) {
        (0, 0) | (2, 2) | (3, 1) => None,
        (0 | 1, 1..) => corrupt(bytes[body].0),
        (2 | 3, 1..) => corrupt(bytes.last().map_or(0, |(at, _)| at + 1).min(text.len())),
        _ => corrupt(text.len() - body % 4),
    }
}

/// What is wrong with a duration's text, if anything (Go's `time.ParseDuration`).
pub(super) fn duration_error(text: &str) -> Option<String> {
    let invalid = || Some(format!("time: invalid duration {text:?}"));
    let mut rest = text.strip_prefix(['+', '-']).unwrap_or(text);
    if rest == "0" {
        return None;
    }
    if rest.is_empty() {
        return invalid();
    }
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        if end == 0 {
            return invalid();
        }
        let unit = &rest[end..];
        let unit_end = unit.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(unit.len());
        match &unit[..unit_end] {
            "" => return Some(format!("time: missing unit in duration {text:?}")),
            "ns" | "us" | "µs" | "μs" | "ms" | "s" | "m" | "h" => rest = &unit[unit_end..],
            other => return Some(format!("time: unknown unit {other:?} in duration {text:?}")),
        }
    }
    None
}

/// What is wrong with a time's text, if anything (Go's `time.Parse` with an RFC 3339 layout).
pub(super) fn time_error(text: &str, layout: &str) -> Option<String> {
    let wrong = |rest: &str, element: &str| {
        Some(format!("parsing time {text:?} as {layout:?}: cannot parse {rest:?} as {element:?}"))
    };
    let mut rest = text;
    for element in ["2006", "-", "01", "-", "02", "T", "15", ":", "04", ":", "05"] {
        let number = element.starts_with(|c: char| c.is_ascii_digit());
        let fits = if number {
            rest.len() >= element.len()
                && rest.bytes().take(element.len()).all(|byte| byte.is_ascii_digit())
        } else {
            rest.starts_with(element)
        };
        if !fits {
            return wrong(rest, element);
        }
        rest = &rest[element.len()..];
    }
    if let Some(fraction) = rest.strip_prefix('.') {
        rest = fraction.trim_start_matches(|c: char| c.is_ascii_digit());
    }
    if rest == "Z" {
        return out_of_range(text);
    }
    let offset = rest.as_bytes();
    let shape = offset.len() == 6 && matches!(offset[0], b'+' | b'-') && offset[3] == b':';
    if shape && [1, 2, 4, 5].iter().all(|at| offset[*at].is_ascii_digit()) {
        return out_of_range(text);
    }
    wrong(rest, "Z07:00")
}

/// Fields whose digits fit the layout but not the calendar.
fn out_of_range(text: &str) -> Option<String> {
    let number = |from: usize| {
        text.get(from..from + 2).and_then(|digits| digits.parse::<u8>().ok()).unwrap_or(0)
    };
    let wrong = match (number(5), number(8), number(11), number(14), number(17)) {
        (0 | 13.., ..) => "month",
        (_, 0 | 32.., ..) => "day",
        (_, _, 24.., ..) => "hour",
        (_, _, _, 60.., _) => "minute",
        (.., 60..) => "second",
        _ => return None,
    };
    Some(format!("parsing time {text:?}: {wrong} out of range"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_of_every_form_pass() {
        for good in ["1", "100m", "1.5Gi", "-2", "+3k", "1e3", "1E-3", "0.5", ".5", "5.", "2E"] {
            assert_eq!(quantity_error(good), None, "{good}");
        }
        for bad in ["", "x", "1.2.3", "-", "1 Gi", "."] {
            assert_eq!(quantity_error(bad).as_deref(), Some(QUANTITY_FORMAT), "{bad}");
        }
        assert_eq!(quantity_error("1mm").as_deref(), Some(QUANTITY_SUFFIX));
    }

    #[test]
    fn times_name_the_element_that_does_not_parse() {
        let layout = "2006-01-02T15:04:05Z07:00";
        assert_eq!(time_error("2026-11-21T04:05:06Z", layout), None);
        assert_eq!(time_error("2026-11-21T04:05:06.123+01:00", layout), None);
        assert_eq!(
            time_error("2026-11-21 04:05", layout).as_deref(),
            Some(
                "parsing time \"2026-11-21 04:05\" as \"2006-01-02T15:04:05Z07:00\": cannot parse \" 04:05\" as \"T\""
            )
        );
        assert_eq!(
            time_error("2026-13-21T04:05:06Z", layout).as_deref(),
            Some("parsing time \"2026-13-21T04:05:06Z\": month out of range")
        );
    }

    #[test]
    fn durations_and_base64_follow_go() {
        assert_eq!(duration_error("1h30m"), None);
        assert_eq!(duration_error("5").as_deref(), Some("time: missing unit in duration \"5\""));
        assert_eq!(
            duration_error("5x").as_deref(),
            Some("time: unknown unit \"x\" in duration \"5x\"")
        );
        assert_eq!(base64_error("aGVsbG8="), None);
        assert_eq!(base64_error("aGVs\nbG8="), None);
        assert_eq!(base64_error("a b=").as_deref(), Some("illegal base64 data at input byte 1"));
    }
}
